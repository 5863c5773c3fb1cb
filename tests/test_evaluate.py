"""`Engine.evaluate` and `Engine.predict`: exact means, and a training run that does not notice."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES, Unsized, Witness, batches, equal, records, small_components, weights
from heptad import Components, ConfigError, DataError, Engine, EngineError, LossOutput, Plugin, Run, RunConfig


def dataset(samples: int) -> TensorDataset:
    """Return random samples."""
    data = torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(samples))
    return TensorDataset(data, torch.arange(samples) % CLASSES)


SAMPLES = 7
TRAIN, VALID = dataset(8), dataset(SAMPLES)


class Part(nn.Module):
    """A network whose result depends on modes, on random numbers and on buffers that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.frozen = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.body(data)))


class Samples(Dataset):
    """The validation samples, one by one."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return VALID[index]


class NoisySamples(Samples):
    """Samples whose transform draws from the global generators."""

    def __getitem__(self, index: int) -> Any:
        data, target = VALID[index]
        return data + torch.rand(()) + np.random.rand() + random.random(), target


class Stream(IterableDataset):
    """The validation samples as an iterable dataset."""

    def __iter__(self) -> Iterator[Any]:
        return (VALID[index] for index in range(SAMPLES))


class Sized(Unsized):
    """A loader that says how many batches it has."""

    def __init__(self, items: list[Any], says: int) -> None:
        super().__init__(items)
        self.says = says

    def __len__(self) -> int:
        return self.says


def in_threes() -> list[Any]:
    """Return the validation samples as batches of 3, 3 and 1."""
    return [(VALID.tensors[0][at : at + 3], VALID.tensors[1][at : at + 3]) for at in (0, 3, 6)]


def part_engine(
    plugins: tuple[Plugin, ...] = (), *, loader: Any = None, compute_loss: Any = None, **config: Any
) -> Engine:
    """Return an engine that trains a `Part` on a loader, or on eight samples in batches of three."""
    torch.manual_seed(3)
    network = Part()
    given = {"dataset": TRAIN} if loader is None else {"loader": loader}
    if compute_loss is not None:
        given["compute_loss"] = compute_loss
    size = {"batch_size": 3} if loader is None else {}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    components = small_components(network, optimizer=optimizer, **given)
    return Engine(components, RunConfig(**{"epochs": 2, **size, **config}), plugins)


def right(output: torch.Tensor, batch: Any) -> torch.Tensor:
    """A metric with a value a sample: 1.0 where the class is right."""
    return (output.argmax(dim=1) == batch[1]).float()


def share(output: torch.Tensor, batch: Any) -> torch.Tensor:
    """The same as a mean over the batch."""
    return right(output, batch).double().mean()


def by_hand(network: nn.Module, weigh: Callable[[Any], float] = lambda batch: len(batch[1])) -> dict[str, float]:
    """Return the means over the validation batches, written out."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    loss = hits = total = 0.0
    with torch.no_grad():
        for batch in in_threes():
            output = network(batch[0])
            loss += nn.functional.cross_entropy(output, batch[1]).double().item() * weigh(batch)
            hits += right(output, batch).double().mean().item() * weigh(batch)
            total += weigh(batch)
    for module, training in modes.items():
        module.training = training
    return {"loss": loss / total, "accuracy": hits / total}


def global_state() -> tuple[int, ...]:
    """Return hashes of the states of the global generators of torch, numpy and python."""
    _, keys, place, *_ = np.random.get_state()
    return hash(tuple(torch.get_rng_state().tolist())), hash((*keys.tolist(), place)), hash(random.getstate())


def modes(network: nn.Module) -> dict[str, bool]:
    """Return the mode of every submodule by name."""
    return {name: module.training for name, module in network.named_modules()}


def shuffled() -> DataLoader:
    """Return a loader that draws its order from the global generator."""
    return DataLoader(VALID, batch_size=3, shuffle=True)


# -- the means

