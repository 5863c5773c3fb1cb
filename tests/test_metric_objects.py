"""Metric objects: what they are called with, the names of what they compute, and the trial of them before training."""

import random
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES, equal, small_components, small_engine, small_network, weights
from heptad import DataError, Engine, EngineError, LossOutput, PluginError, RunConfig, TransitionLog
from heptad_plugins import Checkpoint, Evaluate, Journal

GENERATOR = torch.Generator().manual_seed(4)
DATA = torch.randn(22, FEATURES, generator=GENERATOR)
TARGET = torch.randint(0, CLASSES, (22,), generator=GENERATOR)
PAIRS = [(DATA[at : at + 4], TARGET[at : at + 4]) for at in range(0, 22, 4)]
DICTS = [{"x": x, "y": y} for x, y in PAIRS]
WHOLE = small_network()(DATA).detach()
"""What the network of these tests gives for all samples."""


def classes(name: str, **options: Any) -> Any:
    """Return a metric of torchmetrics for three classes."""
    return getattr(torchmetrics, name)("multiclass", num_classes=CLASSES, **options)


def right(metric: Any) -> Any:
    """Return what a metric says of all samples at once."""
    metric.update(WHOLE, TARGET)
    return metric.compute()


def dict_loss(network: nn.Module, batch: Any) -> LossOutput:
    output = network(batch["x"])
    return LossOutput(nn.functional.cross_entropy(output, batch["y"]), len(batch["y"]), {"logits": output})


def dict_engine(*plugins: Any) -> Engine:
    """Return an engine whose batches are dicts."""
    return Engine(small_components(loader=DICTS, compute_loss=dict_loss), RunConfig(epochs=1), plugins)


def engine(*plugins: Any, **config: Any) -> Engine:
    return small_engine(PAIRS, plugins, **config)


class Gives:
    """A metric object that computes one value."""

    def __init__(self, value: Any, **attributes: Any) -> None:
        self.value = value
        vars(self).update(attributes)

    def update(self, output: Any, target: Any) -> None:
        pass

    def compute(self) -> Any:
        return self.value

    def reset(self) -> None:
        pass


# -- what they are called with


@pytest.mark.parametrize(
    "inputs",
    [
        lambda output, batch: (output["logits"], batch["y"]),
        lambda output, batch: {"preds": output["logits"], "target": batch["y"]},
    ],
    ids=["tuple", "mapping"],
)
def test_an_object_sees_batches_of_any_kind_through_inputs(inputs):
    """The score is that of all samples, and no mean of the scores of batches."""
    f1 = classes("F1Score", average="macro")
    expected = right(f1.clone()).item()
    assert dict_engine().evaluate(DICTS, {"f1": f1}, inputs=inputs)["f1"] == expected
    run = dict_engine(Evaluate(DICTS, {"f1": f1}, inputs=inputs, at="before_loop")).run()
    assert run.history("valid/f1") == [expected]


def test_what_inputs_returns_must_be_arguments():
    with pytest.raises(EngineError, match=r"inputs must return a tuple, such as .*, or a mapping, got a Tensor"):
        dict_engine().evaluate(DICTS, {"f1": classes("F1Score")}, inputs=lambda output, batch: batch["y"])


# -- names


def test_a_collection_is_taken_as_it_is():
    """Its own names stand; under a name of the mapping they follow it."""
    collection = torchmetrics.MetricCollection(
        {"f1": classes("F1Score", average="macro"), "top2": classes("Accuracy", top_k=2)}, prefix="a_"
    )
    expected = {name: value.item() for name, value in right(collection.clone()).items()}
    found = engine().evaluate(PAIRS, collection)
    assert {name: found[name] for name in expected} == expected
    assert list(found) == ["loss", "a_f1", "a_top2"]
    under = engine().evaluate(PAIRS, {"all": collection, "acc": classes("Accuracy")})
    assert list(under) == ["loss", "all/a_f1", "all/a_top2", "acc"]
    run = engine(Evaluate(PAIRS, collection)).run()
    assert {"valid/loss", "valid/a_f1", "valid/a_top2"} == run.metrics.keys()


