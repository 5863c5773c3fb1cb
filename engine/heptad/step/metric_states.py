"""What metric objects have gathered on several ranks: captured, sent as plain data and tensors, and merged.

Called by `RanksMetrics` alone. An object of torchmetrics is merged by the reductions that it declares for its states;
any other, and one of torchmetrics that has a `merge_state` of its own, by that. Merged in the order of the ranks, so
that all of them compute the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

import torch

from heptad.checkpoints import tensors
from heptad.checkpoints.decoding import decode
from heptad.checkpoints.encoding import encode
from heptad.checkpoints.strict_json import read_json, write_json
from heptad.errors import a_kind
from heptad.step.metrics import MetricObject, MetricsInput, named_metrics

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, partial, type)
"""What an object holds besides its state: the same on all ranks."""

_HEAD = 8


def merge_mistake(metrics: MetricsInput, world: int) -> str | None:
    """Return which metric cannot be measured on so many ranks, `None` where all can."""
    if world == 1:
        return None
    for name, metric in named_metrics(metrics).items():
        if isinstance(metric, MetricObject) and not _of_torchmetrics(metric) and not hasattr(metric, "merge_state"):
            which = f"metrics[{name!r}]" if name else "the metric"
            return (
                f"{which} is {a_kind(metric)}, of which each rank would see a part of the batches and nobody could "
                "join them: give it merge_state(other), which takes in what another one has gathered, or give a "
                "function (output, batch) -> tensor"
            )
    return None


def pack(value: Any, where: str) -> bytes:
    """Return nested plain data and tensors as bytes.

    Raises:
        CheckpointError: If there is something else in them.
    """
    plain, held = encode(value, where)
    text = write_json(plain)
    _, content = tensors.pieces(held, where)
    return len(text).to_bytes(_HEAD, "little") + text + b"".join(content)


def unpack(content: bytes, where: str) -> Any:
    """Return what `pack` was given; tensors are on the CPU."""
    end = _HEAD + int.from_bytes(content[:_HEAD], "little")
    return decode(read_json(content[_HEAD:end]), tensors.parse(content[end:], where), where)


def syncs_itself(metric: MetricObject) -> bool:
    """Return whether an object of torchmetrics was given a group or a function by which it synchronises."""
    return any(part.process_group is not None or part.dist_sync_fn is not None for part in _of_torchmetrics(metric))


@contextmanager
def unsynced(metrics: Iterable[MetricObject]) -> Generator[None]:
    """Keep objects of torchmetrics from synchronising in `compute`, as they do wherever there is a process group."""
    parts = [part for metric in metrics for part in _of_torchmetrics(metric)]
    available = [part.distributed_available_fn for part in parts]
    for part in parts:
        part.distributed_available_fn = _nowhere
    try:
        yield
    finally:
        for part, function in zip(parts, available, strict=True):
            part.distributed_available_fn = function


def _nowhere() -> bool:
    return False


def gathered_by(metric: MetricObject) -> Any:
    """Return what an object has gathered."""
    if parts := _of_torchmetrics(metric):
        if callable(share := getattr(metric, "values", None)):  # a collection, whose members may share one state
            list(cast("Iterable[Any]", share(copy_state=False)))
        return [{"updates": part.update_count, "state": part.metric_state} for part in parts]
    if _has_state(metric):
        return cast("Any", metric).state_dict()
    return {name: value for name, value in vars(metric).items() if not isinstance(value, _FUNCTIONS)}


def merge(metric: MetricObject, states: Sequence[Any]) -> None:
    """Give an object what all ranks have gathered: the states, captured and in the order of the ranks."""
    if parts := _of_torchmetrics(metric):
        for place, part in enumerate(parts):
            _merge_part(part, [state[place] for state in states])
        return
    fresh = [deepcopy(metric) for _ in states[1:]]
    _load(metric, states[0])
    for other, state in zip(fresh, states[1:], strict=True):
        _load(other, state)
        cast("Any", metric).merge_state(other)


def _load(metric: MetricObject, state: Any) -> None:
    if _has_state(metric):
        cast("Any", metric).load_state_dict(state)
    else:
        vars(metric).update(state)


def _has_state(metric: object) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("state_dict", "load_state_dict"))


def _of_torchmetrics(metric: object) -> list[Any]:
    """Return the metrics of torchmetrics in an object: itself, those in a collection, those in a wrapper."""
    library: Any = sys.modules.get("torchmetrics")
    if library is None or not isinstance(metric, torch.nn.Module):
        return []
    return [part for part in metric.modules() if isinstance(part, library.Metric)]


def _merge_part(part: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Merge the states of one metric of torchmetrics, those of the ranks that have updated it."""
    rows = [row for row in rows if row["updates"]]
    if not rows:
        return
    library: Any = sys.modules["torchmetrics"]
    counts = [row["updates"] for row in rows]
    if type(part).merge_state is not library.Metric.merge_state:
        others = [deepcopy(part) for _ in rows[1:]]
        _set(part, rows[0]["state"])
        for other, row in zip(others, rows[1:], strict=True):
            _set(other, row["state"])
            other._update_count = row["updates"]
            part.merge_state(other)
    else:
        _set(
            part,
            {
                name: _reduced([row["state"][name] for row in rows], counts, reduction)
                for name, reduction in part._reductions.items()
            },
        )
    part._update_count, part._computed = sum(counts), None


def _set(part: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            setattr(part, name, value.to(part.device))
        elif part.compute_on_cpu:
            setattr(part, name, list(value))
        else:
            setattr(part, name, [one.to(part.device) if isinstance(one, torch.Tensor) else one for one in value])


def _reduced(values: Sequence[Any], counts: Sequence[int], reduction: Callable[[torch.Tensor], Any] | None) -> Any:
    """Return one state of all ranks, as the synchronisation of torchmetrics makes it.

    A state that is a mean over the updates is weighed by their numbers: ranks may have had unequally many.
    """
    if len(values) == 1:
        return values[0]
    if not isinstance(values[0], torch.Tensor):
        lists = cast("Sequence[list[object]]", values)
        return list(chain.from_iterable(lists))
    name = getattr(reduction, "__name__", "")
    if name == "dim_zero_cat":
        return torch.cat(list(values))
    stacked = torch.stack(list(cast("Sequence[torch.Tensor]", values)))
    if name == "dim_zero_mean":
        shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
        weighed = shares.view(-1, *[1] * (stacked.dim() - 1)) * stacked.double()
        return weighed.sum(0).to(torch.promote_types(stacked.dtype, torch.float32))
    return stacked if reduction is None else reduction(stacked)
