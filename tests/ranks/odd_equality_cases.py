"""Odd runs that several ranks must share with one process, beside the plain ones of `equality_cases`.

`learn` runs in both: on ranks with k steps a window, in the test's own process with k times their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rank_program import Case, Rank
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from builders import CLASSES, FEATURES
from heptad import Components, DataError, Engine, LossOutput, Plugin, RankFailed, Run, RunConfig
from heptad_plugins import SAM, Checkpoint, TrainingMetrics

Given = dict[str, Any]
NUMBER = FEATURES
"""The column that holds the number of a sample, which the network does not see."""

NOTHING = -1.0
"""Noted for the mean loss of nothing."""


class Branching(nn.Module):
    """Two ends, of which a loss may use one; and a part that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.left, self.right = nn.Linear(FEATURES, 5), nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)
        self.unused = nn.Linear(2, 2)
        self.double()

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.left(torch.tanh(self.body(data[:, :NUMBER])))


def tensors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    numbers = torch.arange(count, dtype=torch.float64)[:, None]
    return torch.cat([data, numbers], 1), torch.randint(0, CLASSES, (count,), generator=generator)


class Drawn(Dataset[Any]):
    """Samples with noise, which a transform draws one after the other."""

    def __init__(self, count: int) -> None:
        self._data, self._target = tensors(count)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        noise = torch.zeros(FEATURES + 1, dtype=torch.float64)
        noise[:FEATURES] = torch.randn(FEATURES)
        return self._data[index] + noise, self._target[index]


class Unsized:
    """Batches of one sample, of which nobody knows how many there are."""

    def __init__(self, count: int) -> None:
        self._data, self._target = tensors(count)

    def __iter__(self) -> Any:
        for number in range(len(self._data)):
            yield self._data[number : number + 1], self._target[number : number + 1]


def is_nothing(batch: Any) -> bool:
    """Return whether a batch is to count for nothing: here, by the numbers of its samples."""
    return int(batch[0][:, NUMBER].sum()) % 3 == 0


def some_weigh_nothing(network: nn.Module, batch: Any) -> LossOutput:
    loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
    return LossOutput(loss, weight=0 if is_nothing(batch) else len(batch[0]))


def some_are_constant(network: nn.Module, batch: Any) -> LossOutput:
    if is_nothing(batch):
        return LossOutput(torch.zeros((), dtype=torch.float64), weight=0)
    return some_weigh_nothing(network, batch)


def none_weighs(network: nn.Module, batch: Any) -> LossOutput:
    return LossOutput(nn.functional.cross_entropy(network(batch[0]), batch[1]), weight=0)


def by_branch(network: nn.Module, batch: Any) -> torch.Tensor:
    """Use one end for a batch that holds the last sample, which is in a group that is not full, else the other."""
    assert isinstance(network, Branching)
    end = network.right if int(batch[0][:, NUMBER].max()) == 6 else network.left
    return nn.functional.cross_entropy(end(torch.tanh(network.body(batch[0][:, :NUMBER]))), batch[1])


def by_branch_and_samples(network: nn.Module, batch: Any) -> LossOutput:
    weight = 0 if is_nothing(batch) else len(batch[0])
    return LossOutput(by_branch(network, batch), weight=weight, output=batch[0])


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=0.05, weight_decay=0.1)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)


