"""Options of `Evaluate`: where it is done, on how much, with which loss, and what becomes of the generators."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from builders import CLASSES, FEATURES, Unsized, batches, equal, small_components, small_engine, small_network, weights
from heptad import Engine, EngineError, LossOutput, Plugin, PluginError, RunConfig
from heptad.testing import check_plugin
from heptad_plugins import Checkpoint, Evaluate

VALID = batches(4, size=3)


def accuracy(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return output.argmax(1) == batch[1]


def loss_over(network: nn.Module, data: list[Any]) -> float:
    """Return the mean loss over batches of one size, written out."""
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(network(x), y).double().item() for x, y in data]
    return sum(losses) / len(losses)


def evaluated_at(run: Any) -> list[tuple[int, int]]:
    """Return step and update of each evaluation."""
    return [(value.step, value.update) for value in run.records() if value.name == "valid/loss"]


# -- where


@pytest.mark.parametrize("epochs", [0, 1])
def test_before_the_loop_the_weights_to_begin_with_are_evaluated(epochs):
    """Once, in a state between `before_loop` and the first epoch, also of a run that trains nothing."""
    run = small_engine(3, [Evaluate(VALID, at="before_loop")], epochs=epochs).run()
    assert run.log.path()[:3] == ["idle", "before_loop", "evaluate"]
    assert run.history("valid/loss") == [pytest.approx(loss_over(small_network(), VALID))]
    assert evaluated_at(run) == [(0, 0)]
    assert equal(weights(run.network), weights(small_engine(3, epochs=epochs).run().network))


def test_it_may_be_done_at_several_places_and_once_for_the_same_weights():
    """The end of an epoch is not evaluated again after its last update has been."""
    at = ("before_loop", "optimizer_update", "after_epoch")
    run = small_engine(3, [Evaluate(VALID, at=at)], epochs=2).run()
    assert evaluated_at(run) == [(step, step) for step in range(7)]
    run = small_engine(3, [Evaluate(VALID, at=("optimizer_update", "after_step"))]).run()
    assert evaluated_at(run) == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]


def test_every_counts_what_ends_at_each_place():
    """Every second update, and the end of every second epoch."""
    run = small_engine(3, [Evaluate(VALID, at=("optimizer_update", "after_epoch"), every=2)], epochs=3).run()
    assert [update for _, update in evaluated_at(run)] == [2, 4, 6, 8]
    run = small_engine(5, [Evaluate(VALID, at=("optimizer_update", "after_epoch"), every=2)], epochs=2).run()
    assert [update for _, update in evaluated_at(run)] == [2, 4, 6, 8, 10]


def test_a_predicate_decides_as_well():
    run = small_engine(3, [Evaluate(VALID, at="after_step", when=lambda run: run.step > 4)], epochs=2).run()
    assert [step for step, _ in evaluated_at(run)] == [5, 6]
    run = small_engine(3, [Evaluate(VALID, when=lambda run: run.epoch != 1)], epochs=3).run()
    assert [step for step, _ in evaluated_at(run)] == [3, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": ()}, r"Evaluate\(at=…\) names one or several"),
        ({"at": ("after_step", "after_step")}, "each once"),
        ({"at": ("after_step", "nowhere")}, r"Evaluate\(at=…\) must be"),
        ({"when": True}, r"Evaluate\(when=…\) must be a function"),
        ({"limit": 0}, "limit must be a whole number from 1 on, got 0"),
        ({"limit": True}, "limit must be a whole number"),
        ({"compute_loss": nn.CrossEntropyLoss}, "compute_loss must be a function"),
        ({"inputs": 3}, "inputs must be a function"),
        ({"preserve_rng": None}, "preserve_rng must be True or False"),
        ({"limits": 1}, "there is no option limits; did you mean 'limit'"),
    ],
)
def test_bad_options_are_refused_where_they_are_written(options, message):
    with pytest.raises(PluginError, match=message):
        Evaluate(VALID, **options)


# -- how much

SOURCES = {
    "a list": lambda: VALID,
    "batches of unknown length": lambda: Unsized(VALID),
    "a loader": lambda: DataLoader(
        TensorDataset(torch.cat([x for x, _ in VALID]), torch.cat([y for _, y in VALID])), batch_size=3
    ),
}


@pytest.mark.parametrize("limit", [1, 3, 9])
@pytest.mark.parametrize("source", SOURCES)
def test_no_more_batches_than_the_limit_are_evaluated(source, limit):
    """The mean is over these; a limit beyond the data changes nothing."""
    engine = small_engine(3)
    expected = pytest.approx(loss_over(small_network(), VALID[:limit]))
    data = SOURCES[source]()
    assert [engine.evaluate(data, limit=limit)["loss"] for _ in range(2)] == [expected] * 2
    run = small_engine(3, [Evaluate(SOURCES[source](), at="before_loop", limit=limit)]).run()
    assert run.history("valid/loss") == [expected]


def test_beyond_the_limit_nothing_is_read():
    """Data that never end can be evaluated on."""
    read: list[int] = []

    class Endless:
        def __iter__(self) -> Any:
            for number in range(1 << 30):
                read.append(number)
                yield VALID[number % 4]

    assert small_engine(3).evaluate(Endless(), limit=6)["loss"] > 0
    assert read == [0, 1, 2, 3, 4, 5]


# -- the loss


class Detector(nn.Module):
    """Gives a loss in training mode and guesses in evaluation mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, CLASSES)

    def forward(self, data: torch.Tensor, target: torch.Tensor | None = None) -> Any:
        output = self.body(data)
        return {"loss": nn.functional.cross_entropy(output, target)} if self.training else output