def test_a_vector_is_recorded_by_class():
    """By number, or by name where the option, the metric or a wrapper of torchmetrics gives names."""
    per_class = classes("Accuracy", average="none")
    expected = right(per_class.clone()).tolist()
    found = engine().evaluate(PAIRS, {"acc": per_class})
    assert [found[f"acc/{number}"] for number in range(CLASSES)] == expected
    names = ["cat", "dog", "cow"]
    found = engine().evaluate(PAIRS, {"acc": per_class}, class_names=names)
    assert [found[f"acc/{name}"] for name in names] == expected
    per_class.class_names = names
    found = engine().evaluate(PAIRS, {"acc": per_class})
    assert [found[f"acc/{name}"] for name in names] == expected
    wrapped = torchmetrics.ClasswiseWrapper(classes("Accuracy", average="none"), labels=names, prefix="acc_")
    assert [engine().evaluate(PAIRS, {"x": wrapped})[f"x/acc_{name}"] for name in names] == expected


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (np.float32(0.5), {"m": 0.5}),
        (torch.tensor(2), {"m": 2.0}),
        (True, {"m": 1.0}),
        ([0.25, 0.5], {"m/0": 0.25, "m/1": 0.5}),
        (torch.tensor([1.5], dtype=torch.bfloat16), {"m/0": 1.5}),
        (torch.tensor([]), {}),
        ({"map": torch.tensor(0.5), "deep": {"x": 1}}, {"m/map": 0.5, "m/deep/x": 1.0}),
        (namedtuple("Score", "mean std")(1.0, torch.tensor(2.0)), {"m/mean": 1.0, "m/std": 2.0}),
        ((torch.tensor([0.5, 1.0]), torch.tensor([1.0])), {"m/0/0": 0.5, "m/0/1": 1.0, "m/1/0": 1.0}),
    ],
)
def test_what_an_object_computes_has_names(value, numbers):
    found = engine().evaluate(PAIRS, {"m": Gives(value)})
    assert {name: number for name, number in found.items() if name != "loss"} == numbers
    assert {type(number) for number in found.values()} == {float}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (Gives({"loss": 1.0}), "two metrics give a value named 'loss'"),
        ({"a": Gives({"b": 1.0}), "a/b": Gives(2.0)}, "two metrics give a value named 'a/b'"),
        (Gives(1.0), "a Gives that is given alone must compute a mapping .*give it a name"),
        (Gives(None), "a Gives that is given alone must compute a mapping"),
        ({"m": Gives({"x": None})}, r"metrics\['m/x'\].compute\(\) must return numbers"),
    ],
)
def test_names_that_are_missing_or_there_twice_are_refused(metrics, message):
    with pytest.raises(EngineError, match=message):
        engine().evaluate(PAIRS, metrics)


@pytest.mark.parametrize("names", ["cat", ["a", "a"], [1, 2], ["a", ""]])
def test_class_names_are_different_words(names):
    with pytest.raises(PluginError, match="class_names"):
        Evaluate(PAIRS, class_names=names)


# -- arrays


def test_a_matrix_is_an_array_in_the_log(tmp_path):
    """Of the run and of its journal, exact, at the transition of each evaluation; no recorded value has its name."""
    confusion = classes("ConfusionMatrix")
    expected = right(confusion.clone()).numpy()
    found = engine().evaluate(PAIRS, {"confusion": confusion})
    assert list(found) == ["loss"]
    np.testing.assert_array_equal(found.arrays["confusion"], expected)
    assert found["confusion"] is found.arrays["confusion"]
    valid = Evaluate(PAIRS, {"confusion": confusion}, at=("before_loop", "after_epoch"))
    run = engine(valid, Journal(tmp_path / "run.journal"), epochs=2).run()
    assert "valid/confusion" not in run.metrics
    for log in (run.log, TransitionLog.load(tmp_path / "run.journal")):
        arrays = log.arrays("valid/confusion")
        assert [log[event.seq].source for event in arrays] == ["evaluate"] * 3
        np.testing.assert_array_equal(arrays[0].array, expected)
        assert arrays[0].array.dtype == expected.dtype
        assert arrays == log.arrays()
        assert str(expected.tolist()) in arrays[0].text
        assert log.arrays("other") == []


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.bool_, np.complex64])
def test_an_array_comes_back_as_it_was_recorded(dtype):
    run = engine().current
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    run.record_array("a", array)
    run.record_array("a", torch.tensor([[float("nan"), 1.0]], dtype=torch.bfloat16, requires_grad=True))
    first, second = (event.array for event in run.log.arrays("a"))
    np.testing.assert_array_equal(first, array)
    assert first.dtype == dtype
    np.testing.assert_array_equal(second, np.array([[np.nan, 1.0]], dtype=np.float32))


@pytest.mark.parametrize("value", [[1, 2], "text", np.array(["text"]), np.array([object()])])
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises(EngineError, match=r"record_array\('a', …\) takes an array or a tensor of numbers"):
        engine().current.record_array("a", value)


