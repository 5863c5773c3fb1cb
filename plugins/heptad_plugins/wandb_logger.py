"""`WandbLogger` observes the run: every recorded value, configuration and checkpoints, for Weights & Biases."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from heptad.plugin import Placing
from heptad_plugins._linked import linked
from heptad_plugins._options import directory_of, one_of, text_of
from heptad_plugins._outbox import MetricPoint
from heptad_plugins._output_path import output_of
from heptad_plugins._tracker import Parameter, Tracker, Tracking, Unwritten, flattened, origin_texts, shortened
from heptad_plugins._wandb_file import rows_in

_EXIT_CODES = {"finished": 0, "paused": 0, "failed": 1, "killed": 255}
"""W&B shows a run by its exit code; 255 is what it gives to one that Ctrl-C ended."""
_LONGEST_TEXT = 10_000
AXIS = "update"
"""The name of the value that the others are drawn over."""


class WandbLogger(Tracker):
    """Send recorded values, configuration and, if asked, checkpoints to Weights & Biases.

    All recorded values under their names, among them `train/loss`, the mean over the window of an update,
    `train/epoch_loss`, the mean over the steps of an epoch, and `lr`, or `lr/0`, `lr/1`, …, the rates that an update
    was made with: it records these three unless somebody did since the update, or the epoch, before. W&B drops what is
    logged for a step before its newest one, so the number of updates is a value of its own, `update`, over which all
    others are drawn, and a step of W&B is the number of the value in its run, or a higher one. A value that is
    named `update`, or begins with `_`, has ` (recorded)` behind its name. The config has the configuration, network
    and optimizers with the options of their groups, `hparams`, the versions of torch, Python and Heptad, the command
    line, and the git commit of the program.

    A thread sends, and training does not wait for it. A server that cannot be reached does not end the run: W&B's own
    process retries, its file keeps the values, and `wandb sync` uploads it later. If the run cannot even be begun, that
    is tried again, and the log says so. When the run ends or pauses, `wait` seconds are waited at most; what is unsent
    then is counted in a note and a warning. When Python ends W&B waits for its own process: 90 seconds or more if the
    server does not answer (`WANDB_INIT_TIMEOUT`).

    A resumed run continues the run in W&B, whose id is `Run.id`. It reads what W&B has from the files that
    earlier processes left in `directory`, which W&B writes online too, and logs the values that are missing, by name
    and update. So no value is there twice, and none is missing that was lost with a process, such as one that W&B's own
    process had not written when it was killed. Without files only the server's count is known, and the values after so
    many are logged: resume with the same plugins then. Offline
    each process, and each pause, has a folder of its own, and the steps go up over all of them; `wandb sync` uploads
    them into one run, up to W&B 0.29 one after the other with `--append`. W&B refuses the id of a run that was deleted
    on the server. A run that finds no checkpoint (`resume="auto"`) begins one of its own. The exit code at the end is 0
    for a run that is finished or paused, 1 for one that failed, 255 after Ctrl-C.

    W&B sends measurements of the host and reports of its own errors to its server, unless its settings say otherwise.

    Costs 20 to 40 µs an update. Reading the loss and values that are on a device is a device sync: every `every`
    updates, and where there are such values.

    Args:
        project: The name of the project.
        every: Updates between two values of `train/loss` and the learning rates.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        run_name: The name of the run; by default W&B makes one up.
        directory: Where W&B's folder `wandb` lies; by default where W&B's settings say. Or a `RunFolder`.
        mode: `"online"`, `"offline"` or `"disabled"`; by default what W&B's settings say.
        hparams: Further parts of the config by name.
        checkpoints: The directory of a `Checkpoint`, or the `RunFolder` that it is in: each that is written there
            becomes a version of an artifact, unless it was removed before its turn came.
        wait: Seconds to wait at most when the run ends or pauses.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: For an option that does not fit; in a forked child.
        ImportError: If wandb is not installed; it names the extra.
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
        directory: str | os.PathLike[str] | Placing | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        hparams: Mapping[str, Parameter] | None = None,
        checkpoints: str | os.PathLike[str] | Placing | None = None,
        wait: float = 30.0,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            import wandb  # noqa: F401  # pyright: ignore[reportUnusedImport] - whether it is there
        except ImportError as error:
            raise ImportError("WandbLogger needs wandb: pip install 'heptad[wandb]'") from error
        self._options: dict[str, Any] = {"project": text_of("WandbLogger", "project", project, "the name of a project")}
        if run_name is not None:
            self._options["name"] = text_of("WandbLogger", "run_name", run_name, "the name of the run")
        self._output = None
        if directory is not None:
            self._output = output_of("WandbLogger", "directory", directory, ".", directory_of)
        if mode is not None:
            self._options["mode"] = one_of("WandbLogger", "mode", mode, ("online", "offline", "disabled"))
        super().__init__(every, first, hparams, checkpoints, wait, on_error)

    def _tracking(self, tracked: str, resumed: bool, had: bool, sent: int) -> Tracking:
        where = {} if self._output is None else {"dir": self._output.path}
        return _WandbRun(self._options | where, tracked, resumed, had, sent)


