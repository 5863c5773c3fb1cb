"""The machine: a `transitions.Machine` whose dispatch is compiled. This module alone imports `transitions`.

States, arcs, guards and handlers live in the library's own tables, added through its own calls, so `get_transitions()`
and its diagrams hold. Its stock dispatch looks all of them up anew in every turn, which costs about 8 µs a transition.
`CompiledEvent` looks them up once, into a tuple for each state, and then makes turn after turn over these.

A turn: body, exit handlers, choice of the arc, change of state, record, entry handlers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from time import monotonic_ns
from typing import Any, cast

import transitions

from heptad.errors import Unfinished
from heptad.plugin.marks import Handler
from heptad.plugin.subscription import Subscription
from heptad.run.run import Run

Body = Callable[[Run], object]
Guard = Callable[[Run], bool]

Node = tuple[Body, tuple[Handler, ...], tuple[tuple[Guard, int, int], ...], int, int, tuple[Handler, ...]]
"""A state as the compiled dispatch sees it: body, exit handlers, guarded arcs (guard, destination, number), destination
and number of the unguarded one, entry handlers."""

TURN = "advance"
"""The only trigger: it makes one turn."""


class _Scope(transitions.State):
    """A state with its body. The dispatch calls handlers; of the library's own calls, that on exit is left out."""

    def __init__(self, name: str, body: Body) -> None:
        super().__init__(name)
        self.body = body
        self.who: dict[int, str] = {}
        """The names of the subscribers, by the id of what is called."""

    def subscribe(self, subscription: Subscription) -> None:
        """Add a handler."""
        self.add_callback(subscription.mark.moment, cast("Any", subscription.call))
        self.who[id(subscription.call)] = subscription.who

    def exit(self, event_data: transitions.EventData) -> None:
        """Call nothing: the library would call exit handlers after the choice, here they come before it."""


class _Arc(transitions.Transition):
    """An arc with its number in the table."""

    def __init__(self, *args: Any, number: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = number

    @property
    def guard(self) -> Guard | None:
        """The guard, `None` where there is none."""
        return cast("Guard", self.conditions[0].func) if self.conditions else None


class CompiledEvent(transitions.Event):
    """The trigger: a dispatch that reads the machine's tables once and then loops over tuples.

    It refers to its machine weakly, so that no cycle keeps networks and batches alive.
    """

    def __init__(self, name: str, machine: Machine) -> None:
        super().__init__(name, machine)
        self._nodes: tuple[Node, ...] = ()

    @property
    def machine(self) -> Machine:
        """The machine that it belongs to."""
        machine = self._machine()
        if machine is None:
            raise ReferenceError("the machine of this event is gone")
        return machine

    @machine.setter
    def machine(self, machine: Machine) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] - the library has an attribute
        self._machine = weakref.ref(machine)

    def trigger(self, model: object, *args: Any, **kwargs: Any) -> bool:
        """Make one turn of the run that is passed."""
        del model, kwargs
        self.drive(cast("Run", args[0]), 1)
        return True

    def drive(self, run: Run, turns: int) -> None:
        """Make up to `turns` turns. This is the loop that training happens in."""
        nodes = self._nodes or self._compile()
        at = run._position
        arcs_taken, times = run._buffer.arcs, run._buffer.times
        moment, call, guard = "body", None, None
        body, exits, guarded, dest, arc, enters = nodes[at.node]
        try:
            for _ in range(turns):
                body(run)

                if exits:
                    moment = "exit"
                    for call in exits:
                        call(run)
                    moment = "body"

                if guarded:  # dest and arc are those of the last arc, which has no guard
                    moment = "guard"
                    for guard, other, number in guarded:
                        if guard(run):
                            dest, arc = other, number
                            break
                    moment = "body"

                at.node = dest  # an interrupt before the time is appended is mended from the record, see `fail`
                arcs_taken.append(arc)
                times.append(monotonic_ns())
                body, exits, guarded, dest, arc, enters = nodes[dest]

                if enters:
                    moment = "enter"
                    at.entering = True
                    for call in enters:
                        call(run)
                    at.entering = False
                    moment = "body"

                if at.halt:
                    return
        except BaseException as error:  # everything: it is recorded and raised again
            if moment == "body" and isinstance(error, Unfinished) and run.pause_requested:
                return  # no turn was made: the body is run again when the run continues
            self.machine.fail(run, error, moment, call, guard)
            raise

    def _compile(self) -> tuple[Node, ...]:
        machine = self.machine
        self._nodes = tuple(machine.node(state.name) for state in machine.table.states)
        return self._nodes


