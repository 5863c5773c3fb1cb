"""What the engine does in each state: one function a state, called by the machine with the run.

They are plain functions of the run and hold nothing themselves. The hot ones are lean on purpose: between torch's
operations Python runs on cold caches, where a call costs several times what a tight loop shows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sized
from typing import Any, cast

import torch

from heptad.config import LossOutput, build_optimizers, check_optimizer
from heptad.data.generators import seed_all
from heptad.data.placement import count_samples, place
from heptad.errors import DataError, EngineError, a_kind, add_note, counted, in_a_line, kind
from heptad.plugin.contract import Mark
from heptad.plugin.subscription import Subscription
from heptad.run.run import Run
from heptad.run.window import scale_gradients


def before_loop(run: Run) -> None:
    """Seeds, places the network, builds the optimizer, initialises weights if asked; training mode, clear gradients."""
    parts, components, seed = run.runtime, run.runtime.components, run.config.seed
    if seed is not None:
        seed_all(seed)
    # without a seed the data's order still has a root, so that a checkpoint can hold it; the generators are left alone
    parts.feed.seed = secrets.randbits(62) if seed is None else seed
    build(run)
    if components.init_weights is not None:
        components.init_weights(parts.network)
        for optimizer in parts.optimizers:
            check_optimizer(optimizer, parts.network, _REPLACED)
    parts.network.train()
    clear_gradients(run)
    run.plan_windows()
    run.buffer.windows.append((0, run.position.window.size))


def build(run: Run) -> None:
    """Places the network and builds the optimizers: what is also to be done where a run is resumed."""
    parts = run.runtime
    parts.network.to(parts.device)
    parts.optimizers = build_optimizers(parts.components)
    parts.clearing = tuple((one, getattr(type(one), "zero_grad", None) is PLAIN_ZERO_GRAD) for one in parts.optimizers)
    run.buffer.facts |= {
        **run.config.model_dump(),
        "batches": parts.feed.batches,
        "optimizers": [describe(optimizer) for optimizer in parts.optimizers],
    }


def before_epoch(run: Run) -> None:
    """Opens the pass."""
    at, feed = run.position, run.runtime.feed
    at.batch_index = 0
    at.window.steps = 0  # what remainder="drop" left over is not part of any update
    at.pass_index = 0
    at.extending = False
    at.epoch_open = True
    run.plan_windows()
    limit = None
    if run.config.remainder == "drop" and feed.batches is not None:
        limit = feed.batches  # a live change of the window may fill what the present one would leave
    feed.open(at.epoch, 0, limit)
    at.sized = feed.batches is not None
    at.remaining = _remaining(run)
    if not at.remaining:
        raise DataError(f"the pass of epoch {at.epoch} yields nothing; the data must hold at least one batch")
    if limit is not None and limit < at.window.next_size:
        run.note_of("drop", f"epoch {at.epoch} makes no update: {limit} of {at.window.next_size} batches of a window")


def before_step(run: Run) -> None:
    """Takes the next batch and places it; clears gradients where a window opens."""
    at, parts = run.position, run.runtime
    window = at.window
    if not window.steps:
        # where the data cannot fill one of the size that was asked for, this one was begun as it was sized
        if window.size != window.next_size and at.remaining >= at.needed:
            window.resize()
            run.buffer.windows.append((run.buffer.seq, window.size))
        for optimizer, plainly in parts.clearing:
            if plainly:
                # what zero_grad() does, less its profiler record, which costs more than this whole body
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
            else:
                optimizer.zero_grad()
    elif not at.remaining:
        _extend(run)
    batch = parts.feed.take()
    at.batch = place(batch, parts.device) if parts.places else batch


def process_pair(run: Run) -> None:
    """The body of `process_batch` for a criterion: forward, loss, backward for a batch of (data, target)."""
    at, parts = run.position, run.runtime
    at.output = at.loss = None  # the graph of the step before goes before that of this one comes
    batch = at.batch
    if not at.step:
        check_pair(batch)
    try:
        data, target = batch
    except (TypeError, ValueError):
        check_pair(batch)
        raise
    output = at.output = parts.network(data)
    loss = at.loss = parts.criterion(output, target)
    if not at.step:
        check_loss(loss, "criterion")
    try:
        samples = at.samples_now = count_samples(batch) if target.__class__ is dict else len(target)
    except TypeError:  # a single sample
        samples = at.samples_now = 1
    window = at.window
    try:
        if window.size == 1 and samples:
            loss.backward()  # what window.backward would do, less a call
        else:
            window.backward(loss, parts.weigh(target))
    except Exception as error:
        explain_backward(error, loss, "criterion")
        raise


def process_any(run: Run) -> None:
    """The body of `process_batch` for a `compute_loss`: forward, loss, backward for any batch."""
    at, parts = run.position, run.runtime
    at.output = at.loss = None
    batch = at.batch
    given = parts.compute_loss(parts.network, batch)
    weight = None
    if isinstance(given, LossOutput):
        loss, weight = given.value, given.weight
        at.output = given.output
        for name, value in given.logs.items():
            run.record(name, value)
    else:
        loss = given
    at.loss = loss
    if not at.step:
        check_loss(loss, "compute_loss")
    at.samples_now = count_samples(batch)
    try:
        at.window.backward(loss, weight)
    except Exception as error:
        explain_backward(error, loss, "compute_loss")
        raise


def after_step(run: Run) -> None:
    """Counts the step."""
    at = run.position
    at.step += 1
    at.batch_index += 1
    at.samples += at.samples_now
    window = at.window
    window.steps += 1
    at.batch = at.output = None
    if at.sized:
        at.remaining -= 1
    elif at.extending and window.steps == window.size:
        at.remaining = 0  # this pass was begun to fill the window, and it is full
    else:
        at.remaining = 1 if run.runtime.feed.more() else 0


def correct_gradients(run: Run) -> None:
    """The first subscriber on entry to `optimizer_update`: makes the gradients those of the window as one batch."""
    window = run.position.window
    if window.size == 1:
        return
    factor = window.correction()
    if isinstance(factor, torch.Tensor) or factor != 1.0:
        scale_gradients(factor, run.network.parameters(), run.runtime.optimizers)


def optimizer_update(run: Run) -> None:
    """Updates the weights and counts the update, unless it is to be skipped; closes the window."""
    at = run.position
    at.window.steps = 0
    if at.skip is not None:
        at.skip = None
        at.skipped = True
        run.buffer.skip()
        for optimizer in run.runtime.optimizers:
            optimizer.zero_grad()
        return
    at.skipped = False
    if not at.update:
        _note_untrained(run)
    for optimizer in run.runtime.optimizers:
        optimizer.step()
    at.update += 1
    if at.update == at.last_update:
        at.ending = True
        run.reason = run.reason or f"max_updates={at.update} reached"


def after_epoch(run: Run) -> None:
    """Closes the epoch and counts it."""
    at = run.position
    run.runtime.feed.end()
    _refuse_endless(run)
    at.window.steps = 0
    at.remaining = 0
    at.epoch_open = False
    at.epoch += 1


def after_loop(run: Run) -> None:
    """Clears gradients; evaluation mode."""
    at = run.position
    clear_gradients(run)
    at.loss = None if at.loss is None else at.loss.detach()
    run.network.eval()
    run.runtime.feed.close()
    run.reason = run.reason or f"epochs={at.epoch} complete"


_REPLACED = "init_weights put others in their place: change them in place, as torch.nn.init does"
PLAIN_ZERO_GRAD = torch.optim.Optimizer.zero_grad

BODIES: dict[str, Callable[[Run], None]] = {
    "before_loop": before_loop,
    "before_epoch": before_epoch,
    "before_step": before_step,
    "after_step": after_step,
    "optimizer_update": optimizer_update,
    "after_epoch": after_epoch,
    "after_loop": after_loop,
}

FIRST_SUBSCRIBER = Subscription(None, "", Mark("enter", "optimizer_update"), correct_gradients)
"""The engine's own handler, before those of all plugins."""