def test_a_long_vector_is_an_array():
    """A log has names for 65,535 values."""
    found = engine().evaluate(PAIRS, {"curve": Gives(torch.linspace(0, 1, 2000))})
    assert list(found) == ["loss"]
    assert found.arrays["curve"].shape == (2000,)


# -- the trial


class Lively(nn.Module):
    """Draws, and writes to buffers, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen = self.seen + 1
        return self.body(data) + torch.rand(()) + np.random.rand() + random.random() + self.calls.detach()


def loader() -> Any:
    """Return a shuffled loader that has a generator of its own."""
    return DataLoader(TensorDataset(DATA, TARGET), 4, shuffle=True, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("data", ["samples", "loader", "list"])
def test_a_trial_moves_nothing(data):
    """Weights, buffers, values and the place of the validation data are those without it, metrics keep their state."""
    runs = []
    for trial in (True, False):
        torch.manual_seed(1)
        network = Lively()
        valid = {"samples": TensorDataset(DATA, TARGET), "loader": loader(), "list": PAIRS}[data]
        metric = classes("F1Score")
        metric.update(WHOLE, TARGET)
        engine = Engine(
            small_components(network, dataset=TensorDataset(DATA, TARGET)),
            RunConfig(epochs=2, batch_size=4, device="cpu"),
            [Evaluate(valid, {"f1": metric, "keep": lambda output, batch: batch[0].sum()}, trial=trial)],
        )
        modes = [module.training for module in network.modules()]
        generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        count = metric.update_count
        engine.run(until="before_loop")
        assert [module.training for module in network.modules()] == modes
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == generators[1:]
        assert (network.calls, network.seen.tolist(), metric.update_count) == (0, [0, 0], count)
        run = engine.run()
        runs.append([*weights(network), torch.tensor(run.history("valid/keep")), torch.tensor(run.history("valid/f1"))])
    assert equal(*runs)


@pytest.mark.parametrize(
    ("metrics", "error"),
    [
        ({"bad": lambda output, batch: output.no_such_name}, AttributeError),
        ({"bad": lambda output, batch: "0.5"}, EngineError),
        ({"bad": classes("F1Score", validate_args=True), "good": Gives(1.0)}, ValueError),
        ({"bad": Gives(None)}, EngineError),
        (torchmetrics.MetricCollection({"bad": torchmetrics.F1Score("binary")}), RuntimeError),
    ],
)
def test_a_mistake_in_a_metric_is_found_when_the_engine_is_built(metrics, error):
    """With a note that says what is going on."""

    def loss(network: nn.Module, batch: Any) -> LossOutput:
        output = network(batch[0])
        return LossOutput(output.square().mean(), output=output[:, :, None].expand(-1, -1, 5))

    parts = small_components(loader=PAIRS, compute_loss=loss)
    with pytest.raises(error) as caught:
        Engine(parts, RunConfig(epochs=1), [Evaluate(PAIRS, metrics)])
    assert any("in a trial of the metrics of Evaluate(data=…) of 'valid'" in note for note in caught.value.__notes__)
    # an observer that may be detached is, when it is opened
    run = Engine(parts, RunConfig(epochs=1), [Evaluate(PAIRS, metrics, on_error="detach")]).run()
    assert [note.plugin for note in run.log.notes("detach")] == ["valid"]


def test_what_cannot_be_computed_of_one_batch_is_no_mistake():
    """Such as a score of fit of one sample: a warning says so, and each evaluation asks for that of all."""
    data = [(DATA[place : place + 1], TARGET[place : place + 1].float()[:, None]) for place in range(8)]
    parts = small_components(nn.Linear(FEATURES, 1), loader=data, criterion=nn.MSELoss())
    with pytest.warns(UserWarning, match=r"metrics\['fit'\] could compute nothing of one batch \(ValueError: Needs at"):
        engine = Engine(parts, RunConfig(epochs=1), [Evaluate(data, {"fit": torchmetrics.R2Score()})])
    run = engine.run()
    with torch.no_grad():
        outputs = run.network(DATA[:8])
    assert run.metrics["valid/fit"] == pytest.approx(
        torchmetrics.R2Score()(outputs, TARGET[:8].float()[:, None]).item()
    )


def test_a_batch_that_is_none_for_the_loss_is_found_when_the_engine_is_built():
    """One of (data, target) is needed with a criterion."""
    with pytest.raises(DataError, match=r"with a criterion a batch must be \(data, target\), got a dict"):
        Engine(small_components(), RunConfig(epochs=1), [Evaluate([{"data": DATA}], {"n": lambda output, batch: 0.0})])


def test_what_is_still_to_be_completed_before_the_loop_is_no_mistake():
    """A network that a handler completes, or that has no memory yet, is not tried."""
    network = small_network()
    seen: list[int] = []

    def loss(network: nn.Module, batch: Any) -> LossOutput:
        return LossOutput(network.scale * network(batch[0]).square().mean(), output=batch[0])

    metrics = {"seen": lambda output, batch: seen.append(len(output)) or 0.0}
    engine = Engine(
        small_components(network, loader=PAIRS, compute_loss=loss), RunConfig(epochs=1), [Evaluate(PAIRS, metrics)]
    )
    engine.on_exit("before_loop")(lambda run: setattr(run.network, "scale", 2.0))
    engine.run()
    assert seen == [len(data) for data, _ in PAIRS]


class Stream(IterableDataset[Any]):
    """Samples that continue where the last iteration ended."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Any:
        for _ in range(8):
            self.at += 1
            yield DATA[self.at % 22], TARGET[self.at % 22]


