"""`RunFolder` observes the run: it chooses a numbered folder for each, which other plugins take in place of a path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from heptad import PluginError
from heptad.plugin import Placing
from heptad_plugins._options import directory_of

_NUMBERED = re.compile(r"[0-9]{4,18}")
CHECKPOINTS = "checkpoints"


class RunFolder(Placing):
    """Give each run a folder with the next number: `runs/digits/0001`, `runs/digits/0002`, ….

    Other plugins take it in place of a path, and it stands in the list of plugins as well. In the folder of a run
    `Checkpoint` writes `checkpoints/`, `Journal` `log.journal`, `CSVLogger` `log.csv`, `TensorBoardLogger`
    `tensorboard/`, `Report` `report.html`, `Profiler` `trace.json` and `WandbLogger(directory=…)` `wandb/`. The loggers
    of trackers take it as `checkpoints` too.

    The folder is made when the run begins, and not before; two processes that begin at once have different ones. The
    ranks of one run share that of the first. A run that continues after a pause stays in its folder, and so does one
    that resumes: `resume="auto"` takes the newest folder that has a checkpoint, and a new one where none has. As with a
    directory, a run that has finished ends at once then, in its folder. `resume=` with the path of a numbered folder,
    or of a checkpoint in it, continues there. A run that resumes from elsewhere has a new number.

    Costs one listing of the directory when a run begins.

    Args:
        directory: Where the numbered folders are; made where it is missing.

    Raises:
        PluginError: If it is not a path, or is that of a file; when a run begins, if no folder can be made in it.
        EngineError: From `path`, before the first run has begun.
    """

    observes = True
    ranks = "all"  # whoever writes on a further rank asks for the path there

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._root = directory_of("RunFolder", "directory", directory)

    @property
    def latest(self) -> Path | None:
        """The folder with the highest number; `None` before the first run."""
        return max(self._folders(), key=_number_of_run, default=None)

    def place(self, source: str | os.PathLike[str] | None) -> Path:
        """Return the folder of the run that `source` names; a new one, made here, where it names none.

        Raises:
            PluginError: If it cannot be made.
        """
        try:
            found = self._newest_with_checkpoint() if source == "auto" else self._holding(source)
            return found or self._make()
        except OSError as error:
            raise PluginError(
                f"RunFolder: no folder can be made in {self._root}: {error.strerror or error}; name another directory"
            ) from error

    def _folders(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return [path for path in self._root.iterdir() if _NUMBERED.fullmatch(path.name) and path.is_dir()]

    def _newest_with_checkpoint(self) -> Path | None:
        with_some = [path for path in self._folders() if any((path / CHECKPOINTS).glob("checkpoint-*"))]
        return max(with_some, key=_number_of_run, default=None)

    def _holding(self, source: str | os.PathLike[str] | None) -> Path | None:
        if source is None:
            return None
        root, named = self._root.resolve(), Path(source).resolve()
        return next((path for path in self._folders() if (root / path.name) in (named, *named.parents)), None)

    def _make(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        number = 1 + max(map(_number_of_run, self._folders()), default=0)
        while True:
            path = self._root / f"{number:04d}"
            try:
                path.mkdir()  # atomic: of two processes one makes it
            except FileExistsError:
                number += 1
            else:
                return path


def _number_of_run(path: Path) -> int:
    return int(path.name)