DATA: dict[str, Callable[[], Any]] = {
    "a tensor dataset": lambda: VALID,
    "a dataset of samples": Samples,
    "an iterable dataset": Stream,
    "a DataLoader": lambda: DataLoader(VALID, batch_size=3),
    "a DataLoader over an iterable dataset": lambda: DataLoader(Stream(), batch_size=3),
    "a list of batches": in_threes,
    "batches of unknown length": lambda: Unsized(in_threes()),
    "a generator of batches": lambda: (batch for batch in in_threes()),
}


@pytest.mark.parametrize("name", DATA)
def test_means_are_those_of_a_hand_computation(name):
    """Every batch counts by its samples, the last smaller one included, whatever form the data have."""
    engine = part_engine()
    found = engine.evaluate(DATA[name](), {"accuracy": right})
    assert found == by_hand(engine.current.network)
    assert [type(value) for value in found.values()] == [float, float]


def test_means_are_those_of_the_samples_as_one_batch():
    """The split into batches does not show."""
    engine = part_engine()
    found = engine.evaluate(VALID, {"accuracy": right})
    whole = engine.evaluate([VALID.tensors], {"accuracy": right})
    assert found == pytest.approx(whole, rel=1e-6)
    assert found["accuracy"] * SAMPLES == pytest.approx(round(found["accuracy"] * SAMPLES), abs=1e-12)


def test_a_metric_may_be_a_value_a_sample_a_mean_or_a_number():
    """All three count by the samples of their batch."""
    metrics = {"samples": right, "mean": share, "number": lambda output, batch: share(output, batch).item()}
    found = part_engine().evaluate(VALID, metrics)
    assert list(found) == ["loss", "samples", "mean", "number"]
    assert found["samples"] == found["mean"] == found["number"]


def test_metrics_see_the_batch_and_its_output_by_name():
    """Each is called with (output, batch), once a batch."""
    given: list[tuple[Any, Any]] = []

    def keep(output: torch.Tensor, batch: Any) -> float:
        given.append((output, batch))
        return 2.0

    engine = part_engine()
    found = engine.evaluate(VALID, {"two": keep})
    assert found["two"] == 2.0
    engine.current.network.eval()
    for (output, batch), (data, target) in zip(given, in_threes(), strict=True):
        assert torch.equal(batch[0], data)
        assert torch.equal(batch[1], target)
        assert torch.equal(output, engine.current.network(data))
        assert not output.requires_grad


@pytest.mark.parametrize("of", [int, torch.tensor], ids=["number", "tensor"])
def test_means_are_weighed_by_the_weight_that_compute_loss_gives(of):
    """`LossOutput.weight` says what the mean was taken over: here the sum of the targets and one, as tokens would."""

    def tokens(batch: Any) -> int:
        return 1 + int(batch[1].sum())

    def loss(network: nn.Module, batch: Any) -> LossOutput:
        output = network(batch[0])
        return LossOutput(nn.functional.cross_entropy(output, batch[1]), weight=of(tokens(batch)), output=output)

    engine = part_engine(compute_loss=loss)
    found = engine.evaluate(VALID, {"accuracy": right})
    assert found == by_hand(engine.current.network, tokens)


@pytest.mark.parametrize("wrap", [LossOutput, lambda loss: loss], ids=["LossOutput", "tensor"])
def test_without_a_weight_every_batch_counts_the_same(wrap):
    """A bare scalar and `weight=None` say nothing about samples."""

    def loss(network: nn.Module, batch: Any) -> Any:
        return wrap(nn.functional.cross_entropy(network(batch[0]), batch[1]))

    engine = part_engine(compute_loss=loss)
    assert engine.evaluate(VALID)["loss"] == by_hand(engine.current.network, lambda batch: 1.0)["loss"]


def test_the_network_is_evaluated_in_evaluation_mode_without_gradients():
    """Every submodule is in evaluation mode and no graph is built."""
    engine = part_engine()
    seen: list[tuple[set[bool], bool]] = []
    engine.current.network.head.register_forward_hook(
        lambda module, given, output: seen.append(
            (set(modes(engine.current.network).values()), torch.is_grad_enabled())
        )
    )
    engine.evaluate(VALID)
    assert seen == [({False}, False)] * 3