class Batches:
    """Batches of which nobody knows what asking for one does."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Any:
        self.asked += 1
        return iter(PAIRS)


@pytest.mark.parametrize("make", [Stream, lambda: DataLoader(Stream(), 4), Batches])
def test_data_that_only_iterating_would_show_are_not_tried(make):
    """Their place would move."""
    data = make()
    engine = Engine(
        small_components(dataset=TensorDataset(DATA, TARGET)),
        RunConfig(epochs=1, batch_size=4),
        [Evaluate(data, {"m": lambda output, batch: 1.0})],
    )
    engine.run(until="before_loop")
    source = data.dataset if isinstance(data, DataLoader) else data
    assert getattr(source, "at", 0) + getattr(source, "asked", 0) == 0


class Opened(torch.utils.data.Dataset[Any]):
    """Samples that are opened by the first process that asks for one, as a file is."""

    def __init__(self) -> None:
        self.opened = 0

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Any:
        self.opened += 1
        return DATA[index], TARGET[index]


@pytest.mark.parametrize("of_loader", [True, False])
def test_data_that_workers_fetch_are_fetched_by_one(of_loader):
    """This process opens nothing that workers would inherit."""
    data = Opened()
    tried: list[int] = []
    engine = Engine(
        small_components(dataset=TensorDataset(DATA, TARGET)),
        RunConfig(epochs=1, batch_size=4, num_workers=0 if of_loader else 1),
        [
            Evaluate(
                DataLoader(data, 4, num_workers=1) if of_loader else data,
                {"m": lambda output, batch: tried.append(len(output)) or 0.0},
            )
        ],
    )
    with engine:
        engine.run(until="before_loop")
    assert (tried, data.opened) == ([4], 0)


def test_a_batch_that_a_network_writes_to_is_a_copy():
    class Writes(nn.Linear):
        def forward(self, data: torch.Tensor) -> torch.Tensor:
            return super().forward(data.mul_(2))

    valid = [(x.clone(), y) for x, y in PAIRS]
    engine = Engine(
        small_components(Writes(FEATURES, CLASSES)),
        RunConfig(epochs=1),
        [Evaluate(valid, {"m": lambda output, batch: 1.0})],
    )
    engine.run(until="before_loop")
    assert torch.equal(valid[0][0], PAIRS[0][0])


def test_a_metric_that_cannot_be_copied_is_not_tried():
    class Alone(Gives):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is one of these")

    assert engine(Evaluate(PAIRS, {"m": Alone(1.0)})).run().metrics["valid/m"] == 1.0


def test_a_trial_is_made_once_a_run_and_after_resuming_too(tmp_path):
    """A run that is paused and continued is opened again."""
    seen: list[int] = []

    def made() -> Engine:
        metrics = {"seen": lambda output, batch: seen.append(1) or 0.0}
        return engine(Evaluate(PAIRS[:1], metrics), Checkpoint(tmp_path, at="after_step"))

    first = made()
    first.run(until=lambda run: run.step == 2)
    first.run(until=lambda run: run.step == 3)
    assert len(seen) == 1
    made().run(resume="auto")
    assert len(seen) == 3  # its own trial, and the evaluation at the end


def test_a_mistake_detaches_one_that_may_fail():
    run = engine(Evaluate(PAIRS, {"m": Gives(None)}, on_error="detach")).run()
    assert run.state == "finished"
    assert "valid.open raised EngineError" in str(run.log.notes("detach")[0])
