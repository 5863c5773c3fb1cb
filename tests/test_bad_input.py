"""Bad input gets a clear error before training starts: what was found, what was expected, what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES, STATES, Unsized, batches, small_engine, small_network
from heptad import (
    Components,
    ConfigError,
    DataError,
    Engine,
    EngineError,
    LossOutput,
    Plugin,
    PluginError,
    Run,
    RunConfig,
    on_enter,
    on_exit,
)

NETWORK = small_network()
DATASET = TensorDataset(torch.randn(6, FEATURES), torch.arange(6) % CLASSES)
BATCHES = batches(3)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """Returns an optimizer of a network's parameters."""
    return torch.optim.SGD(network.parameters(), lr=0.1)


def mean_loss(network: nn.Module, batch: Any) -> torch.Tensor:
    """A loss of a batch."""
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def components(**changes: Any) -> Components:
    """Returns components over a loader, with changes; a change to `...` leaves the field out."""
    fields = {"network": NETWORK, "loader": BATCHES, "criterion": nn.CrossEntropyLoss(), "optimizer": sgd, **changes}
    return Components(**{name: value for name, value in fields.items() if value is not ...})


def over_dataset(dataset: Any = DATASET, **config: Any) -> Engine:
    """Returns an engine over a dataset."""
    return Engine(components(loader=..., dataset=dataset), RunConfig(**{"epochs": 1, "batch_size": 2, **config}))


def over_loader(loader: Any = BATCHES, **config: Any) -> Engine:
    """Returns an engine over a loader."""
    return Engine(components(loader=loader), RunConfig(**{"epochs": 1, **config}))


class OnlyIndexed:
    """Samples without a length."""

    def __getitem__(self, index: int) -> Any:
        return DATASET[index]