def detector_engine(*plugins: Plugin) -> Engine:
    components = small_components(
        Detector(), loader=batches(3), compute_loss=lambda network, batch: sum(network(*batch).values())
    )
    return Engine(components, RunConfig(epochs=2), plugins)


def test_where_there_is_no_loss_none_is_recorded():
    """A detector gives guesses when it is evaluated; only metrics are measured of them."""

    def guess(network: nn.Module, batch: Any) -> LossOutput:
        return LossOutput(None, output=network(batch[0]))

    run = detector_engine(Evaluate(VALID, {"accuracy": accuracy}, compute_loss=guess)).run()
    assert run.metrics.keys() == {"valid/accuracy"}
    engine = detector_engine()
    assert engine.evaluate(VALID, compute_loss=guess) == {}
    with torch.no_grad():
        expected = [engine.current.network.body(x) for x, _ in VALID]
    assert equal(list(engine.predict(VALID, compute_loss=guess)), expected)


def test_an_evaluation_may_have_a_loss_of_its_own():
    def error(network: nn.Module, batch: Any) -> LossOutput:
        output = network(batch[0])
        return LossOutput((output - 1).abs().mean(), weight=len(output), output=output)

    whole = torch.cat([x for x, _ in VALID])
    engine = small_engine(3, [Evaluate(VALID, {"accuracy": accuracy}, at="before_loop", compute_loss=error)])
    with torch.no_grad():
        expected = (small_network()(whole) - 1).abs().mean().item()
    assert engine.run().history("valid/loss") == [pytest.approx(expected)]


def test_a_batch_without_a_loss_adds_nothing():
    """`None` in place of a loss: neither to the mean nor to the metrics."""

    def some(network: nn.Module, batch: Any) -> Any:
        output = network(batch[0])
        if batch[0] is VALID[1][0]:
            return None
        return LossOutput(nn.functional.cross_entropy(output, batch[1]), len(output), output)

    rest = [VALID[0], *VALID[2:]]
    engine = small_engine(3)
    assert engine.evaluate(VALID, {"a": accuracy}, compute_loss=some) == engine.evaluate(rest, {"a": accuracy})


def test_a_network_that_gives_no_output_has_nothing_to_measure():
    """The error of the metric says how to give one."""
    engine = detector_engine()
    with pytest.raises(AttributeError) as caught:
        engine.evaluate(VALID, {"accuracy": accuracy}, compute_loss=lambda network, batch: network(batch[0]).mean())
    assert any("LossOutput(value, output=…)" in note for note in caught.value.__notes__)


# -- the generators


def data_of(seed: int, samples: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset(data, torch.randint(0, CLASSES, (samples,), generator=generator))


def dropping() -> nn.Module:
    """Return a network that draws in training."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))


def plain_loop(epochs: int, *, shuffle: bool) -> tuple[list[torch.Tensor], list[float]]:
    """Return weights and validation losses of a script's loop, whose loaders draw from the global generator."""
    network = dropping()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    train, valid = DataLoader(data_of(1, 12), 4, shuffle=True), DataLoader(data_of(2, 8), 4, shuffle=shuffle)
    torch.manual_seed(0)
    losses: list[float] = []
    for _ in range(epochs):
        network.train()
        for data, target in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data), target).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            each = [nn.functional.cross_entropy(network(data), target).double() for data, target in valid]
        losses.append((sum(each) / len(each)).item())
    return weights(network), losses


def drawing_engine(directory: Any = None, *, shuffle: bool = False, preserve: bool = False) -> Engine:
    """Return an engine that does the same."""
    network = dropping()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    components = small_components(network, loader=DataLoader(data_of(1, 12), 4, shuffle=True), optimizer=optimizer)
    valid = Evaluate(DataLoader(data_of(2, 8), 4, shuffle=shuffle), {"accuracy": accuracy}, preserve_rng=preserve)
    saves = [] if directory is None else [Checkpoint(directory, at="after_step")]
    return Engine(components, RunConfig(epochs=3, seed=0, device="cpu"), [valid, *saves])


