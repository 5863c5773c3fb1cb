"""The files of a run of several ranks: rank 0's has the name that was given, the others lie beside it.

A process writes its own file only. The one exception is rank 0 of a run that overwrites: it discards what ranks that
the new run does not have left there.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from heptad.errors import LogError
from heptad.history.journal.head import IN_RUN_FOLDER
from heptad.history.journal.lock import discard


def named_journal(named: str | os.PathLike[str]) -> Path:
    """Return the path of a journal that a user names, of a run's folder that of the journal in it."""
    inner = Path(named) / IN_RUN_FOLDER
    with suppress(OSError):  # a name that is too long, or no right to look: who opens the file says so
        if inner.is_file():
            return inner
    return Path(named)


def path_of_rank(path: Path, rank: int) -> Path:
    """Return the file of a rank."""
    return path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")


def files_of_ranks(path: Path) -> dict[int, Path]:
    """Return the files beside the one of rank 0 that have the names of other ranks, of whichever run they are."""
    found: dict[int, Path] = {}
    for file in path.parent.iterdir():
        named = re.fullmatch(re.escape(path.name) + r"\.rank([1-9][0-9]{0,6})", file.name)
        if named is not None:
            found[int(named[1])] = file
    return dict(sorted(found.items()))


def discard_beyond(path: Path, world: int) -> None:
    """Remove the files of ranks that a new run lacks; one that is being written, or is no journal, stays.

    Args:
        path: The file of rank 0.
        world: How many ranks the new run has.

    Raises:
        OSError: If one cannot be removed.
    """
    for rank, file in files_of_ranks(path).items():
        if rank >= world:
            with suppress(LogError):
                discard(file)
