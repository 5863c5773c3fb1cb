"""What the engine does in each state: one function a state, called by the machine with the run.

They are plain functions of the run and hold nothing themselves. The hot ones are lean on purpose: between torch's
operations Python runs on cold caches, where a call costs several times what a tight loop shows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from heptad.data.cursor import NOTHING
from heptad.data.generators import seed_all
from heptad.errors import DataError, add_note, diagnose
from heptad.ranks.strategy import Strategy
from heptad.record.events import Drop, Extend, NoUpdate
from heptad.run.run import Run
from heptad.step.closure import build_recomputation
from heptad.step.first_step import FirstStep
from heptad.step.function import build_step, check_loss
from heptad.step.initializing import build_initialized
from heptad.step.judging import call_on_loss
from heptad.step.loss_scaling import build_scaled
from heptad.step.optimizers import build_optimizers
from heptad.step.untrained import LOOKS, Bond, find_untrained, look_after_parameters

MANY = 1000
"""Windows without any update after which the log says so."""


def before_loop(run: Run, strategy: Strategy) -> None:
    """Seed, place the network, build optimizers, initialise weights if asked; training mode, clear gradients."""
    runtime, seed = run._runtime, run.config.seed
    if seed is not None:
        seed_all(seed)
    # without a seed the data's order still has a root, so that a checkpoint can hold it; the generators are left alone
    runtime.feed.seed = strategy.root(secrets.randbits(62) if seed is None else seed)
    build_initialized(runtime, strategy, partial(build, run, strategy))
    strategy.equalize(run)
    runtime.network.train()
    runtime.optimizers.drop(runtime.network)
    run.plan_windows()
    run._buffer.windows.append((0, run._position.window.size))


def build(run: Run, strategy: Strategy) -> None:
    """Place the network, then build the optimizers and the step function: also done where a run is resumed."""
    runtime = run._runtime
    strategy.place(runtime)
    runtime.optimizers = build_optimizers(runtime, strategy)  # after placing, which may replace the parameters
    runtime.bond = Bond(runtime)
    build_recomputation(run, strategy)
    compute_loss = strategy.compute_loss(runtime.components.compute_loss)
    step = build_step(runtime.components, runtime.forward, weighs=strategy.announces, compute_loss=compute_loss)
    runtime.step = FirstStep(build_scaled(run, step, strategy), runtime)
    run._buffer.facts |= {
        **run.config.model_dump(),
        "samples": runtime.feed.identity().get("samples"),  # of a dataset that is indexed
        "batches": runtime.feed.batches,
        **runtime.optimizers.facts(),
    }


def before_epoch(run: Run) -> None:
    """Open the pass."""
    at, feed = run._position, run._runtime.feed
    at.batch_index = 0
    if not at.carries:
        at.window.steps = 0  # what remainder="drop" left over is not part of any update
    at.pass_index = 0
    at.extending = False
    at.epoch_open = True
    run.plan_windows()
    feed.open(at.epoch, 0)
    at.sized = feed.batches is not None
    at.remaining = _remaining(run, f"the pass of epoch {at.epoch}")
    at.settle_carry()
    if at.remaining < at.needed:
        run.emit(Drop, epoch=at.epoch, batches=at.remaining, window=at.window.next_size)


def before_step(run: Run) -> None:
    """Take the next batch and place it; clear gradients where a window opens."""
    at, runtime = run._position, run._runtime
    window = at.window
    if not window.steps:
        # where the data cannot fill one of the size that was asked for, this one was begun as it was sized
        if window.size != window.next_size and at.remaining >= at.needed:
            window.resize(at.loss)
            run._buffer.windows.append((run._buffer.seq, window.size))
        # Here and not after the update: gradients can be read until now, at the cost of their memory, and those that
        # remainder="drop" left go too. Before the batch is taken, which may need their memory.
        runtime.optimizers.clear()
    elif not at.remaining:
        _extend(run)
    batch = runtime.feed.take()
    if batch is NOTHING:  # under remainder="extend" nobody has asked yet whether data of unknown length go on
        _extend(run)
        batch = runtime.feed.take()
    at.batch = runtime.step.place(batch, runtime.place) if runtime.places else batch


def process_batch(run: Run) -> None:
    """Run forward, loss and backward on the batch."""
    at, runtime = run._position, run._runtime
    window = at.window
    at.loss = None  # free the graph of the previous step before that of this one is built
    step = runtime.step
    logs = step.run(at)
    if logs:
        for name, value in logs.items():
            run.record(name, value)
    loss: Any = at.loss
    if runtime.on_loss:
        call_on_loss(run)
    try:
        if window.size == 1 and at.weight is None:
            window.empty, window.losses = False, None
            loss.backward(window.scale)  # what window.backward would do, less a call
        else:
            at.loss = window.backward(loss, at.weight)
    except Exception as error:
        check_loss(loss, step.giver, at.weight)
        if advice := diagnose("backward", error, step.giver):
            add_note(error, advice)
        raise


def after_step(run: Run) -> None:
    """Count the step."""
    at = run._position
    at.step += 1
    at.batch_index += 1
    at.samples += at.samples_now
    window = at.window
    if at.kept is not None:
        at.kept.add(at.batch, at.loss, at.weight, window)
    steps = window.steps = window.steps + 1
    at.batch = at.output = at.weight = None
    if at.sized:
        at.remaining -= 1
    at.update_due = steps == window.size or (at.flushes and not at.remaining)


def optimizer_update(run: Run) -> None:
    """Update the weights and count the update, unless it is to be skipped; close the window."""
    at, optimizers = run._position, run._runtime.optimizers
    at.window.steps = 0
    at.window.closed = at.window.losses
    at.update_due = False
    if at.skip is not None:
        at.skip = None
        at.skipped = True
        at.skips += 1
        run._buffer.skip()
        if at.skips == MANY and not at.update:
            run.emit(NoUpdate, windows=MANY)
        for optimizer in optimizers:
            optimizer.zero_grad()
        return
    at.skipped = False
    if at.remaining < at.needed or not at.update & LOOKS:  # the last update of the pass, or one in 4,096
        find_untrained(run)
    if (recomputation := run._runtime.recomputation) is not None:
        recomputation.update(run)
    else:
        for optimizer in optimizers:
            optimizer.step()
    at.update += 1
    if at.update == at.last_update:
        find_untrained(run)
        at.end(f"max_updates={at.update} reached")


def after_epoch(run: Run) -> None:
    """Close the epoch and count it."""
    at = run._position
    run._runtime.feed.end()
    _refuse_endless(run)
    look_after_parameters(run)
    if not at.carries:
        at.window.steps = 0
    at.remaining = 0
    at.update_due = False
    at.epoch_open = False
    at.epoch += 1


def after_loop(run: Run) -> None:
    """Clear gradients; evaluation mode."""
    at, runtime = run._position, run._runtime
    run._buffer.check(run.counters())
    runtime.optimizers.drop(runtime.network)
    at.loss = None if at.loss is None else at.loss.detach()
    runtime.network.eval()
    runtime.feed.close()
    if at.skips and not at.update:
        run.emit(NoUpdate, windows=at.skips)
    at.end(f"epochs={at.epoch} complete")


BODIES: dict[str, Callable[[Run], None]] = {
    "before_epoch": before_epoch,
    "before_step": before_step,
    "process_batch": process_batch,
    "after_step": after_step,
    "optimizer_update": optimizer_update,
    "after_epoch": after_epoch,
    "after_loop": after_loop,
}
"""The bodies but for `before_loop`, which needs the strategy."""


def _refuse_endless(run: Run) -> None:
    """Refuse an epoch that closed no window where only `max_updates` ends the run: the others would close none."""
    at, config = run._position, run.config
    if config.epochs is None and config.remainder == "drop" and not at.ending and at.batch_index < at.window.size:
        raise DataError(
            f"epoch {at.epoch} has {at.batch_index} batches, fewer than accumulation={at.window.size}, and "
            "remainder='drop' makes no update of them: max_updates would never be reached; use remainder='extend' or "
            "'flush'"
        )


def _remaining(run: Run, which: str) -> int:
    """Return how many batches are still to be taken from the pass that was just opened; 1 stands for "more"."""
    feed = run._runtime.feed
    remaining = int(feed.more()) if feed.batches is None else feed.batches
    if not remaining and not feed.taken_early:
        raise DataError(diagnose("empty_pass", which, run.config))
    return remaining


def _extend(run: Run) -> None:
    """Begin a further pass, in an order of its own, to fill the epoch's last window."""
    at, feed, window = run._position, run._runtime.feed, run._position.window
    missing = window.size - window.steps
    if not at.extending:
        run.emit(Extend, epoch=at.epoch, steps=missing)
    feed.end()
    at.extending = True
    at.pass_index += 1
    feed.open(at.epoch, at.pass_index, missing)
    at.remaining = min(missing, _remaining(run, f"pass {at.pass_index} of epoch {at.epoch}"))
