"""A plugin that is taken down in mid-run and built anew from its state, as a checkpoint does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from builders import STATES
from heptad import Plugin, Run, on_enter


class Reborn(Plugin):
    """Hands all that it hears to an inner plugin; at one step that is replaced by a new one with the old one's state.

    Args:
        make: Builds the inner plugin.
        step: The step before which it is replaced; `None` leaves that to a call of `replace_now`.
        renew: What else is to be replaced then.
    """

    def __init__(
        self, make: Callable[[], Plugin], step: int | None = None, renew: Callable[[Run], None] | None = None
    ) -> None:
        self.make, self.step, self.renew = make, step, renew
        self.inner = make()

    @on_enter("before_step")
    def replace_at_step(self, run: Run) -> None:
        if self.step is not None and run.step == self.step:
            self.replace_now(run)

    def replace_now(self, run: Run) -> None:
        state = through_json(self.inner.state_dict())
        self.inner = self.make()
        self.inner.load_state_dict(state)
        if self.renew is not None:
            self.renew(run)

    def open(self, run: Run) -> None:
        self.inner.open(run)

    def close(self, run: Run) -> None:
        self.inner.close(run)


def _edges() -> None:
    def handler(name: str) -> Callable[[Reborn, Run], None]:
        def call(self: Reborn, run: Run) -> None:
            getattr(self.inner, name, lambda run: None)(run)

        return call

    for state in (*STATES, "evaluate"):
        for moment in ("enter", "exit"):
            setattr(Reborn, f"on_{moment}_{state}", handler(f"on_{moment}_{state}"))


_edges()


def through_json(state: Any) -> Any:
    """Returns what is left of a state when all but its tensors has been JSON, which keeps no tuples."""
    tensors: list[torch.Tensor] = []

    def out(value: Any) -> Any:
        assert isinstance(value, torch.Tensor), f"no plain data: {value!r}"
        tensors.append(value.clone())
        return {"a tensor": len(tensors) - 1}

    text = json.dumps(state, default=out)
    return json.loads(text, object_hook=lambda d: tensors[d["a tensor"]] if "a tensor" in d else d)
