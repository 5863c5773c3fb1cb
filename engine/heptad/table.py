"""The table: which states there are, which arcs lead out of each, in which order they are tried.

This is the only place where order is written. Everything else (the machine, the diagram, the README's table, what the
log says about guards) is read from the `Table` built here, which is checked when it is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol

from heptad.errors import TableError, nearest


@dataclass(frozen=True, slots=True)
class State:
    """A node of the machine.

    Attributes:
        name: The node's name, unique in a table. A detour's node is named `state@source`.
        kind: `"start"` and `"end"` are the bookends, where no body runs; `"failed"` is where any exception leads;
            a `"scope"` is one of the engine's own states; a `"detour"` was added by a plugin.
        body: What the engine does in it, in a line.
        shown: The name that users see in the log, the diagram and `Run.state`; by default `name`.
        after: For a detour's node the state that it leaves from, else empty.
    """

    name: str
    kind: Literal["start", "scope", "detour", "end", "failed"] = "scope"
    body: str = ""
    shown: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if not self.shown:
            object.__setattr__(self, "shown", self.name)


@dataclass(frozen=True, slots=True)
class Arc:
    """A row of the table: from `source` to `dest`, if the guard of that name holds (`None`: always)."""

    source: str
    dest: str
    guard: str | None = None


class Table:
    """States and arcs, validated: one start, all states reachable, an unguarded arc at the end of each but the ends.

    Attributes:
        states: The nodes, in order. A node's index here is its number in the machine and the log.
        arcs: All arcs. An arc's index here is what the log stores. The arcs of one source are tried in this order.
        leaving: For each state's name the arcs that leave it, in the order in which they are tried.
        origin: For each detour's node the index of its detour, in the order in which they were given.
    """

    def __init__(
        self,
        states: Iterable[State],
        arcs: Iterable[Arc],
        guards: Iterable[str],
        origin: Mapping[str, int] | None = None,
    ) -> None:
        self.states = tuple(states)
        self.arcs = tuple(arcs)
        self.guards = tuple(guards)
        self.origin: Mapping[str, int] = MappingProxyType(dict(origin or {}))
        self.leaving: Mapping[str, tuple[Arc, ...]] = MappingProxyType(
            {state.name: tuple(arc for arc in self.arcs if arc.source == state.name) for state in self.states}
        )
        self.index = MappingProxyType({state.name: number for number, state in enumerate(self.states)})
        self.shown = MappingProxyType({state.name: state.shown for state in self.states})
        self._check()

    @property
    def start(self) -> State:
        """The initial state."""
        return next(state for state in self.states if state.kind == "start")

    def named(self, shown: str) -> tuple[State, ...]:
        """Return the nodes that users see under one name; the engine may also ask for one by its own."""
        return tuple(state for state in self.states if shown in (state.shown, state.name))

    def scopes(self) -> tuple[str, ...]:
        """Return the names of all states that have a body, as users see them, each once."""
        return tuple(dict.fromkeys(state.shown for state in self.states if state.kind in ("scope", "detour")))

    def asked(self, arc: Arc) -> dict[str, bool]:
        """Return the guards that were asked when this arc was taken, with their answers: no for all before its own."""
        answers: dict[str, bool] = {}
        for tried in self.leaving[arc.source]:
            if tried.guard is not None:
                answers[tried.guard] = tried is arc
            if tried is arc:
                break
        return answers

    def _check(self) -> None:
        self._check_names()
        for state in self.states:
            arcs = self.leaving[state.name]
            if state.kind in ("end", "failed"):
                if arcs:
                    raise TableError(f"state '{state.name}' ends the run, but an arc leads on to '{arcs[0].dest}'")
                continue
            for arc in arcs[:-1]:
                if arc.guard is None:
                    dead = arcs[arcs.index(arc) + 1]
                    raise TableError(
                        f"the arc {dead.source} -> {dead.dest} can never be taken: it stands after the unguarded arc "
                        f"to '{arc.dest}'; guard that one or move it to the end"
                    )
            if not arcs or arcs[-1].guard is not None:
                raise TableError(
                    f"the arcs of state '{state.name}' must end in an unguarded one, so that it can be left"
                )
        self._check_reachable()

    def _check_names(self) -> None:
        if len(self.index) != len(self.states):
            names = [state.name for state in self.states]
            raise TableError(f"two states have the name '{next(n for n in names if names.count(n) > 1)}'")
        starts = [state.name for state in self.states if state.kind == "start"]
        if len(starts) != 1:
            raise TableError(f"a table has exactly one initial state, got {starts or 'none'}")
        for arc in self.arcs:
            for end in (arc.source, arc.dest):
                if end not in self.index:
                    raise TableError(
                        f"the arc {arc.source} -> {arc.dest} names the unknown state '{end}'{nearest(end, self.index)}"
                    )
            if self.states[self.index[arc.dest]].kind in ("start", "failed"):
                raise TableError(f"the arc {arc.source} -> {arc.dest}: no arc leads to '{arc.dest}'")
            if arc.guard is not None and arc.guard not in self.guards:
                raise TableError(
                    f"the arc {arc.source} -> {arc.dest} asks the unknown guard '{arc.guard}'"
                    f"{nearest(arc.guard, self.guards)}"
                )

    def _check_reachable(self) -> None:
        reached = {self.start.name}
        front = [self.start.name]
        while front:
            for arc in self.leaving[front.pop()]:
                if arc.dest not in reached:
                    reached.add(arc.dest)
                    front.append(arc.dest)
        for state in self.states:
            if state.name not in reached and state.kind != "failed":
                raise TableError(f"state '{state.name}' cannot be reached from '{self.start.name}'")


GUARDS = ("epochs_remain", "batches_remain", "update_due")

REDO, REDO_DUE = "redo_window", "redo_due"
"""The engine's own detour, which `RunConfig.redo` adds, and its guard."""

