"""`Engine`: wires components, configuration and plugins into a machine, and drives it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from heptad.blocks.in_use import Blocks
from heptad.checkpoints.resumption import Resumption
from heptad.config import Components, RunConfig, check_together
from heptad.data.build import build_feed
from heptad.data.placement import read_numbers, resolve_device
from heptad.data.transfer import build_transfer
from heptad.engine_view import EngineView
from heptad.errors import EngineError, PluginError, a_kind
from heptad.history.transition import Transition
from heptad.machine import Body, Guard, Machine
from heptad.plugin.contract import Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.detour_state import DetourState
from heptad.plugin.manager import PluginManager
from heptad.plugin.marks import Mark, Predicate
from heptad.plugin.subscription import Subscription, function_name
from heptad.plugin.tracing import trace
from heptad.plugin.verify import titled, verify
from heptad.ranks.choosing import build_strategy
from heptad.ranks.strategy import Strategy
from heptad.record.buffer import LogBuffer
from heptad.record.events import Pause
from heptad.run.determinism import deterministic
from heptad.run.epoch_loss import SUMMED
from heptad.run.guards import GUARDS, in_mid_step
from heptad.run.others import beside_others
from heptad.run.run import Run
from heptad.run.runtime import Runtime
from heptad.run.signals import CtrlC
from heptad.run.until import Until, until_predicate
from heptad.run.verified import note_unverified
from heptad.smoke.compiling import compilation_handlers
from heptad.step.bodies import BODIES, before_loop, build
from heptad.step.closure import prepare_recomputation
from heptad.step.loss_scaling import first_on_update
from heptad.step.optimizers import Optimizers, given_mistakes
from heptad.step.ranks_bodies import bodies_of_ranks, spare_idle_steps
from heptad.step.reading import readers
from heptad.step.redo import build_redo
from heptad.table import guard_of, training_table

F = TypeVar("F", bound=Callable[[Run], object])

BY_ADVANCE = "advance"
"""Why a run is paused that `advance` has driven."""


class Engine(EngineView):
    """Drives one run through its states.

    Args:
        components: What the run works with.
        config: How it is to be run.
        plugins: Instances; handlers of one moment are called in this order, but for `runs_after` and `runs_before`.

    Attributes:
        current: The run; in `idle` until `run` or `advance` is called.
        machine_class: What drives the run, and evaluations; to be set in a subclass.
        strategy_class: Called with the configuration for the strategy, by which several processes agree; to be set in a
            subclass, a plain function as a `staticmethod`.

    Raises:
        ConfigError: If components and configuration do not fit together.
        DataError: If it is known now that the data cannot give what the run needs.
        PluginError: If a plugin or a handler does not fit the machine.
        TableError: If a detour does not fit the table.
    """

    strategy_class: Callable[[RunConfig], Strategy] = staticmethod(build_strategy)

    def __init__(self, components: Components, config: RunConfig, plugins: Sequence[Plugin] = ()) -> None:
        for value, expected in ((components, Components), (config, RunConfig)):
            if not isinstance(value, expected):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
                raise EngineError(f"Engine takes Components, RunConfig and plugins in this order, got {a_kind(value)}")
        self._strategy = self.strategy_class(config)
        joined = self._strategy.join(config)
        with self._strategy.starting():
            check_together(components, config, given_mistakes(components, config.precision, self._strategy))
            self._wire(components, joined, plugins)

    def _wire(self, components: Components, config: RunConfig, plugins: Sequence[Plugin]) -> None:
        self._manager = PluginManager(plugins, self._strategy.peers)
        self._components = components
        self._config = config
        self._blocks = Blocks(components, config)
        device = self._strategy.device(resolve_device(config.device))
        place = build_transfer(device, config)
        feed = build_feed(components, config, self._strategy.share(), place, self._strategy.peers.gather)
        runtime = Runtime(components, feed, device, Optimizers(), place)
        runtime.peers = self._strategy.peers
        runtime.evaluator = self._evaluator(device)
        prepare_recomputation(runtime, self._manager.plugins)
        self._manager.equip(runtime)
        self._redo = build_redo(config.redo, self._strategy, self._manager)
        detours = self._manager.detours_given
        table = training_table([detour for _, detour in detours])
        buffer = LogBuffer(table, config.log_capacity, read_numbers)
        self.current = self._strategy.run_class(table, config, runtime, buffer)
        self._machine = self._build_machine(detours)
        self._subscriptions: list[Subscription] = []
        for subscription in self._manager.subscriptions():
            self._subscribe(subscription)
        self._resumption = Resumption(self._manager, self._redo.beside(self._visits), self._subscriptions)
        self.current._capture = self._resumption.capture
        self._ready = False  # whether the engine's last handlers are subscribed
        self._driver: int | None = None
        self._lock = threading.Lock()
        self._manager.check(self.current)
        self._strategy.prepare(self.current, self._manager)

    def _build_machine(self, detours: Sequence[tuple[Plugin | None, Detour]]) -> Machine:
        table = self.current.table
        bodies: dict[str, Body] = {"before_loop": partial(before_loop, strategy=self._strategy), **BODIES}
        bodies |= bodies_of_ranks(self._strategy)
        bodies["process_batch"] = self._redo.around(bodies["process_batch"], self.current)
        guards: dict[str, Guard] = dict(GUARDS)
        owners: dict[str, str] = {}
        self._visits = [DetourState(detour, self._manager.wrap_body(plugin, detour)) for plugin, detour in detours]
        for number, (plugin, _) in enumerate(detours):
            guard = guard_of([detour for _, detour in detours], number)
            guards[guard] = self._manager.wrap_guard(plugin, guard, self._visits[number].due)
            owners[guard] = titled(plugin) if plugin else ""
        for node, number in table.origin.items():
            bodies[node] = self._visits[number].body
            owners[node] = owners[guard_of([detour for _, detour in detours], number)]
        calls = first_on_update(self._strategy, self._config.precision)  # plugins see the gradient that is applied
        first = [Subscription(None, "", Mark("enter", "optimizer_update"), call) for call in calls]
        if any(plugin.needs_epoch_loss for plugin in self._manager.plugins):
            first += [Subscription(None, "", Mark("exit", state), call) for state, call in SUMMED.items()]
            first += [Subscription(None, "", Mark("enter", "after_epoch"), self._strategy.sum_epoch)]
        first += compilation_handlers(self.current, self._blocks)
        return self.machine_class(self.current, bodies, guards, self._redo.split(*first), owners)

    # -- driving

    def run(
        self,
        until: str | Until | None = None,
        resume: str | os.PathLike[str] | None = None,
        allow_changes: Collection[str] = (),
    ) -> Run:
        """Drive the run to its end: from `idle`, from where it is paused, or from a checkpoint.

        Args:
            until: A state, or a predicate of the run: pauses at the end of the first turn, of at least one, at which
                the run is in that state or the predicate holds.
            resume: A directory of checkpoints, of which the newest sound one is taken; one checkpoint; or `"auto"`: the
                directory of the run's own `Checkpoint`. Where that holds none, the run begins at its start, and the log
                says so. What follows is, bit for bit, what a run that was never interrupted does.
            allow_changes: With `"optimizer"`, options of optimizers (such as the learning rate) may differ from those
                of the checkpoint: the ones given now hold, with moments and counts of the checkpoint; the log says so.

        Returns:
            The run: finished, or paused (`Run.paused` says why).

        Raises:
            EngineError: If the run has ended, is being driven already, or `until` is not a state; if it has begun and
                is to resume.
            CheckpointError: If there is no sound checkpoint, or the run is not the one that it is of. Nothing has been
                changed then, and the engine is not driven; only if another configuration was found may it begin a run.
            KeyboardInterrupt: After Ctrl-C has paused the run; `run()` continues it. Pressed in the very last turn, it
                finds the run finished.
            BaseException: What a body, a guard or a handler raised, unchanged but for a note that names the place. The
                run has failed then.
        """
        reached = until_predicate(until, self.current.table)
        run = self.current
        with self._driving("run"), CtrlC(run) as ctrl_c:  # it tears neither restoring nor the `open` of a plugin apart
            if resume is not None or allow_changes:
                self._resumption.resume(run, resume, partial(build, strategy=self._strategy), allow_changes)
            self._resumption.begin(run)
            with self._manager.opened(run), self._feed_closed_at_the_end(), beside_others(run), self._blocks.in_use():
                self._make_ready()
                self._drive(reached, f"until {until}" if isinstance(until, str) else "until a predicate held")
        if ctrl_c.pressed:
            where = f"it is {run.state}" if run.ended else f"paused in {run.state}; Engine.run() continues from there"
            raise KeyboardInterrupt(where)
        return run

    def advance(self) -> Transition:
        """Make one turn and pause.

        Plugins are opened before the first turn. They are closed by a turn that ends the run, or after which a
        requested pause takes effect; by `run`; or by `close`.

        Returns:
            The transition that was made.

        Raises:
            EngineError: If the run has ended or is being driven already.
            BaseException: As `run`.
        """
        with self._driving("advance"):
            try:
                self._resumption.begin(self.current)
                self._manager.open(self.current)
                with beside_others(self.current), self._blocks.in_use():
                    self._make_ready()
                    self._drive(lambda run: True, BY_ADVANCE)
            except BaseException as error:
                self.current._runtime.feed.close()
                self._manager.close_after(error, self.current)
                raise
            if self.current.ended:
                self.close()
            elif self.current.paused != BY_ADVANCE:  # as asked for: run() opens them again
                self._manager.close(self.current)
        return self.current.log[-1]

    def close(self) -> None:
        """Close plugins that `advance` left open, and end worker processes. A paused run can still continue."""
        if self._driver == threading.get_ident() and not self.current.ended:
            raise EngineError("close() was called from a handler; run.stop or run.pause ends or pauses the run first")
        feed = self.current._runtime.feed
        if self.current.ended:
            feed.close()
        else:
            feed.rest()
        self._manager.close(self.current)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- functions as handlers

    def on_enter(
        self, state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None, first: int | None = None
    ) -> Callable[[F], F]:
        """Subscribe a function to entering a state, after the plugins; as a decorator, until the run has started.

        Args:
            state: The state's name.
            every: Called at the n-th, 2n-th … event of the run.
            once: Called at the first of these events only.
            when: Called only if this predicate of the run holds as well.
            first: The number of the first event that `every` selects, by default n.

        Raises:
            PluginError: If the state is unknown, the function cannot be called with the run, or the run has started.
        """
        return self._subscriber(Mark("enter", state, every, once, when, first))

    def on_exit(
        self, state: str, *, every: int = 1, once: bool = False, when: Predicate | None = None, first: int | None = None
    ) -> Callable[[F], F]:
        """Subscribe a function to leaving a state; the arguments are those of `on_enter`."""
        return self._subscriber(Mark("exit", state, every, once, when, first))

    def _subscriber(self, mark: Mark) -> Callable[[F], F]:
        def put(function: F) -> F:
            name = function_name(function)
            if self.current.state != "idle":
                raise PluginError(f"{name} comes too late: handlers are taken until the run has started")
            self._subscribe(Subscription(None, name, mark, function))
            return function

        return put

    def _subscribe(self, subscription: Subscription) -> None:
        verify(subscription, self.current.table)
        if self._strategy.announces:
            spare_idle_steps(subscription)
        if self._config.trace_handlers:
            trace(subscription, self.current)
        self._manager.wrap(subscription)
        self._subscriptions.append(subscription)
        for part in self._redo.split(subscription):
            self._machine.subscribe(part)
        mark, facts = subscription.mark, self.current._buffer.facts
        plugin = "" if subscription.plugin is None else subscription.plugin.name
        facts.setdefault("handlers", []).append([mark.state, mark.moment, subscription.who, mark.words(), plugin])

    def _make_ready(self) -> None:
        """Do what comes last, once plugins are open: subscribe what reads ahead, restore the global generators."""
        if not self._ready:
            # The engine is the last to be called on exit: no handler can subscribe behind it any more.
            self._ready = True
            agreement = self._strategy.last_handlers(self.current)  # reading ahead depends on what it says
            for state, call in (*agreement, *readers(self.current), *self._redo.last_handlers()):
                for last in self._redo.split(Subscription(None, "", Mark("exit", state), call)):
                    self._machine.subscribe(last)
            note_unverified(self.current)
        self._resumption.restore_generators(self.current)
        self._strategy.begin(self.current)  # last: from here on a rank may no more fail by itself

    # -- the loop

    def _drive(self, reached: Until | None, pause: str) -> None:
        """Make turns until the run ends or pauses."""
        run, at, buffer = self.current, self.current._position, self.current._buffer
        run._paused = None
        with buffer.running(), self._strategy.driving(run):
            while True:
                at.halt = False
                # Turn by turn only where each has to be looked at; else up to a chunk of the log, without coming back.
                one_by_one = reached is not None or at.pause_requested is not None
                self._machine.drive(run, 1 if one_by_one else buffer.room)
                buffer.settle(run.counters)  # between two turns, where counters and path agree
                if run.ended:
                    return
                here = reached is not None and reached(run)
                # A requested pause comes before `until`, so that plugins are called; in mid-step it waits, and `until`
                # waits with it. `advance` promised one turn, and pauses even there.
                if at.pause_requested is not None and self._may_pause():
                    self._pause(*at.pause_requested)
                    at.pause_requested = None
                    self._manager.pause(run)  # after the event, so that what plugins store holds it
                    return
                if here and (at.pause_requested is None or pause == BY_ADVANCE):
                    self._pause(pause)
                    return

    def _pause(self, reason: str, requested: int | None = None) -> None:
        run = self.current
        run._paused = reason
        run._buffer.pause()  # what plugins save while it is paused takes none of the state's time
        run._buffer.emit(Pause, run._buffer.seq - 1, reason, requested)

    def _may_pause(self) -> bool:
        return not in_mid_step(self.current.table.states[self.current._position.node])

    @contextmanager
    def _driving(self, verb: str) -> Generator[None]:
        """Admit one caller at a time, and only to a run that has not ended."""
        run = self.current
        with self._lock:
            if self._driver is not None:
                where = "a handler" if self._driver == threading.get_ident() else "another thread"
                raise EngineError(
                    f"{verb}() was called from {where} while the run is being driven; "
                    "handlers act through the run's verbs: stop, pause, skip_update"
                )
            if run.ended:
                raise EngineError(
                    f"{verb}() was called on a run that is {run.state} ({run.reason}); an engine drives one run, "
                    "build a new Engine for another"
                )
            self._driver = threading.get_ident()
        try:
            with deterministic(self._config.deterministic), self._strategy.starting():
                yield
        finally:
            self._driver = None

    @contextmanager
    def _feed_closed_at_the_end(self) -> Generator[None]:
        """End the worker processes of a run that has ended; a paused run keeps them."""
        try:
            yield
        finally:
            if self.current.ended:
                self.current._runtime.feed.close()

    def __repr__(self) -> str:
        names = ", ".join(plugin.name for plugin in self._manager.plugins)
        return f"<Engine {self.current!r} with {names or 'no plugins'}>"
