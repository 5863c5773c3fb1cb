"""`Grouped`: what the strategies of several ranks have in common: they join, compare, weigh, agree and fail together.

`Ddp` and `Fsdp` say how the network is placed and how its gradients are averaged. Called by the engine as `Strategy`
says.
"""

from __future__ import annotations

import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - the base of all of them

from heptad.config import ComputeLoss, RunConfig
from heptad.data.generators import derive, seed_all
from heptad.data.placement import read_numbers
from heptad.errors import ConfigError, RankFailed, counted
from heptad.plugin.manager import PluginManager
from heptad.plugin.verify import titled
from heptad.ranks.agreement import Agreement
from heptad.ranks.comparison import compare_ranks
from heptad.ranks.equal_weights import weights_of
from heptad.ranks.group import Group, join_group
from heptad.ranks.requests import RanksRun
from heptad.ranks.strategy import scale
from heptad.ranks.window import RanksWindow
from heptad.run.loss_mean import weighed
from heptad.run.run import Run
from heptad.run.runtime import Runtime
from heptad.run.verified import installed_version

OWN_FIELDS = {"device", "num_workers", "log_capacity", "trace_handlers"}
"""Fields of `RunConfig` that may differ between ranks: no path and no bit depends on them."""

BY_BATCH = (
    "BatchNorm takes its mean over the batch of one rank, not over those of all, so several ranks are not one process "
    "with larger windows; torch.nn.SyncBatchNorm.convert_sync_batchnorm(network) makes them that on accelerators"
)


