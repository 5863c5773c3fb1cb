"""Evaluations that ranks share: nothing padded, nothing twice, the numbers of one process, equal to the bit on all."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES, Unsized, small_components, small_network
from heptad import Components, ConfigError, DataError, Engine, EngineError, LossOutput, PluginError, RunConfig
from heptad.errors import RankFailed
from heptad_plugins import Evaluate
from rank_threads import ThreadPeers, ThreadStrategy, on_ranks

WORLDS = (2, 3)


def samples(count: int, ignored: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(count)
    data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (count,), generator=generator)
    target[:ignored] = -100
    return TensorDataset(data, target)


def as_batches(data: TensorDataset, size: int = 2) -> list[Any]:
    return [tuple(one[at : at + size] for one in data.tensors) for at in range(0, len(data), size)]


class Stream(IterableDataset):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


class Noisy(Dataset):
    """Draws from the global generator, which each batch seeds by its number."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        data, target = self.data[index]
        return data + torch.rand((), dtype=torch.float64), target


FORMS = {
    "samples": lambda data: data,
    "noisy samples": Noisy,
    "batches": as_batches,
    "loader": lambda data: DataLoader(data, batch_size=2),
    "no length": lambda data: Unsized(as_batches(data)),
    "stream": Stream,
}


def right(output: torch.Tensor, batch: Any) -> torch.Tensor:
    """A value a sample."""
    return (output.argmax(dim=1) == batch[1]).double()


def share(output: torch.Tensor, batch: Any) -> float:
    """A mean over the batch."""
    return right(output, batch).mean().item()


def token_loss(network: nn.Module, batch: Any) -> LossOutput:
    """A loss whose weight differs from batch to batch."""
    output = network(batch[0])
    loss = nn.functional.cross_entropy(output, batch[1], reduction="none")
    weights = batch[1].double() + 0.5
    return LossOutput((loss * weights).sum() / weights.sum(), weights.sum(), output)


def parts(**changes: Any) -> Components:
    torch.manual_seed(1)
    given = {"dataset": samples(4), **changes}
    return small_components(small_network().double(), **given)


def build(peers: ThreadPeers | None, components: Components, *plugins: Any, **config: Any) -> Engine:
    given = RunConfig(**{"epochs": 1, "batch_size": 2, "strategy": "none", **config})
    if peers is None:
        return Engine(components, given, plugins)

    class Ranked(Engine):
        strategy_class = staticmethod(lambda config: ThreadStrategy(peers))

    return Ranked(components, given, plugins)


def measured(peers: ThreadPeers | None, components: Components, data: Any, metrics: Any, options: Any) -> Any:
    found = build(peers, components).evaluate(data, metrics, **options)
    return {**found, **{name: array.ravel().tolist() for name, array in found.arrays.items()}}


def compare(
    world: int, make: Any, metrics: Any = None, options: Any = None, components: Any = parts, exact: bool = False
) -> None:
    """Compare an evaluation on ranks with that of one process; there is one exchange."""
    options = {} if options is None else options
    alone = measured(None, components(), make(), copy.deepcopy(metrics), options)
    given = [(components(), make(), copy.deepcopy(metrics)) for _ in range(world)]
    found, exchanges = on_ranks(world, lambda peers: measured(peers, *given[peers.rank], options))
    for one in found:
        if isinstance(one, Exception):
            raise one
    assert exchanges == 1
    assert len({repr(one) for one in found}) == 1  # to the bit; NaN too
    assert found[0].keys() == alone.keys()
    for name, value in alone.items():
        near = value if exact else pytest.approx(value, abs=1e-12, nan_ok=True)
        assert found[0][name] == near, name


FUNCTIONS = {"right": right, "share": share}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 11])
def test_any_number_of_samples_in_any_form(world, form, count):
    """Also fewer batches than ranks: then some rank has none."""
    compare(world, lambda: FORMS[form](samples(count)), FUNCTIONS)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("form", ["samples", "batches", "stream"])
