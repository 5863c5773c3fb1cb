"""What the bodies of a step do beside, where several ranks make it; the engine puts them in place of those of one.

A rank that has no batch of its own in a step repeats one at weight 0: its forward and backward passes only keep the
others company, who wait for its part of the reduction. Such an idle step calls no handlers, counts no samples, and
leaves buffers and generators alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic_ns

import torch

from heptad.data.generators import device_preserved, preserved
from heptad.plugin.marks import Handler
from heptad.plugin.subscription import Subscription
from heptad.ranks.strategy import Strategy
from heptad.run.run import Run
from heptad.run.state import RunState
from heptad.step.around import StepAround
from heptad.step.bodies import before_epoch, before_step, process_batch
from heptad.step.trial import buffers_preserved

STEP = frozenset(("before_step", "process_batch", "after_step"))
"""The states of a step, whose handlers an idle one does not call."""


def bodies_of_ranks(strategy: Strategy) -> Mapping[str, Callable[[Run], None]]:
    """Return the bodies that differ under a strategy; none under that of a single process."""
    if not strategy.announces:
        return {}
    return {
        "before_epoch": before_epoch_of_ranks,
        "before_step": before_step_of_ranks,
        "process_batch": partial(announced_batch, strategy=strategy),
    }


def spare_idle_steps(subscription: Subscription) -> None:
    """Leave a handler out of idle steps, in which its events are counted as in others."""
    if subscription.mark.state not in STEP:
        return

    def spared(call: Handler) -> Handler:
        def unless_idle(run: Run) -> None:
            if not run._position.idle:
                call(run)

        return unless_idle

    subscription.handler = spared(subscription.handler)
    subscription.wrap(lambda call: call)


def before_epoch_of_ranks(run: Run) -> None:
    """Open the pass. Under `carry` an epoch may have no step of its own, and the last one that has is flushed."""
    at, feed = run._position, run._runtime.feed
    at.idle = False
    before_epoch(run)
    if not at.step:
        for remark in feed.remarks:
            run.note(remark)
    if at.carries and at.sized and at.last_epoch is not None:
        at.flushes = at.flushes or not feed.steps_in(range(at.epoch + 1, at.last_epoch))


def before_step_of_ranks(run: Run) -> None:
    """Take the next batch and place it. Where only reading tells whether it is the last of a window, read one further.

    That is data of unknown length, of which the last, smaller window makes an update: whether a step closes the window
    must be known before its backward pass.
    """
    before_step(run)
    at, feed = run._position, run._runtime.feed
    at.idle = feed.idle
    if at.flushes and not at.sized and at.window.steps + 1 < at.window.size:
        began = monotonic_ns()
        feed.more()
        at.reading_ns += monotonic_ns() - began


def announced_batch(run: Run, strategy: Strategy) -> None:
    """Say whether the step closes its window, then run forward, loss and backward."""
    at, window = run._position, run._position.window
    closes = window.steps + 1 == window.size
    if not closes and at.flushes:
        closes = at.remaining == 1 if at.sized else not run._runtime.feed.more()
    strategy.window_closes(closes)
    if at.idle:
        repeat_batch(run)
    else:
        process_batch(run)


def repeat_batch(run: Run) -> None:
    """Run forward and backward at weight 0, and leave all but gradients as it was."""
    runtime = run._runtime
    run._position.weight = 0
    step, on_loss = runtime.step, runtime.on_loss
    runtime.step, runtime.on_loss = _IdleStep(step), ()
    try:
        # around the backward pass too, which may run parts of the network again
        with buffers_preserved(runtime.network), preserved(), device_preserved(runtime.device):
            process_batch(run)
    finally:
        runtime.step, runtime.on_loss = step, on_loss


class _IdleStep(StepAround):
    """A step that weighs nothing, whatever the loss says."""

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run the step function, and count nothing of it."""
        self._step.run(at)
        at.weight, at.samples_now = 0, 0
        return None
