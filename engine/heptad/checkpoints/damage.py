"""What is wrong with a checkpoint that was read."""

from __future__ import annotations

import errno
from pathlib import Path

from heptad.checkpoints.files import describe_os_error
from heptad.errors import CheckpointError

_DAMAGE = {
    errno.ENOENT: "is missing",
    errno.ELOOP: "is a link, which is not followed",
    errno.EIO: "cannot be read: the medium is damaged",
    errno.EINVAL: "is not a regular file",
    errno.ENXIO: "is not a regular file",
    errno.EISDIR: "is not a regular file",
}
"""Errors that mean that a checkpoint is damaged. Others (no permission, too many open files) say nothing about it."""


class DamagedError(CheckpointError):
    """What a checkpoint holds is not what was written, or not all of it."""


class AnotherRunError(CheckpointError):
    """The checkpoint is of a run with another configuration, data, plugins or version of an optimizer.

    The live objects are what they were, and the engine may begin a run of its own.
    """


class NewerFormatError(CheckpointError):
    """A sound checkpoint of a later version."""


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that cannot be read."""
    if error.errno == errno.EFBIG:
        return DamagedError(f"{path} is larger than was written: {error.strerror}")
    if error.errno in _DAMAGE:
        return DamagedError(f"{path} {_DAMAGE[error.errno]}")
    return CheckpointError(f"reading {path} failed: {describe_os_error(error)}")