def test_a_limit_is_one_of_all_ranks(form, limit):
    compare(2, lambda: FORMS[form](samples(11)), FUNCTIONS, {"limit": limit})


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("count", [3, 11])
def test_weights_are_added_too(world, count):
    """Of tokens, and of targets that are ignored: all of those of a batch, and NaN is its mean."""
    compare(
        world,
        partial(samples, count),
        {"share": share},
        components=partial(parts, criterion=None, compute_loss=token_loss),
    )
    compare(world, partial(samples, count, ignored=3), {"right": right})


def test_worker_processes_fetch_own_batches_only():
    compare(2, lambda: Noisy(samples(11)), FUNCTIONS, components=parts)


def of_classes(name: str, **options: Any) -> Any:
    return getattr(torchmetrics, name)("multiclass", num_classes=CLASSES, **options)


OBJECTS = {
    "Accuracy": lambda: of_classes("Accuracy", average="micro"),
    "F1Score": lambda: of_classes("F1Score", average="none"),
    "ConfusionMatrix": lambda: of_classes("ConfusionMatrix"),
    "AUROC": lambda: of_classes("AUROC", thresholds=None),
    "AveragePrecision": lambda: of_classes("AveragePrecision", thresholds=None),
    "collection": lambda: torchmetrics.MetricCollection(
        {"f1": of_classes("F1Score"), "recall": of_classes("Recall"), "auroc": of_classes("AUROC")}
    ),
    "classwise": lambda: torchmetrics.ClasswiseWrapper(of_classes("Accuracy", average="none")),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("count", [1, 5, 11])
@pytest.mark.filterwarnings("ignore:No (posi|nega)tive samples", "ignore:Average precision score for one")
def test_objects_of_torchmetrics(world, name, count):
    """Counts, curves with lists of outputs, collections whose members share a state, wrappers."""
    compare(world, partial(samples, count), {"m": OBJECTS[name]()})


def first_of_output(output: torch.Tensor, batch: Any) -> Any:
    return output[:, 0].contiguous(), batch[0][:, 0].contiguous()


@pytest.mark.filterwarnings("ignore:Metric `Spearman")
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "metric",
    [torchmetrics.PearsonCorrCoef, torchmetrics.MeanSquaredError, torchmetrics.SpearmanCorrCoef, torchmetrics.R2Score],
)
def test_objects_whose_states_are_moments(world, metric):
    """`PearsonCorrCoef` declares no reduction: merge_state, pair by pair, fails on three ranks."""
    made = metric().set_dtype(torch.float64)
    compare(world, partial(samples, 11), {"m": made}, {"inputs": first_of_output})


