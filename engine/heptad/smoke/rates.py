"""`find_learning_rate`: a range test over learning rates, made by a run of its own that is put back afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from heptad.config import RunConfig
from heptad.errors import ConfigError, EngineError, kind
from heptad.run.run import Run
from heptad.smoke.putting_back import put_back
from heptad.smoke.rate_search import RateSearch
from heptad.smoke.rehearsal import SmokeEngine
from heptad.step.optimizers import needs_closure

WINDOWS = 8
"""Windows for each rate after which the test ends, because they make no update."""

DUST = 2e-7
"""What counts as no fall, as a share of the loss: the last bit of float32."""


class RangeEngine(Protocol):
    """An engine, as far as a range test needs one."""

    current: Run

    def _driving(self, verb: str) -> AbstractContextManager[None]: ...


def find_learning_rate(
    engine: RangeEngine,
    *,
    low: float = 1e-7,
    high: float = 1.0,
    steps: int = 100,
    accumulation: int | None = None,
    smoothing: float = 0.9,
    diverges: float = 4.0,
) -> RateSearch:
    """Train over exponentially growing learning rates, and put everything back: a range test.

    L. N. Smith: Cyclical Learning Rates for Training Neural Networks, 2015 and WACV 2017 (arXiv:1506.01186). The first
    of `steps` updates is made at `low`, the last at `high`, each at the one before it times the same factor. Groups
    of different rates keep their ratio: the one with the highest rate gets the rate itself, each other its share.

    The test is a run of its own over the engine's components and configuration, before that run begins; no plugin takes
    part, a schedule, clipping or `Freeze` neither, and no function that was subscribed to the engine is called. It
    passes over the data as often as it needs to. Weights, buffers, optimizers and their rates, gradients, modes, RNG
    and data are put back as by `Engine.smoke`, also if it fails: `engine.run()` is, bit for bit, what it would be
    without. What the data, a loss or an `init_weights` do elsewhere stays done. Reading the loss is a device sync each
    update.

    Args:
        engine: An engine whose run has not begun.
        low: The first rate, above 0.
        high: The last one, above `low`.
        steps: Updates from one to the other, at least 3.
        accumulation: Steps in an update; by default those of the configuration.
        smoothing: The share of the average that stays at each update, from 0 on and below 1.
        diverges: The test ends when the smoothed loss is above its lowest times this, where that is above 0; above 1.
            It also ends at a loss that is not finite, which is left out.

    Returns:
        Rates, losses and a suggestion; print it, or show its `plot()`.

    Raises:
        ConfigError: If an argument does not fit.
        EngineError: If the run has begun; if data can be iterated once or the network could not be put back; if a group
            has no learning rate that is a number, or an optimizer needs a closure; with `strategy="fsdp"`; if no
            loss was finite.
        BaseException: As `Engine.run`.
    """
    if not isinstance(getattr(engine, "current", None), Run):
        raise ConfigError(f"find_learning_rate(engine) takes an Engine, got {kind(engine)}")
    _refuse_arguments(low, high, steps, smoothing, diverges)
    run = engine.current
    with engine._driving("find_learning_rate"), put_back(run, "find_learning_rate", "a range test"):
        factory: Any = type(engine)
        rates = [low * (high / low) ** (number / (steps - 1)) for number in range(steps)]
        tried = factory(run.components, _config_of_test(run.config, steps, accumulation))
        return _Test(rates, smoothing, diverges).drive(tried)


class _Test:
    """Set a rate before each update, and take the loss."""

    def __init__(self, rates: Sequence[float], smoothing: float, diverges: float) -> None:
        self._rates, self._smoothing, self._diverges = rates, smoothing, diverges
        self._shares: list[float] = []
        self._losses: list[float] = []
        self._smoothed: list[float] = []
        self._diverged = False

    def drive(self, engine: SmokeEngine) -> RateSearch:
        """Make the updates."""

        def on_exit_of_before_loop(run: Run) -> None:
            self._shares = _shares_of(run)

        def on_enter_of_optimizer_update(run: Run) -> None:
            _set_rates(run, self._rates[len(self._losses)], self._shares)
            self._take(run)

        options: Any = {"every": 1, "once": False, "when": None, "first": None}
        engine.on_exit("before_loop", **options)(on_exit_of_before_loop)
        engine.on_enter("optimizer_update", **options)(on_enter_of_optimizer_update)
        try:
            engine.run()
        finally:
            engine.close()
        return self._result()

    def _take(self, run: Run) -> None:
        """Take the loss of the window, over all ranks; end the test where it diverges."""
        found = [0.0, 0.0] if run.mean_loss is None else [float(run.mean_loss), 1.0]
        total, ranks = map(float, run._runtime.peers.add(torch.tensor(found, dtype=torch.float64)))
        if not ranks or run.update_skipped:  # a window of nothing, or the scale of fp16 is found: no update is made
            if run.windows >= WINDOWS * len(self._rates):
                run.stop("too many windows of the range test made no update")
            return
        loss = total / ranks
        if math.isfinite(loss):
            smoothing = self._smoothing
            number, last = len(self._losses), self._smoothed[-1:] or [0.0]
            weight = 1 - smoothing**number
            average = smoothing * last[0] * weight + (1 - smoothing) * loss
            self._losses.append(loss)
            self._smoothed.append(average / (1 - smoothing ** (number + 1)))
            best = min(self._smoothed)
            self._diverged = best > 0 and self._smoothed[-1] > self._diverges * best
        else:
            self._diverged = True
        if self._diverged:
            run.skip_update("the range test has diverged")
            run.stop("the range test has diverged")

    def _result(self) -> RateSearch:
        if not self._losses:
            raise EngineError(
                "find_learning_rate found no finite loss: no window gave a loss, or that of the first, before any "
                "update, is not finite; look for NaN in the data and the loss"
            )
        rates = self._rates[: len(self._losses)]
        first = _too_few(self._smoothing, len(rates))
        best = self._smoothed.index(min(self._smoothed[first:]), first)
        return RateSearch(
            tuple(rates),
            tuple(self._losses),
            tuple(self._smoothed),
            _steepest(rates, self._smoothed, first, best),
            rates[best],
            self._diverged,
            tuple(self._shares),
        )


def _too_few(smoothing: float, count: int) -> int:
    """Return how many averages are of too few losses to be smooth: as many as one spans, a quarter of all at most."""
    return min(round(1 / (1 - smoothing)) - 1, count // 4)


def _steepest(rates: Sequence[float], smoothed: Sequence[float], first: int, best: int) -> float | None:
    """Return the rate of the steepest fall from one place to another: rates are evenly spaced in their logarithm."""
    slopes: list[tuple[float, int]] = []
    for place in range(first, best + 1):
        before, after = max(place - 1, first), min(place + 1, best)
        if after > before:
            slopes.append(((smoothed[after] - smoothed[before]) / (after - before), place))
    slope, place = min(slopes, default=(0.0, 0))
    return rates[place] if -slope > DUST * abs(smoothed[place]) else None


def _config_of_test(config: RunConfig, steps: int, accumulation: int | None) -> RunConfig:
    given: dict[str, Any] = {name: getattr(config, name) for name in config.model_fields_set}
    if accumulation is not None:
        given |= {"accumulation": accumulation, "window": None}
    elif config.window is not None:  # from which the accumulation was computed
        given.pop("accumulation", None)
    given |= {"epochs": None, "max_updates": steps}
    return RunConfig(**given)


def _refuse_arguments(low: float, high: float, steps: int, smoothing: float, diverges: float) -> None:
    numbers = {"low": low, "high": high, "smoothing": smoothing, "diverges": diverges}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise ConfigError(f"find_learning_rate({name}=…) must be a finite number, got {value!r}")
    if not 0 < low < high:
        raise ConfigError(f"find_learning_rate needs 0 < low < high, got low={low!r}, high={high!r}")
    if type(steps) is not int or steps < 3:
        raise ConfigError(f"find_learning_rate(steps=…) must be a whole number from 3 on, got {steps!r}")
    if not 0 <= smoothing < 1:
        raise ConfigError(f"find_learning_rate(smoothing=…) must be from 0 on and below 1, got {smoothing!r}")
    if diverges <= 1:
        raise ConfigError(f"find_learning_rate(diverges=…) must be above 1, got {diverges!r}")


def _shares_of(run: Run) -> list[float]:
    """Return the rate of each group as a share of the highest; where all are 0, as before a warm-up, each is 1.

    Raises:
        EngineError: If one has no rate, or an optimizer needs a closure.
    """
    for optimizer in run.optimizers:
        if needs_closure(optimizer):
            raise EngineError(
                f"find_learning_rate makes one step an update, and {kind(optimizer)} needs a closure, with which it "
                "computes each window several times and searches for its step itself; leave the range test out"
            )
    groups = run.parameter_groups()
    rates = [_rate_of(group, number, run.optimizers) for number, group in enumerate(groups)]
    highest = max(rates, default=0.0)
    return [rate / highest for rate in rates] if highest > 0 else [1.0] * len(rates)


def _rate_of(group: dict[str, Any], number: int, optimizers: Sequence[Optimizer]) -> float:
    """Return the rate that a group was built with: a schedule may have written its first one over it."""
    rate = group.get("initial_lr", group.get("lr"))
    if isinstance(rate, torch.Tensor) and rate.numel() == 1:
        return float(rate)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        kinds = ", ".join(kind(optimizer) for optimizer in optimizers)
        raise EngineError(
            f"find_learning_rate sets the learning rate, and parameter group {number} of {kinds} has none that is a "
            f"number: lr is {rate!r}; give it one"
        )
    return float(rate)


def _set_rates(run: Run, rate: float, shares: Sequence[float]) -> None:
    for group, share in zip(run.parameter_groups(), shares, strict=True):
        if isinstance(group["lr"], torch.Tensor):  # in place: compiled and captured steps hold the tensor
            group["lr"].fill_(rate * share)
        else:
            group["lr"] = rate * share
