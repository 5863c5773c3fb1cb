"""`SWA` changes the run: evaluations see the mean of the weights over epochs; the weights that are trained stay."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - as torch's update_bn asks
from torch.optim.swa_utils import get_swa_avg_fn, get_swa_multi_avg_fn

from heptad import EngineError, PluginError, Run
from heptad.plugin import add_over_ranks
from heptad_plugins._average import Average
from heptad_plugins._averaging import Averaging
from heptad_plugins._options import whole_number, yes_or_no
from heptad_plugins._stored import count_in, flag_in, mapping


class SWA(Averaging):
    """Average the weights at the ends of epochs, by the formula of torch's `AveragedModel`.

    Stochastic weight averaging: P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson: Averaging Weights
    Leads to Wider Optima and Better Generalization, UAI 2018. Each of the epochs `start`, `start + cycle`, … adds its
    last weights to a plain mean of the parameters; an epoch that is cut short by a stop counts. Buffers are copied from
    the network. Weights of fewer than 32 bits (bfloat16, float16) are averaged in float32.

    The statistics of BatchNorm do not follow from the averaged weights, so they are computed anew as torch's
    `update_bn` does: reset, then averaged over a pass of the training data (`Run.training_pass`). Unlike there, modules
    stay in the mode that they have: a BatchNorm in evaluation mode, such as one that `Freeze` holds, keeps its
    statistics. That is done before an evaluation sees an average that has changed, and on entry to `after_loop`: a
    forward pass over the data each time, none where no BatchNorm is in training mode. With several ranks each makes the
    whole pass, and the results are averaged in one exchange, so that all have the same statistics.

    In the state `evaluate` the network holds the average from the first averaged epoch on; it is swapped in and out as
    by `EMA`. The memory is that of a second copy of the weights, from `start` on. For the high constant rate of the
    paper give `LRSchedule` a `torch.optim.swa_utils.SWALR`.

    Args:
        start: The first epoch whose weights are averaged, counted from 0.
        cycle: Epochs from one averaged to the next: c in the paper.
        dtype: The dtype of all averages; by default that of the weights, or float32 where that has fewer bits.
        evaluate: Whether evaluations see the average. Of several `SWA` and `EMA` only one can be seen.
        apply: Whether the run's own network holds the average at the end, on exit of `after_loop`.
        name: The plugin's name; a second SWA needs one.

    Raises:
        PluginError: For an option that does not fit; when the engine is built, if `start` is not among the epochs, or
            if evaluations would see two averages.
        DataError: In the run, if BatchNorm is to be updated and the data can be iterated once.
    """

    ranks = "all"  # each averages the weights, or the part of them, that it has

    def __init__(
        self,
        start: int,
        *,
        cycle: int = 1,
        dtype: torch.dtype | None = None,
        evaluate: bool = True,
        apply: bool = False,
        name: str | None = None,
    ) -> None:
        self._start = whole_number("SWA", "start", start, least=0)
        self._cycle = whole_number("SWA", "cycle", cycle)
        super().__init__("SWA", dtype, evaluate, name)
        self._apply = yes_or_no("SWA", "apply", apply)

    def _forget(self) -> None:
        super()._forget()
        self._looked = 0  # the step at whose end an epoch was looked at last: each is averaged once
        self._fresh = True  # whether the statistics of BatchNorm are those of the average

    @property
    def network(self) -> nn.Module:
        """A copy of the network, in evaluation mode, that holds the average; it exists once an epoch was averaged.

        Its BatchNorm statistics are up to date in `evaluate` and after the run.

        Raises:
            EngineError: Before that; if the network cannot be copied; with `strategy="fsdp"`, with which no rank has
                all of it.
        """
        if self._average is None:
            raise EngineError(f"SWA.network exists from the end of epoch {self._start} on (start={self._start})")
        return self._average.module()

    def on_build(self, run: Run) -> None:
        """Refuse a start that no epoch reaches, and a second average that evaluations would see.

        Raises:
            PluginError: If there is no such epoch, or there is such an average.
        """
        super().on_build(run)
        epochs = run.config.epochs
        if epochs is not None and 0 < epochs <= self._start:
            raise PluginError(
                f"SWA(start={self._start}): epochs count from 0, and the run has {epochs}, so none would be averaged; "
                f"start at {epochs - 1} at the latest"
            )

    def open(self, run: Run) -> None:
        """Swap the average in, if the run continues in an evaluation."""
        self._begun = None
        average = self._found(run)
        if run.state == "evaluate" and self._evaluate and average is not None:
            average.swap_in()

    def on_enter_evaluate(self, run: Run) -> None:
        """Add the weights of an epoch that is over; swap the average in, with statistics of its own."""
        if run.step and not run.update_due and not run.batches_remain:
            self._look(run)
        average = self._found(run)
        if self._evaluate and average is not None:
            self._refresh(run, average)
            average.swap_in()

    def on_enter_after_epoch(self, run: Run) -> None:
        """Add the weights of the epoch, unless an evaluation at its end has."""
        self._look(run)

    def on_enter_after_loop(self, run: Run) -> None:
        """Complete the average, before the body puts the network into evaluation mode."""
        if (average := self._found(run)) is not None:
            self._refresh(run, average)
        else:
            run.note(f"{self.name} averaged nothing: the run ended before epoch {self._start} was over")

    def on_exit_after_loop(self, run: Run) -> None:
        """Give the average to the network, if that was asked for."""
        if self._apply and (average := self._found(run)) is not None:
            average.apply()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name (not copied), how many epochs are in them, and which was the last."""
        return {**self._stored(), "looked": self._looked, "fresh": self._fresh}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the averages until they are needed.

        Raises:
            ValueError: If it is no state of this class, or, where a run is resumed, that of another network.
        """
        looked, fresh = count_in(mapping(state), "looked"), flag_in(state, "fresh")
        averages = {name: value for name, value in state.items() if name not in ("looked", "fresh")}
        self._keep(averages)
        self._looked, self._fresh = looked, fresh

    def _found(self, run: Run) -> Average | None:
        """Return the average, filled from a checkpoint if it was restored; `None` before the first averaged epoch."""
        if self._restored is not None:
            self._average = Average(run, self._dtype, "SWA", buffers=False)
            self._average.restore(self._restored)
            self._restored = None
        return self._average

    def _look(self, run: Run) -> None:
        """Add the weights to the average if the epoch that is over is one of those, once."""
        if self._looked == run.step:
            return
        self._looked = run.step
        since = run.epoch - self._start
        if since < 0 or since % self._cycle:
            return
        average = self._average = self._found(run) or Average(run, self._dtype, "SWA", buffers=False)
        average.follow(_blend, copies=False)
        self._fresh = not _following(run.network)

    def _refresh(self, run: Run, average: Average) -> None:
        """Compute the statistics of BatchNorm for the average, if it has changed."""
        if self._fresh:
            return
        average.swap_in()
        try:
            _update_batch_norm(run)
        finally:
            average.swap_out()
        self._fresh = True


def _blend(averages: list[Tensor], values: list[Tensor], count: int) -> None:
    """Add values to means of so many, as `AveragedModel` does: one by one on the CPU, in lists on an accelerator."""
    mean, means = get_swa_avg_fn(), cast("Any", get_swa_multi_avg_fn())
    pairs = [*zip(averages, values, strict=True)]
    for average, value in pairs:
        if average.device.type == "cpu":
            average.copy_(mean(average, value, count))
    if far := [pair for pair in pairs if pair[0].device.type != "cpu"]:
        means([average for average, _ in far], [value for _, value in far], count)


def _following(network: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm whose statistics follow the data: those in evaluation mode keep theirs."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]


def _update_batch_norm(run: Run) -> None:
    """Do what torch's `update_bn` does, on batches of any kind, in the precision and the modes of the run."""
    norms = _following(run.network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        with torch.compiler.set_stance("force_eager"):  # compiled code breaks at a momentum of None
            for batch in run.training_pass():
                run.forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    _average_over_ranks(run, norms)


@torch.no_grad()
def _average_over_ranks(run: Run, norms: list[_BatchNorm]) -> None:
    """Give all ranks the mean of their statistics: where each has read all data, these themselves."""
    held = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    sums: dict[str, float | Tensor] = {str(number): tensor for number, tensor in enumerate(held)}
    for tensor, total in zip(held, add_over_ranks(run, sums).values(), strict=True):
        tensor.copy_(torch.as_tensor(total) / run.world)