def clear_gradients(run: Run) -> None:
    """Drops the gradients of the network and of all that the optimizers hold."""
    run.network.zero_grad()
    for optimizer in run.runtime.optimizers:
        optimizer.zero_grad()


def describe(optimizer: Any) -> dict[str, Any]:
    """Returns an optimizer's class and the options of its parameter groups, those that are plain, for the log."""
    groups = [
        {name: value for name, value in group.items() if isinstance(value, str | int | float | None)}
        for group in optimizer.param_groups
    ]
    return {"class": kind(optimizer), "groups": groups}


def check_pair(batch: Any) -> None:
    """Raises a `DataError` for a batch that is not (data, target)."""
    if not isinstance(batch, tuple | list) or len(cast("Sized", batch)) != 2:
        size = f" of {len(cast('Sized', batch))}" if isinstance(batch, tuple | list | dict) else ""
        raise DataError(
            f"with a criterion a batch must be (data, target), got {a_kind(cast('object', batch))}{size}; "
            "give Components.compute_loss in place of criterion"
        )


def check_loss(loss: object, giver: str) -> None:
    """Raises an `EngineError` for a loss that cannot be trained on."""
    if not isinstance(loss, torch.Tensor):
        raise EngineError(f"{giver} must return a scalar tensor{_or_output(giver)}, got {kind(loss)}{_way_out(loss)}")
    if loss.dim():
        raise EngineError(f"{giver} must return a scalar tensor, got one of shape {tuple(loss.shape)}; take its mean")
    if not loss.requires_grad:
        raise EngineError(
            f"the loss that {giver} returned does not require grad: it does not depend on the network's parameters, "
            f"they do not require grad, or it was detached{_switched_off()}"
        )


