"""Bad input gets a clear error before training starts: what was found, what was expected, what to do.

What people get wrong most often stands in `mistakes.py`; here stand the rarer forms, and what holds for all of them.
"""

from __future__ import annotations

import threading
from collections import UserDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from builders import (
    CLASSES,
    FEATURES,
    STATES,
    Unsized,
    batches,
    dataset_engine,
    sgd,
    small_components,
    small_config,
    small_engine,
    small_network,
)
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
from heptad.data.build import build_dataset_feed, build_loader_feed
from heptad.errors import a_kind, counted
from heptad.step.optimizers import optimizer_mistake
from heptad_plugins import GradientClipping

NETWORK = small_network()
DATASET = TensorDataset(torch.randn(6, FEATURES), torch.arange(6) % CLASSES)
BATCHES = batches(3)
components = partial(small_components, network=NETWORK)


def scheduled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer after a scheduler of torch has put a function in the place of its `step`."""
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


def mean_loss(network: nn.Module, batch: Any) -> torch.Tensor:
    """A loss of a batch."""
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def over_dataset(dataset: Any = DATASET, **config: Any) -> Engine:
    """Return an engine over a dataset."""
    return dataset_engine(dataset, network=NETWORK, **config)


def over_loader(loader: Any = BATCHES, **config: Any) -> Engine:
    """Return an engine over a loader."""
    return Engine(components(loader=loader), small_config(**config))


class OnlyIndexed:
    """Samples without a length."""

    def __getitem__(self, index: int) -> Any:
        return DATASET[index]


class OnlyWalked:
    """Samples that have an order of their own."""

    def __iter__(self) -> Any:
        return iter(DATASET)


class Empty(TensorDataset):
    """A dataset without a sample."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(0, FEATURES))


