"""`compute`: forward, loss and backward of a step on its batch as a whole, or on parts of it, one after the other.

Called by the redo of a window, by the steps after one that ran out of memory, and by `Recomputation`. With w a part's
weight and W the sum over the parts, the loss of the step is Σ (w / W) · loss, so each part is a step of the window that
weighs w, relative to what the first whole step of the window weighs. The result is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - the base of all of them

from heptad.data.cutting import cut, joined
from heptad.data.placement import count_samples
from heptad.errors import DataError, EngineError
from heptad.ranks.strategy import Strategy, scale
from heptad.run.loss_mean import weighed
from heptad.run.run import Run
from heptad.run.weight import Weight, adds_nothing
from heptad.run.window import Window
from heptad.step.function import check_loss
from heptad.step.judging import call_on_loss

Logs = Mapping[str, "float | torch.Tensor"]

Announce = Callable[[bool], None]
"""Is called before each forward pass, with whether it is the last of the step."""


class LeftOutLateError(Exception):
    """A plugin left a step out, and gradients of earlier parts of its batch are in the window already."""


class UncuttableError(EngineError):
    """A batch, or what a loss says of it, does not allow that it is computed in parts."""


def parts_in(samples: int, halvings: int, least: int) -> int:
    """Return into how many parts a batch is cut.

    Args:
        samples: How many it holds.
        halvings: How often it is cut in half.
        least: Samples that a part holds at least.
    """
    return max(1, min(2**halvings, samples // least))


def least_in(run: Run) -> int:
    """Return how many samples a part must hold: BatchNorm may refuse a single one."""
    return 2 if has_batch_norm(run.network) else 1


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network takes a mean over the samples of what it is given."""
    return any(isinstance(module, _BatchNorm) and module.training for module in network.modules())


def compute(
    run: Run, window: Window, halvings: int, least: int, announce: Announce, *, adds: bool = True, judge: bool = False
) -> Logs:
    """Compute `run.batch`, and leave loss, output, weight and samples of the whole step in the run's state.

    Args:
        run: The run.
        window: The window, whose steps are counted by the caller.
        halvings: How often the batch is cut in half.
        least: Samples that a part holds at least.
        announce: See `Announce`.
        adds: Whether the step adds to the window. The network is run in any case: it draws random numbers.
        judge: Whether plugins look at the loss, and may leave the step out.

    Returns:
        What is to be recorded, by name.

    Raises:
        LeftOutLateError: If a plugin left the step out after a part of it had been added.
        UncuttableError: If the batch cannot be computed in parts.
    """
    at = run._position
    at.loss = at.output = at.weight = None
    _tell_of(run, [])
    samples = count_samples(at.batch) if halvings else 1
    parts = parts_in(samples, halvings, least)
    if parts > 1:
        return _Parts(run, window, announce, adds=adds, judge=judge).compute(samples, parts)
    announce(True)
    logs = run._runtime.step.run(at)
    if judge:
        call_on_loss(run)
    at.weight = at.weight if adds else 0
    at.loss = _backward(run, window)
    return logs or {}


def announcer(strategy: Strategy, *, closes: bool) -> Announce:
    """Return what tells a strategy, before each forward pass of a step, whether it closes the window."""
    return (lambda last: strategy.window_closes(closes and last)) if strategy.announces else _announce_nothing


def _announce_nothing(last: bool) -> None:
    del last


