"""`Strategy`: all that several processes have to agree on, behind one object.

A strategy is asked at a few places, and takes no part in the loop. With one process it is `Alone`, which does what a
plain loop does. The core never asks how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from heptad.config import ComputeLoss, RunConfig
from heptad.plugin.manager import PluginManager
from heptad.run.peers import NoPeers, Peers
from heptad.run.run import Run
from heptad.run.runtime import Runtime


class Strategy(Protocol):
    """How the ranks of a run work together. Its methods stand in the order in which the engine calls them.

    Attributes:
        announces: Whether `window_closes` does anything. Where it does not, it is not called: a call costs 40 ns.
        shares: Whether `place` leaves each rank a part of the parameters: `init_weights` comes before it then.
        run_class: The class of the run that is driven.
        peers: The ranks.
    """

    announces: bool
    shares: bool
    run_class: type[Run]

    @property
    def peers(self) -> Peers:
        """See above."""
        ...

    def join(self, config: RunConfig) -> RunConfig:
        """Join the ranks, and return the configuration of this one: with `accumulation`, which a window may imply.

        Raises:
            ConfigError: If it does not go with the number of ranks.
            RankFailed: If the others do not come.
        """
        ...

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process, of the kind of the one that was resolved."""
        ...

    def share(self) -> tuple[int, int]:
        """Return this process's rank and the number of ranks, by which data are dealt out."""
        ...

    def prepare(self, run: Run, manager: PluginManager) -> None:
        """Take note of the run that was built; refuse what does not go with several ranks."""
        ...

    def root(self, seed: int) -> int:
        """Return the root of the data's order that holds for all ranks: what the first one gives."""
        ...

    def replaces(self, network: nn.Module) -> bool:
        """Return whether `place` puts other parameters into this network."""
        ...

    def place(self, runtime: Runtime) -> None:
        """Move the network to its device and set `runtime.forward`, what is called; before optimizers are built.

        An optimizer that the user built is there already: the parameters it holds stay the same objects, or `replaces`
        has said that they do not.
        """
        ...

    def replaced(self) -> Collection[int]:
        """Return the ids of parameters that `place` has replaced, and that somebody still holds."""
        ...

    def compute_loss(self, given: ComputeLoss | None) -> ComputeLoss | None:
        """Return what computes the loss of a step in place of what is given, once the network is placed."""
        ...

    def autocasts(self, precision: str) -> bool:
        """Return whether autocast makes a `RunConfig.precision`, and not the strategy itself."""
        ...

    def equalize(self, run: Run) -> None:
        """Make the weights of all ranks those of the first, and their generators different; last in `before_loop`."""
        ...

    def window_closes(self, closes: bool) -> None:
        """Take note, before the forward pass, of whether this step closes its window."""
        ...

    def reduce(self, run: Run) -> None:
        """Make the gradients those of the whole window; the first handler on entry to `optimizer_update`."""
        ...

    def loss(self, run: Run, own: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the loss of the window over all ranks, after `reduce`; `own` returns that of this one."""
        ...

    def sum_epoch(self, run: Run) -> None:
        """Take the mean loss of the epoch over all ranks; on entry to `after_epoch`, where a plugin needs it."""
        ...

    def last_handlers(self, run: Run) -> Iterable[tuple[str, Callable[[Run], None]]]:
        """Return what is called last on exit of which states, as the run begins to be driven: the agreement."""
        ...

    def starting(self) -> AbstractContextManager[None]:
        """Return a block in which the run is built, or begins to be driven: all ranks fail where one does."""
        ...

    def begin(self, run: Run) -> None:
        """See that all ranks begin to drive the same run; each time, when plugins are open."""
        ...

    def driving(self, run: Run) -> AbstractContextManager[None]:
        """Return a block in which the run is driven: a failure in it is told to the other ranks, and theirs here."""
        ...


class Alone:
    """The strategy of a single process."""

    announces = False
    shares = False
    run_class: type[Run] = Run
    peers = NoPeers()

    def join(self, config: RunConfig) -> RunConfig:
        """Return the configuration; a window is one of steps."""
        return config if config.window is None else config.model_copy(update={"accumulation": config.window})

    def device(self, device: torch.device) -> torch.device:
        """Return the device."""
        return device

    def share(self) -> tuple[int, int]:
        """Return all of it."""
        return 0, 1

    def prepare(self, run: Run, manager: PluginManager) -> None:
        """Do nothing."""

    def root(self, seed: int) -> int:
        """Return the root."""
        return seed

    def replaces(self, network: nn.Module) -> bool:
        """Return False."""
        return False

    def replaced(self) -> Collection[int]:
        """Return nothing."""
        return ()

    def place(self, runtime: Runtime) -> None:
        """Move the network to the device."""
        runtime.network.to(runtime.device)
        runtime.forward = runtime.network

    def compute_loss(self, given: ComputeLoss | None) -> ComputeLoss | None:
        """Return what is given."""
        return given

    def autocasts(self, precision: str) -> bool:
        """Return True."""
        return True

    def loss(self, run: Run, own: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return that of this process."""
        return own()

    def sum_epoch(self, run: Run) -> None:
        """Do nothing: the sums are those of the run."""

    def equalize(self, run: Run) -> None:
        """Do nothing: there is nobody to equal."""

    def window_closes(self, closes: bool) -> None:
        """Do nothing: there is nobody to reduce with."""

    def reduce(self, run: Run) -> None:
        """Multiply the gradients by k / Σr, so that the window counts as one large batch.

        A window of one step needs no correction. In a full, unweighted one the factor is exactly 1, and the gradients
        keep the bits of the textbook loop. A window of which nothing counts makes no update.
        """
        window = run._position.window
        if window.empty:
            run.skip_update("no step of this window counts: each weighs 0 or has no loss")
            return
        if window.size == 1:  # what correction() would say, less a call for each update
            return
        factor = window.correction()
        if isinstance(factor, torch.Tensor) or factor != 1.0:
            scale(run._runtime.optimizers.parameters(run.network), factor)

    def last_handlers(self, run: Run) -> Iterable[tuple[str, Callable[[Run], None]]]:
        """Return nothing: there is nobody to agree with."""
        return ()

    def starting(self) -> AbstractContextManager[None]:
        """Return a block that does nothing."""
        return nullcontext()

    def begin(self, run: Run) -> None:
        """Do nothing: nobody else begins."""

    def driving(self, run: Run) -> AbstractContextManager[None]:
        """Return a block that does nothing."""
        return nullcontext()


def scale(parameters: list[torch.nn.Parameter], factor: float | torch.Tensor) -> None:
    """Multiply gradients by a factor."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if isinstance(factor, torch.Tensor):
                parameter.grad.mul_(factor.to(parameter.grad.device, parameter.grad.dtype))
            else:
                parameter.grad.mul_(factor)