# what is wrong: what is built, which error, and words that its message holds
TABLE: dict[str, tuple[Callable[[], Any], type[EngineError], list[str]]] = {
    # RunConfig
    "an end of None": (lambda: RunConfig(epochs=None, max_updates=None), ConfigError, ["epochs, max_updates or both"]),
    "epochs=-1": (lambda: RunConfig(epochs=-1), ConfigError, ["RunConfig.epochs must be at least 0, got -1"]),
    "epochs=sys.maxsize": (
        lambda: RunConfig(epochs=2**63 - 1, max_updates=10**12 + 1),
        ConfigError,
        ["RunConfig.epochs must be at most 1000000000000, got 9223372036854775807", "max_updates must be at most 10"],
    ),
    "max_updates=-1": (lambda: RunConfig(max_updates=-1), ConfigError, ["max_updates must be at least 0, got -1"]),
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
    "a device of the wrong type": (
        lambda: RunConfig(epochs=1, device=0),
        ConfigError,
        ["RunConfig.device must be 'auto' or a device that torch knows", "got 0"],
    ),
    # Components
    "both dataset and loader": (
        lambda: components(dataset=DATASET, loader=BATCHES),
        ConfigError,
        ["dataset and loader are both given; give one of them"],
    ),
    "neither dataset nor loader": (
        lambda: components(loader=...),
        ConfigError,
        ["neither dataset nor loader is given; give one of them"],
    ),
    "both criterion and compute_loss": (
        lambda: components(compute_loss=mean_loss, criterion=nn.CrossEntropyLoss()),
        ConfigError,
        ["criterion and compute_loss are both given; give one of them"],
    ),
    "a criterion that reduces nothing": (
        lambda: components(criterion=nn.CrossEntropyLoss(reduction="none")),
        ConfigError,
        ["its reduction is 'none'"],
    ),
    "a partial of a criterion that takes the sum": (
        lambda: components(criterion=partial(nn.CrossEntropyLoss(reduction="sum"))),
        ConfigError,
        ["its reduction is 'sum'"],
    ),
    "the mean over the batch of what has no such": (
        lambda: components(criterion=partial(nn.functional.mse_loss, reduction="batchmean")),
        ConfigError,
        ["its reduction is 'batchmean': use reduction='mean'"],
    ),
    "a divergence that takes the sum": (
        lambda: components(criterion=partial(nn.functional.kl_div, reduction="sum")),
        ConfigError,
        ["its reduction is 'sum': use reduction='batchmean'"],
    ),
    "a criterion of one": (
        lambda: components(criterion=lambda output: output.mean()),
        ConfigError,
        ["Components.criterion is called as criterion(output, target), but takes (output): too many", "compute_loss"],
    ),
    "a criterion that is no function": (lambda: components(criterion="mse"), ConfigError, ["criterion", "got 'mse'"]),
    "no network": (lambda: components(network=...), ConfigError, ["Components.network is required"]),
    "an empty list of optimizers": (
        lambda: components(optimizer=[]),
        ConfigError,
        ["Components.optimizer must be a torch optimizer", "got []"],
    ),
    "a function that builds an optimizer whose step takes more than a closure": (
        lambda: Engine(components(optimizer=lambda network: Demanding(sgd(network))), RunConfig(epochs=1)).run(),
        ConfigError,
        ["the step of this Demanding is called as step(), or as step(closure), but takes (closure: "],
    ),
    "an optimizer that needs a closure, beside what changes the gradients": (
        lambda: Engine(
            components(optimizer=torch.optim.LBFGS(NETWORK.parameters())),
            RunConfig(epochs=1),
            [GradientClipping(max_norm=1.0)],
        ),
        ConfigError,
        ["GradientClipping changes the gradients", "the step of LBFGS", "leave the plugin out"],
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
    "a device without its module": (
        lambda: over_loader(device="hpu"),
        ConfigError,
        ["RunConfig.device is 'hpu', but torch sees", "use 'auto' or 'cpu'"],
    ),
    "a device without a backend": (
        lambda: over_loader(device=torch.device("vulkan")),
        ConfigError,
        ["RunConfig.device is 'vulkan', but torch sees", "use 'auto' or 'cpu'"],
    ),
    # data
    "an empty loader": (lambda: over_loader([]), DataError, ["Components.loader has no batches"]),
    "a loader that drops all it has": (
        lambda: over_loader(DataLoader(DATASET, batch_size=7, drop_last=True)),
        DataError,
        ["Components.loader has no batches", "smaller than one batch under drop_last"],
    ),
    "a dataset without a length": (
        lambda: over_dataset(OnlyIndexed()),
        DataError,
        ["OnlyIndexed", "has __getitem__ but no length; give it __len__"],
    ),
    "a dataset of the wrong type": (
        lambda: over_dataset(7),
        DataError,
        ["Components.dataset must have __getitem__ and __len__, or __iter__; got an int"],
    ),
    "arrays in a tuple": (
        lambda: over_dataset((np.zeros((6, 2)), np.zeros(6)), batch_size=3),
        DataError,
        ["Components.dataset (a tuple) has 2 samples", "pass TensorDataset(*map(torch.as_tensor, data))"],
    ),
    "a mapping of another kind": (
        lambda: over_dataset(UserDict(train=DATASET)),
        DataError,
        ["Components.dataset is a UserDict of 1", "pass one of its values, such as data['train']"],
    ),
    "an empty dict": (lambda: over_dataset({}), DataError, ["Components.dataset is a dict of 0", "it is empty"]),
    "a path as the dataset": (
        lambda: over_dataset(Path("data/train")),
        DataError,
        ["Components.dataset is 'data/train'; no file is read here, pass what reads it"],
    ),
    "a long text as the dataset": (
        lambda: over_dataset("ab" * 1000),
        DataError,
        ["ab...bab", "; no file is read here"],
    ),
    "a path as the loader": (lambda: over_loader("train.pt"), DataError, ["Components.loader is 'train.pt'; no file"]),
    "a loader's class": (
        lambda: over_loader(DataLoader),
        DataError,
        ["Components.loader is the class DataLoader; pass an instance: DataLoader(…)"],
    ),
    "a subset that reaches too far from the end": (
        lambda: over_dataset(Subset(Subset(DATASET, [3, 4]), [-2, -3])),
        DataError,
        ["sample 1 of the Subset cannot be read: its index is -3, and the dataset within has 2 samples"],
    ),
    "a loader of the wrong type": (
        lambda: over_loader(7),
        DataError,
        ["Components.loader must be a re-iterable of batches, got an int"],
    ),
    "windows that no pass can fill": (
        lambda: over_loader(max_updates=5, accumulation=4, remainder="drop"),
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
    """One look at the error is enough to correct all of a configuration."""
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
    """What is wrong between fields is not held back until the fields are corrected."""
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


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps"])
def test_a_device_of_torch_is_taken_by_its_name(device):
    """`RunConfig.device` holds text, whichever of the two was given."""
    assert RunConfig(epochs=1, device=torch.device(device)).device == device
    assert over_loader(device=torch.device("cpu")).run().state == "finished"


def test_the_largest_seed_that_torch_takes_is_taken():
    """The bound is that of the generators, and not one below it."""
    assert over_loader(seed=2**64 - 1).run().state == "finished"


class Stepped:
    """Has what an optimizer has, by way of one that it holds."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.optimizer.step()


class Demanding(Stepped):
    """Steps as no optimizer of torch does."""

    def step(self, closure: Any, loss: Any) -> None:
        del closure, loss


class WithClosure(Stepped):
    """Steps as the optimizers of torch do."""

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


class Handed(Stepped):
    """Has no `step` of its own."""

    step = property(lambda self: self.optimizer.step)


OPTIMIZERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "of torch": lambda optimizer: optimizer,
    "with a schedule": scheduled,
    "a wrapper": Stepped,
    "a wrapper with a closure": WithClosure,
    "a wrapper that hands on": Handed,
    "a wrapper that hands on what has a schedule": lambda optimizer: Handed(scheduled(optimizer)),
    "a wrapper in a list": lambda optimizer: [Stepped(optimizer)],
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_whatever_steps_without_an_argument_is_an_optimizer(kind):
    """Only a `step` that cannot be called with nothing is refused."""
    network = small_network()
    made = OPTIMIZERS[kind](sgd(network))
    before = [parameter.clone() for parameter in network.parameters()]
    assert Engine(components(network=network, optimizer=made), RunConfig(epochs=1)).run().update == 3
    assert not any(map(torch.equal, before, network.parameters()))


def test_what_a_function_that_builds_the_optimizer_raises_comes_out_with_a_note():
    """It is not wrapped; the note says what was called."""

    class Torn(Exception):
        """What the function raises."""

    def tear(network: nn.Module) -> Any:
        raise Torn

    with pytest.raises(Torn) as caught:
        Engine(components(optimizer=tear), RunConfig(epochs=1)).run()
    assert caught.value.__notes__[0] == "heptad: while Components.optimizer was called with the network (a Linear)"


def test_an_optimizer_is_checked_again_with_other_advice():
    """Whoever finds it without the network's parameters later says what to do then."""
    mistake = optimizer_mistake(sgd(small_network()), NETWORK, "initialised")
    assert mistake is not None
    assert "(2 held, 2 in the network); init_weights put others in their place: change them in place" in mistake
    assert optimizer_mistake(sgd(NETWORK), NETWORK, "initialised") is None


def mean_of_any(*given: torch.Tensor) -> torch.Tensor:
    """A criterion whose signature says nothing."""
    return nn.functional.cross_entropy(*given)


CRITERIA: dict[str, Any] = {
    "a module": nn.CrossEntropyLoss(),
    "a function": nn.functional.cross_entropy,
    "a partial that takes the mean": partial(nn.functional.cross_entropy, reduction="mean"),
    "a partial of a module": partial(nn.CrossEntropyLoss()),
    "a partial with an option": partial(nn.functional.cross_entropy, label_smoothing=0.1),
    "a module that is called another way": type(
        "Called", (nn.Module,), {"__call__": lambda self, output, target: nn.functional.cross_entropy(output, target)}
    )(),
    "any arguments": mean_of_any,
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_whatever_can_be_called_with_output_and_target_is_a_criterion(kind):
    """What its signature does not rule out is taken."""
    network = small_network()
    made = components(network=network, criterion=CRITERIA[kind])
    assert Engine(made, RunConfig(epochs=1)).run().update == 3


@pytest.mark.parametrize(
    "criterion",
    [nn.KLDivLoss(reduction="batchmean"), partial(nn.functional.kl_div, reduction="batchmean")],
    ids=["module", "partial"],
)
def test_the_batchmean_of_a_divergence_is_a_mean_over_the_batch(criterion):
    """An update over unequal micro-batches is that of all their samples as one batch."""
    data = torch.randn(9, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    target = data.exp()[:, :CLASSES].softmax(1)
    results = []
    for sizes in ((9,), (4, 3, 2)):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(FEATURES, CLASSES, dtype=torch.float64), nn.LogSoftmax(1))
        loader = list(zip(data.split(sizes), target.split(sizes), strict=True))
        made = components(network=network, loader=loader, criterion=criterion)
        Engine(made, RunConfig(epochs=1, accumulation=len(sizes))).run()
        results.append([*network.parameters()])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("config", [{}, {"shuffle": False}], ids=["by default", "without shuffle"])
def test_a_dataset_that_is_walked_is_taken_in_its_own_order(config):
    """Only a `shuffle=True` that was asked for is refused."""
    assert over_dataset(OnlyWalked(), **config).run().step == 3


def test_a_dict_of_samples_by_number_is_a_dataset():
    """It can be indexed as a list can."""
    assert over_dataset(dict(enumerate(DATASET))).run().step == 3


def test_messages_call_the_data_by_the_given_name():
    """Data that are no component are not called so."""
    config = RunConfig(epochs=1, batch_size=7)
    for build in (
        lambda: build_dataset_feed(DATASET, None, config, "Evaluate(data=…)"),
        lambda: build_dataset_feed(7, None, config, "Evaluate(data=…)"),
        lambda: build_dataset_feed(Empty(), None, config, "Evaluate(data=…)"),
        lambda: build_dataset_feed(OnlyIndexed(), None, config, "Evaluate(data=…)"),
        lambda: build_dataset_feed("train", None, config, "Evaluate(data=…)"),
        lambda: build_dataset_feed({}, None, config, "Evaluate(data=…)"),
        lambda: build_loader_feed({}, "Evaluate(data=…)"),
        lambda: build_loader_feed(7, "Evaluate(data=…)"),
        lambda: build_loader_feed([], "Evaluate(data=…)"),
    ):
        with pytest.raises(DataError, match=r"^Evaluate\(data=…\) ") as caught:
            build()
        assert "Components" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "an int"),
        ([], "a list"),
        (np.zeros(1), "an ndarray"),
        (sgd(NETWORK), "an SGD"),
        (Empty(), "an Empty"),
        (type("UNet", (), {})(), "a UNet"),
        (UserDict(), "a UserDict"),
        (Unsized([]), "an Unsized"),
        (type("_Inner", (), {})(), "an _Inner"),
    ],
)
def test_the_kind_of_a_value_has_its_article(value, expected):
    """It is the one that is heard."""
    assert a_kind(value) == expected


def test_a_number_has_its_noun():
    """One of them is one."""
    found = [counted(number, noun) for number in (0, 1, 2) for noun in ("batch", "sample")]
    assert found == ["0 batches", "0 samples", "1 batch", "1 sample", "2 batches", "2 samples"]


# -- plugins


class Good(Plugin):
    """A plugin that nothing is wrong with."""

    def on_exit_after_step(self, run: Run) -> None:
        pass


class UnknownMark(Plugin):
    @on_enter("optimiser_update")
    def look(self, run: Run) -> None:
        pass


class FarMark(Plugin):
    @on_enter("xyz")
    def look(self, run: Run) -> None:
        pass


class NoRun(Plugin):
    def on_exit_after_step(self) -> None:
        pass


class EveryHalf(Plugin):
    @on_exit("after_step", every=0.5)
    def look(self, run: Run) -> None:
        pass


class WhenAlone(Plugin):
    @on_exit("after_step", when=lambda: True)
    def look(self, run: Run) -> None:
        pass


class Yields(Plugin):
    def on_exit_after_step(self, run: Run) -> Any:
        yield run


PLUGINS: dict[str, tuple[list[Any], list[str]]] = {
    "an unknown state in a mark": (
        [UnknownMark()],
        ["UnknownMark.look", "unknown state 'optimiser_update'", "did you mean 'optimizer_update'?"],
    ),
    "a state near to none": ([FarMark()], ["unknown state 'xyz'", "known are before_loop", *STATES]),
    "a handler without the run": (
        [NoRun()],
        ["NoRun.on_exit_after_step()", "cannot be called with the run alone", "write it as (self, run)"],
    ),
    "every=0.5": ([EveryHalf()], ["EveryHalf.look: every must be a whole number from 1 on, got 0.5"]),
    "a filter without the run": ([WhenAlone()], ["WhenAlone.look: when", "cannot be called with the run alone"]),
    "a generator": ([Yields()], ["Yields.on_exit_after_step is a coroutine or a generator", "a plain function"]),
    "two of one class": ([Good(), Good()], ["two plugins have the name 'Good'", "give one of them another `name`"]),
}


@pytest.mark.parametrize("wrong", PLUGINS)
def test_mistakes_in_plugins_are_found_when_the_engine_is_built(wrong):
    """The error names the plugin, the method, what was found and what to write instead."""
    plugins, words = PLUGINS[wrong]
    with pytest.raises(PluginError) as caught:
        small_engine(plugins=plugins)
    assert [word for word in words if word not in str(caught.value)] == []


FUNCTIONS: dict[str, tuple[Callable[[Engine], Any], str]] = {
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


@pytest.mark.parametrize("when", ["paused", "in a handler"])
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
    engine.run(until="after_step" if when == "paused" else None)
    if when != "in a handler":
        put(engine.current)
    assert len(caught) == 1


@pytest.mark.parametrize("state", ["evaluate", "checkpoint"])
def test_a_handler_for_a_state_of_a_shipped_detour_is_idle_without_it(state):
    """It is legal, and never called, where no plugin brings the state."""
    called: list[Run] = []
    handlers = {f"on_{moment}_{state}": lambda self, run: called.append(run) for moment in ("enter", "exit")}
    run = small_engine(plugins=[type("Waiting", (Plugin,), handlers)()]).run()
    assert (run.state, run.step, called) == ("finished", 3, [])


# -- run() where it is not legal


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_driving_is_refused_from_a_handler_that_catches_the_error_and_the_run_continues(verb):
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


def test_a_finished_run_cannot_be_advanced():
    """An engine drives one run; the error says how it ended and what to do."""
    engine = small_engine()
    engine.run()
    with pytest.raises(EngineError, match=r"is finished \(epochs=1 complete\).*build a new Engine"):
        engine.advance()


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
def test_an_invalid_place_to_pause_is_refused_before_the_first_turn(until, match):
    """`until` is a state or a predicate."""
    engine = small_engine()
    with pytest.raises(EngineError, match=match):
        engine.run(until=until)
    assert (engine.current.state, len(engine.current.log)) == ("idle", 0)


# -- at the first step

LOSSES: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "a number": (lambda network, batch: 0.5, r"must return a scalar tensor.*, got float"),
    "nothing": (
        lambda network, batch: None,
        r"criterion must return a scalar tensor, got NoneType|compute_loss returned LossOutput\(None, …\)",
    ),
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


@pytest.mark.parametrize(
    ("wrong", "giver"),  # a compute_loss may return None: a step that adds nothing
    [(wrong, giver) for wrong in LOSSES for giver in GIVERS if (wrong, giver) != ("nothing", "compute_loss")],
)
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


@pytest.mark.parametrize("wrong", ["a value a sample", "a vector of one", "a detached loss"])
def test_it_is_looked_for_in_the_first_step_that_gives_a_loss(wrong):
    """The steps before may have left theirs out."""
    loss, match = LOSSES[wrong]
    steps = iter(range(9))

    def compute_loss(network: nn.Module, batch: Any) -> Any:
        return None if next(steps) < 1 else loss(network, batch)

    engine = Engine(components(criterion=..., compute_loss=compute_loss), RunConfig(epochs=1, accumulation=2))
    with pytest.raises(EngineError, match=match):
        engine.run()
    assert engine.current.step == 1


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
        pytest.param((DATA, TARGET, TARGET), "got a tuple of 3;", id="three"),
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


def test_a_batch_size_of_none_beside_a_loader_is_no_mistake():
    """It is the default, whether it was written out or not."""
    assert small_engine(2, batch_size=None).run().state == "finished"
