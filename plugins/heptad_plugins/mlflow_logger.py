"""`MLflowLogger` observes the run: every recorded value, parameters and checkpoints, for MLflow."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from heptad import PluginError
from heptad.plugin import Placing
from heptad_plugins._linked import linked
from heptad_plugins._options import text_of
from heptad_plugins._outbox import MetricPoint
from heptad_plugins._tracker import Parameter, Tracker, Tracking, Unwritten, origin_texts, shortened

_LONGEST_NAME, _LONGEST_PARAMETER, _LONGEST_TAG = 250, 6000, 5000
"""Characters that MLflow takes."""
_LATER = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED"}
"""The codes of errors that may be gone at the next attempt, a refused connection among them."""
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "paused": "SCHEDULED"}


class MLflowLogger(Tracker):
    """Send recorded values, parameters and, if asked, checkpoints to MLflow, each value at its number of updates.

    All recorded values under their names, among them `train/loss`, the mean over the window of an update,
    `train/epoch_loss`, the mean over the steps of an epoch, and `lr`, or `lr/0`, `lr/1`, …, the rates that an update
    was made with: it records these three unless somebody did since the update, or the epoch, before. Parameters are
    the configuration, network and optimizers with the options of their groups, `hparams`, the versions of torch, Python
    and Heptad, the command line, and the git commit of the program; the last three are tags too, those of the newest
    start, since a parameter of MLflow cannot change. In names MLflow takes letters,
    digits and `/ _ . - :` and spaces; any other character becomes `_`, and so does an empty part of a path, `.` or
    `..`. What is longer than MLflow takes is cut. A database keeps infinity as the largest float.

    A thread sends, and training does not wait for it. A server that cannot be reached does not end the run: the values
    wait, and are sent when it is there again; a note in the log says so. When the run ends or pauses, `wait` seconds
    are waited at most; what is unsent then is counted in a note and a warning. A request that gets no answer lasts as
    long as MLflow's own settings say, `MLFLOW_HTTP_REQUEST_TIMEOUT` and `MLFLOW_HTTP_REQUEST_MAX_RETRIES`.

    A resumed run continues the run in MLflow, which it finds by the tag `heptad.run`, whatever its status, and reads
    what that has: of the points of each name and update it sends those that are missing, so that none is there twice.
    If it is deleted, a new one begins and gets all values. A run that finds no checkpoint (`resume="auto"`) begins one
    of its own; the earlier one stays, and MLflow shows it as running. The status at the end is `FINISHED`, `FAILED`,
    `KILLED` after Ctrl-C or a signal that ended it, or `SCHEDULED` where the run is paused.

    Costs 20 to 40 µs an update. Reading the loss and values that are on a device is a device sync: every `every`
    updates, and where there are such values.

    Args:
        experiment: The name of the experiment; it is made.
        every: Updates between two values of `train/loss` and the learning rates.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        uri: Of the server or the database, such as `"http://127.0.0.1:5000"`; by default the one that MLflow is set to.
        run_name: The name of the run; by default the first characters of `Run.id`.
        hparams: Further parameters by name.
        checkpoints: The directory of a `Checkpoint`, or the `RunFolder` that it is in: each that is written there is
            uploaded, unless it was removed before its turn came.
        wait: Seconds to wait at most when the run ends or pauses.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: For an option that does not fit; in the run, if MLflow refuses something, such as an experiment
            that was deleted; in a forked child.
        ImportError: If MLflow is not installed; it names the extra.
    """

    ranks = "first"  # one run in the tracker
    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        experiment: str,
        every: int = 1,
        *,
        first: int | None = None,
        uri: str | None = None,
        run_name: str | None = None,
        hparams: Mapping[str, Parameter] | None = None,
        checkpoints: str | os.PathLike[str] | Placing | None = None,
        wait: float = 30.0,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ImportError("MLflowLogger needs mlflow: pip install 'heptad[mlflow]'") from error
        self._experiment = text_of("MLflowLogger", "experiment", experiment, "the name of an experiment")
        if uri is not None:
            text_of("MLflowLogger", "uri", uri, "the address of a server or a database")
        if run_name is not None:
            text_of("MLflowLogger", "run_name", run_name, "the name of the run")
        self._uri, self._run_name = uri or mlflow.get_tracking_uri(), run_name
        super().__init__(every, first, hparams, checkpoints, wait, on_error)

    def _tracking(self, tracked: str, resumed: bool, had: bool, sent: int) -> Tracking:
        return _MLflowRun(self._uri, self._experiment, self._run_name, tracked, resumed)


class _MLflowRun:
    """A run in MLflow, on the thread that sends."""

    def __init__(self, uri: str, experiment: str, name: str | None, tracked: str, resumed: bool) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(uri)
        self._uri, self._experiment, self._name = uri, experiment, name
        self._tracked, self._resumed = tracked, resumed
        self._run = ""
        self._parameters: dict[str, str] = {}
        self._unwritten = Unwritten()

    def begin(self) -> Iterable[str]:
        self._probe()
        experiment = self._experiment_id()
        runs = self._client.search_runs([experiment], f"tags.`heptad.run` = '{self._tracked}'", max_results=1)
        if runs:
            self._continue(runs[0])
        else:
            # a name that MLflow makes up is drawn from Python's generator, which belongs to the run
            begun = self._client.create_run(
                experiment, tags={"heptad.run": self._tracked}, run_name=self._name or self._tracked[:8]
            )
            self._run = begun.info.run_id
        origin = origin_texts()
        self._tag(origin)  # of the newest start; parameters cannot change, and stay those of the first
        self.describe({name: text for name, text in origin.items() if name_in_mlflow(name) not in self._parameters})
        if self._resumed and not runs:
            return ["its run is not in MLflow any more, or never came to be: another one gets all values"]
        return []

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return self._client.create_experiment(self._experiment)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self._experiment)  # another process made it
        if found.lifecycle_stage != "active":
            raise PluginError(
                f"MLflowLogger: the experiment {self._experiment!r} was deleted; restore it in MLflow, or name another"
            )
        return found.experiment_id

    def _continue(self, found: Any) -> None:
        self._run = found.info.run_id
        self._parameters = dict(found.data.params)
        self._client.update_run(self._run, status="RUNNING")
        there: Counter[tuple[str, int]] = Counter()
        for name in found.data.metrics:
            there.update((name, point.step) for point in self._client.get_metric_history(self._run, name))
        self._unwritten = Unwritten(there)

    def write(self, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        lacking = self._unwritten.of(points, name_in_mlflow)
        if lacking:
            self._probe()
            metrics = [Metric(name, point.value, point.time_ms, point.update) for name, point in lacking]
            self._client.log_batch(self._run, metrics=metrics, synchronous=True)

    def describe(self, parameters: Mapping[str, Parameter]) -> Iterable[str]:
        from mlflow.entities import Param

        self._probe()
        texts = {name_in_mlflow(name): shortened(str(value), _LONGEST_PARAMETER) for name, value in parameters.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in self._parameters]
        for start in range(0, len(new), 100):
            self._client.log_batch(self._run, params=new[start : start + 100], synchronous=True)
        changed = [
            f"the parameter {name} stays {shortened(self._parameters[name], 60)} in MLflow; here: {shortened(text, 60)}"
            for name, text in texts.items()
            if self._parameters.get(name, text) != text
        ]
        self._parameters = texts | self._parameters
        return changed

    def upload(self, folder: Path) -> str | None:
        self._probe()
        with linked(folder) as copy:
            if copy is None:
                return f"{folder.name} was removed before it could be uploaded"
            self._client.log_artifacts(self._run, str(copy), f"checkpoints/{folder.name}")
        return None

    def end(self, how: str) -> None:
        self._probe()
        if how == "paused":
            self._client.update_run(self._run, status=_STATUS[how])
        else:
            self._client.set_terminated(self._run, _STATUS[how])

    def is_unreachable(self, error: Exception) -> bool:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            return error.error_code in _LATER
        return isinstance(error, OSError)  # those of requests too

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        made = [RunTag(name, shortened(text, _LONGEST_TAG)) for name, text in tags.items()]
        self._client.log_batch(self._run, tags=made, synchronous=True)

    def _probe(self) -> None:
        """Raise at once where no server listens: MLflow would try for minutes."""
        address = urlsplit(self._uri)
        if address.scheme not in ("http", "https") or not address.hostname:
            return
        if address.scheme in getproxies() and not proxy_bypass(address.hostname):
            return  # only the proxy can be asked
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=3).close()


def name_in_mlflow(name: str) -> str:
    """Return the name that MLflow takes for a name: see `MLflowLogger`."""
    allowed = r"[^/\w.\- ]" if os.name == "nt" else r"[^/\w.\- :]"
    plain = re.sub(allowed, "_", name)
    plain = "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))
    if len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[: _LONGEST_NAME - 9]}-{sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"