class Grouped(ABC):
    """Joins the ranks that torchrun has started, and makes of their gradients those of one large batch."""

    announces = True
    shares = False
    run_class: type[Run] = RanksRun

    def __init__(self) -> None:
        self._group: Group
        self._config: RunConfig
        self._starts = False
        self._compute_loss: ComputeLoss | None = None
        self._run: Run
        self._averaged: set[int] = set()
        """The ids of the parameters whose gradients torch averages."""
        self._all: list[nn.Parameter] = []

    @property
    def peers(self) -> Group:
        """The ranks."""
        return self._group

    def join(self, config: RunConfig) -> RunConfig:
        """Join the ranks; a window over all of them is `accumulation` steps of each."""
        self._group, self._config = join_group(), config
        if self._group.failed:
            raise RankFailed("a rank has failed before, and the processes cannot meet again; start all of them anew")
        self._group.be_patient(3 * config.patience)
        if config.window is None:
            return config
        with self.starting():
            return config.model_copy(update={"accumulation": _share_of(config.window, self._group.world)})

    def device(self, device: torch.device) -> torch.device:
        """Return the accelerator of this process's number on its machine, where one is meant."""
        if device.type == "cpu" or ":" in str(device):
            return device
        local = int(os.environ.get("LOCAL_RANK", self._group.rank))
        torch.accelerator.set_device_index(local)
        return torch.device(device.type, local)

    def share(self) -> tuple[int, int]:
        """Return the rank, and how many there are."""
        return self._group.rank, self._group.world

    def prepare(self, run: Run, manager: PluginManager) -> None:
        """Compare what the ranks were built with; give the run the id of the first, and windows over all."""
        group, config = self._group, run.config
        compare_ranks(
            group,
            {
                "version": versions(),
                "RunConfig": config.model_dump(mode="json", exclude=OWN_FIELDS),
                "table": [[arc.source, arc.dest, arc.guard or ""] for arc in run.table.arcs],
                "plugins": [titled(plugin) for plugin in manager.plugins],
                "detours": {
                    one.state: [one.every or 0, one.count or "", one.first or 0] for _, one in manager.detours_given
                },
                "requests": list(run._runtime.requests),
                "data": run._runtime.feed.identity(),
            },
        )
        run._id = group.gather(run.id.encode())[0].decode()
        run._position.window = RanksWindow(config.accumulation, float(config.batch_size or 1), self.keep_company)
        self._run = run

    def root(self, seed: int) -> int:
        """Return what the first rank gives."""
        return int(self._group.gather(str(seed).encode())[0])

    def replaces(self, network: nn.Module) -> bool:
        """Return False."""
        return False

    def replaced(self) -> Collection[int]:
        """Return nothing."""
        return ()

    def place(self, runtime: Runtime) -> None:
        """Compare the networks of the ranks, and wrap this one.

        Raises:
            RankFailed: If they differ: torch would say which tensor by its number alone.
        """
        shapes = {
            name: f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}{'' if one.requires_grad else ', frozen'}"
            for name, one in runtime.network.named_parameters()
        }
        compare_ranks(self._group, {"parameter": shapes})
        self._all = []
        runtime.forward = runtime.network
        self._compute_loss = runtime.components.compute_loss
        self._averaged = self._wrap(runtime)

    @abstractmethod
    def _wrap(self, runtime: Runtime) -> set[int]:
        """Move the network to its device, and have torch average its gradients.

        Sets `runtime.forward` and `_compute_loss` where these are to go through what is wrapped around the network.

        Returns:
            The ids of the parameters whose gradients it averages.
        """

    def compute_loss(self, given: ComputeLoss | None) -> ComputeLoss | None:
        """Return what goes through what is wrapped around the network."""
        return self._compute_loss

    def equalize(self, run: Run) -> None:
        """Send the weights of the first rank to all; then let generators differ, so that masks of dropout do.

        Before that, see that all have the same optimizers.
        """
        compare_ranks(self._group, {"optimizers": run._runtime.optimizers.describe()})
        part = run._runtime.shards.part
        whole = (one for one in weights_of(run).values() if part(one) is None)
        self._send([*whole, *run.network.buffers()])
        if self._group.rank:
            seed_all(derive("rank", run._runtime.feed.seed, self._group.rank))

    def _send(self, tensors: Iterable[torch.Tensor]) -> None:
        """Send tensors of the first rank to all."""
        with torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0, group=self._group.data)

    def autocasts(self, precision: str) -> bool:
        """Return True."""
        return True

    @abstractmethod
    def window_closes(self, closes: bool) -> None:
        """Let the backward pass to come average, or only add up."""

    @abstractmethod
    def keep_company(self, loss: Any, closes: bool) -> None:
        """Make the backward pass of a step that adds nothing, where the others wait for it."""

    def reduce(self, run: Run) -> None:
        """Correct the averaged gradients for what all ranks' steps weigh: by world · k / Σr.

        One exchange on the data plane, of Σr and Σ r · loss; full batches make the factor exactly 1, and the gradients
        keep torch's own bits.
        """
        window, group = cast("RanksWindow", run._position.window), self._group
        others = [one for one in self._weights(run) if one.requires_grad and id(one) not in self._averaged]
        sums = self._sums(run, window, len(others))
        dist.all_reduce(sums, group=group.data)
        total, loss, counted_others, squares, lacking = sums.unbind()
        if sums.is_cpu and float(squares) * group.world != float(counted_others) ** 2:  # an accelerator is not asked
            raise RankFailed(
                f"the ranks train different parameters: beside those that were trained when the run began, rank "
                f"{group.rank} has {len(others)}; whatever freezes or unfreezes does so on all ranks"
            )
        self._average(others)
        if not sums.is_cpu or float(lacking):
            self._drop_unused()
        nothing = sums.is_cpu and not float(total)  # an accelerator is not asked
        window.mean = None if nothing else _loss_of_all(loss, total, run)
        if not window.again:
            cast("RanksRun", run)._agreed.mean_loss = window.mean
        if window.reference is not None:  # of fp16; the scaler has set that of this rank alone
            window.reference = window.common * total / (group.world * window.size)
        if nothing:
            run.skip_update("no step of this window counts: each weighs 0 or has no loss")
            return
        whole = group.world * window.size
        if sums.is_cpu:
            if float(total) != whole:
                scale(run._runtime.optimizers.parameters(run.network), whole / float(total))
        else:
            factor = torch.where(total > 0, whole / total, 0.0)
            scale(run._runtime.optimizers.parameters(run.network), factor)

    def _weights(self, run: Run) -> list[nn.Parameter]:
        """Return all that is trained; looked for once, as the names of a large network take their time."""
        if not self._all:
            self._all = list(weights_of(run).values())
        return self._all

    def _sums(self, run: Run, window: RanksWindow, others: int) -> torch.Tensor:
        """Return Σr and Σ r · loss of this rank, a number and its square, and what `_lacking` says, as float64.

        They are where the network is: no device sync.
        """
        numbers = [0, 0, others, others**2, self._lacking()]
        sums = torch.tensor(numbers, dtype=torch.float64, device=run._runtime.device)
        newest = run._position.loss
        losses = window.losses if window.losses is not None or newest is None else [(newest.detach(), 1.0)]
        for loss, relative in losses or ():
            sums[0] += relative
            sums[1] += weighed(loss, relative)
        return sums

    def _lacking(self) -> int:
        """Return how many parameters have an averaged gradient that this rank has added nothing to."""
        return 0

    def _drop_unused(self) -> None:  # noqa: B027 - only FSDP2 averages what nobody has used
        """Drop the gradients that no rank has added to; called where one lacks some, and always on an accelerator."""

    def _average(self, others: Sequence[nn.Parameter]) -> None:
        """Average the gradients that torch does not: of what optimizers hold beside the network, or was frozen."""
        if not others:
            return
        used = torch.tensor([float(one.grad is not None) for one in others], device=others[0].device)
        dist.all_reduce(used, group=self._group.data)
        for one, count in zip(others, read_numbers(list(used)), strict=True):
            if count:
                gradient = torch.zeros_like(one) if one.grad is None else one.grad
                dist.all_reduce(gradient, group=self._group.data)
                one.grad = gradient.div_(self._group.world)

    def loss(self, run: Run, own: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the mean over all ranks: an optimizer that decides by it decides alike on all."""
        mean = cast("RanksWindow", run._position.window).mean
        return own() if mean is None else mean

    def sum_epoch(self, run: Run) -> None:
        """Take the mean loss of the epoch over all ranks; on entry to `after_epoch`."""
        sums = run._position.epoch_loss
        given = (sums.epoch + sums.window, sums.epoch_weight + sums.window_weight)
        own = torch.stack([torch.as_tensor(one, dtype=torch.float64).cpu() for one in given])
        total, weight = read_numbers(list(self._group.add(own)))
        mean = torch.tensor(total / weight, dtype=torch.float64) if weight else None
        cast("RanksRun", run)._agreed.epoch_loss = run.epoch, mean

    def last_handlers(self, run: Run) -> Iterable[tuple[str, Callable[[Run], None]]]:
        """Return the agreement of the ranks."""
        config, names = run.config, run._runtime.requests
        return Agreement(self._group, cast("RanksRun", run), config.agree_every, config.patience, names).handlers()

    def begin(self, run: Run) -> None:
        """See that all ranks begin to drive the same run, at the same place and with the same handlers."""
        handlers = run._buffer.facts.get("handlers", [])
        compare_ranks(self._group, {"handlers": handlers, "place": [run.state, run.seq]})
        if run.state == "idle" and _by_batch(run.network):
            run.note(BY_BATCH)

    @contextmanager
    def starting(self) -> Generator[None]:
        """Let the others fail too, at their next exchange, where this rank cannot build or begin its run."""
        self._starts = True
        try:
            yield
        except RankFailed:
            raise
        except BaseException as error:
            if self._starts and not self._group.failed:
                self._group.fail_together(error)
            raise
        finally:
            self._starts = False

    @contextmanager
    def driving(self, run: Run) -> Generator[None]:
        """Tell the others what is raised in this block, and raise what they have told where an exchange has failed."""
        self._starts, group = False, self._group
        group.where = partial(_place, run)
        try:
            yield
        except BaseException as error:
            if group.failed:
                raise
            if run.paused is not None:
                raise  # it stands in order, on all ranks: a plugin may end the process now
            if is_of_exchange(error):
                group.explain(error)
            # a RankFailed too: where all ranks raise at this place, they can go on to something else
            group.tell(error)
            raise
        finally:
            group.where = str


def _by_batch(network: nn.Module) -> bool:
    """Return whether a part of the network takes a mean over the samples of one rank."""
    found = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return any(not isinstance(module, nn.SyncBatchNorm) for module in found)


def _share_of(window: int, world: int) -> int:
    if window % world:
        able = [str(other) for other in range(1, window + 1) if not window % other]
        raise ConfigError(
            f"RunConfig.window is {window} batches, which {counted(world, 'rank')} cannot share equally; take a "
            f"multiple of {world}, or as many ranks as divide it: {' or '.join(able)}"
        )
    return window // world


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all ranks."""
    return {
        "Heptad": installed_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }


def _loss_of_all(loss: torch.Tensor, total: torch.Tensor, run: Run) -> torch.Tensor:
    newest = run._position.loss
    dtype = torch.float32 if newest is None else torch.promote_types(newest.dtype, torch.float32)
    return (loss / total).to(dtype)


def _place(run: Run) -> str:
    failure = run._buffer.failure
    state, step = (run.state, run.step) if failure is None else (failure.state, failure.counters.step)
    return f"in {state} at step {step}"


_OF_AN_EXCHANGE = ("gloo", "nccl", "processgroup", "c10d", "caused pair closure")
"""What stands in the text of such an error; the last is gloo's "Application timeout caused pair closure"."""


def is_of_exchange(error: BaseException) -> bool:
    """Return whether a collective has failed: torch has classes for some of these errors, and words for all."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in _OF_AN_EXCHANGE)