class Empty(TensorDataset):
    """A dataset without a sample."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(0, FEATURES))


# what is wrong: what is built, which error, and words that its message holds
TABLE: dict[str, tuple[Callable[[], Any], type[EngineError], list[str]]] = {
    # RunConfig
    "no end": (RunConfig, ConfigError, ["RunConfig", "give epochs, max_updates or both"]),
    "an end of None": (lambda: RunConfig(epochs=None, max_updates=None), ConfigError, ["epochs, max_updates or both"]),
    "epochs=-1": (lambda: RunConfig(epochs=-1), ConfigError, ["RunConfig.epochs must be at least 0, got -1"]),
    "max_updates=-1": (lambda: RunConfig(max_updates=-1), ConfigError, ["max_updates must be at least 0, got -1"]),
    "accumulation=0": (
        lambda: RunConfig(epochs=1, accumulation=0),
        ConfigError,
        ["RunConfig.accumulation must be at least 1, got 0"],
    ),
    "accumulation='4'": (
        lambda: RunConfig(epochs=1, accumulation="4"),
        ConfigError,
        ["RunConfig.accumulation must be a whole number, got '4'"],
    ),
    "accumulation=True": (
        lambda: RunConfig(epochs=1, accumulation=True),
        ConfigError,
        ["RunConfig.accumulation must be a whole number, got True"],
    ),
    "accumulation=2.0": (
        lambda: RunConfig(epochs=1, accumulation=2.0),
        ConfigError,
        ["RunConfig.accumulation must be a whole number, got 2.0"],
    ),
    "epochs=NaN": (
        lambda: RunConfig(epochs=float("nan")),
        ConfigError,
        ["RunConfig.epochs must be a whole number, got nan"],
    ),
    "epochs=infinity": (
        lambda: RunConfig(epochs=float("inf")),
        ConfigError,
        ["RunConfig.epochs must be a whole number, got inf"],
    ),
    "epochs of numpy's True": (lambda: RunConfig(epochs=np.True_), ConfigError, ["must be a whole number"]),
    "batch_size=0": (lambda: RunConfig(epochs=1, batch_size=0), ConfigError, ["batch_size must be at least 1, got 0"]),
    "num_workers=-1": (lambda: RunConfig(epochs=1, num_workers=-1), ConfigError, ["num_workers must be at least 0"]),
    "seed=-1": (lambda: RunConfig(epochs=1, seed=-1), ConfigError, ["RunConfig.seed must be at least 0, got -1"]),
    "log_capacity=0": (lambda: RunConfig(epochs=1, log_capacity=0), ConfigError, ["log_capacity must be at least 1"]),
    "shuffle=1": (lambda: RunConfig(epochs=1, shuffle=1), ConfigError, ["shuffle must be True or False, got 1"]),
    "an unknown remainder": (
        lambda: RunConfig(epochs=1, remainder="keep"),
        ConfigError,
        ["RunConfig.remainder must be", "'extend'", "'flush'", "'drop'", "got 'keep'"],
    ),
    "an unknown device": (
        lambda: RunConfig(epochs=1, device="gpu"),
        ConfigError,
        ["RunConfig.device must be 'auto' or a device that torch knows", "got 'gpu'"],
    ),
    "an unknown key": (
        lambda: RunConfig(epochs=1, acumulation=4),
        ConfigError,
        ["RunConfig has no field 'acumulation'", "did you mean 'accumulation'?"],
    ),
    "an unknown key near to none": (
        lambda: RunConfig(epochs=1, zzz=4),
        ConfigError,
        ["RunConfig has no field 'zzz'", "known are epochs, max_updates, batch_size"],
    ),
    # Components
    "both dataset and loader": (
        lambda: components(dataset=DATASET),
        ConfigError,
        ["dataset and loader are both given; give one of them"],
    ),
    "neither dataset nor loader": (
        lambda: components(loader=...),
        ConfigError,
        ["neither dataset nor loader is given; give one of them"],
    ),
    "both criterion and compute_loss": (
        lambda: components(compute_loss=mean_loss),
        ConfigError,
        ["criterion and compute_loss are both given; give one of them"],
    ),
    "neither criterion nor compute_loss": (
        lambda: components(criterion=...),
        ConfigError,
        ["neither criterion nor compute_loss is given; give one of them"],
    ),
    "a criterion that takes the sum": (
        lambda: components(criterion=nn.CrossEntropyLoss(reduction="sum")),
        ConfigError,
        ["Components.criterion must take the mean", "its reduction is 'sum'", "reduction='mean', or compute_loss"],
    ),
    "a criterion that reduces nothing": (
        lambda: components(criterion=nn.CrossEntropyLoss(reduction="none")),
        ConfigError,
        ["its reduction is 'none'"],
    ),
    "a criterion that is no function": (lambda: components(criterion="mse"), ConfigError, ["criterion", "got 'mse'"]),
    "no optimizer": (lambda: components(optimizer=...), ConfigError, ["Components.optimizer is required"]),
    "no network": (lambda: components(network=...), ConfigError, ["Components.network is required"]),
    "a network's class": (
        lambda: components(network=nn.Linear),
        ConfigError,
        ["Components.network must be a Module, got <class"],
    ),
    "an optimizer's class": (
        lambda: components(optimizer=torch.optim.SGD),
        ConfigError,
        ["Components.optimizer must be a torch optimizer, a function of the network that returns one", "got <class"],
    ),
    "an empty list of optimizers": (
        lambda: components(optimizer=[]),
        ConfigError,
        ["Components.optimizer must be a torch optimizer", "got []"],
    ),
    "an optimizer of another network": (
        lambda: Engine(components(optimizer=sgd(small_network())), RunConfig(epochs=1)),
        ConfigError,
        [
            "this SGD holds none of the network's parameters (2 held, 2 in the network)",
            "build it from the parameters of the network that is passed",
        ],
    ),
    "one optimizer of two of another network": (
        lambda: Engine(components(optimizer=[sgd(NETWORK), sgd(small_network())]), RunConfig(epochs=1)).run(),
        ConfigError,
        ["this SGD holds none of the network's parameters"],
    ),
    "a function that builds the optimizer of another network": (
        lambda: Engine(components(optimizer=lambda network: sgd(small_network())), RunConfig(epochs=1)).run(),
        ConfigError,
        ["this SGD holds none of the network's parameters"],
    ),
    "a function that builds no optimizer": (
        lambda: Engine(components(optimizer=lambda network: 0.1), RunConfig(epochs=1)).run(),
        ConfigError,
        ["Components.optimizer: the function must return a torch optimizer, got 0.1"],
    ),
    "a collate function with a loader": (
        lambda: components(collate_fn=list),
        ConfigError,
        ["collate_fn goes with dataset; a loader collates its own batches"],
    ),
    "an unknown component": (
        lambda: components(datset=DATASET),
        ConfigError,
        ["Components has no field 'datset'", "did you mean 'dataset'?"],
    ),
    # both together
    "batch_size with a loader": (
        lambda: over_loader(batch_size=2),
        ConfigError,
        ["RunConfig.batch_size goes with Components.dataset; the loader decides it, leave it out"],
    ),
    "num_workers with a loader": (lambda: over_loader(num_workers=2), ConfigError, ["RunConfig.num_workers goes with"]),
    "shuffle with a loader": (lambda: over_loader(shuffle=True), ConfigError, ["RunConfig.shuffle goes with"]),
    "drop_last with a loader": (lambda: over_loader(drop_last=True), ConfigError, ["RunConfig.drop_last goes with"]),
    "a dataset without batch_size": (
        lambda: over_dataset(batch_size=None),
        ConfigError,
        ["RunConfig.batch_size is required with Components.dataset"],
    ),
    "a device that is not there": (
        lambda: over_loader(device="cuda:99"),
        ConfigError,
        ["RunConfig.device is 'cuda:99', but torch sees", "use 'auto' or 'cpu'"],
    ),
    "components and configuration in the wrong order": (
        lambda: Engine(RunConfig(epochs=1), components()),
        EngineError,
        ["Engine takes Components, RunConfig and plugins in this order, got a RunConfig"],
    ),
    # data
    "a dataset smaller than one batch": (
        lambda: over_dataset(batch_size=7),
        DataError,
        ["a TensorDataset", "has 6 samples, fewer than one batch of 7", "smaller batch_size or drop_last=False"],
    ),
    "an empty dataset": (lambda: over_dataset(Empty()), DataError, ["Empty) is empty", "at least one sample"]),
    "an empty loader": (lambda: over_loader([]), DataError, ["Components.loader has no batches"]),
    "a loader that drops all it has": (
        lambda: over_loader(DataLoader(DATASET, batch_size=7, drop_last=True)),
        DataError,
        ["Components.loader has no batches", "smaller than one batch under drop_last"],
    ),
    "a loader as the dataset": (
        lambda: over_dataset(DataLoader(DATASET)),
        DataError,
        ["Components.dataset is a DataLoader, which yields batches; pass it as loader="],
    ),
    "a dataset as the loader": (
        lambda: over_loader(DATASET),
        DataError,
        ["Components.loader is a TensorDataset, which holds samples; pass it as dataset="],
    ),
    "a dataset without a length": (
        lambda: over_dataset(OnlyIndexed()),
        DataError,
        ["OnlyIndexed", "has __getitem__ but no length; give it __len__"],
    ),
    "a dataset that is none": (
        lambda: over_dataset(7),
        DataError,
        ["Components.dataset must have __getitem__ and __len__, or __iter__; got a int"],
    ),
    "a loader that is none": (
        lambda: over_loader(7),
        DataError,
        ["Components.loader must be a re-iterable of batches, got a int"],
    ),
    "a generator for two epochs": (
        lambda: over_loader((batch for batch in BATCHES), epochs=2),
        DataError,
        ["the data are a generator, which can be walked once, and a further pass is needed", "a list, a DataLoader"],
    ),
    "windows that no pass can fill": (
        lambda: over_loader(epochs=None, max_updates=5, accumulation=4, remainder="drop"),
        DataError,
        ["a pass has 3 batches, fewer than accumulation=4", "use remainder='extend' or 'flush'"],
    ),
}


@pytest.mark.parametrize("wrong", TABLE)
def test_bad_input_gets_a_clear_error_before_training_starts(wrong):
    """The message says what was found, what was expected and what to do; no step is made."""
    build, error, words = TABLE[wrong]
    before = [parameter.clone() for parameter in NETWORK.parameters()]
    with pytest.raises(EngineError) as caught:
        build()
    assert type(caught.value) is error
    assert [word for word in words if word not in str(caught.value)] == []
    assert all(map(torch.equal, before, NETWORK.parameters()))


def test_every_mistake_is_reported_at_once():
    """One look at the error is enough to mend all of a configuration."""
    with pytest.raises(ConfigError) as caught:
        RunConfig(epochs=-1, accumulation="4", batch_size=True, remainder="keep", sed=3)
    lines = str(caught.value).splitlines()
    assert sorted(line.split()[0] for line in lines) == [
        "RunConfig",
        "RunConfig.accumulation",
        "RunConfig.batch_size",
        "RunConfig.epochs",
        "RunConfig.remainder",
    ]


def test_contradictions_are_reported_with_the_mistakes_in_fields():
    """What is wrong between fields is not held back until the fields are mended."""
    with pytest.raises(ConfigError) as caught:
        Components(network=nn.Linear, dataset=DATASET, loader=BATCHES, optimizer=sgd, colate_fn=list)
    assert len(str(caught.value).splitlines()) == 4
    for word in ("network", "dataset and loader", "neither criterion nor compute_loss", "did you mean 'collate_fn'?"):
        assert word in str(caught.value)


def test_all_that_a_loader_decides_is_reported_at_once():
    """Every field that goes with a dataset is named."""
    with pytest.raises(ConfigError) as caught:
        over_loader(batch_size=2, shuffle=False, num_workers=0, drop_last=False)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "RunConfig.batch_size",
        "RunConfig.drop_last",
        "RunConfig.num_workers",
        "RunConfig.shuffle",
    ]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_integers_are_whole_numbers(kind):
    """They are taken for what they are, and stand there as plain integers."""
    config = RunConfig(epochs=kind(2), accumulation=kind(3), max_updates=kind(0), seed=kind(5))
    values = [config.epochs, config.accumulation, config.max_updates, config.seed]
    assert [(type(value), value) for value in values] == [(int, 2), (int, 3), (int, 0), (int, 5)]


@pytest.mark.parametrize("build", [lambda: RunConfig(epochs=1), components], ids=["RunConfig", "Components"])
def test_what_was_created_does_not_change(build):
    """Configuration and components are frozen."""
    made = build()
    field = next(iter(type(made).model_fields))
    before = getattr(made, field)
    with pytest.raises(ConfigError, match=f"is frozen, {field} cannot be set"):
        setattr(made, field, None)
    assert getattr(made, field) is before


# -- plugins


class Good(Plugin):
    """A plugin that nothing is wrong with."""

    def on_exit_after_step(self, run: Run) -> None:
        pass


class Twin(Good):
    """Another plugin of the same name."""

    name = "Good"


class UnknownState(Plugin):
    def on_exit_after_stp(self, run: Run) -> None:
        pass


class UnknownMark(Plugin):
    @on_enter("optimiser_update")
    def look(self, run: Run) -> None:
        pass


class FarMark(Plugin):
    @on_enter("xyz")
    def look(self, run: Run) -> None:
        pass


class Bookend(Plugin):
    def on_enter_finished(self, run: Run) -> None:
        pass


class NoRun(Plugin):
    def on_exit_after_step(self) -> None:
        pass


class TooMany(Plugin):
    def on_exit_after_step(self, run: Run, loss: float) -> None:
        pass


class EveryNone(Plugin):
    @on_exit("after_step", every=0)
    def look(self, run: Run) -> None:
        pass


class EveryHalf(Plugin):
    @on_exit("after_step", every=0.5)
    def look(self, run: Run) -> None:
        pass


class WhenAlone(Plugin):
    @on_exit("after_step", when=lambda: True)
    def look(self, run: Run) -> None:
        pass


class Coroutine(Plugin):
    async def on_exit_after_step(self, run: Run) -> None:
        pass


class Yields(Plugin):
    def on_exit_after_step(self, run: Run) -> Any:
        yield run


class OnEpochEnd(Plugin):
    def on_epoch_end(self, run: Run) -> None:
        pass


class NoDetour(Plugin):
    def detours(self) -> Any:
        return ["evaluate"]


GOOD = Good()
PLUGINS: dict[str, tuple[list[Any], list[str]]] = {
    "an unknown state": (
        [UnknownState()],
        ["UnknownState.on_exit_after_stp", "unknown state 'after_stp'", "did you mean 'after_step'?"],
    ),
    "an unknown state in a mark": (
        [UnknownMark()],
        ["UnknownMark.look", "unknown state 'optimiser_update'", "did you mean 'optimizer_update'?"],
    ),
    "a state near to none": ([FarMark()], ["unknown state 'xyz'", "known are before_loop", *STATES]),
    "a bookend": ([Bookend()], ["Bookend.on_enter_finished", "the bookend 'finished'", "use open() and close()"]),
    "a handler without the run": (
        [NoRun()],
        ["NoRun.on_exit_after_step()", "cannot be called with the run alone", "write it as (self, run)"],
    ),
    "a handler that wants more": (
        [TooMany()],
        ["TooMany.on_exit_after_step", "cannot be called with the run alone", "'loss'", "write it as (self, run)"],
    ),
    "every=0": ([EveryNone()], ["EveryNone.look: every must be a whole number from 1 on, got 0"]),
    "every=0.5": ([EveryHalf()], ["EveryHalf.look: every must be a whole number from 1 on, got 0.5"]),
    "a filter without the run": ([WhenAlone()], ["WhenAlone.look: when", "cannot be called with the run alone"]),
    "a coroutine": ([Coroutine()], ["Coroutine.on_exit_after_step is a coroutine", "make it a plain function"]),
    "a generator": ([Yields()], ["Yields.on_exit_after_step is a coroutine or a generator", "a plain function"]),
    "a name of another library": (
        [OnEpochEnd()],
        ["OnEpochEnd.on_epoch_end would never be called", "on_enter_<state> or on_exit_<state>"],
    ),
    "a class": ([Good], ["plugins holds the class Good; pass an instance: Good("]),
    "something else": ([print], ["plugins holds a builtin_function_or_method", "instance of a subclass of Plugin"]),
    "the same object twice": ([GOOD, GOOD], ["plugins holds the same Good twice; pass it once"]),
    "two of one class": ([Good(), Good()], ["two plugins have the name 'Good'", "give one of them another `name`"]),
    "two of one name": ([Good(), Twin()], ["two plugins have the name 'Good'", "give one of them another `name`"]),
    "a detour that is none": ([NoDetour()], ["NoDetour.detours() must return Detour objects, got a str"]),
}


@pytest.mark.parametrize("wrong", PLUGINS)
def test_mistakes_in_plugins_are_found_when_the_engine_is_built(wrong):
    """The error names the plugin, the method, what was found and what to write instead."""
    plugins, words = PLUGINS[wrong]
    with pytest.raises(PluginError) as caught:
        small_engine(plugins=plugins)
    assert [word for word in words if word not in str(caught.value)] == []


FUNCTIONS: dict[str, tuple[Callable[[Engine], Any], str]] = {
    "an unknown state": (lambda engine: engine.on_exit("after_stp")(print), "did you mean 'after_step'"),
    "every=0": (lambda engine: engine.on_exit("after_step", every=0)(print), "every must be a whole number from 1 on"),
    "no argument": (lambda engine: engine.on_enter("after_step")(lambda: None), "cannot be called with the run alone"),
    "no function": (lambda engine: engine.on_enter("after_step")(7), "it must be a function of the run"),
}


@pytest.mark.parametrize("wrong", FUNCTIONS)
def test_functions_are_verified_as_plugins_are(wrong):
    """A handler that is a plain function meets the same checks."""
    put, match = FUNCTIONS[wrong]
    with pytest.raises(PluginError, match=match):
        put(small_engine())


@pytest.mark.parametrize("when", ["parked", "in a handler", "finished"])
def test_a_handler_that_comes_after_the_start_is_refused(when):
    """Who is called is settled when the run starts."""
    engine = small_engine()
    caught: list[PluginError] = []

    def put(run: Run) -> None:
        with pytest.raises(PluginError, match="comes too late: handlers are taken until the run has started") as error:
            engine.on_exit("after_step")(print)
        caught.append(error.value)

    if when == "in a handler":
        engine.on_enter("process_batch", once=True)(put)
    engine.run(until="after_step" if when == "parked" else None)
    if when != "in a handler":
        put(engine.current)
    assert len(caught) == 1


@pytest.mark.parametrize("state", ["evaluate", "checkpoint"])
def test_a_handler_for_a_state_of_a_shipped_detour_is_idle_without_it(state):
    """It is legal, and never called, where no plugin brings the state."""
    called: list[Run] = []
    handlers = {f"on_{edge}_{state}": lambda self, run: called.append(run) for edge in ("enter", "exit")}
    run = small_engine(plugins=[type("Waiting", (Plugin,), handlers)()]).run()
    assert (run.state, run.step, called) == ("finished", 3, [])


# -- run() where it is not legal


def test_run_is_refused_from_a_handler():
    """Nothing advances the machine from inside a handler; what raises there fails the run as anything does."""
    engine = small_engine()
    engine.on_exit("process_batch")(lambda run: engine.run())
    with pytest.raises(EngineError, match=r"run\(\) was called from a handler.*stop, interrupt, skip_update"):
        engine.run()
    assert engine.current.state == "failed"


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_driving_is_refused_from_a_handler_that_catches_the_error_and_the_run_goes_on(verb):
    """A handler may survive its mistake: the run was not touched by it."""
    engine = small_engine()

    @engine.on_enter("after_step", once=True)
    def drive(run: Run) -> None:
        with pytest.raises(EngineError, match=rf"{verb}\(\) was called from a handler"):
            getattr(engine, verb)()

    run = engine.run()
    assert (run.state, run.step) == ("finished", 3)


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_driving_is_refused_from_a_second_thread(verb):
    """One caller at a time drives a run, and it is not disturbed."""
    engine = small_engine()
    caught: list[EngineError] = []

    def drive() -> None:
        with pytest.raises(EngineError, match=rf"{verb}\(\) was called from another thread") as error:
            getattr(engine, verb)()
        caught.append(error.value)

    @engine.on_exit("process_batch", once=True)
    def start(run: Run) -> None:
        thread = threading.Thread(target=drive)
        thread.start()
        thread.join()

    run = engine.run()
    assert (run.state, run.step, len(caught)) == ("finished", 3, 1)


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_driving_is_refused_when_the_run_is_finished(verb):
    """An engine drives one run; the error says how it ended and what to do."""
    engine = small_engine()
    engine.run()
    with pytest.raises(EngineError, match=r"is finished \(epochs=1 complete\).*build a new Engine"):
        getattr(engine, verb)()


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_driving_is_refused_when_the_run_has_failed(verb):
    """The reason is the exception that ended it."""
    engine = small_engine()

    @engine.on_enter("after_step")
    def fail(run: Run) -> None:
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        engine.run()
    with pytest.raises(EngineError, match=r"is failed \(ValueError: torn\).*build a new Engine"):
        getattr(engine, verb)()


@pytest.mark.parametrize(
    ("until", "match"), [("after_stp", "did you mean 'after_step'"), (3, "a state or a predicate")]
)
def test_a_place_to_park_that_is_none_is_refused_before_the_first_turn(until, match):
    """`until` is a state or a predicate."""
    engine = small_engine()
    with pytest.raises(EngineError, match=match):
        engine.run(until=until)
    assert (engine.current.state, len(engine.current.log)) == ("idle", 0)


# -- at the first step

LOSSES: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "a number": (lambda network, batch: 0.5, r"must return a scalar tensor.*, got float"),
    "nothing": (lambda network, batch: None, r"must return a scalar tensor.*, got NoneType"),
    "a value a sample": (
        lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1], reduction="none"),
        r"must return a scalar tensor, got one of shape \(2,\); take its mean",
    ),
    "a vector of one": (
        lambda network, batch: mean_loss(network, batch).reshape(1),
        r"must return a scalar tensor, got one of shape \(1,\); take its mean",
    ),
    "a detached loss": (
        lambda network, batch: mean_loss(network, batch).detach(),
        r"does not require grad: it does not depend on the network's parameters.*or it was detached",
    ),
}
GIVERS: dict[str, Callable[[Callable[[nn.Module, Any], Any]], Components]] = {
    "criterion": lambda loss: components(
        loader=Unsized(BATCHES), criterion=lambda output, target: loss(lambda _: output, (None, target))
    ),
    "compute_loss": lambda loss: components(criterion=..., compute_loss=loss),
    "LossOutput": lambda loss: components(
        criterion=..., compute_loss=lambda network, batch: LossOutput(loss(network, batch))
    ),
}


@pytest.mark.parametrize("giver", GIVERS)
@pytest.mark.parametrize("wrong", LOSSES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_cannot_be_trained_on_is_an_error_at_the_first_step(wrong, giver, accumulation):
    """The error names who gave it and what was given; no gradient and no update was made."""
    loss, match = LOSSES[wrong]
    engine = Engine(GIVERS[giver](loss), RunConfig(epochs=1, accumulation=accumulation))
    who = "criterion" if giver == "criterion" else "compute_loss"
    with pytest.raises(EngineError, match=match) as caught:
        engine.run()
    assert who in str(caught.value)
    last = engine.current.log[-1]
    assert (last.source, last.dest, last.step, last.update) == ("process_batch", "failed", 0, 0)
    assert [parameter.grad for parameter in NETWORK.parameters()] == [None, None]


def test_a_network_without_trainable_parameters_gives_a_loss_that_does_not_require_grad():
    """A wholly frozen network is found at the first step too."""
    network = small_network().requires_grad_(False)
    engine = Engine(components(network=network, optimizer=sgd), RunConfig(epochs=1))
    with pytest.raises(EngineError, match="the loss that criterion returned does not require grad"):
        engine.run()


DATA, TARGET = BATCHES[0]


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        pytest.param(DATA, "got a Tensor;", id="a tensor"),
        pytest.param([DATA], "got a list of 1;", id="data alone"),
        pytest.param((DATA, TARGET, TARGET), "got a tuple of 3;", id="three"),
        pytest.param({"data": DATA, "target": TARGET}, "got a dict of 2;", id="a dict"),
    ],
)
def test_a_batch_that_is_no_pair_is_an_error_at_the_first_step(batch, found):
    """A criterion needs `(data, target)`; anything else is for a `compute_loss`."""
    engine = small_engine([batch])
    with pytest.raises(DataError) as caught:
        engine.run()
    for word in ("a batch must be (data, target)", found, "give Components.compute_loss in place of criterion"):
        assert word in str(caught.value)
    assert engine.current.log.path()[-2:] == ["process_batch", "failed"]


def test_an_iterable_dataset_of_batches_may_be_the_loader():
    """Unlike a map-style dataset, which holds samples, it is taken for what it says it is."""

    class Batches(IterableDataset):
        def __iter__(self) -> Any:
            return iter(BATCHES)

    assert over_loader(Batches()).run().step == 3
