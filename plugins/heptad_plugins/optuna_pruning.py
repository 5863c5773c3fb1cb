"""`OptunaPruning` changes the run: it ends it when Optuna's pruner finds the trial not worth its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from heptad import Plugin, PluginError, Run
from heptad.plugin import Watch, refuse_unrecorded
from heptad_plugins._losses import EPOCH, Losses
from heptad_plugins._options import one_of, text_of
from heptad_plugins._stored import count_in, flag_in, mapping

if TYPE_CHECKING:
    from optuna import Trial


class OptunaPruning(Plugin):
    """Report a recorded value to an Optuna trial, and stop the run when the trial is pruned.

    When `trial.should_prune()` says so the run ends in order: the window and the epoch are closed, checkpoints and
    journals are written, and the log has the reason. Then `Engine.run()` raises `optuna.TrialPruned`, which is what
    `study.optimize` expects of an objective. The run is `finished`. One that fails raises its own error.

    By `"epoch"` the newest value of each epoch is reported where the epoch ends, on exit of `evaluate` or of
    `after_epoch`, and the first epoch is step 0, as pruners assume. Pruners compare trials at equal steps, so runs of
    other batch sizes or another accumulation meet after the same data. What is recorded before the first epoch is not
    reported. By `"update"` the newest value is reported on exit of `evaluate`, `optimizer_update` and `after_epoch`, at
    the number of complete updates: for runs that are evaluated at the same updates.

    NaN is reported as it is. Optuna's pruners prune a trial whose values are all NaN, `ThresholdPruner` at the first.
    Whether less or more is better says the direction of the study.

    A trial that is resumed from a checkpoint, in another process too, does not report again what its storage holds: at
    a step that is reported already nothing is reported, and before the last of these `should_prune()` is not asked. So
    of several runs in one trial, such as those of cross-validation, only the first reports: give the others no plugin,
    and report their mean yourself. A run that begins with such a trial notes it in the log.

    Costs one write to the study's storage and one question to the pruner a value. A value that is still on its device
    is waited for. With several ranks the first has the trial, the others pass `None`; all stop in the same turn, and
    each raises `TrialPruned`. What the storage raises ends the run.

    Args:
        trial: The trial that the objective was called with; `None` on all ranks but the first.
        monitor: The name of the recorded value, such as `"valid/loss"`.
        by: What steps are counted in.

    Raises:
        PluginError: When built, for an option that does not fit, or a study of several objectives; when the engine is
            built, on the first rank without a trial, or with `on_error="detach"`, which would swallow `TrialPruned`.
        EngineError: In the run, if nothing was recorded under that name when an epoch with a step ends, and no
            `Evaluate` is to.
        ImportError: If optuna is not installed; it names the extra.
        optuna.TrialPruned: When the run has ended, if the trial was pruned.
    """

    observes = True  # it decides how far a run is driven, and no step of it: a resumed run may do without
    ranks = "all"  # the first reports and asks, and all end
    requests = ("prune",)
    own_state = True  # where it has looked: the first rank may have recorded more values

    runs_after = ("Evaluate",)
    runs_before = ("Checkpoint",)  # which is to store that the trial was pruned

    def __init__(self, trial: Trial | None, monitor: str, by: Literal["epoch", "update"] = "epoch") -> None:
        try:
            from optuna import TrialPruned
        except ImportError as error:
            raise ImportError("OptunaPruning needs optuna: pip install 'heptad[optuna]'") from error
        self._raises = TrialPruned
        self._watch = Watch(text_of("OptunaPruning", "monitor", monitor, "the name of a recorded value"))
        self._by = one_of("OptunaPruning", "by", by, ("epoch", "update"))
        self.needs_epoch_loss = monitor == EPOCH
        if mistake := _trial_mistake(trial):
            raise PluginError(f"OptunaPruning(trial=…) {mistake}")
        self._trial = trial
        self._forget()

    def _forget(self) -> None:
        self._pruned = False
        self._watch.seen = 0
        self._losses = Losses()
        self._reported: set[int] = set()

    def on_build(self, run: Run) -> None:
        """Refuse what would be noticed after hours only."""
        if self.on_error != "raise":
            raise PluginError("OptunaPruning cannot have on_error='detach': it would swallow optuna.TrialPruned")
        if run.rank == 0 and self._trial is None:
            raise PluginError(
                "OptunaPruning(trial=…) is None on the first rank, which reports; pass the trial that the objective "
                "was called with"
            )

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Look up which steps the trial has reported: a process before this one may have."""
        self._losses.open(run)
        if run.rank == 0:
            self._reported = _reported_steps(self._trial)
            if self._reported and run.state == "idle":
                run.note(
                    f"OptunaPruning: the trial has values of {len(self._reported)} steps, the last "
                    f"{max(self._reported)}, from before this run began; at these steps nothing is reported"
                )
        run.ask(self._request, wanted=self._pruned)

    def close(self, run: Run) -> None:
        """Raise `optuna.TrialPruned` if the trial was pruned and the run has ended in order.

        Raises:
            optuna.TrialPruned: Then.
        """
        self._learn(run)
        if self._pruned and run.state == "finished":
            raise self._raises(run.reason or "the trial was pruned")

    def on_exit_evaluate(self, run: Run) -> None:
        """Report what an evaluation recorded; by epoch, if it is that of the end of one."""
        if self._by == "update" or (run.epoch_open and not run.batches_remain):
            self._look(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Report, by update, what was recorded since the last one."""
        self._losses.record_watched(run, self._watch.name)
        if self._by == "update":
            self._look(run)

    def on_exit_after_epoch(self, run: Run) -> None:
        """Report what is new at the end of an epoch; an epoch without a step needs no value."""
        self._losses.record_watched(run, self._watch.name, epoch=True)
        self._look(run)
        if run.batch_index:
            refuse_unrecorded(run, self._watch.name, "OptunaPruning")

    def on_enter_checkpoint(self, run: Run) -> None:
        """Learn on the other ranks that the trial was pruned, before it is stored."""
        self._learn(run)

    on_pause = on_enter_checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return which values were looked at, and whether the trial was pruned."""
        return {"seen": self._watch.seen, "pruned": self._pruned, "losses": self._losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        seen, pruned = count_in(state, "seen"), flag_in(state, "pruned")
        self._losses.load_state_dict(mapping(state.get("losses", {}), "losses"))
        self._watch.seen, self._pruned = seen, pruned

    def _look(self, run: Run) -> None:
        """Report the newest value, if there is a new one, and ask whether to go on."""
        if self._watch.seen == run.record_count:
            return
        values = self._watch.take(run)
        step = run.update if self._by == "update" else run.epoch - (not run.epoch_open)
        if self._trial is None or run.rank or not values or self._pruned or step < 0:
            return
        if step not in self._reported:
            self._trial.report(values[-1], step)
            self._reported.add(step)
        if step == max(self._reported) and self._trial.should_prune():
            self._prune(run, f"{self._watch.name} is {values[-1]:g} at {self._by} {step}")

    def _prune(self, run: Run, found: str) -> None:
        self._pruned = True
        run.ask(self._request)
        number = "" if self._trial is None else f" {self._trial.number}"
        run.stop(f"OptunaPruning: trial{number} is pruned: {found}")

    def _learn(self, run: Run) -> None:
        self._pruned = self._pruned or run.agreed(self._request)

    @property
    def _request(self) -> str:
        return f"{self.name}.prune"


def _trial_mistake(trial: object) -> str:
    """Return why values cannot be reported to a trial; empty where nothing speaks against it."""
    if trial is None:
        return ""
    if not all(callable(getattr(trial, name, None)) for name in ("report", "should_prune")):
        return f"must be an optuna trial, the argument of the objective, got {trial!r}"
    directions = getattr(getattr(trial, "study", None), "directions", ())
    if len(directions) > 1:
        return f"is of a study of {len(directions)} objectives; Optuna prunes where there is one: leave the plugin out"
    return ""


def _reported_steps(trial: Trial | None) -> set[int]:
    """Return the steps at which the storage of a trial holds a value; none for a `FixedTrial`, which has no study."""
    study = getattr(trial, "study", None)
    if trial is None or study is None:
        return set()
    stored = study.get_trials(deepcopy=False)
    return {step for one in stored if one.number == trial.number for step in one.intermediate_values}