class Own(torchmetrics.Metric):
    """States that are a sum, a maximum and a mean over the updates; torchmetrics' own merge_state refuses it."""

    full_state_update = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("most", torch.tensor(-9.0, dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("mean", torch.zeros((), dtype=torch.float64), dist_reduce_fx="mean")

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.total = self.total + output.sum()
        self.mean = self.mean + (output.mean() - self.mean) / self.update_count
        self.most = torch.maximum(self.most, output.max())

    def compute(self) -> Any:
        return {"total": self.total, "most": self.most, "mean": self.mean}


def test_a_metric_of_ones_own_by_its_reductions():
    compare(3, partial(samples, 11), {"own": Own()})


class Gathers:
    """A metric that knows nothing of torchmetrics."""

    def __init__(self) -> None:
        self.scale = lambda value: value
        self.reset()

    def reset(self) -> None:
        self.outputs: list[torch.Tensor] = []
        self.count = 0

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.outputs.append(output.double().sum())
        self.count += len(target)

    def compute(self) -> float:
        return float(torch.stack(self.outputs).sum() / self.count)


class Merges(Gathers):
    def merge_state(self, other: Gathers) -> None:
        self.outputs += other.outputs
        self.count += other.count


@pytest.mark.parametrize("count", [1, 3, 11])
def test_any_object_that_can_be_merged(count):
    compare(3, partial(samples, count), {"own": Merges()})


def test_an_object_that_cannot_be_merged_is_refused_when_built():
    """On all ranks, without an exchange that one would wait in; a function is what is advised."""

    def script(peers: ThreadPeers) -> Any:
        build(peers, parts(), Evaluate(samples(4), {"own": Gathers()}, trial=False))

    found, _ = on_ranks(2, script)
    for error in found:
        assert isinstance(error, PluginError)
        assert "metrics['own'] is a Gathers" in str(error)
        assert "merge_state(other)" in str(error)
    found, _ = on_ranks(2, lambda peers: build(peers, parts()).evaluate(samples(4), {"own": Gathers()}))
    assert {type(error) for error in found} == {ConfigError}


def test_what_cannot_be_sent_is_named():
    class Holds(Merges):
        def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
            super().update(output, target)
            self.held = object()

    found, _ = on_ranks(2, lambda peers: build(peers, parts()).evaluate(samples(8), {"own": Holds()}))
    for error in found:
        assert isinstance(error, EngineError)
        assert "cannot be sent" in str(error)
        assert "state_dict" in str(error)


def test_an_error_of_one_rank_is_named_on_all_and_they_meet_again():
    def script(peers: ThreadPeers) -> Any:
        engine = build(peers, parts())

        def metric(output: torch.Tensor, batch: Any) -> float:
            if peers.rank == 1:
                raise ValueError("no such class")
            return 0.0

        with pytest.raises((ValueError, RankFailed)) as caught:
            engine.evaluate(samples(11), {"m": metric})
        return str(caught.value), engine.evaluate(samples(11))["loss"]

    found, _ = on_ranks(2, script)
    assert found[1][0] == "no such class"
    assert found[0][0] == "rank 1 failed in Engine.evaluate(data): ValueError: no such class"
    assert found[0][1] == found[1][1]


def test_data_without_a_batch_are_an_error_on_all():
    found, _ = on_ranks(3, lambda peers: build(peers, parts()).evaluate(Unsized([])))
    assert [str(error) for error in found] == ["the data to evaluate on yield nothing, on any rank"] * 3
    found, _ = on_ranks(3, lambda peers: list(build(peers, parts()).predict(Unsized([]))))
    assert [str(error) for error in found] == ["the data to predict on yield nothing"] * 3


# -- loaders whose sampler deals


@pytest.mark.parametrize("count", [8, 12])
def test_a_sampler_that_deals_is_trusted(count):
    data = samples(count)

    def script(peers: ThreadPeers) -> Any:
        sampler = DistributedSampler(data, 2, peers.rank, shuffle=False)
        return dict(build(peers, parts()).evaluate(DataLoader(data, batch_size=2, sampler=sampler), FUNCTIONS))

    found, _ = on_ranks(2, script)
    assert found[0] == found[1] == pytest.approx(dict(build(None, parts()).evaluate(data, FUNCTIONS)), abs=1e-12)


def test_a_sampler_that_pads_or_deals_to_others_is_refused():
    def script(peers: ThreadPeers, count: int, **options: Any) -> Any:
        data = samples(count)
        sampler = DistributedSampler(data, **{"num_replicas": 2, "rank": peers.rank, **options})
        return build(peers, parts()).evaluate(DataLoader(data, batch_size=2, sampler=sampler))

    for options, says in (
        ({"count": 7}, "repeats 1 sample"),
        ({"count": 7, "drop_last": True}, "leaves out 1 sample"),
        ({"count": 8, "num_replicas": 4}, "of 4"),
    ):
        found, _ = on_ranks(2, partial(script, **options))
        assert all(isinstance(error, DataError) and says in str(error) for error in found)


# -- predictions


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 5, 11])
def test_predictions_are_numbered(form, count):
    """In the order of their numbers, those of all ranks are those of one process."""
    alone = list(build(None, parts()).predict(FORMS[form](samples(count))))
    found, exchanges = on_ranks(3, lambda peers: list(build(peers, parts()).predict(FORMS[form](samples(count)))))
    assert not exchanges
    for rank, one in enumerate(found):
        assert [number for number, _ in one] == list(range(rank, len(alone), 3))
    ordered = sorted((pair for one in found for pair in one), key=lambda pair: pair.number)
    assert all(torch.equal(pair.output, output) for pair, output in zip(ordered, alone, strict=True))


def test_numbers_can_be_had_of_one_process_and_left_out_on_many():
    engine = build(None, parts())
    assert [number for number, _ in engine.predict(samples(5), numbered=True)] == [0, 1, 2]
    found, _ = on_ranks(2, lambda peers: list(build(peers, parts()).predict(samples(5), numbered=False)))
    assert [[len(output) for output in one] for one in found] == [[2, 1], [2]]
