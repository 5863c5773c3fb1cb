"""`Throughput`: how fast the epochs went, by a clock that moves only where the tests move it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import heptad.step.reading
from builders import STATES, Clock, Side, batches, small_engine
from heptad import Detour, Engine, Plugin, PluginError, Run
from heptad_plugins._stopwatch import Stopwatch
from heptad_plugins.throughput import Throughput

FETCH, OPEN = 2.0, 1.0
"""Seconds that a batch takes to come, and a pass to be opened."""
RATES = ("steps_per_second", "samples_per_second", "updates_per_second")
FIGURES = (*RATES, "data_wait_share")


class NewestClock(Clock):
    """The clock that the engine reads as well, when it reads ahead."""

    newest: ClassVar[Clock]

    def __init__(self) -> None:
        super().__init__()
        NewestClock.newest = self


@pytest.fixture(autouse=True)
def _reading_takes_the_time_of_the_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heptad.step.reading, "monotonic_ns", lambda: round(NewestClock.newest.now * 1e9))


class Slow:
    """A loader whose batches take their time: 4 of 2 samples, by default."""

    def __init__(self, clock: Clock, count: int = 4) -> None:
        self.clock, self.count = clock, count

    def __iter__(self):
        self.clock.now += OPEN
        return map(self.fetch, batches(self.count))

    def fetch(self, batch):
        self.clock.now += FETCH
        return batch


class Sized(Slow):
    """The same, with a length."""

    def __len__(self) -> int:
        return self.count


class Busy(Plugin):
    """Advances the clock on exit of states, by a number of seconds for each state."""

    def __init__(self, clock: Clock, **seconds: float) -> None:
        self.clock, self.seconds = clock, seconds


def _exit(state: str) -> Any:
    def handler(self: Busy, run: Run) -> None:
        self.clock.now += self.seconds.get(state, 0.0)

    return handler


for _state in STATES:
    setattr(Busy, f"on_exit_{_state}", _exit(_state))


class OnPause(Plugin):
    """Pauses on exit of a state at some counts of steps, and advances the clock while the run is paused."""

    def __init__(self, clock: Clock, state: str = "after_step", steps: tuple[int, ...] = ()) -> None:
        self.clock, self.state, self.steps = clock, state, steps

    def on_exit_after_step(self, run: Run) -> None:
        self._pause("after_step", run)

    def on_exit_before_step(self, run: Run) -> None:
        self._pause("before_step", run)

    def on_exit_after_epoch(self, run: Run) -> None:
        self._pause("after_epoch", run)

    def on_pause(self, run: Run) -> None:
        self.clock.now += 500.0

    def _pause(self, state: str, run: Run) -> None:
        if state == self.state and run.step in self.steps:
            run.pause("asked by the test")


def build(clock: Clock, *plugins: Plugin, loader: Any = None, every: int = 1, epochs: int = 2, **config: Any) -> Engine:
    """Return an engine in which a step waits 2 s for its batch, works for 5 s, and an update takes 1 s more."""
    throughput = Throughput(every)
    throughput._all.clock = throughput._waiting.clock = clock
    busy = Busy(clock, process_batch=5.0, optimizer_update=1.0)
    loader = Sized(clock) if loader is None else loader
    return small_engine(loader, [throughput, busy, *plugins], epochs=epochs, **config)


def drive(engine: Engine, clock: Clock, **until: Any) -> Run:
    """Run to the end, on from wherever it pauses; 10,000 s go by in each pause."""
    while not engine.current.ended:
        engine.run(**until)
        clock.now += 10_000.0
    return engine.current


def figures(run: Run) -> dict[str, list[float]]:
    """Return what was recorded, by name."""
    return {name: run.history(name) for name in FIGURES}


STRAIGHT = {
    "steps_per_second": [4 / 33] * 2,
    "samples_per_second": [8 / 33] * 2,
    "updates_per_second": [4 / 33] * 2,
    "data_wait_share": [9 / 33] * 2,
}
"""An epoch is 1 s to open the pass and 4 steps of 2 + 5 + 1 s; 1 + 4 x 2 s of it are spent waiting."""


def test_the_figures_of_an_epoch_are_exact():
    """Steps, samples and updates over all of the epoch's seconds, and the share of them spent waiting for data."""
    clock = NewestClock()
    run = build(clock).run()
    assert clock.now == 1000.0 + 2 * 33.0
    assert figures(run) == STRAIGHT


def test_they_stand_at_the_end_of_their_epoch():
    """Each is recorded on exit of `after_epoch`, where the epoch is counted already."""
    run = build(NewestClock()).run()
    assert [(value.name, value.epoch, value.step) for value in run.records()] == [
        (name, epoch, 4 * epoch) for epoch in (1, 2) for name in FIGURES
    ]