def test_nothing_is_shuffled_or_dropped():
    """The engine's own `shuffle` and `drop_last` are for training."""
    seen: list[torch.Tensor] = []
    part_engine(shuffle=True, drop_last=True).evaluate(
        VALID, {"keep": lambda output, batch: seen.append(batch[0]) or 0.0}
    )
    assert equal(seen, [data for data, _ in in_threes()])


def test_random_transforms_are_the_same_in_every_evaluation():
    """What an evaluation measures changes with the network only."""
    engine = part_engine()
    first = engine.evaluate(NoisySamples())
    torch.rand(5), np.random.rand(5), random.random()
    assert engine.evaluate(NoisySamples()) == first


def test_workers_fetch_the_data_of_an_evaluation_too():
    """`num_workers` holds for an evaluation and changes nothing in it."""
    assert part_engine(num_workers=2).evaluate(NoisySamples()) == part_engine().evaluate(NoisySamples())


# -- what is left as it was

VERBS: dict[str, Callable[[Engine, Any], Any]] = {
    "evaluate": lambda engine, data: engine.evaluate(data, {"accuracy": right}),
    "predict": lambda engine, data: list(engine.predict(data)),
}
SIDE_DATA: dict[str, Callable[[], Any]] = {
    "noisy": NoisySamples,
    "shuffled": shuffled,
    "unsized": DATA["a generator of batches"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SIDE_DATA)
def test_modes_random_state_weights_and_buffers_are_put_back(verb, name):
    """A submodule that was frozen in evaluation mode stays so, all others stay in training mode."""
    engine = part_engine()
    network = engine.current.network.train()
    network.frozen.eval()
    before = global_state(), modes(network), weights(network)
    VERBS[verb](engine, SIDE_DATA[name]())
    assert global_state() == before[0]
    assert modes(network) == before[1]
    assert equal(weights(network), before[2])
    assert [parameter.grad for parameter in network.parameters()] == [None] * 8


@pytest.mark.parametrize("verb", VERBS)
def test_modes_are_put_back_where_the_evaluation_fails(verb):
    """An error in the data or in the network leaves nothing behind."""
    engine = part_engine()
    network = engine.current.network.train()
    network.frozen.eval()
    before = global_state(), modes(network)
    with pytest.raises(RuntimeError):
        VERBS[verb](engine, [*in_threes(), (torch.zeros(2, FEATURES + 1), torch.zeros(2, dtype=torch.int64))])
    assert (global_state(), modes(network)) == before


class Frozen(Plugin):
    """Freezes a part of the network when the run starts."""

    def on_exit_before_loop(self, run: Run) -> None:
        run.network.frozen.eval()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SIDE_DATA)
@pytest.mark.parametrize("moment", ["enter", "exit"])
def test_training_has_the_same_bits_with_and_without_an_evaluation_at_every_update(verb, name, moment):
    """Weights, buffers, log and handler calls are equal, with dropout, batch norm and momentum, in mid-window too."""

    def train(*, evaluating: bool) -> tuple[Run, Witness]:
        witness = Witness()
        engine = part_engine((Frozen(), witness), accumulation=2, drop_last=False)
        if evaluating:
            subscribe = engine.on_enter if moment == "enter" else engine.on_exit
            for state in ("process_batch", "optimizer_update"):
                subscribe(state)(lambda run: VERBS[verb](engine, SIDE_DATA[name]()))
        return engine.run(), witness

    (plain, heard), (evaluated, heard_too) = train(evaluating=False), train(evaluating=True)
    assert equal(weights(evaluated.network), weights(plain.network))
    assert torch.equal(evaluated.loss, plain.loss)
    assert (heard_too.seen, heard_too.counters) == (heard.seen, heard.counters)
    assert records(evaluated.log) == records(plain.log)


def test_no_handler_of_the_training_hears_an_evaluation():
    """It is a run of its own; the training run stays where it is, with an empty log."""
    witness = Witness()
    engine = part_engine((witness,))
    engine.evaluate(VALID)
    list(engine.predict(VALID))
    assert (witness.seen, witness.opened, witness.closed) == ([], 0, 0)
    assert (engine.current.state, len(engine.current.log), engine.current.metrics) == ("idle", 0, {})


