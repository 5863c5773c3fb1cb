"""`Lock`: only one run at a time writes to a directory of checkpoints."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from pathlib import Path

from heptad.checkpoints.files import os_errors_explained
from heptad.checkpoints.layout import LOCK
from heptad.errors import CheckpointError

_LENGTH = 20
"""Bytes of the file: the number of the process that holds the lock, and a newline."""

_NO_LOCKS = (
    "checkpoints cannot be written here: the lock on their directory needs Python's module fcntl, which this system "
    "does not have (Windows has none); run on Linux, or leave Checkpoint out"
)


class Lock:
    """A lock on a file in a directory; the operating system releases it when the process ends, however it ends.

    The file is never removed: two runs could then lock two files of one name. It is never cut either, for it may be a
    link to a file of somebody else's. A child made by `fork`, such as a worker of a loader, does not hold the lock, so
    a worker that outlives its parent does not keep the directory locked.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK
        self._release: weakref.finalize[..., Lock] | None = None  # called too when this object is collected
        self._knows_forks = False

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._release is not None

    def acquire(self) -> None:
        """Acquire the lock; the directory must be there.

        Raises:
            CheckpointError: If another process, or another store in this one, holds it; if the file cannot be locked;
                or where Python has no `fcntl`, as on Windows.
        """
        try:
            import fcntl  # noqa: PLC0415 - Windows lacks it, and may import this module all the same
        except ImportError:
            raise CheckpointError(_NO_LOCKS) from None
        if self.held:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # Windows lacks three of them
        with os_errors_explained("locking", self._path):
            descriptor = os.open(self._path, flags, 0o666)  # a pipe is not waited for
            try:
                self._refuse_another_file(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode().rjust(_LENGTH), 0)
            except OSError as error:
                holder = os.pread(descriptor, _LENGTH, 0).decode(errors="replace").strip()
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise CheckpointError(self._refusal(holder)) from None
            except BaseException:
                os.close(descriptor)
                raise
        self._release = weakref.finalize(self, os.close, descriptor)
        if not self._knows_forks:
            self._knows_forks = True
            own = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _release_in_child(own()))

    def _refuse_another_file(self, descriptor: int) -> None:
        """Refuse what is not the lock that this class writes, before a byte of it is changed."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            what = "is not a regular file"
        elif found.st_nlink != 1:
            what = "is one of several links to a file"
        elif found.st_size > _LENGTH or os.pread(descriptor, _LENGTH, 0).strip(b" \n0123456789\0"):
            what = "holds something else than the number of a process"
        else:
            return
        raise CheckpointError(
            f"{self._path} {what}, so it is no lock, and it is left alone; remove it, or move it away"
        )

    def _refusal(self, holder: str) -> str:
        who = "another Checkpoint in this process" if holder == str(os.getpid()) else f"the process {holder or '?'}"
        return (
            f"{self._path.parent} is in use: {who} writes its checkpoints there; wait for it or end it, or give this "
            "run another directory"
        )

    def release(self) -> None:
        """Release it, if this object holds it."""
        release, self._release = self._release, None
        if release is not None:
            release()


def _release_in_child(lock: Lock | None) -> None:
    """Close a forked child's copy: the system releases the lock when the last copy is closed."""
    if lock is not None:
        lock.release()
