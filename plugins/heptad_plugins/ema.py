"""`EMA` changes the run: evaluations see an average of the weights; the weights that are trained stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heptad import EngineError, Plugin, PluginError, Run
from heptad_plugins._options import number


class EMA(Plugin):
    """Keep an exponential moving average of parameters and buffers, by torch's `AveragedModel`.

    After each update the average becomes `decay * average + (1 - decay) * weights`; the first update sets it to the
    weights. A skipped update leaves it alone. Buffers of whole numbers or truth values (counts, indices, masks) have no
    average: they are those of the network.

    In the state `evaluate` the network holds the average: the values are swapped on entry and swapped back on exit,
    also if the evaluation fails or the run pauses in it. `Engine.evaluate` called from elsewhere sees the weights that
    are trained. The cost is a second copy of the network in memory, one pass over it an update and three a swap (no
    device sync).

    Attributes:
        network: The averaged network, in evaluation mode, from the exit of `before_loop` on. In the state `evaluate` it
            holds the weights that are trained, while the run's own network holds the average.

    Args:
        decay: The share that the average keeps at each update, from 0 on and below 1; such as 0.999.

    Raises:
        PluginError: If `decay` is not such a number.
    """

    runs_before = ("Evaluate", "Checkpoint")

    def __init__(self, decay: float) -> None:
        if number("EMA", "decay", decay, least=0.0) >= 1.0:
            raise PluginError(f"EMA(decay=…) must be below 1, or the average would never move; got {decay!r}")
        self._blend: Any = get_ema_multi_avg_fn(decay)
        self._average: AveragedModel | None = None
        self._holder: nn.Module | None = None  # the network that holds the average, while it is swapped in
        self._restored: dict[str, Any] | None = None

    @property
    def network(self) -> nn.Module:
        """The averaged network.

        Raises:
            EngineError: Before the exit of `before_loop`.
        """
        if self._average is None:
            raise EngineError("EMA.network exists from the exit of before_loop on")
        return self._average.module

    def on_begin(self, run: Run) -> None:
        """Forget the average of an earlier run; a caller that holds its network keeps it."""
        self._average = self._holder = self._restored = None

    def open(self, run: Run) -> None:
        """Swap the average in, if the run continues in an evaluation."""
        if run.state == "evaluate":
            self._swap_in(run)

    def on_pause(self, run: Run) -> None:
        """Swap it out, so that a checkpoint taken now holds the weights that are trained."""
        self._swap_out()

    def close(self, run: Run) -> None:
        """Swap it out, whatever happened."""
        self._swap_out()

    def on_exit_before_loop(self, run: Run) -> None:
        """Copy the network."""
        self._ready(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Move the average towards the new weights."""
        if run.update_skipped:
            return
        average = self._ready(run)
        # AveragedModel.update_parameters has a device sync in each call, and rounds whole numbers down
        pairs = list(zip(_tensors_of(average.module), _tensors_of(run.network), strict=True))
        first = not average.n_averaged
        mixed = [] if first else [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        with torch.no_grad():
            if mixed:
                self._blend([own for own, _ in mixed], [new for _, new in mixed], average.n_averaged)
            for own, new in pairs:
                if first or not (own.is_floating_point() or own.is_complex()):
                    own.copy_(new)
        average.n_averaged += 1

    def on_enter_evaluate(self, run: Run) -> None:
        """Swap the average in."""
        self._swap_in(run)

    def on_exit_evaluate(self, run: Run) -> None:
        """Swap it out."""
        self._swap_out()

    def on_exit_after_loop(self, run: Run) -> None:
        """Make sure that there is a `network` to read, also if the run was resumed at its very end."""
        self._ready(run)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged parameters and buffers by name (not copied), and how many updates are in them."""
        if self._average is None:
            return self._restored or {}
        tensors = _by_name(self._average.module if self._holder is None else self._holder)
        return {"tensors": tensors, "n_averaged": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until there is a network to copy."""
        self._restored = state or None

    def _ready(self, run: Run) -> AveragedModel:
        """Return the average: copied from the network when first asked for, and filled from a checkpoint."""
        if self._average is None:
            average = AveragedModel(run.network, multi_avg_fn=self._blend, use_buffers=True)
            average.n_averaged = average.n_averaged.cpu()  # counted on the host: no device sync
            self._average = average.requires_grad_(False).eval()
        if self._restored is not None:
            _restore_average(self._average, self._restored)
            self._restored = None
        return self._average

    def _swap_in(self, run: Run) -> None:
        if self._holder is None:
            _swap(self._ready(run).module, run.network)
            self._holder = run.network

    def _swap_out(self) -> None:
        if self._holder is not None and self._average is not None:
            _swap(self._average.module, self._holder)
            self._holder = None


def _tensors_of(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())


def _by_name(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, those too that a network's own state_dict leaves out."""
    return {name: tensor.detach() for name, tensor in chain(network.named_parameters(), network.named_buffers())}


def _restore_average(average: AveragedModel, state: dict[str, Any]) -> None:
    """Restore an average from a plugin's state."""
    own, given = _by_name(average.module), state["tensors"]
    if own.keys() != given.keys():
        odd = ", ".join(sorted(own.keys() ^ given.keys()))
        raise EngineError(f"EMA: the state to restore is that of another network; they differ in {odd}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])
    average.n_averaged.fill_(state["n_averaged"])


def _swap(one: nn.Module, other: nn.Module) -> None:
    """Exchange the values of two networks; each tensor stays where it is, as optimizers and compiled code expect."""
    with torch.no_grad():
        for mine, yours in zip(_tensors_of(one), _tensors_of(other), strict=True):
            kept = mine.clone()
            mine.copy_(yours)
            yours.copy_(kept)