class Machine(transitions.Machine):
    """The table, its bodies, its guards and its subscribers as a machine of the library's.

    Args:
        run: The run that is driven.
        bodies: What is done in a state, by the state's name; nothing where a state is not named.
        guards: The predicates, by the names that the table's arcs use.
        subscriptions: The handlers, in the order in which those of one moment are to be called.
        owners: Which plugin a state or a guard belongs to, by its name, where it belongs to one.

    Attributes:
        drive: Makes up to so many turns of a run: fewer if the run ends or `RunState.halt` is set. What a body,
            a guard or a handler raises comes out unchanged but for a note; the run has failed then. It is the
            trigger's own, so that no frame of this class stands in the traceback of an error.
    """

    state_cls = _Scope
    transition_cls = _Arc
    event_cls = CompiledEvent

    def __init__(
        self,
        run: Run,
        bodies: Mapping[str, Body],
        guards: Mapping[str, Guard],
        subscriptions: Iterable[Subscription] = (),
        owners: Mapping[str, str] | None = None,
    ) -> None:
        table = self.table = run.table
        self._owners = dict(owners or {})
        scope = cast("type[_Scope]", self.state_cls)
        super().__init__(
            model=_Model(run),
            states=[scope(state.name, bodies.get(state.name, _bookend)) for state in table.states],
            initial=table.start.name,
            auto_transitions=False,
        )
        for number, arc in enumerate(table.arcs):
            conditions: list[Any] | None = [guards[arc.guard]] if arc.guard else None
            self.add_transition(TURN, arc.source, arc.dest, conditions=conditions, number=number)
        for state in table.states:
            if state.kind == "end":
                self.scope(state.name).add_callback("enter", cast("Any", _halt))
        for subscription in subscriptions:
            self.subscribe(subscription)
        self.drive = cast("CompiledEvent", self.events[TURN]).drive

    def subscribe(self, subscription: Subscription) -> None:
        """Add a handler to every node that users see under the name of its state; after those that are there."""
        for state in self.table.named(subscription.mark.state):
            self.scope(state.name).subscribe(subscription)

    def scope(self, name: str) -> _Scope:
        """Return a state of the library's table."""
        return cast("_Scope", self.get_state(name))

    def node(self, name: str) -> Node:
        """Read from the library's tables all that a turn from this state, or into it, needs."""
        scope = self.scope(name)
        arcs = [
            (arc.guard, self.table.index[cast("str", arc.dest)], arc.number)
            for arc in cast("list[_Arc]", self.get_transitions(TURN, source=name))
        ]
        guarded = tuple((guard, dest, number) for guard, dest, number in arcs if guard is not None)
        dest, number = arcs[-1][1:] if arcs else (self.table.index[name], 0)  # from an end no turn is made
        exits, enters = cast("list[Handler]", scope.on_exit), cast("list[Handler]", scope.on_enter)
        return scope.body, tuple(exits), guarded, dest, number, tuple(enters)

    def fail(self, run: Run, error: BaseException, moment: str, call: object, guard: object) -> None:
        """Find out where it happened, and end the run in `failed`."""
        run._position.node = run._buffer.mend()
        name = self.table.states[run._position.node].name
        who, asked = self._owners.get(name, ""), ""
        answered: dict[str, bool] = {}
        if moment in ("enter", "exit"):
            who = self.scope(name).who.get(id(call), "")
        elif moment == "guard":
            for arc, (predicate, _, _) in zip(self.table.leaving[name], self.node(name)[2], strict=False):
                asked = arc.guard or ""
                if predicate is guard:
                    break
                answered[asked] = False
            who = self._owners.get(asked, "")
        run.fail(error, moment, who, asked, answered)

    def _checked_assignment(self, model: object, name: str, func: object) -> None:
        """Inject nothing into the model: the library would put a method for each state and trigger there."""


class _Model:
    """What the library calls its model: an object with the name of the current state."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def state(self) -> str:
        return self._run.table.states[self._run._position.node].name

    @state.setter
    def state(self, name: str) -> None:
        self._run._position.node = self._run.table.index[name]


def _bookend(run: Run) -> None:
    """The body of a bookend."""
    del run


def _halt(run: Run) -> None:
    """Ask the loop to return after this turn: the run has ended."""
    run._position.halt = True