def test_a_run_is_evaluated_before_after_and_while_it_is_paused():
    """An evaluation may be asked for at any time, and measures the weights of that time."""
    engine = part_engine()
    losses = [engine.evaluate(VALID)["loss"]]
    for until in ("optimizer_update", "after_epoch", None):
        run = engine.run(until=until)
        losses.append(engine.evaluate(VALID)["loss"])
        assert losses[-1] == by_hand(run.network)["loss"]
    assert run.state == "finished"
    assert len(set(losses)) == 4  # the forward pass before the first update has changed the running averages


# -- predict


@pytest.mark.parametrize("name", DATA)
def test_predict_yields_the_output_of_each_batch_in_order(name):
    """One output a batch, in the data's own order, in evaluation mode, without gradients."""
    engine = part_engine()
    found = list(engine.predict(DATA[name]()))
    network = engine.current.network.eval()
    with torch.no_grad():
        assert equal(found, [network(data) for data, _ in in_threes()])
    assert [output.requires_grad for output in found] == [False] * 3


def test_predict_takes_data_without_targets():
    """A batch, or a dataset's sample, may be a bare tensor."""
    engine = part_engine()
    expected = list(engine.predict(VALID))
    assert equal(list(engine.predict(VALID.tensors[0])), expected)
    assert equal(list(engine.predict([data for data, _ in in_threes()])), expected)


def test_predict_reads_a_batch_when_its_output_is_asked_for():
    """It is lazy: of the data no more is read than was asked for, and between two outputs the modes are the run's."""
    engine = part_engine()
    network = engine.current.network.train()
    asked: list[int] = []

    class Loader:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[Any]:
            for number, batch in enumerate(in_threes()):
                asked.append(number)
                yield batch

    outputs = engine.predict(Loader())
    for number in range(2):
        next(outputs)
        assert asked == list(range(number + 1))
        assert set(modes(network).values()) == {True}
    outputs.close()
    assert asked == [0, 1]


def test_predict_yields_the_output_that_compute_loss_gives():
    """With a `compute_loss` the network is called as it calls it."""

    def loss(network: nn.Module, batch: Any) -> LossOutput:
        output = network(batch["x"])
        return LossOutput(nn.functional.cross_entropy(output, batch["y"]), output=output)

    engine = part_engine(compute_loss=loss, loader=batches(3))
    found = list(engine.predict([{"x": data, "y": target} for data, target in in_threes()]))
    network = engine.current.network.eval()
    with torch.no_grad():
        assert equal(found, [network(data) for data, _ in in_threes()])


def test_predict_needs_an_output():
    """A `compute_loss` that gives a bare loss has nothing to yield."""
    engine = part_engine(compute_loss=lambda network, batch: network(batch[0]).mean())
    with pytest.raises(EngineError, match=r"predict needs a compute_loss that returns LossOutput\(value, output=…\)"):
        next(engine.predict(VALID))


# -- errors

