"""`Detour`: a guarded side state that a plugin adds to the training table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from heptad.errors import TableError
from heptad.run.run import Run

Counter = Literal["step", "update", "epoch"]


@dataclass(frozen=True, slots=True)
class Detour:
    """A guarded side state that a plugin adds to the training table.

    It is reached from each state in `after` by an arc tried before that state's own arcs, and leaves by the arcs that
    its source still had to try. So it shows in the table, the diagram, the log and the timings like all else.

    Attributes:
        state: The state's name, a Python identifier such as `"evaluate"`.
        after: The state or states that it leaves from.
        when: The guard: a pure, cheap predicate of the run. It changes nothing, reads no clock, draws no random number.
        body: What is done in it. It may raise `Unfinished` to end early when a pause is asked for after it began.
        every: Due only when `count` has crossed a multiple of this since the detour last ran, whatever the source, and
            never twice for one value. `None` leaves the decision to `when` alone.
        count: What `every` counts: complete `"step"`, `"update"` or `"epoch"`. By default what the first state in
            `after` counts: updates after `optimizer_update`, epochs after `after_epoch`, else steps.
        first: With `every`: the first number at which it is due, by default `every`; then each `every` more.
    """

    state: str
    after: str | Sequence[str]
    when: Callable[[Run], bool]
    body: Callable[[Run], object]
    every: int | None = None
    count: Counter | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.state, str) and self.state.isidentifier()):  # pyright: ignore[reportUnnecessaryIsInstance] - checked for callers without a type checker
            raise TableError(f"Detour.state must be a Python identifier such as 'evaluate', got {self.state!r}")
        sources = (self.after,) if isinstance(self.after, str) else tuple(self.after)
        if not sources or len(set(sources)) != len(sources):
            raise TableError(f"detour '{self.state}': after must name one or several states, each once, got {sources}")
        object.__setattr__(self, "after", sources)
        for field in ("when", "body"):
            if not callable(getattr(self, field)):
                raise TableError(f"detour '{self.state}': {field} must be a function of the run")
        if self.every is not None and (type(self.every) is not int or self.every < 1):
            raise TableError(f"detour '{self.state}': every must be a whole number from 1 on, got {self.every!r}")
        if self.first is not None and (type(self.first) is not int or self.first < 1 or self.every is None):
            raise TableError(
                f"detour '{self.state}': first must be a whole number from 1 on, beside every, got {self.first!r}"
            )
        if self.count is None:
            counts: Mapping[str, Counter] = {"optimizer_update": "update", "after_epoch": "epoch"}
            object.__setattr__(self, "count", counts.get(sources[0], "step"))
        elif self.count not in ("step", "update", "epoch"):
            raise TableError(f"detour '{self.state}': count must be 'step', 'update' or 'epoch', got {self.count!r}")
