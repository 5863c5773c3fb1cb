"""What a checkpoint looks like on disk: the names of its directory and files."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from heptad.errors import CheckpointError

FORMAT = 2
"""The version of what is on disk. A newer one is refused."""

MANIFEST = "manifest.json"
STATE = "state.json"
SUFFIX = ".safetensors"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
"""What the directory of checkpoints is called in a folder that holds all of a run."""

SECTION = r"[a-z][a-z0-9_]{0,63}"
"""The form of a section's name; its tensors are in the files `<section>-00000.safetensors`, -00001 and so on."""

RANK = "rank"
"""What the files of a rank begin with, so that no section can have this name."""

TEMPORARY = ".temporary-"
"""What the name of a directory begins with that is being written or removed: it is not a checkpoint."""

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{8,18})")


def name_of(number: int) -> str:
    """Return the name of the directory of a checkpoint."""
    return f"checkpoint-{number:08d}"


def number_of(name: str) -> int | None:
    """Return the number of a checkpoint from the name of its directory; `None` for other names."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def part_name(group: str, part: int) -> str:
    """Return the name of a file of a section or of the ranks, without what follows the dot."""
    return f"{group}-{part:05d}"


def rank_file(rank: int) -> str:
    """Return the name of the file of what is a rank's own and not a tensor."""
    return f"{part_name(RANK, rank)}.json"


def named_path(named: str | os.PathLike[str]) -> Path:
    """Return the path that a user names, of a run's folder that of its checkpoints; nothing need be there.

    Raises:
        CheckpointError: If nothing can have this name: it is empty, too long, or no text of the file system.
    """
    text = os.fspath(named)
    try:
        Path(text or "\0").stat()
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise CheckpointError(
                f"no directory of checkpoints can have the name {text[:100]!a}, of {len(text)} characters; name another"
            ) from error
    inner = Path(text) / CHECKPOINTS
    with suppress(OSError):  # no right to look: who reads the directory says so
        if inner.is_dir():
            return inner
    return Path(text)


def why_none(directory: Path) -> str:
    """Return why a directory has no checkpoint, and which run in it to name in its place, if it holds runs."""
    if not directory.is_dir():
        return "is not a directory"
    runs = sorted(inner.parent for inner in directory.glob(f"*/{CHECKPOINTS}"))
    return "holds no checkpoint" + (f" itself, but runs, such as {runs[-1]}: name one of them" if runs else "")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is that of one checkpoint, sound or not, and not of a directory of them."""
    return number_of(path.name) is not None or is_there(path / MANIFEST)


def is_there(path: Path) -> bool:
    """Return whether something has this name, a broken link included."""
    return path.is_symlink() or path.exists()
