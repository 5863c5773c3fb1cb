"""The stock dispatch of the `transitions` library: the reference for the compiled one, and about 18 times as slow."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import transitions

from heptad import Engine, Run
from heptad.errors import Unfinished
from heptad.machine import Machine


class StockScope(Machine.state_cls):
    """A state that records the transition before the library calls its entry handlers."""

    def enter(self, event_data: transitions.EventData) -> None:
        (run,) = event_data.args
        run._buffer.arcs.append(event_data.transition.number)
        run._buffer.times.append(monotonic_ns())
        event_data.machine.moment = "enter"
        run._position.entering = True
        super().enter(event_data)
        run._position.entering = False


class StockArc(Machine.transition_cls):
    """An arc that leaves word of its guard, in case the guard raises."""

    def execute(self, event_data: transitions.EventData) -> bool:
        event_data.machine.moment, event_data.machine.trying = "guard", self.guard
        return super().execute(event_data)


class StockEvent(transitions.Event):
    """The library's own dispatch, one trigger a turn."""

    def drive(self, run: Run, turns: int) -> None:
        """Make up to `turns` turns."""
        machine: Any = self.machine
        for _ in range(turns):
            try:
                self.trigger(machine.model, run)
            except BaseException as error:  # everything: it is recorded and raised again
                if machine.moment == "body" and isinstance(error, Unfinished) and run.pause_requested:
                    return
                machine.fail(run, error, machine.moment, machine.calling, machine.trying)
                raise
            if run._position.halt:
                return


class StockMachine(Machine):
    """The same machine, driven by the library's own dispatch."""

    state_cls = StockScope
    transition_cls = StockArc
    event_cls = StockEvent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.moment = "body"
        self.calling: object = None
        self.trying: object = None
        super().__init__(*args, **kwargs)
        self.prepare_event = [self._leave]

    def callback(self, func: Any, event_data: transitions.EventData) -> None:
        """Call a callback, and remember which one in case it raises."""
        if func != self._leave:
            self.calling = func
        super().callback(func, event_data)

    def _leave(self, run: Run) -> None:
        """Make the first half of a turn, body and exit handlers: the library calls it before it tries any arc."""
        scope = self.scope(self.model.state)
        self.moment = "body"
        scope.body(run)
        self.moment = "exit"
        for call in scope.on_exit:
            self.calling = call
            call(run)


class StockEngine(Engine):
    """An engine driven by the library's own dispatch."""

    machine_class = StockMachine