class _Parts:
    """Computes one step in parts.

    Args:
        run: The run, whose batch is cut.
        window: As for `compute`, and so are the others.
    """

    def __init__(self, run: Run, window: Window, announce: Announce, *, adds: bool, judge: bool) -> None:
        self._run = run
        self._window = window
        self._announce = announce
        self._adds = adds
        self._judge = judge
        self._losses: list[tuple[torch.Tensor, Weight]] = []
        self._weight: Weight = 0  # of all parts so far
        self._logs: dict[str, list[tuple[torch.Tensor | float, Weight]]] = {}

    def compute(self, samples: int, parts: int) -> Logs:
        """Compute the step."""
        window, at = self._window, self._run._position
        batch, steps, counted = at.batch, window.steps, 0
        outputs: list[Any] = []
        try:
            cut_batch = cut(batch, samples, parts)
        except DataError as error:
            raise UncuttableError(f"a batch cannot be cut: {error}") from None
        if not steps:
            window.backward(None, 0)  # opens the window, which it must not do again for each part
            window.steps = 1
        before = len(window.losses or ())
        own = window.first is None  # the reference of the window's weights is set by this step
        try:
            for number, part in enumerate(cut_batch, 1):
                at.batch, at.loss, at.output, at.weight = part, None, None, None
                self._announce(number == parts)
                self._run_part(samples, count_samples(part))
                outputs.append(at.output)
                counted += at.samples_now
        finally:
            at.batch, window.steps = batch, steps
        if own and window.first is not None:
            self._settle()
        at.samples_now, at.output = counted, _joined(outputs)
        _tell_of(self._run, outputs)
        at.weight = self._weight if self._adds else 0
        if self._losses:
            at.loss = _mean(self._losses, self._weight).to(self._losses[0][0].dtype)
        if (
            window.losses and len(window.losses) > before and at.loss is not None
        ):  # one for the step, as of a whole batch
            weight: Weight = sum(relative for _, relative in window.losses[before:])
            window.losses[before:] = [(at.loss, weight)]
        return {name: _mean(rows, self._weight) for name, rows in self._logs.items()}

    def _run_part(self, samples: int, own: int) -> None:
        """Compute one part."""
        run, window, at = self._run, self._window, self._run._position
        step = run._runtime.step
        logs = step.run(at)
        if at.weight is None:
            if step.giver != "criterion":
                raise UncuttableError(
                    "compute_loss gives no weight, so nothing says how the losses of halves are averaged; return "
                    "LossOutput(loss, weight=number of samples)"
                )
            at.weight = step.weigh(at)
        weight = at.weight
        if self._judge:
            call_on_loss(run)
            if adds_nothing(at.weight) and not adds_nothing(weight):
                if self._losses:
                    raise LeftOutLateError
                self._adds = self._judge = False  # of this step, whose other parts are run for what they draw
        if self._adds:
            if window.first is None and not adds_nothing(weight):
                window.first = weight * samples / own  # what the whole batch weighs, as far as this part can say
            at.loss = _backward(run, window)
        at.loss = _detached(at.loss)  # its graph ends here
        self._weight = self._weight + weight
        if at.loss is not None and not adds_nothing(weight):
            self._losses.append((at.loss, weight))
        for name, value in (logs or {}).items():
            self._logs.setdefault(name, []).append((value, weight))

    def _settle(self) -> None:
        """Relate the window to what the first step does weigh, where that is not what its first part promised."""
        window, weight, promised = self._window, self._weight, self._window.first
        if promised is None or (not isinstance(weight, torch.Tensor) and weight == promised):
            return
        factor: Weight = promised / weight
        if isinstance(weight, torch.Tensor):
            factor = torch.where(weight > 0, promised / weight, 1.0)
        optimizers = self._run._runtime.optimizers
        held = [*optimizers.parameters(self._run.network), *optimizers.beside().held()]
        scale(list({id(parameter): parameter for parameter in held}.values()), factor)
        window.first, window.total = weight, window.total * factor
        window.losses = [(loss, relative * factor) for loss, relative in window.losses or ()]


def _backward(run: Run, window: Window) -> torch.Tensor | None:
    at = run._position
    loss = at.loss
    try:
        return window.backward(loss, at.weight)
    except Exception:
        check_loss(loss, run._runtime.step.giver, at.weight)
        raise


def _detached(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, torch.Tensor) else loss


def _mean(rows: list[tuple[Any, Weight]], weight: Weight) -> torch.Tensor:
    """Return the weighed mean of what the parts gave; where no part weighs anything, the plain one (no device sync)."""
    values = [(torch.as_tensor(value).detach().double(), own) for value, own in rows]
    plain = sum((value for value, _ in values), torch.zeros((), dtype=torch.float64)) / len(values)
    if adds_nothing(weight):
        return plain
    total: Any = sum((weighed(value, own) for value, own in values), torch.zeros((), dtype=torch.float64))
    if not isinstance(weight, torch.Tensor):
        return total / weight
    return torch.where(weight > 0, total / weight, plain.to(weight.device))


def _tell_of(run: Run, outputs: list[Any]) -> None:
    """Say whether only some parts of a step gave an output: what belongs to part of the batch cannot be measured."""
    if (redo := run._position.redo) is not None:
        redo.output_in_part = len({output is None for output in outputs}) > 1


def _joined(outputs: list[Any]) -> Any:
    try:
        return joined(outputs)
    except Exception:  # outputs of any kind, which only handlers look at
        return None
