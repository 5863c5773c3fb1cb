"""Compile before the first step, by a step that is made and put back, so that `before_loop` shows what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from heptad.blocks.in_use import Blocks
from heptad.data.cursor import NOTHING
from heptad.plugin.marks import Mark
from heptad.plugin.subscription import Subscription
from heptad.run.run import Run
from heptad.run.state import initial_state
from heptad.smoke.memento import Memento
from heptad.step.evaluation import generators_preserved, reading_config
from heptad.step.trial import first_batch, has_memory


def compilation_handlers(run: Run, blocks: Blocks) -> Iterator[Subscription]:
    """Yield what compiles on exit of `before_loop`, and notes compilations on exit of every state; before plugins."""
    if not blocks.compiles:
        return
    watch = blocks.watch()

    def on_exit_of_before_loop(run: Run) -> None:
        if _step_and_put_back(run):
            watch.look(run, first=True)

    def on_exit_of_process_batch(run: Run) -> None:
        watch.look(run, first=True)

    handlers = {"before_loop": on_exit_of_before_loop, "process_batch": on_exit_of_process_batch}
    for state in run.table.scopes():
        yield Subscription(None, "", Mark("exit", state), handlers.get(state, watch.look))


def _step_and_put_back(run: Run) -> bool:
    """Make a step of the network on a batch like those to come, forward and backward; return whether it was made.

    Torch compiles for the shapes that it meets, so it has to meet them. Afterwards all is as it was: weights, buffers,
    attributes, gradients, generators, data. Where that cannot be promised none is made, and torch compiles in the first
    step of the run: with a `compute_loss`, which may do anything; with hooks; with data of which no batch can be had
    twice. An error is left to the first step, which raises it where it belongs.
    """
    runtime, parts = run._runtime, run.components
    network = runtime.network
    if parts.criterion is None or not run.epochs_remain or not has_memory(network) or _has_hooks(network):
        return False
    data = parts.loader if parts.dataset is None else parts.dataset
    step = runtime.step
    with generators_preserved(runtime.device):
        memento = Memento([network, parts.criterion], [data])
        try:
            with suppress(Exception):
                at = initial_state(run.config)
                batch = first_batch(data, parts, reading_config(run.config), of_samples=parts.dataset is not None)
                if batch is NOTHING:
                    return False
                at.batch = step.place(batch, runtime.place) if runtime.places else batch
                step.run(at)
                loss: Any = at.loss
                loss.backward()
                return True
        finally:
            runtime.step = step  # one that looks at the first step has yet to do so
            memento.restore()
    return False


def _has_hooks(network: nn.Module) -> bool:
    """Return whether more than forward and backward is called where the network is run."""
    of_modules = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(
        getattr(holder, name, None)
        for holders, names in ((network.modules(), of_modules), (network.parameters(), of_tensors))
        for holder in holders
        for name in names
    )