def test_updates_are_distinguished_from_steps():
    """With accumulation 2 an epoch has half as many updates as steps; skipped updates are none."""

    class Skip(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            if run.step == 4:
                run.skip_update("asked by the test")

    run = build(NewestClock(), Skip(), accumulation=2).run()
    assert figures(run) == {
        "steps_per_second": [4 / 31] * 2,
        "samples_per_second": [8 / 31] * 2,
        "updates_per_second": [1 / 31, 2 / 31],
        "data_wait_share": [9 / 31] * 2,
    }


def test_side_work_in_the_epoch_counts_and_is_no_waiting():
    """An evaluation or a checkpoint belongs to the time that the epoch took."""
    clock = NewestClock()

    def work(run: Run) -> None:
        clock.now += 10.0

    run = build(clock, Side(Detour("side", ("before_step", "optimizer_update"), lambda run: True, work))).run()
    assert run.history("steps_per_second") == [4 / (33 + 80)] * 2
    assert run.history("data_wait_share") == [9 / (33 + 80)] * 2


def test_what_happens_between_two_epochs_counts_for_neither():
    """A detour that leaves from `after_epoch` comes after the record and before the next epoch, paused in or not."""
    clock = NewestClock()

    def work(run: Run) -> None:
        clock.now += 10.0

    side = Side(Detour("side", "after_epoch", lambda run: True, work))
    assert figures(build(clock, side).run()) == STRAIGHT
    assert figures(drive(build(clock, side), clock, until="side")) == STRAIGHT


def test_every_gives_the_figures_of_several_epochs_together():
    """At epochs 2 and 4 of five, over two epochs each, and what lies between these; the fifth has no record."""
    clock = NewestClock()

    def work(run: Run) -> None:
        clock.now += 10.0

    side = Side(Detour("side", "after_epoch", lambda run: True, work))
    run = build(clock, side, every=2, epochs=5).run()
    assert [value.epoch for value in run.records()] == [2] * 4 + [4] * 4
    assert figures(run) == {
        "steps_per_second": [8 / 76] * 2,
        "samples_per_second": [16 / 76] * 2,
        "updates_per_second": [8 / 76] * 2,
        "data_wait_share": [18 / 76] * 2,
    }


def test_reading_ahead_is_waiting_too():
    """Where the length of the data is unknown the next batch is read in `before_epoch` and between two states."""
    clock = NewestClock()
    assert figures(build(clock, loader=Slow(clock)).run()) == STRAIGHT
    assert clock.now == 1000.0 + 2 * 33.0


# -- paused time


@pytest.mark.parametrize("loader", [Sized, Slow])
@pytest.mark.parametrize("until", [*STATES[1:], lambda run: True])
def test_paused_time_is_left_out(until, loader):
    """Wherever `until=` pauses the run, and after every single turn, the figures are those of the straight run."""
    clock = NewestClock()
    run = drive(build(clock, loader=loader(clock)), clock, until=until)
    assert len(run.log.notes("pause")) >= 1
    assert figures(run) == STRAIGHT


@pytest.mark.parametrize("state", ["before_step", "after_step", "after_epoch"])
@pytest.mark.parametrize("by_advance", [False, True])
def test_what_other_plugins_do_on_pause_is_left_out(state, by_advance):
    """Neither does saving a checkpoint count, nor the pause after it."""
    clock = NewestClock()
    pauses = OnPause(clock, state, (1, 3, 4, 5, 8))
    engine = build(clock, pauses)
    if by_advance:
        while not engine.current.ended:
            engine.advance()
            if engine.current.paused == "asked by the test":
                clock.now += 10_000.0
    else:
        drive(engine, clock)
    assert len(engine.current.log.notes("pause")) >= 2
    assert figures(engine.current) == STRAIGHT


def test_measuring_begins_anew_where_a_run_continues_in_mid_epoch():
    """A plugin that was built anew in mid-epoch knows nothing of the time before; its figures are over the rest."""
    clock = NewestClock()
    engine = build(clock)
    engine.run(until=lambda run: run.step == 2 and run.state == "before_step")
    throughput = next(plugin for plugin in engine._manager.plugins if isinstance(plugin, Throughput))
    fresh = Throughput()
    fresh._all.clock = fresh._waiting.clock = clock
    throughput.__dict__.update(fresh.__dict__)
    clock.now += 10_000.0
    run = engine.run()
    assert figures(run) == {
        "steps_per_second": [2 / 16, 4 / 33],
        "samples_per_second": [4 / 16, 8 / 33],
        "updates_per_second": [2 / 16, 4 / 33],
        "data_wait_share": [4 / 16, 9 / 33],
    }


def test_an_epoch_that_takes_no_time_divides_by_nothing():
    """A clock too coarse for the epoch gives large numbers, and no error."""
    throughput = Throughput()
    throughput._all.clock = throughput._waiting.clock = NewestClock()
    run = small_engine(3, [throughput]).run()
    assert run.metrics["steps_per_second"] == 3 / 1e-9
    assert run.metrics["data_wait_share"] == 0.0


@pytest.mark.parametrize("every", [0, -1, 1.0, True, "1", None])
def test_every_must_be_a_whole_number(every):
    """From 1 on."""
    with pytest.raises(PluginError, match=r"Throughput\(every=…\) must be a whole number from 1 on"):
        Throughput(every)


# -- the stopwatch


def test_a_stopwatch_adds_up_the_time_between_start_and_stop():
    """Starting one that goes and stopping one that stands is nothing."""
    clock = NewestClock()
    watch = Stopwatch(clock)
    watch.stop()
    clock.now += 1.0
    assert watch.read() == 0.0
    watch.start()
    clock.now += 2.0
    watch.start()
    clock.now += 4.0
    assert watch.read() == 6.0
    watch.stop()
    clock.now += 8.0
    watch.stop()
    assert watch.read() == 6.0
    watch.start()
    clock.now += 16.0
    assert watch.read() == 22.0


@pytest.mark.parametrize("going", [False, True])
def test_a_stopwatch_can_be_put(going):
    """It keeps running if it was running, and stays stopped if it was stopped."""
    clock = NewestClock()
    watch = Stopwatch(clock)
    watch.start()
    clock.now += 3.0
    if not going:
        watch.stop()
    watch.put(10.0)
    clock.now += 2.0
    assert watch.read() == (12.0 if going else 10.0)
