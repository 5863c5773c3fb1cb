"""`TrackioLogger` observes the run: every recorded value, configuration and checkpoints, for Trackio."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from heptad import PluginError
from heptad.plugin import Placing
from heptad_plugins._linked import linked
from heptad_plugins._options import text_of
from heptad_plugins._outbox import MetricPoint
from heptad_plugins._tracker import Parameter, Tracker, Tracking, Unwritten, flattened, origin_texts, shortened

_LONGEST_TEXT = 10_000
_TAKEN = ("project", "run", "timestamp", "step", "time", "metrics")
"""Names that Trackio needs itself, and would rename."""


class TrackioLogger(Tracker):
    """Write recorded values, configuration and, if asked, checkpoints to the local store of Trackio.

    All recorded values under their names, each with the number of complete updates as its step, among them
    `train/loss`, the mean over the window of an update, `train/epoch_loss`, the mean over the steps of an epoch, and
    `lr`, or `lr/0`, `lr/1`, …, the rates that an update was made with: it records these three unless somebody did since
    the update, or the epoch, before. A value that is named like something of Trackio's, such as `step`, or begins with
    `__`, has ` (recorded)` behind its name. The config has the configuration, network and optimizers with the options
    of their groups, `hparams`, the versions of torch, Python and Heptad, the command line, and the git commit.

    A thread writes, and training does not wait for it. The store is a folder of this machine, `TRACKIO_DIR`, which
    `trackio show` opens and `trackio sync` uploads; no server is asked. When the run ends or pauses, `wait` seconds are
    waited at most; what is unwritten then is counted in a note and a warning. Trackio itself prints lines to the
    standard output when a run begins and ends, warns where it cannot write, and asks Hugging Face for the name of the
    user unless `HF_HUB_OFFLINE=1`.

    A resumed run continues the run in Trackio, which it finds by its name, and reads what that has: of the values of
    each name and update it writes those that are missing, so that none is there twice. If it was deleted, it is written
    whole. A run that finds no checkpoint (`resume="auto"`) begins one of its own. Trackio knows no status; how the run
    ended stands there as an alert unless it is finished.

    Costs 20 to 40 µs an update. Reading the loss and values that are on a device is a device sync: every `every`
    updates, and where there are such values.

    Args:
        project: The name of the project.
        every: Updates between two values of `train/loss` and the learning rates.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        run_name: The name of the run, which has the first characters of `Run.id` behind it; by default these alone.
        hparams: Further parts of the config by name.
        checkpoints: The directory of a `Checkpoint`, or the `RunFolder` that it is in: each that is written there
            becomes a version of an artifact, unless it was removed before its turn came.
        wait: Seconds to wait at most when the run ends or pauses.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: For an option that does not fit; where the environment sends Trackio's runs to a Space or a
            server; in a forked child.
        sqlite3.DatabaseError: In the run, if the store is no database of Trackio's.
        ImportError: If trackio is not installed; it names the extra.
    """

    ranks = "first"  # one run in the tracker
    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        project: str,
        every: int = 1,
        *,
        first: int | None = None,
        run_name: str | None = None,
        hparams: Mapping[str, Parameter] | None = None,
        checkpoints: str | os.PathLike[str] | Placing | None = None,
        wait: float = 30.0,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            import trackio  # noqa: F401  # pyright: ignore[reportUnusedImport] - whether it is there
        except ImportError as error:
            raise ImportError("TrackioLogger needs trackio: pip install 'heptad[trackio]'") from error
        self._project = text_of("TrackioLogger", "project", project, "the name of a project")
        self._run_name = None
        if run_name is not None:
            self._run_name = text_of("TrackioLogger", "run_name", run_name, "the name of the run")
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if os.environ.get(name):
                raise PluginError(
                    f"TrackioLogger writes to the local store, but {name} sends Trackio's runs elsewhere; unset it, "
                    "and upload the store with `trackio sync`"
                )
        super().__init__(every, first, hparams, checkpoints, wait, on_error)

    def _tracking(self, tracked: str, resumed: bool, had: bool, sent: int) -> Tracking:
        name = tracked[:12] if self._run_name is None else f"{self._run_name}-{tracked[:12]}"
        return _TrackioRun(self._project, name, had)


class _TrackioRun:
    """A run in Trackio's store, on the thread that writes."""

    def __init__(self, project: str, name: str, had: bool) -> None:
        self._project, self._name, self._had = project, name, had
        self._run: Any = None
        self._config: dict[str, Any] = {}
        self._unwritten = Unwritten()

    def begin(self) -> Iterable[str]:
        from trackio.sqlite_storage import SQLiteStorage

        self._config = {name: shortened(text, _LONGEST_TEXT) for name, text in origin_texts().items()}
        there: Counter[tuple[str, int]] = Counter()
        store: Any = SQLiteStorage
        store.get_runs(self._project)  # raises for a broken store, where Trackio's runs would only warn
        if self._had:
            for row in store.get_logs(self._project, self._name):
                there.update((name, row["step"]) for name in row if name not in _TAKEN)
        self._unwritten = Unwritten(there)
        if self._had and not there:
            return ["its run is not in Trackio's store any more, or never came to be: it is written whole"]
        return []

    def _begun(self) -> Any:
        """Return the run, begun when the configuration has come: Trackio takes that at the start only."""
        import trackio

        if self._run is None:
            self._run = trackio.init(
                project=self._project,
                name=self._name,
                config=self._config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,  # values of the host are what `DeviceMonitor` records
                auto_log_cpu=False,
            )
        return self._run

    def write(self, points: Sequence[MetricPoint]) -> None:
        tracked = self._begun()
        for name, point in self._unwritten.of(points, name_in_trackio):
            tracked.log({name: point.value}, step=point.update)

    def describe(self, parameters: Mapping[str, Parameter]) -> Iterable[str]:
        plain = {n: shortened(v, _LONGEST_TEXT) if isinstance(v, str) else v for n, v in flattened(parameters).items()}
        self._config |= {name.lstrip("_") or "_": value for name, value in plain.items()}
        self._begun()
        return []

    def upload(self, folder: Path) -> str | None:
        tracked = self._begun()
        import trackio

        with linked(folder) as copy:
            if copy is None:
                return f"{folder.name} was removed before it could be uploaded"
            artifact: Any = trackio.Artifact(f"checkpoint-{tracked.name}", "checkpoint")
            artifact.add_dir(copy)
            trackio.log_artifact(artifact, aliases=[folder.name])
        return None

    def end(self, how: str) -> None:
        tracked = self._begun()
        if how != "finished":
            tracked.alert(f"The run is {how}")
        tracked.finish()

    def is_unreachable(self, error: Exception) -> bool:
        return isinstance(error, OSError | sqlite3.OperationalError)


def name_in_trackio(name: str) -> str:
    """Return the name that a value has in Trackio: its own, but for those that Trackio needs."""
    name = name.encode(errors="backslashreplace").decode()
    return f"{name} (recorded)".lstrip("_") if name in _TAKEN or name.startswith("__") else name
