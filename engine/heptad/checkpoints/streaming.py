"""`HashedStream`: the content of a file, taken in order and hashed, with little of it in memory.

`read_checkpoint` reads each file of tensors through one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator


class HashedStream:
    """Content that comes in parts.

    Args:
        parts: The parts, read as they are needed.

    Attributes:
        size: Bytes that have come so far.
    """

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.size = 0
        self._parts = parts
        self._hash = hashlib.sha256()
        self._left = memoryview(b"")

    def fill(self, memory: memoryview) -> None:
        """Fill memory with the next bytes, or with those that are left."""
        at = 0
        while at < len(memory) and (some := self._some(len(memory) - at)):
            memory[at : at + len(some)] = some
            at += len(some)

    def take(self, size: int) -> bytes:
        """Return the next bytes, or those that are left."""
        found = bytearray()
        while len(found) < size and (some := self._some(size - len(found))):
            found += some
        return bytes(found)

    def skip(self, size: int) -> None:
        """Pass over the next bytes, or those that are left."""
        while size and (some := self._some(size)):
            size -= len(some)

    def finish(self) -> str:
        """Pass over all that is left; return the SHA-256 of the whole."""
        while self._some(len(self._left) or 1):
            pass
        return self._hash.hexdigest()

    def _some(self, most: int) -> memoryview:
        """Return some of the next bytes; none at the end."""
        if not self._left:
            part = next(self._parts, b"")
            self._hash.update(part)
            self.size += len(part)
            self._left = memoryview(part)
        found, self._left = self._left[:most], self._left[most:]
        return found
