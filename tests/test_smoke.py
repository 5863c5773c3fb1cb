"""`engine.smoke()`: two updates, an evaluation and a checkpoint, after which the run is the one that had none."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from builders import CLASSES, FEATURES, Unsized, batches, equal, small_components, small_engine, small_network, weights
from heptad import Detour, Engine, EngineError, Plugin, Run, RunConfig, find_learning_rate
from heptad.checkpoints.store import Store
from heptad.data.generators import global_states
from heptad_plugins import Checkpoint, CSVLogger, EarlyStopping, Evaluate, Journal, LRSchedule
from scenario import FEEDS, digest, full_engine, outcome, path_of

torch.set_num_threads(1)


def both(build: Any) -> tuple[Engine, Engine]:
    """Return an engine that was smoked, and one that was not, after their runs."""
    smoked, plain = build("smoked"), build("plain")
    smoked.smoke()
    for engine in (smoked, plain):
        engine.run()
    return smoked, plain


@pytest.mark.parametrize("feed", FEEDS)
def test_a_run_after_it_is_the_run_that_had_none(feed, tmp_path: Path):
    """Weights, optimizer, generators, values, plugins and log, whatever the data come from."""

    def build(name: str) -> Engine:
        return full_engine(tmp_path, feed=feed, checkpoint=Checkpoint(tmp_path / name, every=100))

    smoked, plain = both(build)
    assert outcome(smoked) == outcome(plain)
    assert path_of(smoked.current.log) == path_of(plain.current.log)
    notes = [[note.kind for note in engine.current.log.notes()] for engine in (smoked, plain)]
    assert notes[0] == notes[1]


class Counts(Plugin):
    """Counts in a state, in a list and in a dict, and has a generator of its own."""

    def __init__(self) -> None:
        self.count, self.seen, self.by_epoch = 0, ["before"], {"before": [1]}
        self.generator = random.Random(4)

    def on_exit_optimizer_update(self, run: Run) -> None:
        self.count += 1
        self.seen.append(str(run.update))
        self.by_epoch["before"].append(run.update)
        self.by_epoch[f"{run.epoch}"] = [self.count]
        self.added = self.generator.random()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def everything(engine: Engine, *more: Any) -> str:
    """Return a digest of what a smoke run might change."""
    components = engine.current.components
    network: Any = components.network
    optimizers = [optimizer.state_dict() for optimizer in [components.optimizer] if hasattr(optimizer, "state_dict")]
    modes = [(module.training, sorted(vars(module))) for module in network.modules()]
    grads = [(parameter.grad, parameter.requires_grad) for parameter in network.parameters()]
    run = engine.current
    where = [run.state, run.step, run.id, run.metrics, run.paused, len(run.log), run.total_updates]
    return digest([network.state_dict(), modes, grads, optimizers, global_states(), where, *more])


def test_everything_stands_where_it_stood():
    """At once, not only after the next run has begun: plugins with their attributes too."""
    counts, torch_generator = Counts(), torch.Generator().manual_seed(3)
    network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    network[0].weight.grad = torch.ones(8, FEATURES)
    network[1].eval()
    data = TensorDataset(torch.randn(12, FEATURES), torch.arange(12) % CLASSES)
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=torch_generator)
    components = small_components(network, loader=loader, optimizer=torch.optim.AdamW(network.parameters()))
    engine = Engine(components, RunConfig(epochs=3, accumulation=2), [counts])
    torch.rand(3), random.random(), np.random.rand()

    def now() -> str:
        # sorted: the state of a random.Random holds nothing else
        plugin = {name: value for name, value in vars(counts).items() if name != "generator"}
        return everything(engine, plugin, counts.generator.getstate(), torch_generator.get_state(), loader._iterator)

    before = now()
    run = engine.smoke()
    assert now() == before
    assert (run.update, run.step, run.state) == (2, 4, "finished")
    assert engine.run().update == 9


def test_files_of_plugins_are_left_alone(tmp_path: Path):
    """A CSV file, a journal and the directory of checkpoints: none is made, none is written to."""
    plugins = [CSVLogger(tmp_path / "log.csv"), Journal(tmp_path / "log.journal"), Checkpoint(tmp_path / "kept")]
    engine = small_engine(3, plugins, epochs=2)
    engine.smoke()
    assert list(tmp_path.iterdir()) == []
    engine.run()
    assert len(Store(tmp_path / "kept").entries()) == 2


def test_checkpoints_of_an_earlier_run_are_left_alone_and_resumed_from_afterwards(tmp_path: Path):
    """A run that does not resume would refuse that directory; a smoke run does not look at it."""

    def build(**config: Any) -> Engine:
        return small_engine(3, [Checkpoint(tmp_path, keep_last=9)], **config)

    build(epochs=1).run()
    straight = small_engine(3, epochs=2).run()
    engine = build(epochs=2)
    engine.smoke()
    assert len(Store(tmp_path).entries()) == 1
    run = engine.run(resume="auto")
    assert digest(run.network.state_dict()) == digest(straight.network.state_dict())


@pytest.mark.parametrize(
    "given",
    [{}, {"every": 2}, {"at": "optimizer_update"}, {"at": "optimizer_update", "every": 500}, {"at": "after_step"}],
    ids=str,
)
def test_an_evaluation_is_made_though_none_would_be_due(given):
    """Plugins that look for its value when the epoch ends find one."""
    plugins = [Evaluate(batches(2), **given), EarlyStopping("valid/loss", patience=2)]
    engine = small_engine(9, plugins if given.get("every") != 2 else plugins[:1], epochs=3)
    assert engine.smoke().metrics["valid/loss"] > 0
    assert engine.current.metrics == {}


def test_a_checkpoint_is_written_and_read(monkeypatch: pytest.MonkeyPatch):
    """In a folder that is gone afterwards; what cannot be stored is found before the run."""
    saved: list[Path] = []
    save = Store.save
    monkeypatch.setattr(Store, "save", lambda self, snapshot: (saved.append(self.directory), save(self, snapshot))[1])
    small_engine(3).smoke()
    assert len(saved) == 1
    assert not saved[0].exists()

    class Holds(Plugin):
        def state_dict(self) -> dict[str, Any]:
            return {"held": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    with pytest.raises(Exception, match="held"):
        small_engine(3, [Holds()]).smoke()


class Breaks(Plugin):
    """Fails in the second update."""

    def on_enter_optimizer_update(self, run: Run) -> None:
        if run.update == 1:
            raise ValueError("broken")


def test_a_mistake_is_raised_and_everything_put_back():
    """With its place, as the run would raise it; the engine has not failed."""
    engine = small_engine(4, [Breaks()], epochs=2)
    before = everything(engine)
    with pytest.raises(ValueError, match="broken") as caught:
        engine.smoke()
    assert "on entry to optimizer_update" in caught.value.__notes__[0]
    assert everything(engine) == before
    assert engine.current.state == "idle"


def test_networks_and_optimizers_that_only_a_loss_holds_are_put_back():
    """In its closure: a teacher that is trained beside."""
    teacher = small_network()
    with torch.no_grad():
        teacher.weight.mul_(2)
    own = torch.optim.Adam(teacher.parameters(), lr=0.1)

    def loss(network: nn.Module, batch: Any) -> torch.Tensor:
        own.zero_grad()
        nn.functional.cross_entropy(teacher(batch[0]), batch[1]).backward()
        own.step()
        return (network(batch[0]) - teacher(batch[0]).detach()).square().mean()

    components = small_components(compute_loss=loss)
    engine = Engine(components, RunConfig(epochs=2))
    before = digest([teacher.state_dict(), own.state_dict()])
    engine.smoke()
    assert digest([teacher.state_dict(), own.state_dict()]) == before


def test_side_optimizers_are_put_back():
    """With the networks that only they hold."""
    other, network = small_network(), small_network()
    side = torch.optim.Adam(other.parameters(), lr=0.1)
    components = small_components(network, side_optimizers={"other": side})
    engine = Engine(components, RunConfig(epochs=2))

    @engine.on_exit("process_batch")
    def train(run: Run) -> None:
        other(run.batch[0]).sum().backward()
        run.side_optimizers["other"].step()

    before = digest([other.state_dict(), side.state_dict()])
    engine.smoke()
    assert digest([other.state_dict(), side.state_dict()]) == before


def test_schedules_take_part_with_the_length_of_the_whole_run():
    """The scheduler's hold on the optimizer is undone, and its length is not that of two updates."""
    lengths: list[int] = []

    def schedule(optimizer: Any, total: int) -> Any:
        lengths.append(total)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=total)

    engine = small_engine(4, [LRSchedule(schedule)], epochs=3)
    optimizer: Any = engine.current.components.optimizer
    before = deepcopy(optimizer.state_dict()), sorted(vars(optimizer))
    engine.smoke()
    assert (optimizer.state_dict(), sorted(vars(optimizer))) == before
    engine.run()
    assert lengths == [12, 12]


