"""An engine and its run hold each other, networks and batches in no cycle: what is dropped is freed at once."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from builders import STATES, Witness, small_components, small_network
from heptad import Components, Detour, Engine, LossOutput, Plugin, Run, RunConfig, on_enter, on_exit


@pytest.fixture(autouse=True, scope="module")
def _no_collector():
    """Turn the cycle collector off: what it alone could free counts as leaked.

    Before that an optimizer is built: the first one of a process makes torch import modules, and an import error that
    it catches there keeps the frames of its callers in a cycle of torch's own.
    """
    torch.optim.AdamW([torch.zeros(1)])
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


class Batch:
    """A batch of a kind of its own, to which weak references can be made."""

    def __init__(self) -> None:
        self.data = torch.ones(2, 4)
        self.target = torch.zeros(2, dtype=torch.int64)


class Weak:
    """A loader that makes its batches anew and refers to them weakly, with a length or without."""

    def __init__(self, fails: bool = False) -> None:
        self.made: list[weakref.ref[Any]] = []
        self.fails = fails

    def __iter__(self) -> Iterator[Batch]:
        for number in range(4):
            if self.fails and number == 2:
                raise RuntimeError("planned")
            batch = Batch()
            self.made.append(weakref.ref(batch))
            yield batch
            del batch


class WeakSized(Weak):
    def __len__(self) -> int:
        return 4


@dataclass
class Held:
    """An engine, the run it has given, and weak references to all that must go with them."""

    engine: Engine
    loader: Weak
    references: dict[str, weakref.ref[Any]] = field(default_factory=dict)

    def watch(self) -> None:
        network = self.engine.current.network
        self.references = {
            "engine": weakref.ref(self.engine),
            "run": weakref.ref(self.engine.current),
            "network": weakref.ref(network),
            "a weight": weakref.ref(next(network.parameters())),
        }

    def alive(self) -> list[str]:
        """Drop engine and run, and return what is still there."""
        self.engine = None  # type: ignore[assignment]
        left = [name for name, reference in self.references.items() if reference() is not None]
        return left + [f"batch {number}" for number, batch in enumerate(self.loader.made) if batch() is not None]


def loss_of(network: nn.Module, batch: Batch) -> LossOutput:
    output = network(batch.data)
    return LossOutput(nn.functional.cross_entropy(output, batch.target), weight=len(batch.target), output=output)


def held(
    plugins: tuple[Plugin, ...] = (), *, sized: bool = True, fails: bool = False, loss: Any = loss_of, **config: Any
) -> Held:
    """Return an engine over batches that nothing else holds; its last updates leave a window open at the end."""
    network = small_network()
    loader = (WeakSized if sized else Weak)(fails)
    components = Components(
        network=network,
        loader=loader,
        compute_loss=loss,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.1),
    )
    made = Held(Engine(components, RunConfig(**{"epochs": 2, "accumulation": 3, **config}), plugins=plugins), loader)
    made.watch()
    return made


each_kind = pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])


@each_kind
def test_a_run_that_never_started_is_freed(sized):
    """Building an engine makes no cycle."""
    some = held((Witness(),), sized=sized)
    assert some.alive() == []


@each_kind
@pytest.mark.parametrize("remainder", ["extend", "flush", "drop", "carry"])
def test_a_finished_run_is_freed(sized, remainder):
    """After its end engine, run, network and the batches are freed as soon as nobody holds them."""
    some = held(sized=sized, remainder=remainder)
    run = some.engine.run()
    assert run.state == "finished"
    assert len(some.loader.made) >= 6
    del run
    assert some.alive() == []


def test_a_run_that_is_still_held_keeps_its_network():
    """The measure itself: with the run in hand the engine is freed, run and network are not."""
    some = held()
    run = some.engine.run()
    assert some.alive() == ["run", "network", "a weight"]
    del run
    assert some.alive() == []


@each_kind
def test_no_batch_outlives_its_step_while_the_run_continues(sized):
    """At each forward the batch of that step is the only one there: none is kept, and none is read ahead yet."""
    alive: list[int] = []

    def loss(network: nn.Module, batch: Batch) -> LossOutput:
        alive.append(sum(reference() is not None for reference in loader.made))
        return loss_of(network, batch)

    some = held(sized=sized, loss=loss)
    loader = some.loader
    some.engine.run()
    assert alive == [1] * 12


@each_kind
@pytest.mark.parametrize(
    "state",
    STATES,
)
def test_a_run_paused_in_any_state_is_freed(sized, state):
    """Paused in mid-step, with a batch, an output and an open window, a run is freed as a finished one is."""
    some = held((Witness(),), sized=sized)
    run = some.engine.run(until=state)
    assert (state, f"until {state}") == (run.state, run.paused)
    del run
    assert some.alive() == []


@each_kind
def test_a_run_that_a_handler_paused_is_freed(sized):
    """Paused by `pause()`, with `on_pause` called."""
    witness = Witness()
    some = held((witness,), sized=sized)
    some.engine.on_enter("process_batch", once=True)(lambda run: run.pause("enough"))
    run = some.engine.run()
    assert (run.paused, witness.paused) == ("enough", 1)
    del run
    assert some.alive() == []


@each_kind
def test_a_run_that_was_advanced_turn_by_turn_is_freed(sized):
    """In mid-run, with plugins open, and after the last turn."""
    for turns in (1, 4, 9, 100):
        some = held((Witness(),), sized=sized)
        for _ in range(turns):
            transition = some.engine.advance()
            if transition.dest == "finished":
                break
        assert (turns == 100) is (transition.dest == "finished")
        assert some.alive() == []


class Planned(Exception):
    """An error that a test has planned."""


class Raises(Plugin):
    """Raises at one place."""

    def __init__(self, *places: str) -> None:
        self.places = places

    def at(self, place: str) -> None:
        if place in self.places:
            raise Planned(place)

    def open(self, run: Run) -> None:
        self.at("open")

    def close(self, run: Run) -> None:
        self.at("close")

    def detours(self) -> list[Detour]:
        return [Detour("look", "after_step", when=self.look_now, body=lambda run: self.at("detour"))]

    def look_now(self, run: Run) -> bool:
        self.at("guard")
        return run.step % 2 == 0

    @on_enter("process_batch", every=3)
    def enter(self, run: Run) -> None:
        self.at("enter")

    @on_exit("process_batch", every=3)
    def leave(self, run: Run) -> None:
        self.at("exit")

    def on_enter_optimizer_update(self, run: Run) -> None:
        self.at("update")

    def on_exit_look(self, run: Run) -> None:
        self.at("exit of a detour")


class Closes(Plugin):
    """Raises when it is closed."""

    def close(self, run: Run) -> None:
        raise Planned("close")


PLACES = ("open", "close", "detour", "guard", "enter", "exit", "update", "exit of a detour")


def fail(some: Held, error: type[BaseException], drive: Callable[[Engine], object]) -> str:
    """Drive until the error comes, drop it, and return the state that the run is left in."""
    try:
        while True:
            drive(some.engine)
    except error:
        return some.engine.current.state


@each_kind
@pytest.mark.parametrize("drive", [Engine.run, Engine.advance], ids=["run", "advance"])
@pytest.mark.parametrize("place", PLACES)
def test_a_failed_run_is_freed_when_the_exception_is_dropped(place, drive, sized):
    """Whether a plugin's method, a handler, a guard or a detour's body raised; nothing keeps the exception."""
    some = held((Witness(), Raises(place)), sized=sized)
    expected = {"open": "idle", "close": "finished"}.get(place, "failed")
    assert expected == fail(some, Planned, drive)
    assert some.alive() == []


@pytest.mark.parametrize("drive", [Engine.run, Engine.advance], ids=["run", "advance"])
@pytest.mark.parametrize("place", ["open", "enter", "nowhere"])
def test_a_run_whose_plugins_fail_to_close_is_freed(place, drive):
    """Two plugins raise in `close`, alone or after a failure: what they raised holds nothing once it is dropped."""
    some = held((Raises(place, "close"), Closes()))
    expected = {"open": "idle", "enter": "failed", "nowhere": "finished"}[place]
    assert expected == fail(some, ExceptionGroup if place == "nowhere" else Planned, drive)
    assert some.alive() == []


@each_kind
@pytest.mark.parametrize("where", ["forward", "data"])
def test_a_run_whose_network_or_data_raise_is_freed(where, sized):
    """What the network or the loader raise is raised again and kept nowhere, read ahead or not."""

    def loss(network: nn.Module, batch: Batch) -> LossOutput:
        output = loss_of(network, batch)
        if where == "forward":
            raise RuntimeError("planned")
        return output

    some = held(sized=sized, fails=where == "data", loss=loss)
    assert fail(some, RuntimeError, Engine.run) == "failed"
    assert some.alive() == []


@each_kind
def test_a_failed_run_lives_as_long_as_its_exception(sized):
    """The measure itself: a traceback holds the frames of the run, and so its network."""
    some = held((Raises("enter"),), sized=sized)
    try:
        some.engine.run()
    except Planned as error:
        kept = error
    assert "network" in some.alive()
    del kept
    assert some.alive() == []


@each_kind
def test_a_run_with_plugins_and_detours_is_freed_though_the_plugins_are_kept(sized):
    """A plugin is called with the run and given no reference to keep; handlers with filters and functions too."""
    plugins = (Witness(), Raises("nowhere"))
    some = held(plugins, sized=sized)
    calls: list[int] = []
    some.engine.on_exit("after_step", every=2)(lambda run: calls.append(run.step))
    some.engine.on_enter("look", when=lambda run: run.step > 2)(lambda run: run.note("looking"))
    run = some.engine.run()
    assert 6 == len(calls) == run.log.counts()["look"]
    assert [*run.log.notes("note")]
    del run
    assert some.alive() == []
    assert len(plugins) == 2


def test_a_run_that_was_evaluated_in_mid_training_is_freed():
    """`evaluate` from a handler and `predict` afterwards keep neither the network nor the batches they were given."""
    some, data = held(), Weak()
    engine_of: weakref.ref[Engine] = weakref.ref(some.engine)

    @some.engine.on_exit("after_epoch")
    def measure(run: Run) -> None:
        engine = engine_of()
        assert engine is not None
        assert engine.evaluate(data)["loss"] > 0

    some.engine.run()
    outputs = [weakref.ref(output) for output in some.engine.predict(data)]
    assert (len(data.made), len(outputs)) == (12, 4)
    assert some.alive() == []
    assert [batch() for batch in data.made] == [None] * 12
    assert [output() for output in outputs] == [None] * 4


@each_kind
def test_reading_the_log_keeps_nothing(sized):
    """The log lives on without its run, and holds neither the network nor a batch."""
    some = held(sized=sized)
    log = some.engine.run().log
    assert log.path()[-1] == "finished"
    assert log.counts()["after_step"] == len(log.where(source="after_step"))
    assert some.alive() == []
    assert log[-1].dest == "finished"


def test_an_engine_that_ran_in_a_thread_is_freed():
    """A run driven in a thread that has ended is freed as any other."""
    some = held((Witness(),))
    thread = threading.Thread(target=some.engine.run)
    thread.start()
    thread.join()
    assert some.engine.current.state == "finished"
    del thread
    assert some.alive() == []


class Rows(Dataset[Any]):
    """A dataset to which weak references can be made."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((4,), float(index)), index % 3


@pytest.mark.parametrize("until", [None, "process_batch", "before_step"])
@pytest.mark.parametrize(
    "data",
    [
        lambda: {"dataset": Rows()},
        lambda: {"loader": DataLoader(Rows(), batch_size=2, shuffle=True)},
    ],
    ids=["dataset", "loader"],
)
def test_a_dataset_is_freed_with_its_engine(data, until):
    """The engine's own loader and one that is passed go with the engine, finished or paused in mid-pass."""
    given = data()
    rows = weakref.ref(given["dataset"] if "dataset" in given else given["loader"].dataset)
    network = small_network()
    size = {"batch_size": 2} if "dataset" in given else {}
    engine = Engine(small_components(network, **given), RunConfig(epochs=1, **size))
    references = [weakref.ref(network), rows]
    run = engine.run(until=until)
    batch = run.batch
    if batch is not None:
        references += [weakref.ref(batch[0])]
    assert (until == "process_batch") is (batch is not None)
    del engine, run, network, given, batch
    assert [None] * len(references) == [reference() for reference in references]
