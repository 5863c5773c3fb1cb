"""A plugin that is taken down in mid-run and built anew from its state, as a checkpoint does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from builders import STATES
from heptad import Plugin, Run, on_enter
from heptad.checkpoints.decoding import decode
from heptad.checkpoints.encoding import encode


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
        self.name, self.requests = self.inner.name, self.inner.requests  # under which it asks

    @on_enter("before_step")
    def replace_at_step(self, run: Run) -> None:
        if self.step is not None and run.step == self.step:
            self.replace_now(run)

    def replace_now(self, run: Run) -> None:
        state = through_checkpoint(self.inner.state_dict())
        self.inner = self.make()
        self.inner.load_state_dict(state)
        if self.renew is not None:
            self.renew(run)

    def open(self, run: Run) -> None:
        self.inner.open(run)

    def close(self, run: Run) -> None:
        self.inner.close(run)


def _moments() -> None:
    def handler(name: str) -> Callable[[Reborn, Run], None]:
        def call(self: Reborn, run: Run) -> None:
            getattr(self.inner, name, lambda run: None)(run)

        return call

    for state in (*STATES, "evaluate"):
        for moment in ("enter", "exit"):
            setattr(Reborn, f"on_{moment}_{state}", handler(f"on_{moment}_{state}"))


_moments()


def through_checkpoint(state: Any) -> Any:
    """Return a state as a checkpoint gives it back: encoded, written as JSON, and decoded."""
    plain, tensors = encode(state, "state")
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return decode(json.loads(json.dumps(plain)), copies, "state")