@pytest.mark.parametrize(
    ("config", "updates"),
    [
        ({"epochs": 1}, 2),
        ({"epochs": 0}, 0),
        ({"max_updates": 1}, 1),
        ({"epochs": 3, "accumulation": 2}, 2),
        ({"epochs": 2, "accumulation": 5, "remainder": "drop"}, 0),
        ({"epochs": 1, "accumulation": 2, "remainder": "flush"}, 2),
        ({"epochs": 4, "limit_batches": 1}, 2),
    ],
)
@pytest.mark.parametrize("wrap", [list, Unsized])
def test_two_updates_are_made_or_all_that_the_run_has(wrap, config, updates):
    """Whatever the shape of the run."""
    engine = small_engine(wrap(batches(3)), **config)
    assert engine.smoke().update == updates
    assert engine.current.state == "idle"


def test_updates_that_are_all_skipped_end_it_too():
    """It does not wait for an update that may not come."""

    class Skips(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            run.skip_update("always")

    assert small_engine(4, [Skips()], epochs=100).smoke().step == 8


def test_pauses_do_not_end_it():
    """A plugin that pauses after each step."""

    class Pauses(Plugin):
        def on_exit_after_step(self, run: Run) -> None:
            run.pause("after each step")

    engine = small_engine(4, [Pauses()], epochs=2, accumulation=2)
    tried = engine.smoke()
    assert (tried.update, tried.state, engine.current.state) == (2, "finished", "idle")


def test_functions_take_part_as_handlers():
    """With their filters."""
    heard: list[int] = []
    engine = small_engine(4, epochs=2)
    engine.on_exit("after_step", every=2)(lambda run: heard.append(run.step))
    engine.on_exit("after_step", every=4, first=1)(lambda run: heard.append(-run.step))
    engine.smoke()
    assert heard == [-1, 2]
    engine.run()
    assert heard == [-1, 2, -1, 2, 4, -5, 6, 8]


def test_detours_of_plugins_that_change_the_run_are_taken():
    """An observer's are not, but for evaluations."""
    taken: list[str] = []

    def side(name: str, observes_it: bool) -> Plugin:
        class Adds(Plugin):
            observes = observes_it

            def detours(self) -> list[Detour]:
                return [Detour(name, "optimizer_update", lambda run: True, lambda run: taken.append(name), every=1)]

        Adds.name = name
        return Adds()

    small_engine(4, [side("samples", True), side("evaluate", True), side("mix", False)]).smoke()
    assert sorted(taken) == ["evaluate", "evaluate", "mix", "mix"]


def test_data_that_can_be_iterated_once_are_refused():
    """They would be used up."""
    engine = small_engine(iter(batches(3)), epochs=1)
    with pytest.raises(EngineError, match=r"can be iterated once.*__iter__ begins anew"):
        engine.smoke()
    assert engine.run().step == 3


def test_it_comes_before_the_run():
    """Not in the middle, not from a handler, not after it."""
    engine = small_engine(3)
    engine.run(until="after_step")
    with pytest.raises(EngineError, match=r"smoke\(\) was called on a run that is in after_step; call it before run"):
        engine.smoke()
    engine.run()
    with pytest.raises(EngineError, match="finished"):
        engine.smoke()
    inside = small_engine(3)
    inside.on_exit("after_step", once=True)(lambda run: inside.smoke())
    with pytest.raises(EngineError, match=r"smoke\(\) was called from a handler"):
        inside.run()


def test_it_can_be_made_again():
    """Each is the same."""
    engine = small_engine(4, [Evaluate(batches(2))], epochs=3)
    assert engine.smoke().metrics == engine.smoke().metrics


class Lookahead:
    """An optimizer around another: it has slow weights of its own, and is no `Optimizer`."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.count = inner, 0
        self.param_groups = inner.param_groups
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    def step(self) -> None:
        self.inner.step()
        self.count += 1
        for slow, fast in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
            slow.lerp_(fast.detach(), 0.5)
            if self.count % 2 == 0:
                fast.data.copy_(slow)

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": self.slow, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.slow, self.count = state["slow"], state["count"]


class Teaches:
    """A loss that holds a network, a generator, numbers and a count of its own."""

    def __init__(self) -> None:
        self.teacher = small_network()
        self.dice = torch.Generator().manual_seed(3)
        self.shift = np.zeros(1)
        self.calls = 0

    def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
        self.calls += 1
        self.shift += 0.01
        with torch.no_grad():
            self.teacher.weight.add_(0.1)
        noise = torch.rand((), generator=self.dice) + self.shift[0] + 0.001 * self.calls
        return (network(batch[0]) - self.teacher(batch[0])).square().mean() * noise

    __call__ = loss


class Scales(Plugin):
    """Scales gradients by a tensor that grows in place."""

    def __init__(self, *, stores: bool) -> None:
        self.scale, self.array = torch.ones(1), np.ones(1)
        if stores:
            self.state_dict = lambda: {"scale": self.scale, "array": self.array}
            self.load_state_dict = self.restore

    def restore(self, state: dict[str, Any]) -> None:
        self.scale, self.array = state["scale"], state["array"]

    def on_enter_optimizer_update(self, run: Run) -> None:
        self.scale += 0.5
        self.array += 0.25
        for parameter in run.network.parameters():
            parameter.grad.mul_(self.scale.item() * self.array.item())


@pytest.mark.parametrize("kind", ["wrapper", "method", "object", "plugin", "plugin with a state"])
def test_what_parts_of_the_users_own_hold_is_put_back(kind):
    """The weights are those of a run without it."""

    def build() -> Engine:
        network = small_network()
        plugins: list[Plugin] = []
        given: dict[str, Any] = {}
        if kind == "wrapper":
            given["optimizer"] = Lookahead(torch.optim.SGD(network.parameters(), lr=0.1))
        elif kind in ("method", "object"):
            given["compute_loss"] = Teaches().loss if kind == "method" else Teaches()
        else:
            plugins = [Scales(stores="state" in kind)]
        return Engine(small_components(network, loader=batches(5), **given), RunConfig(epochs=2), plugins)

    straight, tried = build(), build()
    tried.smoke()
    assert equal(weights(straight.run().network), weights(tried.run().network))


def test_parts_that_have_no_shape_yet_are_refused():
    """What they become could not be undone."""
    network = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))
    engine = Engine(small_components(network), RunConfig(epochs=1))
    with pytest.raises(EngineError, match=r"run one batch through it before smoke\(\)"):
        engine.smoke()
    assert engine.current.state == "idle"


class Draws(Dataset[Any]):
    """Draws its samples, from a generator of its own or by a transform, and keeps a list of those that were asked for.

    Args:
        transform: Called with each sample.
    """

    def __init__(self, transform: Any = None) -> None:
        self.dice, self.transform = random.Random(1), transform or (lambda sample: sample)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, place: int) -> Any:
        self.asked.append(place)
        return self.transform(torch.full((FEATURES,), self.dice.random() + len(self.asked))), place % CLASSES


class Shakes:
    """A transform with a generator of its own, made of others as it may be."""

    def __init__(self, *others: Any) -> None:
        self.dice, self.others = np.random.default_rng(2), list(others)

    def __call__(self, sample: torch.Tensor) -> torch.Tensor:
        for other in self.others:
            sample = other(sample)
        return sample * self.dice.random()


DATA = {
    "a dataset": Draws,
    "a subset of a subset": lambda: Subset(Subset(Draws(Shakes()), range(12)), range(12)),
    "datasets in a row": lambda: ConcatDataset([Draws(), Draws(Shakes())]),
    "a transform": lambda: Draws(Shakes()),
    "transforms in one": lambda: Draws(Shakes(Shakes(), Shakes(Shakes()))),
}


@pytest.mark.parametrize("trial", [Engine.smoke, find_learning_rate])
@pytest.mark.parametrize("loaded", [True, False], ids=["in a shuffling loader", "as a dataset"])
@pytest.mark.parametrize("kind", DATA)
def test_what_data_draw_from_is_put_back(kind: str, loaded: bool, trial: Any):
    """Wherever it lies in the data: a loader reaches its dataset by its samplers too, from further away."""

    def build() -> Engine:
        data = DATA[kind]()
        given = {"loader": DataLoader(data, batch_size=3, shuffle=True)} if loaded else {"dataset": data}
        return Engine(small_components(**given), RunConfig(epochs=2, **({} if loaded else {"batch_size": 3})))

    straight, tried = build(), build()
    trial(tried)
    assert equal(weights(tried.run().network), weights(straight.run().network))