def explain_backward(error: Exception, loss: object, giver: str) -> None:
    """Says what is wrong where a backward pass failed, if it can be told: a loss is looked at only then, and at first.

    Raises:
        EngineError: For a loss that cannot be trained on.
    """
    check_loss(loss, giver)
    if "backward through the graph a second time" in in_a_line(error):
        add_note(error, f"the backward pass is the engine's; {giver} returns the loss and calls no backward()")


def _or_output(giver: str) -> str:
    return " or a LossOutput" if giver == "compute_loss" else ""


def _way_out(loss: object) -> str:
    """Returns what to do where it can be guessed what happened."""
    if loss is None:
        return "; does it end without a return?"
    if isinstance(loss, Mapping) and "loss" in loss:  # a dict, or a model's named outputs
        return "; return LossOutput(value=output['loss'], output=output)"
    if isinstance(loss, tuple):
        return "; for the output beside the loss return LossOutput(loss, output=…)"
    return "; leave out .item() and float(), the graph is needed" if isinstance(loss, float) else ""


def _switched_off() -> str:
    return "" if torch.is_grad_enabled() else "; gradients are switched off: call run() outside of torch.no_grad()"


def _note_untrained(run: Run) -> None:
    """Says so where the first update finds no gradient: it changes nothing, and the next will be like it."""
    held = (one for optimizer in run.runtime.optimizers for group in optimizer.param_groups for one in group["params"])
    if all(parameter.grad is None for parameter in held):
        run.note_of(
            "untrained",
            "no parameter that the optimizer holds has a gradient, the loss does not depend on them: does compute_loss "
            "use the network that it is given, and does the optimizer hold the layers that this has now?",
        )


def _refuse_endless(run: Run) -> None:
    """Refuses an epoch that closed no window where only `max_updates` ends the run: the others would close none."""
    at, config = run.position, run.config
    if config.epochs is None and config.remainder == "drop" and not at.ending and at.batch_index < at.window.size:
        raise DataError(
            f"epoch {at.epoch} has {at.batch_index} batches, fewer than accumulation={at.window.size}, and "
            "remainder='drop' makes no update of them: max_updates would never be reached; use remainder='extend' or "
            "'flush'"
        )


def _remaining(run: Run) -> int:
    """Batches that are still to be taken from the pass that was just opened."""
    feed = run.runtime.feed
    if feed.batches is None:
        return 1 if feed.more() else 0
    return feed.batches


def _extend(run: Run) -> None:
    """Begins a further pass, in an order of its own, to fill the epoch's last window."""
    at, feed, window = run.position, run.runtime.feed, run.position.window
    missing = window.size - window.steps
    if not at.extending:
        steps = counted(missing, "more step")
        run.note_of("extension", f"epoch {at.epoch} goes on for {steps}, to fill its last window")
    feed.end()
    at.extending = True
    at.pass_index += 1
    feed.open(at.epoch, at.pass_index, missing)
    at.remaining = min(missing, _remaining(run))
    if not at.remaining:
        raise DataError(
            f"pass {at.pass_index} of epoch {at.epoch} yields nothing; the data must hold at least one batch"
        )
