"""`Lock`: one run at a time writes to a directory of checkpoints."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path

from heptad.checkpoints.files import told
from heptad.errors import CheckpointError

NAME = ".lock"


class Lock:
    """A lock on a file in a directory, which the operating system lets go of when the process ends, however it ends.

    The file stays: removing it would let two runs lock two files of one name. A child made by `fork` (a worker of a
    loader) does not hold it, so that one that outlives its parent does not keep the directory locked.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._release: weakref.finalize[..., Lock] | None = None  # called too when this is forgotten
        self._knows_forks = False

    @property
    def held(self) -> bool:
        """Whether it is held here."""
        return self._release is not None

    def acquire(self) -> None:
        """Takes the lock; the directory must be there.

        Raises:
            CheckpointError: If another process, or another store in this one, holds it; or the file cannot be locked.
        """
        import fcntl  # noqa: PLC0415 - Windows has none: there this package can be imported, and only this cannot be done

        if self.held:
            return
        with told("locking", self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            except OSError as error:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise CheckpointError(self._refusal(holder)) from None
        self._release = weakref.finalize(self, os.close, descriptor)
        if not self._knows_forks:
            self._knows_forks = True
            own = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forget(own()))

    def _refusal(self, holder: str) -> str:
        who = "another Checkpoint in this process" if holder == str(os.getpid()) else f"the process {holder or '?'}"
        return (
            f"{self._path.parent} is in use: {who} writes its checkpoints there; wait for it or end it, or give this "
            "run another directory"
        )

    def release(self) -> None:
        """Lets go of it, if it is held here."""
        release, self._release = self._release, None
        if release is not None:
            release()


def _forget(lock: Lock | None) -> None:
    """In a child: the lock stays with the parent, for the system drops it when the last copy of it is closed."""
    if lock is not None:
        lock.release()