_IDLE = State("idle", "start")
_FINISHED = State("finished", "end")
_FAILED = State("failed", "failed")

TRAINING_STATES = (
    _IDLE,
    State(
        "before_loop",
        body="seed, place the network, build optimizer and loader, initialise weights if asked, "
        "training mode, clear gradients",
    ),
    State("before_epoch", body="open the pass: its order of samples is a function of (seed, epoch, pass)"),
    State("before_step", body="take the next batch and place it; clear gradients where a window opens"),
    State("process_batch", body="forward, loss, backward"),
    State("after_step", body="count the step"),
    State("optimizer_update", body="update the weights, count the update"),
    State("after_epoch", body="close the epoch, count it"),
    State("after_loop", body="clear gradients, evaluation mode"),
    _FINISHED,
    _FAILED,
)

TRAINING_ARCS = (
    Arc("idle", "before_loop"),
    Arc("before_loop", "before_epoch", "epochs_remain"),
    Arc("before_loop", "after_loop"),
    Arc("before_epoch", "before_step", "batches_remain"),
    Arc("before_epoch", "after_epoch"),
    Arc("before_step", "process_batch"),
    Arc("process_batch", "after_step"),
    Arc("after_step", "optimizer_update", "update_due"),  # gradient accumulation is this guard
    Arc("after_step", "before_step", "batches_remain"),
    Arc("after_step", "after_epoch"),
    Arc("optimizer_update", "before_step", "batches_remain"),
    Arc("optimizer_update", "after_epoch"),
    Arc("after_epoch", "before_epoch", "epochs_remain"),
    Arc("after_epoch", "after_loop"),
    Arc("after_loop", "finished"),
)

EVALUATION_STATES = (
    _IDLE,
    State("before_loop", body="nothing: the evaluator has set the modes"),
    State("before_epoch", body="open the data, in its own order"),
    State("before_step", body="take the next batch and place it"),
    State("process_batch", body="forward, loss, metrics, without gradients"),
    State("after_step", body="count the step"),
    State("after_epoch", body="take the means"),
    State("after_loop", body="nothing: the evaluator restores the modes"),
    _FINISHED,
    _FAILED,
)

EVALUATION_ARCS = (
    Arc("idle", "before_loop"),
    Arc("before_loop", "before_epoch"),
    Arc("before_epoch", "before_step", "batches_remain"),
    Arc("before_epoch", "after_epoch"),
    Arc("before_step", "process_batch"),
    Arc("process_batch", "after_step"),
    Arc("after_step", "before_step", "batches_remain"),
    Arc("after_step", "after_epoch"),
    Arc("after_epoch", "after_loop"),
    Arc("after_loop", "finished"),
)


def evaluation_table() -> Table:
    """Return the table of an evaluation: the scopes without an update, one epoch long."""
    return Table(EVALUATION_STATES, EVALUATION_ARCS, GUARDS)


class Side(Protocol):
    """A side state to weave into the training table, such as a plugin's `Detour`."""

    @property
    def state(self) -> str:
        """Its name, as users see it."""
        ...

    @property
    def after(self) -> str | Sequence[str]:
        """The states that it leaves from."""
        ...


def training_table(detours: Sequence[Side] = ()) -> Table:
    """Return the training table with detours woven in.

    A detour has one node for each of its sources (`checkpoint@after_step`), so that nothing need be remembered to
    leave it. Of several detours from one source, each stands before the source's own arcs, in the order given, and
    leaves by the arcs that stand behind it.

    Raises:
        TableError: If a detour leaves from a state that the table lacks or that has no arcs to bend.
    """
    sources = {arc.source for arc in TRAINING_ARCS} - {"idle"}
    for detour in detours:
        for source in detour.after:
            if source not in sources:
                raise TableError(
                    f"detour '{detour.state}' cannot leave from '{source}'{nearest(source, sorted(sources))}"
                )
        if any(detour.state == state.name for state in TRAINING_STATES):
            raise TableError(f"detour '{detour.state}' has the name of one of the engine's own states; choose another")
        if f"{detour.state}_due" in GUARDS:
            raise TableError(f"detour '{detour.state}': '{detour.state}_due' is the engine's own guard; choose another")

    states = list(TRAINING_STATES)
    arcs: list[Arc] = []
    origin: dict[str, int] = {}
    for state in TRAINING_STATES:
        behind = [arc for arc in TRAINING_ARCS if arc.source == state.name]
        leaving: list[Arc] = []
        for number, detour in reversed(list(enumerate(detours))):
            if state.name in detour.after:
                name = f"{_numbered(detours, number, detour.state)}@{state.name}"
                states.append(State(name, "detour", shown=detour.state, after=state.name))
                origin[name] = number
                leaving = [*(replace(arc, source=name) for arc in behind), *leaving]
                behind.insert(0, Arc(state.name, name, guard_of(detours, number)))
        arcs += [*behind, *leaving]
    guards = [guard_of(detours, number) for number in range(len(detours))]
    return Table(states, arcs, [*GUARDS, *guards], origin)


def guard_of(detours: Sequence[Side], number: int) -> str:
    """Return the name of the guard of a detour, given by its number from 0; the second of one state ends in `_2`."""
    return _numbered(detours, number, REDO_DUE if detours[number].state == REDO else f"{detours[number].state}_due")


def _numbered(detours: Sequence[Side], number: int, name: str) -> str:
    same = 1 + sum(earlier.state == detours[number].state for earlier in detours[:number])
    return name if same == 1 else f"{name}_{same}"
