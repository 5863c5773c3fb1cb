"""`put_back`: what a smoke run and a range test leave behind, which is nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.parameter import is_lazy

from heptad.data.fetch import is_a
from heptad.data.generators import global_states, restore_states
from heptad.errors import EngineError, kind
from heptad.run.run import Run
from heptad.smoke.memento import Memento


@contextmanager
def put_back(run: Run, call: str, trial: str, also: Iterable[object] = ()) -> Generator[ExitStack]:
    """Put everything back at the end of the `with` block, also if it fails: components, data, RNG states.

    Args:
        run: The run in `idle` that is tried out.
        call: What the user has called, as errors name it.
        trial: The run that is made in the block, as errors name it.
        also: Further objects whose attributes are put back.

    Yields:
        A stack for what else is to be put back, before all this.

    Raises:
        EngineError: If the run has begun, or something could not be put back.
    """
    _refuse_what_stays(run, call, trial)
    parts = run.components
    roots = [getattr(parts, name) for name in type(parts).model_fields if name not in ("dataset", "loader")]
    with ExitStack() as stack:  # in reverse order
        if run.device.type != "cpu":  # so that its generators are among the states
            getattr(torch.get_device_module(run.device), "init", lambda: None)()
        stack.callback(restore_states, global_states())
        stack.callback(Memento([*roots, *also], [_data_of(run)]).restore)
        yield stack


def _refuse_what_stays(run: Run, call: str, trial: str) -> None:
    network = run.components.network
    if run.state != "idle":
        raise EngineError(
            f"{call} was called on a run that is in {run.state}; call it before run(), or with a new Engine"
        )
    if run.shares:
        raise EngineError(
            f"{call} puts everything back, and strategy='fsdp' shards the network for good; call it with "
            "strategy='ddp' or 'none' on a network with fewer blocks, or leave it out"
        )
    if is_a(data := _data_of(run), Iterator):
        raise EngineError(
            f"the data (a {kind(data)}) can be iterated once, so {trial} would use them up; pass an object whose "
            "__iter__ begins anew"
        )
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise EngineError(
            "the network has parts whose shape is not known yet, and they could not be put back; run one batch through "
            f"it before {call}, or leave that out"
        )


def _data_of(run: Run) -> object:
    parts = run.components
    return parts.dataset if parts.loader is None else parts.loader