WRONG: dict[str, tuple[Callable[[], Any], type[EngineError], str]] = {
    "nothing, sized": (list, DataError, "no batches"),
    "nothing, unsized": (lambda: Unsized([]), DataError, "yield nothing"),
    "an empty dataset": (lambda: TensorDataset(torch.zeros(0, FEATURES)), DataError, "is empty"),
    "a loader that ends early": (lambda: Sized(in_threes(), 5), DataError, "5 batches.* after 3"),
    "what is no data": (lambda: 7, DataError, "re-iterable of batches, got an int"),
    "a batch that is no pair": (
        lambda: [(*VALID.tensors, 1)],
        DataError,
        r"must be \(data, target\), got a tuple of 3",
    ),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("wrong", WRONG)
def test_data_that_cannot_be_evaluated_are_an_error(wrong, verb):
    """The data of an evaluation are held to what those of training are held to."""
    data, error, match = WRONG[wrong]
    with pytest.raises(error, match=match):
        VERBS[verb](part_engine(), data())


@pytest.mark.parametrize("verb", VERBS)
def test_a_dataset_needs_a_batch_size(verb):
    """An engine that was given a loader has none; the error says to pass a loader here too."""
    with pytest.raises(ConfigError, match=r"holds samples, and this engine has no batch_size.*pass a DataLoader"):
        VERBS[verb](part_engine(loader=batches(3)), VALID)


@pytest.mark.parametrize("metrics", [{"loss": right}, {"accuracy": 0.5}], ids=["the name loss", "no function"])
def test_metrics_are_functions_by_a_name_of_their_own(metrics):
    """`loss` is always measured, and a metric is called with output and batch."""
    with pytest.raises(ConfigError, match="metrics maps names to functions"):
        part_engine().evaluate(VALID, metrics)


def test_what_the_data_raise_is_raised_unchanged_and_says_where():
    """As in training, the same object comes through, with a note that names the place."""
    error = OSError("gone")

    class Torn(Samples):
        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise error
            return VALID[index]

    engine = part_engine()
    with pytest.raises(OSError, match="gone") as caught:
        engine.evaluate(Torn())
    assert caught.value is error
    assert any("in the body of before_step (epoch 0, batch 1, step 1" in note for note in error.__notes__)
    assert engine.run().state == "finished"


def test_a_list_holds_what_the_training_data_are():
    """Samples where `Components.dataset` is a list, else batches."""
    samples = [VALID[index] for index in range(SAMPLES)]
    network = Part()
    parts = {"network": network, "criterion": nn.CrossEntropyLoss(), "optimizer": torch.optim.SGD(network.parameters())}
    config = RunConfig(epochs=1, batch_size=4, device="cpu")
    on_samples = Engine(Components(dataset=[TRAIN[index] for index in range(8)], **parts), config)
    on_dataset = Engine(Components(dataset=TRAIN, **parts), config)
    batched = [VALID[:4], VALID[4:]]
    expected = on_dataset.evaluate(VALID)
    assert on_samples.evaluate(samples) == expected
    assert on_dataset.evaluate(batched) == expected
    assert len(list(on_samples.predict(samples))) == 2


def test_what_can_be_indexed_and_not_iterated_over_holds_samples():
    """A loader can be iterated over."""

    class Indexed:
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> Any:
            return VALID[index]

    network = Part()
    parts = {"network": network, "criterion": nn.CrossEntropyLoss(), "optimizer": torch.optim.SGD(network.parameters())}
    engine = Engine(Components(dataset=TRAIN, **parts), RunConfig(epochs=1, batch_size=4, device="cpu"))
    assert engine.evaluate(Indexed()) == engine.evaluate(VALID)


@pytest.mark.parametrize("value", [None, "good", {"accuracy": 1.0}, (1.0, 2.0), False, torch.ones(2) * 1j])
def test_a_metric_that_returns_no_numbers_is_an_error_with_its_name(value: Any):
    """A comparison with the whole batch gives False, and would be an accuracy of 0 for ever."""
    network = Part()
    parts = {"network": network, "criterion": nn.CrossEntropyLoss(), "optimizer": torch.optim.SGD(network.parameters())}
    engine = Engine(Components(dataset=TRAIN, **parts), RunConfig(epochs=1, batch_size=4, device="cpu"))
    with pytest.raises(EngineError, match=r"metrics\['odd'\] must return a tensor or a number") as caught:
        engine.evaluate(VALID, {"odd": lambda output, batch: value})
    assert ("its arguments are (output, batch)" in str(caught.value)) == (value is False)


def test_a_metric_without_an_output_says_what_gives_one():
    """A loss alone says nothing of what the network gave."""
    network = Part()

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    optimizer = torch.optim.SGD(network.parameters())
    parts = Components(dataset=TRAIN, network=network, compute_loss=compute_loss, optimizer=optimizer)
    engine = Engine(parts, RunConfig(epochs=1, batch_size=4, device="cpu"))
    with pytest.raises(AttributeError) as caught:
        engine.evaluate(VALID, {"accuracy": lambda output, batch: output.argmax(1) == batch[1]})
    notes = caught.value.__notes__
    assert notes[0] == "heptad: in metrics['accuracy']"
    assert notes[1].endswith("let compute_loss return LossOutput(value, output=…)")


def test_a_batch_of_weight_0_counts_for_nothing():
    """Its mean was taken over nothing; a weight below 0 is an error."""
    network = Part()
    weights_of = iter([3, 0, 3, -1])

    def compute_loss(network: nn.Module, batch: Any) -> LossOutput:
        weight = next(weights_of)
        return LossOutput(network(batch).sum() * (1.0 if weight else float("nan")), weight)

    optimizer = torch.optim.SGD(network.parameters())
    parts = Components(loader=[VALID[:][0]], network=network, compute_loss=compute_loss, optimizer=optimizer)
    engine = Engine(parts, RunConfig(epochs=1, device="cpu"))
    one = VALID[:2][0]
    assert engine.evaluate([one, one])["loss"] == engine.evaluate([one])["loss"]
    with pytest.raises(
        EngineError, match=r"LossOutput\.weight must be a number from 0 on, or a 0-dim tensor of one; got -1"
    ):
        engine.evaluate([one])


def test_a_container_that_cannot_be_built_anew_is_evaluated_where_it_is():
    """On the CPU nothing is moved, as in training."""
    network = Part()
    batch = defaultdict(list, x=VALID[:][0], y=VALID[:][1])

    def compute_loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(network(batch["x"]), batch["y"])

    optimizer = torch.optim.SGD(network.parameters())
    parts = Components(loader=[batch], network=network, compute_loss=compute_loss, optimizer=optimizer)
    assert Engine(parts, RunConfig(epochs=1, device="cpu")).evaluate([batch])["loss"] > 0


# -- gradients


class Caching(nn.Module):
    """Keeps a table of positions when it is first asked for it, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, CLASSES)
        self.table: torch.Tensor | None = None

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, CLASSES).cos()
        return self.body(data) * self.table


class Force(nn.Module):
    """Takes a gradient inside, as a network that predicts forces does."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            data = data.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(data).sum(), data, create_graph=True)
        return self.head(force)


def engine_of(network: nn.Module) -> Engine:
    """Return an engine that trains a network on the samples."""
    return Engine(small_components(network, dataset=TRAIN), RunConfig(epochs=1, batch_size=4, device="cpu"))


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_network_keeps_in_an_evaluation_can_be_trained_on(verb):
    """The next step saves it for its backward pass."""
    engine, plain = engine_of(Caching()), engine_of(Caching())
    plain.current.network.load_state_dict(engine.current.network.state_dict())
    VERBS[verb](engine, VALID)
    assert equal(weights(engine.run().network), weights(plain.run().network))


@pytest.mark.parametrize("verb", VERBS)
def test_a_network_may_take_gradients_inside(verb):
    """What it gives has no graph, so that a metric which gathers outputs keeps none alive."""
    kept: list[torch.Tensor] = []
    engine = engine_of(Force())
    engine.current.network.train()
    found = engine.evaluate(VALID, {"keep": lambda output, batch: kept.append(output) or 0.0})
    kept += list(engine.predict(VALID))
    assert found["loss"] == pytest.approx(
        nn.functional.cross_entropy(engine.current.network(VALID[:][0]), VALID[:][1]).item()
    )
    assert [output.requires_grad for output in kept] == [False] * 4


def test_inference_mode_is_there_for_those_who_ask():
    """Of an evaluation, of a run's, and of a prediction."""
    seen: list[bool] = []
    engine = engine_of(Part())
    metrics = {"mode": lambda output, batch: seen.append(output.is_inference()) or 0.0}
    plain = engine.evaluate(VALID, metrics)
    assert engine.evaluate(VALID, metrics, inference_mode=True) == plain
    engine.on_exit("before_loop")(lambda run: run.evaluate(VALID, metrics, inference_mode=True))
    engine.run()
    assert seen == [False] * 2 + [True] * 4
    assert [output.is_inference() for output in engine.predict(VALID, inference_mode=True)] == [True] * 2
    assert [output.is_inference() for output in engine.predict(VALID)] == [False] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference": True}, "there is no option inference; did you mean 'inference_mode'"),
        ({"inference_mode": 1}, "1"),
    ],
)
def test_an_unknown_option_is_refused(options: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        engine_of(Part()).evaluate(VALID, **options)
