"""`Average`: averages of a network's parameters and buffers by name, and their exchange with its values.

For the plugins `EMA` and `SWA`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heptad import EngineError, PluginError, Run
from heptad_plugins._stored import count_in, mapping

_SEEN = "_heptad_average"
"""The attribute of a network that holds whose average evaluations see, and in which run."""

_WAYS = {
    "EMA": "and load_weights of a checkpoint gives them to a network that is whole",
    "SWA": "and SWA(…, apply=True) gives them to the network of the run at its end",
}
"""Other ways to the averages, by plugin."""

Blend = Callable[[list[Tensor], list[Tensor], int], None]
"""Moves averages towards values, both of one dtype, given how many updates are in them."""


class Average:
    """Averages of all parameters and buffers of a network, each a tensor of its own.

    The network is not copied but its tensors: so it may hold what cannot be copied, such as the weight that the hooks
    of `torch.nn.utils.weight_norm` compute. A tensor that appears later, such as the weight of a lazy module, is
    averaged from then on.

    Attributes:
        count: How many updates are in the averages; 0 for the weights that the network began with.

    Of a parameter that ranks share (`Run.shares`) each rank averages its part: the average is shared as that is.

    Args:
        run: Whose network it is.
        dtype: The dtype of the averages; `None` for that of each tensor, or float32 where that has fewer bits.
        owner: The plugin, as messages name it.
        buffers: Whether buffers are averaged too; else they are copied, each in its own dtype.
    """

    def __init__(self, run: Run, dtype: torch.dtype | None, owner: str = "EMA", *, buffers: bool = True) -> None:
        self.count = 0
        self._owner = owner
        self._ways = _WAYS.get(owner, "")
        self._with_buffers = buffers
        self._network = network = run.network
        self._run = run
        self._dtype = dtype
        self._values = {name: self._averaged(tensor) for name, tensor in _by_name(network).items()}
        self._trained: dict[str, Tensor] | None = None
        """While the averages are in the network: the trained values of tensors that are averaged in another dtype."""
        self._module: nn.Module | None = None

    def follow(self, blend: Blend, *, copies: bool) -> None:
        """Move the averages towards the network's values, or copy these; to be called after an update."""
        same: list[tuple[Tensor, Tensor]] = []
        tensors, shares = _by_name(self._network), self._run.shares
        copies, copied = copies or not self.count, self._copied_names()
        with torch.no_grad():
            for name, tensor in tensors.items():
                average = self._values.get(name)
                if average is None or average.shape != tensor.shape:
                    self._values[name], self._module = self._averaged(tensor), None
                    continue
                # asked once and not of each tensor, of which there may be hundreds in each update
                own, new = (self._run.local(average), self._run.local(tensor)) if shares else (average, tensor)
                if copies or not _has_mean(new) or name in copied:
                    own.copy_(new)
                elif own.dtype == new.dtype:
                    same.append((own, new))
                else:  # one at a time: the memory of a wider copy of one tensor, not of all
                    blend([own], [new.to(own.dtype)], self.count)
            if same:
                blend([own for own, _ in same], [new for _, new in same], self.count)
        for name in self._values.keys() - tensors.keys():
            del self._values[name]
        self.count = 1 if copies else self.count + 1

    def swap_in(self) -> None:
        """Give the network the averages, in its own dtypes; the values that are trained are kept."""
        if self._trained is None:
            self._trained = self._exchange({})

    def swap_out(self) -> None:
        """Give the network back the values that are trained."""
        if self._trained is not None:
            self._exchange(self._trained)
            self._trained = None

    def state(self) -> dict[str, Any]:
        """Return the averages by name (not copied), and how many updates are in them."""
        values = self._values
        if self._trained is not None:
            swapped = values.keys() - self._trained.keys()
            values = values | {name: t for name, t in _by_name(self._network).items() if name in swapped}
        return {"tensors": values, "n_averaged": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the averages of another dtype are converted.

        Raises:
            EngineError: If it is the state of another network.
        """
        own, given = self._values, state["tensors"]
        odd = [n for n in sorted(own.keys() | given.keys()) if n not in own or n not in given]
        odd = odd or [name for name, tensor in own.items() if tensor.shape != given[name].shape]
        if odd:
            raise EngineError(
                f"{self._owner}: the state to restore is that of another network; they differ in {', '.join(odd)}"
            )
        for name, tensor in own.items():
            self._run.local(tensor).copy_(self._run.local(self._run.alike(given[name], tensor)))
        self.count = int(state["n_averaged"])

    def module(self) -> nn.Module:
        """Return a copy of the network that holds the averages: these themselves, but for those of another dtype.

        While the averages are in the network, it holds the values that are trained.

        Raises:
            EngineError: If the network cannot be copied.
        """
        if self._run.shares:
            raise EngineError(
                f"{self._owner}.network: with strategy='fsdp' each rank holds a part of the averages, and none has a "
                f"network to itself; Evaluate sees the averages, {self._ways}"
            )
        if self._module is None:
            self._module = self._copied()
        trained = self._trained or {}
        for name, tensor in _by_name(self._module).items():
            own = self._values.get(name)
            if own is not None and own.dtype != tensor.dtype:
                tensor.copy_(trained.get(name, own))
        return self._module

    def apply(self) -> None:
        """Give the network the averages for good, in its own dtypes; the values that were trained are dropped."""
        local = self._run.local
        with torch.no_grad():
            for name, tensor in _by_name(self._network).items():
                if (own := self._values.get(name)) is not None:
                    local(tensor).copy_(local(own))

    def _copied_names(self) -> set[str]:
        """Return the names of the tensors that are copied, though they could have a mean."""
        return set() if self._with_buffers else {name for name, _ in self._network.named_buffers()}

    def _averaged(self, tensor: Tensor) -> Tensor:
        """Return a tensor's value, as its average begins."""
        dtype = tensor.dtype
        if _has_mean(tensor) and (self._with_buffers or isinstance(tensor, nn.Parameter)):
            real = self._dtype or (torch.float32 if dtype.to_real().itemsize < 4 else dtype.to_real())
            dtype = real.to_complex() if tensor.is_complex() else real
        return tensor.detach().to(dtype, copy=True)

    def _exchange(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange the values of network and averages; each tensor stays where it is, as optimizers expect.

        Returns:
            The network's values of those that are averaged in another dtype: the average stays, for the network's
            dtype would round it.
        """
        kept: dict[str, Tensor] = {}
        local = self._run.local
        with torch.no_grad():
            for name, tensor in _by_name(self._network).items():
                average = self._values.get(name)
                if average is None:
                    continue
                own, theirs = local(average), local(tensor)
                value = theirs.clone()
                if own.dtype == theirs.dtype:
                    theirs.copy_(own)
                    own.copy_(value)
                else:
                    theirs.copy_(trained.get(name, own))
                    kept[name] = value
        return kept

    def _copied(self) -> nn.Module:
        memo: dict[int, Any] = {}
        for name, tensor in _by_name(self._network).items():
            if (own := self._values.get(name)) is None:
                continue
            value = own if own.dtype == tensor.dtype else own.to(tensor.dtype)
            memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
        for module in self._network.modules():  # what hooks compute from parameters, which torch does not copy
            for value in vars(module).values():
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        try:
            return deepcopy(self._network, memo).requires_grad_(False).eval()
        except Exception as error:
            raise EngineError(
                f"{self._owner}.network: a {type(self._network).__name__} cannot be copied ({error}); give a network "
                f"of your own the averages: load_state_dict({self._owner}.state_dict()['tensors'], strict=False), "
                f"{self._ways}"
            ) from error


def refuse_second(run: Run, name: str) -> None:
    """Refuse a second average that evaluations would see: it would take the first for the weights.

    Args:
        run: The run that is being built.
        name: The plugin that evaluations are to see the average of.

    Raises:
        PluginError: If another plugin of this run has called this.
    """
    run_id, first = vars(run.network).setdefault(_SEEN, ("", ""))
    if run_id == run.id and first != name:
        raise PluginError(
            f"{first} and {name} both give the network their averages for evaluations; say evaluate=False for all but "
            "the one that evaluations are to see"
        )
    vars(run.network)[_SEEN] = run.id, name


def own_parts(network: nn.Module | None, averages: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the keys of the averages in a plugin's state that are a rank's own: those of buffers."""
    buffers = () if network is None else network.named_buffers()
    return [("tensors", name) for name, _ in buffers if name in averages]


def check_state(state: dict[str, Any], network: nn.Module | None) -> None:
    """Compare what `Average.state` returned with a network; buffers that it has yet to make may be missing there.

    Raises:
        ValueError: If it is something else, or the average of another network.
    """
    count_in(mapping(state), "n_averaged")
    values = mapping(state.get("tensors"), "tensors")
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise ValueError(f"tensors[{name!r:.80}] is no tensor")
    if network is None:
        return
    own = _by_name(network)
    awaited = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in cast("Iterable[tuple[str, nn.Module]]", network.named_modules())
        for name, buffer in vars(module)["_buffers"].items()
        if buffer is None
    }
    odd = sorted(map(str, own.keys() - values.keys())) or sorted(map(str, values.keys() - own.keys() - awaited))
    odd = odd or [name for name, tensor in own.items() if not _is_average_of(values[name], tensor)]
    if odd:
        raise ValueError(f"it is the average of another network; they differ in {', '.join(odd):.200}")


def _is_average_of(value: Tensor, tensor: Tensor) -> bool:
    return value.shape == tensor.shape and (value.is_complex(), _has_mean(value)) == (
        tensor.is_complex(),
        _has_mean(tensor),
    )


def _has_mean(tensor: Tensor) -> bool:
    """Return whether a mean of such tensors is one: that of counts, indices and masks would be rounded."""
    return tensor.is_floating_point() or tensor.is_complex()


def _by_name(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers that have values, those too that a network's own state_dict leaves out."""
    return {name: t for name, t in chain(network.named_parameters(), network.named_buffers()) if not is_lazy(t)}
