"""`Digest`: SHA-256 of what is being written, for large files in a thread of its own."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self

LARGE = 1 << 20
"""Bytes from which on a file is hashed in a second thread while it is written; a thread costs about 0.1 ms."""

_MOST_LAG = 1 << 28
"""Bytes that may have been written and not hashed yet."""


class Digest:
    """SHA-256 of the pieces it is given."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, piece: memoryview) -> None:
        """Add a piece, which must stay as it is until the block ends."""
        self._hash.update(piece)

    def hexdigest(self) -> str:
        """Return the digest, after the block."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class ThreadedDigest(Digest):
    """The same in a thread of its own: hashing and writing both release the interpreter's lock.

    Hashing is the slower of the two, so it lags, and continues while the file is synced. The lag is limited: a copy of
    a tensor that was made for writing is held until it is hashed.

    Where no thread can be started, it hashes each piece at once: Python 3.12.0 and 3.12.1 start none when the main
    thread has ended, and a checkpoint may still be written in the background then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pieces: deque[memoryview] = deque()
        self._lag = 0
        self._ended = False
        self._started = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="heptad-digest", daemon=True)

    def update(self, piece: memoryview) -> None:
        """Queue a piece."""
        if not self._started:
            super().update(piece)
            return
        with self._changed:
            while self._pieces and self._lag + len(piece) > _MOST_LAG:
                self._changed.wait()
            self._pieces.append(piece)
            self._lag += len(piece)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pieces and not self._ended:
                    self._changed.wait()
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
            self._hash.update(piece)
            with self._changed:
                self._lag -= len(piece)
                self._changed.notify()
            del piece  # else it is held while the next one is waited for

    def __enter__(self) -> Self:
        with suppress(RuntimeError):  # "can't start new thread"
            self._thread.start()
            self._started = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._started:
            return
        with self._changed:
            if error is not None:
                self._pieces.clear()  # the file is given up
            self._ended = True
            self._changed.notify()
        self._thread.join()