def lbfgs(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(network.parameters(), lr=0.1, max_iter=3)


@dataclass(frozen=True)
class Odd:
    """A run; `size` is k."""

    data: Callable[[], Any]
    size: int
    loss: Callable[[nn.Module, Any], Any] | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw
    plugins: Callable[[], list[Plugin]] = list
    config: Given = field(default_factory=dict[str, Any])


def plain(count: int) -> Callable[[], Any]:
    return lambda: TensorDataset(*tensors(count))


FLUSH = {"remainder": "flush"}
ODD = {
    "transforms draw in a group that is not full": Odd(lambda: Drawn(17), 2, config={**FLUSH, "batch_size": 3}),
    "transforms draw, and there is one batch": Odd(lambda: Drawn(3), 3, config={**FLUSH, "batch_size": 3}),
    "SAM, and ranks without a batch": Odd(plain(7), 1, by_branch, plugins=lambda: [SAM(0.05)], config=FLUSH),
    "SAM, and steps that weigh nothing": Odd(plain(11), 1, some_weigh_nothing, plugins=lambda: [SAM(0.05)]),
    "LBFGS, and ranks without a batch": Odd(plain(2), 1, some_weigh_nothing, lbfgs, config=FLUSH),
    "LBFGS, and steps that weigh nothing": Odd(plain(12), 1, some_weigh_nothing, lbfgs),
    "constants that weigh nothing": Odd(plain(12), 3, some_are_constant),
    "a branch of the last batch alone": Odd(plain(7), 4, by_branch, config=FLUSH),
    "nothing weighs": Odd(plain(6), 1, none_weighs),
}


def learner(case: Odd, size: int, plugins: list[Plugin]) -> tuple[Engine, Given]:
    """Return an engine, and what it will have noted at each update: the mean loss, and the weights of the last."""
    network = Branching()
    noted: Given = {"means": [], "weights": []}
    loss: Given = {"criterion": nn.CrossEntropyLoss()} if case.loss is None else {"compute_loss": case.loss}
    config: Given = {"epochs": 2, "batch_size": 2, "drop_last": False, "device": "cpu", **case.config}
    engine = Engine(
        Components(network=network, dataset=case.data(), optimizer=case.optimizer, **loss),
        RunConfig(**config, accumulation=size),
        plugins=[*case.plugins(), *plugins],
    )

    @engine.on_exit("optimizer_update")
    def note(run: Run) -> None:
        noted["means"].append(NOTHING if run.mean_loss is None else run.mean_loss.item())
        noted["weights"] = torch.cat([one.detach().reshape(-1) for one in network.parameters()]).tolist()

    return engine, noted


def outcome(run: Run, noted: Given) -> Given:
    return {**noted, "counters": {"update": run.update, "epoch": run.epoch, "samples": run.samples}}


def learn(case: Odd, times: int = 1) -> Given:
    engine, noted = learner(case, case.size * times, [])
    return outcome(engine.run(), noted)


def trained(rank: Rank, case: Odd) -> Given:
    return learn(case)


IN_WINDOWS = Odd(plain(16), 3, by_branch_and_samples, sgd)


def number_of(output: torch.Tensor, batch: Any) -> torch.Tensor:
    """A metric: which samples were measured."""
    return output[:, NUMBER]


def resumed(rank: Rank) -> list[Given]:
    """Return what became of a run, and of those that were resumed inside of its windows."""
    directory = rank.folder / "windows"

    def begun(at: Path | None) -> Given:
        checkpoint = Checkpoint(directory, at="after_step", keep_last=50)
        engine, noted = learner(IN_WINDOWS, IN_WINDOWS.size, [TrainingMetrics({"number": number_of}), checkpoint])
        run = engine.run(resume=at)
        return {**outcome(run, noted), "metrics": dict(run.metrics)}

    whole = begun(None)
    return [whole, *(begun(directory / f"checkpoint-{number:08d}") for number in (5, 4, 2, 1))]


def too_few_of_unknown_length(rank: Rank) -> str:
    """Return what becomes of epochs that are shorter than a step, of which nobody knows which is the last."""
    engine = Engine(
        Components(network=Branching(), loader=Unsized(2), criterion=nn.CrossEntropyLoss(), optimizer=adamw),
        RunConfig(epochs=2, remainder="carry", accumulation=3, device="cpu"),
    )
    try:
        engine.run()
    except DataError as error:
        return str(error)
    return "nothing was raised"


def long_epochs_of_few_batches(rank: Rank) -> list[int]:
    """Return what was counted where a step takes the batches of several epochs, of unknown length."""
    engine = Engine(
        Components(network=Branching(), loader=Unsized(1), criterion=nn.CrossEntropyLoss(), optimizer=adamw),
        RunConfig(max_updates=3, remainder="carry", accumulation=2, device="cpu"),
    )
    run = engine.run()
    return [run.update, run.samples]


def stopped_between_agreements(rank: Rank) -> list[Any]:
    """Return where a run ends that was asked to stop, and one that is resumed before the ranks agree on it."""
    directory = rank.folder / "stopped"

    def ended(at: Path | None) -> list[Any]:
        case = Odd(plain(24), 1, config={"epochs": 4, "agree_every": 3})
        engine, _ = learner(case, 1, [Checkpoint(directory, at="optimizer_update", keep_last=50)])

        @engine.on_exit("optimizer_update", once=True)
        def stop(run: Run) -> None:
            run.stop("enough")

        run = engine.run(resume=at)
        return [run.update, run.reason]

    return [ended(None), ended(directory / "checkpoint-00000001")]


class Calibration(Plugin):
    """Steps a temperature by the gradients of this rank alone, as one process would."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        (temperature,) = run.side_optimizers["temperature"].param_groups[0]["params"]
        (temperature * (run.rank + 1)).backward()
        run.side_optimizers["temperature"].step()


def stepped_apart(rank: Rank) -> list[Any]:
    """Return what became of a parameter beside the network that each rank steps for itself, and where it began."""
    temperature = nn.Parameter(torch.tensor(float(rank.number)))
    began: list[float] = []
    engine = Engine(
        Components(
            network=Branching(),
            dataset=TensorDataset(*tensors(8)),
            criterion=nn.CrossEntropyLoss(),
            optimizer=adamw,
            side_optimizers={"temperature": torch.optim.SGD([temperature], lr=0.05)},
        ),
        RunConfig(epochs=1, batch_size=2, device="cpu"),
        plugins=[Calibration()],
    )

    @engine.on_exit("before_loop")
    def note(run: Run) -> None:
        began.append(temperature.item())

    try:
        engine.run()
    except RankFailed as error:
        return [*began, str(error)]
    return [*began, "nothing was raised"]


OTHERS = (
    resumed,
    long_epochs_of_few_batches,
    stopped_between_agreements,
    too_few_of_unknown_length,
    stepped_apart,
)
CASES: dict[str, Case] = {
    **{name: partial(trained, case=case) for name, case in ODD.items()},
    **{case.__name__: case for case in OTHERS},
}