class _WandbRun:
    """A run in W&B, on the thread that sends."""

    def __init__(self, options: Mapping[str, Any], tracked: str, resumed: bool, had: bool, sent: int) -> None:
        self._options, self._tracked, self._resumed, self._had = dict(options), tracked, resumed, had
        self._run: Any = None
        self._unwritten = Unwritten()
        self._step = 0  # the first one that W&B would not drop
        self._next = sent  # the first place that it lacks, as far as places say so

    def begin(self) -> Iterable[str]:
        import wandb

        if "dir" in self._options:
            self._options["dir"].mkdir(parents=True, exist_ok=True)
        how = {"resume": "allow"} if self._resumed else {}
        self._run = wandb.init(id=self._tracked, reinit="create_new", **how, **self._options)
        self._run.define_metric(AXIS, hidden=True)
        self._run.define_metric("*", step_metric=AXIS)
        there: Counter[tuple[str, int]] = Counter()
        for path in self._files() if self._resumed else ():
            for step, row in rows_in(path):
                there.update((name, row[AXIS]) for name in row if name != AXIS and AXIS in row)
                self._step = max(self._step, step + 1)
        self._unwritten = Unwritten(there)
        if self._run.step > self._step:  # the server has what no file tells
            self._step = self._next = max(self._next, self._run.step)
        self._run.config.update({name: shortened(text, _LONGEST_TEXT) for name, text in origin_texts().items()}, True)
        if self._had and not there and not self._next and not self._run.disabled:
            return ["W&B has none of the values of its run, on this machine or on its server: all are logged"]
        return []

    def _files(self) -> Iterator[Path]:
        """Yield the files of the run that processes before this one have left."""
        own = Path(self._run.dir).parent
        for path in sorted(own.parent.glob(f"*run-*-{self._tracked}*/run-{self._tracked}.wandb")):
            if path.parent != own:
                yield path

    def write(self, points: Sequence[MetricPoint]) -> None:
        for name, point in self._unwritten.of(points, name_in_wandb):
            if point.place >= self._next:
                self._step = max(self._step, point.place)
                self._run.log({name: point.value, AXIS: point.update}, step=self._step)
                self._step, self._next = self._step + 1, point.place + 1

    def describe(self, parameters: Mapping[str, Parameter]) -> Iterable[str]:
        texts = {n: shortened(v, _LONGEST_TEXT) if isinstance(v, str) else v for n, v in flattened(parameters).items()}
        self._run.config.update(texts, allow_val_change=True)
        return []

    def upload(self, folder: Path) -> str | None:
        import wandb

        with linked(folder) as copy:
            if copy is None:
                return f"{folder.name} was removed before it could be uploaded"
            artifact = wandb.Artifact(f"checkpoint-{self._tracked}", type="checkpoint")
            artifact.add_dir(str(copy))
            self._run.log_artifact(artifact, aliases=["latest", folder.name])
        return None

    def end(self, how: str) -> None:
        self._run.summary["heptad/ended"] = how
        self._run.finish(exit_code=_EXIT_CODES[how])

    def is_unreachable(self, error: Exception) -> bool:
        from wandb.errors import CommError

        return isinstance(error, CommError | OSError)


def name_in_wandb(name: str) -> str:
    """Return the name that a value has in W&B: its own, but for those that W&B and this plugin need."""
    name = name.encode(errors="backslashreplace").decode()
    return f"{name} (recorded)".lstrip("_") if name == AXIS or name.startswith("_") else name
