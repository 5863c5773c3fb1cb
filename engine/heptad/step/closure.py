"""`Recomputation`: a window computed again from its batches, for optimizers that need a closure and for plugins."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from heptad.errors import ConfigError, kind
from heptad.plugin.contract import Plugin
from heptad.plugin.verify import titled
from heptad.ranks.strategy import Strategy
from heptad.run.kept import KeptWindow
from heptad.run.run import Run
from heptad.run.runtime import Runtime
from heptad.step.loss_scaling import unscale
from heptad.step.optimizers import given_optimizers, needs_closure
from heptad.step.parts import announcer, compute, least_in
from heptad.step.trial import buffers_preserved


class Recomputation:
    """Steps the optimizers of a run, and computes its window again where one of them or a plugin asks for it.

    Args:
        strategy: Asked as in the step: whether the window closes, and to make the gradients those of the window.
        needy: For each optimizer, whether its step needs a closure.
    """

    def __init__(self, strategy: Strategy, needy: Sequence[bool]) -> None:
        self._strategy = strategy
        self._needy = needy

    def update(self, run: Run) -> None:
        """Step the optimizers, with a closure those that need one; then drop the batches.

        The first call of a closure returns the loss and leaves the gradients that the window has made, so the network
        is run as often as in a plain loop. It does so only for the first optimizer: the others find other weights.
        """
        kept = _kept(run)
        fresh = True

        def closure() -> torch.Tensor:
            nonlocal fresh
            if fresh:
                fresh = False
                return self._strategy.loss(run, partial(kept.corrected, run._position.window))
            return self.again(run)

        for optimizer, needy in zip(run.optimizers, self._needy, strict=True):
            step: Any = optimizer.step  # as torch declares it, a closure returns a number
            step(closure) if needy else step()
            fresh = False
        kept.clear()

    def again(self, run: Run) -> torch.Tensor:
        """Compute the gradients of the window at the present weights; those before are dropped.

        What the steps of the window have left in the run (the newest loss, recorded values) stays, and so do the
        gradients of what side optimizers alone hold: plugins have put them there.

        Returns:
            The loss of the window: Σ (r / k) · loss in the order of its steps, corrected for their weights; detached.
        """
        at, strategy = run._position, self._strategy
        before = at.window, at.batch, at.output, at.loss, at.weight, at.samples_now, at.idle
        kept, loss = _kept(run), KeptWindow()
        batches = kept.weighing()
        adds = bool(batches)  # other ranks wait for a backward pass of this one, also where its own steps weigh nothing
        if not adds and strategy.announces:
            batches = kept.batches[-1:]
        at.idle = not adds
        at.window = window = at.window.fresh()
        optimizers = run._runtime.optimizers
        halvings = 0 if at.redo is None else at.redo.halvings
        own = {id(parameter) for parameter in optimizers.held()}
        beside = [(one, one.grad) for one in optimizers.beside().held() if id(one) not in own]
        optimizers.clear()
        try:
            # an optimizer steps without gradients; a pass that only keeps others company leaves buffers alone
            with torch.enable_grad(), nullcontext() if adds else buffers_preserved(run.network):
                for number, batch in enumerate(batches, 1):
                    at.batch = batch
                    announce = announcer(strategy, closes=number == len(batches))
                    compute(run, window, halvings, least_in(run) if halvings else 1, announce, adds=adds)
                    loss.add(batch, at.loss, at.weight, window)
                    window.steps += 1
            unscale(run)
            strategy.reduce(run)
            return strategy.loss(run, partial(loss.corrected, window))
        finally:
            for parameter, gradient in beside:
                parameter.grad = gradient
            at.window, at.batch, at.output, at.loss, at.weight, at.samples_now, at.idle = before
            if window.scale is not at.window.scale:  # it has changed in this pass
                at.window.scale = window.scale
                at.window.seeds.clear()


def _kept(run: Run) -> KeptWindow:
    if run._position.kept is None:
        raise AssertionError("a run with a Recomputation keeps its window")
    return run._position.kept


def prepare_recomputation(runtime: Runtime, plugins: Sequence[Plugin]) -> None:
    """Take note of what plugins do with a window, and check the optimizers that are given ready-made.

    Raises:
        ConfigError: If an optimizer needs a closure, and a plugin changes the gradients.
    """
    runtime.keeps_window = any(plugin.keeps_window for plugin in plugins)
    runtime.gradient_changers = [titled(plugin) for plugin in plugins if plugin.changes_gradients]
    _check_closures(given_optimizers(runtime.components), runtime.gradient_changers)


def build_recomputation(run: Run, strategy: Strategy) -> None:
    """Keep the batches of each window if an optimizer or a plugin needs them.

    Raises:
        ConfigError: If an optimizer needs a closure, and a plugin changes the gradients.
    """
    runtime = run._runtime
    _check_closures(run.optimizers, runtime.gradient_changers)
    needy = [needs_closure(optimizer) for optimizer in run.optimizers]
    if runtime.keeps_window or any(needy):
        runtime.recomputation = Recomputation(strategy, needy)
        run._position.kept = run._position.kept or KeptWindow(every=strategy.announces)


def _check_closures(optimizers: Sequence[object], changers: Sequence[str]) -> None:
    """Refuse plugins whose change of the gradients an optimizer would undo."""
    if needy := [kind(optimizer) for optimizer in optimizers if changers and needs_closure(optimizer)]:
        raise ConfigError(
            "\n".join(
                f"{name} changes the gradients on entry to optimizer_update, and the step of {needy[0]}, which needs a "
                "closure, computes them again without the change; leave the plugin out, or use another optimizer"
                for name in changers
            )
        )