@pytest.mark.parametrize("shuffle", [False, True])
def test_without_preserving_generators_a_run_has_the_bits_of_a_loop_that_evaluates(shuffle):
    """`iter(DataLoader)` draws even where it is not shuffled, so the loop's second epoch has another order."""
    expected, losses = plain_loop(3, shuffle=shuffle)
    run = drawing_engine(shuffle=shuffle).run()
    assert equal(weights(run.network), expected)
    assert run.history("valid/loss") == pytest.approx(losses, rel=1e-12)
    assert not equal(weights(drawing_engine(shuffle=shuffle, preserve=True).run().network), expected)


@pytest.mark.parametrize("step", range(1, 9))
def test_what_it_draws_is_resumed_exactly(tmp_path, step):
    straight = drawing_engine(shuffle=True).run()
    drawing_engine(tmp_path, shuffle=True).run(until=lambda run: run.step == step and run.state != "evaluate")
    resumed = drawing_engine(tmp_path, shuffle=True).run(resume="auto")
    assert equal(weights(resumed.network), weights(straight.network))
    assert resumed.history("valid/loss") == straight.history("valid/loss")


def test_one_that_a_pause_has_ended_begins_anew_where_it_had_begun():
    """What it had drawn until then is put back."""
    straight = drawing_engine(shuffle=True).run()
    engine = drawing_engine(shuffle=True)
    asked: list[int] = []

    def ask(module: nn.Module, given: Any, output: Any) -> None:
        if not module.training and engine.current.state == "evaluate" and not asked:
            asked.append(1)
            engine.current.pause("asked by the test")

    engine.current.network.register_forward_hook(ask)
    run = engine.run()
    assert run.state == "evaluate"
    assert equal(weights(engine.run().network), weights(straight.network))
    assert run.history("valid/loss") == straight.history("valid/loss")


def test_the_conformance_kit_is_passed_with_all_options():
    at = ("before_loop", "optimizer_update", "after_epoch")
    check_plugin(lambda: Evaluate(VALID, at=at, every=2, when=lambda run: run.step != 1, limit=1, preserve_rng=False))


def test_a_value_in_training_must_be_a_loss():
    """Only an evaluation does without one."""
    components = small_components(compute_loss=lambda network, batch: LossOutput(None, output=network(batch[0])))
    with pytest.raises(EngineError, match="loss"):
        Engine(components, RunConfig(epochs=1)).run()


def test_the_first_batches_are_those_that_are_evaluated():
    seen: list[Any] = []
    small_engine(3).evaluate(VALID, {"seen": lambda output, batch: seen.append(batch[0]) or 0.0}, limit=2)
    assert equal(seen, [x for x, _ in VALID[:2]])


def test_an_evaluation_that_when_holds_back_is_not_made_up_for():
    """As a handler with `every` and `when`: the numbers stay multiples."""
    seen, heard = [], []
    wanted = lambda run: run.update != 6  # noqa: E731 - one predicate for both
    plugin = Evaluate(VALID, at="optimizer_update", every=3, when=wanted)
    engine = small_engine(6, [plugin], epochs=3)
    engine.on_exit("optimizer_update", every=3, when=wanted)(lambda run: heard.append(run.update))
    engine.on_enter("evaluate")(lambda run: seen.append(run.update))
    engine.run()
    assert seen == heard == [3, 9, 12, 15, 18]


def test_an_evaluation_of_nothing_is_an_error():
    """Who watches its values would wait for ever."""
    nothing = lambda network, batch: LossOutput(None, output=network(batch[0]))  # noqa: E731
    engine = small_engine(3, [Evaluate(VALID, compute_loss=nothing)])
    with pytest.raises(EngineError, match="measured nothing: its compute_loss gives no loss, and it has no metrics"):
        engine.run()


@pytest.mark.parametrize("kind", ["random state", "views"])
def test_a_trial_moves_no_generator_of_a_dataset_and_writes_to_no_batch_of_it(kind):
    """The values are those without it."""

    class Jittered(Dataset):
        def __init__(self):
            self.dice = np.random.RandomState(3)

        def __len__(self):
            return 8

        def __getitem__(self, place):
            return torch.ones(4) * self.dice.rand(), place % 3

    class Writes(nn.Linear):
        def forward(self, data):
            return super().forward(data.mul_(0.5))

    found = []
    for trial in (True, False):
        torch.manual_seed(0)
        network = Writes(4, 3) if kind == "views" else nn.Linear(4, 3)
        valid = batches(2, size=4)
        data = DataLoader(valid, batch_size=None) if kind == "views" else DataLoader(Jittered(), batch_size=4)
        plugin = Evaluate(data, {"mean": lambda output, batch: output.mean()}, trial=trial)
        found.append(small_engine(3, [plugin], network=network).run().metrics)
    assert found[0] == found[1]
