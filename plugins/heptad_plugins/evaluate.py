"""`Evaluate` observes the run: loss and metrics over held-out data, in a state of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack

from torch.utils.data import DataLoader

from heptad import ConfigError, DataError, Detour, EngineError, Plugin, PluginError, Run
from heptad.plugin import EvaluationOptions, MetricsInput, merge_mistake, metrics_mistake, options_mistake
from heptad_plugins._options import places_of, selection, text_of

EvaluationPlace = Literal["before_loop", "after_step", "optimizer_update", "after_epoch"]
PLACES: tuple[EvaluationPlace, ...] = ("after_epoch", "optimizer_update", "after_step", "before_loop")


class Evaluate(Plugin):
    """Record `valid/loss` and `valid/<metric>` over data that the run does not train on.

    The evaluation is a state, `evaluate`, and a run of its own: no handler is called for its batches, nothing is
    shuffled or dropped, no gradient is computed. The modes of all modules, the RNG and the position in the training
    data are restored, so the weights do not depend on it. If a pause is asked for while it is under way, it ends at its
    next batch: the run pauses in `evaluate`, and the evaluation begins anew when the run continues.

    Costs a forward pass over the data and about a millisecond more. There is a device sync at the end, once a value,
    and none between batches.

    Args:
        data: A dataset of samples, batched by `RunConfig.batch_size`; or a loader, or any re-iterable of batches.
        metrics: By name a function `(output, batch) -> tensor`, the mean over the batch or one value a sample, averaged
            over the batches by their weights; or an object with `update(output, target)`, `compute` and `reset`, such
            as those of torchmetrics, for batches of `(data, target)`, or of any kind with `inputs=`. It is reset before
            each evaluation. What it computes by name, or as a vector, is recorded as `valid/<metric>/<name>`, what has
            more dimensions as an array, see `Run.record_array`. A `MetricCollection` may stand in place of the mapping.
        at: When, one place or several: `"after_epoch"` is when an epoch has neither an update nor a batch left, so that
            all of `after_epoch` sees the values; after the body of `"optimizer_update"` or `"after_step"`; or once
            after that of `"before_loop"`, before anything is trained.
        every: At each such epoch, update or step whose number is a multiple of this.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        name: What the recorded values begin with, and the plugin's name: give a second one another.
        when: Evaluate only if this predicate of the run holds as well. It changes nothing, and is asked often.
        trial: Try the metrics on one batch when the run is opened, so that a mistake in them is found before training.
            Nothing is moved by it: neither data, generators, modes and buffers nor the state of metrics. Functions are
            called once more for it. Of data that cannot be indexed nothing is tried.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.
        **options: Those of `EvaluationOptions`.

    Raises:
        PluginError: For an option that is none of these; when the run is opened, for the DataLoader that the run
            trains on, which cannot be walked twice at a time.
        ConfigError: When the run is opened, if the data are samples and there is no `batch_size`.
        EngineError: If an object's `compute` returns something else than numbers.
    """

    observes = True
    ranks = "all"  # they share the batches out, and the state is in the table

    runs_before = ("EarlyStopping", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint")

    def __init__(
        self,
        data: Any,
        metrics: MetricsInput | None = None,
        at: EvaluationPlace | Sequence[EvaluationPlace] = "after_epoch",
        every: int = 1,
        name: str = "valid",
        *,
        first: int | None = None,
        when: Callable[[Run], bool] | None = None,
        trial: bool = True,
        on_error: Literal["raise", "detach"] = "raise",
        **options: Unpack[EvaluationOptions],
    ) -> None:
        self.name = text_of("Evaluate", "name", name, "a word such as 'valid'")
        if mistake := _data_mistake(data):
            raise PluginError(f"Evaluate(data=…) {mistake}; pass a dataset, a DataLoader or a list of batches")
        metrics = {} if metrics is None else metrics
        if mistake := metrics_mistake(metrics, alone=True):
            raise PluginError(f"Evaluate(metrics=…): {mistake}")
        if mistake := options_mistake(options):
            raise PluginError(f"Evaluate(…): {mistake}")
        self._at: tuple[EvaluationPlace, ...] = places_of("Evaluate", at, PLACES)
        self._numbers = selection("Evaluate", every, first)
        self._data = data
        self._metrics = dict(metrics) if isinstance(metrics, Mapping) else metrics
        if when is not None and not callable(when):
            raise PluginError(f"Evaluate(when=…) must be a function of the run, got {when!r}")
        self._when = when
        self._evaluated = (-1, -1)  # step and update of the newest evaluation
        self._trial = trial
        self._tried = False
        self._options = options
        self.on_error = on_error

    def detours(self) -> Iterable[Detour]:
        """Return the state `evaluate`."""
        return [self._detour(place) for place in self._at]

    def _detour(self, place: EvaluationPlace) -> Detour:
        if place == "before_loop":
            return Detour("evaluate", place, self._wanted, self.evaluate)
        if place == "after_epoch":
            return Detour("evaluate", ("after_step", "optimizer_update"), self._epoch_is_over, self.evaluate)
        when = partial(self._counts, counter="step" if place == "after_step" else "update")
        return Detour("evaluate", place, when, self.evaluate, every=self._numbers.every, first=self._numbers.first)

    def on_build(self, run: Run) -> None:
        """Try the metrics on a batch of the data; where a mistake is to detach the plugin, `open` does."""
        self._tried = False
        if mistake := merge_mistake(self._metrics, run.world):
            raise PluginError(f"Evaluate(metrics=…) of '{self.name}': {mistake}")
        if self.on_error == "detach":
            return
        try:
            run.prepare_evaluation(self._data, "", f"{self.name}/")
        except (ConfigError, DataError):
            return  # `open` says it, as of data that are no metric's fault
        self._prepare(run)

    def on_begin(self, run: Run) -> None:
        """Forget what an earlier run has evaluated."""
        self._evaluated = (-1, -1)

    def open(self, run: Run) -> None:
        """Look at the data, and try the metrics where that was not done."""
        loader = run.components.loader
        if self._data is loader and isinstance(loader, DataLoader):
            raise PluginError(
                f"Evaluate(data=…) of '{self.name}' is the DataLoader that the run trains on: walking it would move "
                "its workers and its sampler; pass another DataLoader of the same dataset"
            )
        self._prepare(run)

    def _prepare(self, run: Run) -> None:
        """Open the data, and try the metrics unless that was done."""
        tried = self._metrics if self._trial and not self._tried else None
        what = f"Evaluate(data=…) of '{self.name}'"
        run.prepare_evaluation(self._data, what, f"{self.name}/", tried, **self._options)
        self._tried = True

    def evaluate(self, run: Run) -> None:
        """Record all values over one pass of the data: the body of `evaluate`."""
        measures = run.evaluate(self._data, self._metrics, **self._options)
        for name, value in measures.items():
            run.record(f"{self.name}/{name}", value)
        if not measures and not measures.arrays:
            raise EngineError(
                f"Evaluate '{self.name}' measured nothing: its compute_loss gives no loss, and it has no metrics"
            )
        for name, array in measures.arrays.items():
            run.record_array(f"{self.name}/{name}", array)
        self._evaluated = run.step, run.update

    def _wanted(self, run: Run) -> bool:
        return self._when is None or self._when(run)

    def _counts(self, run: Run, counter: str) -> bool:
        """Return what `when` says; an evaluation that it holds back is not made up for at the next number."""
        return self._when is None or (self._numbers.selects(getattr(run, counter)) and self._when(run))

    def _epoch_is_over(self, run: Run) -> bool:
        over = not run.update_due and not run.batches_remain and self._numbers.selects(run.epoch + 1)
        # what another place has just evaluated need not be evaluated again
        return over and self._evaluated != (run.step, run.update) and self._wanted(run)


def _data_mistake(data: object) -> str:
    """Return why this cannot be walked again and again; empty where nothing speaks against it."""
    what = type(data).__name__
    if isinstance(data, Iterator):
        return f"is an iterator of type {what}, which can be iterated once"
    if isinstance(data, type):
        return f"is the class {data.__name__}"
    walked = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not walked or isinstance(data, str | bytes):
        return "is None" if data is None else f"is of type {what}"
    return ""
