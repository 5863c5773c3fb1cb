"""The run that is killed: everything in it that a careless resume would lose.

Dropout, batch norm, AdamW, a learning-rate schedule, an average of weights, early stopping, clipping, random
transforms of three libraries, an evaluation, a filter and a detour that count, noise drawn in a handler: two epochs
of seven batches, three to an update, with a checkpoint after every step, update and epoch.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset

from builders import Unsized
from heptad import Components, Detour, Engine, Plugin, Run, RunConfig, Transition, on_enter, on_exit
from heptad.data.generators import global_states
from heptad_plugins import (
    EMA,
    SAM,
    SWA,
    Checkpoint,
    EarlyStopping,
    Evaluate,
    Freeze,
    GradientClipping,
    LRSchedule,
    OptimizerMonitor,
)

FEATURES, CLASSES, BATCHES, SIZE = 4, 3, 7, 2
EVERYWHERE = ("after_step", "optimizer_update", "after_epoch")


class Noisy(Dataset[Any]):
    """Samples with noise from the generators of torch, python and numpy."""

    def __init__(self, samples: int = BATCHES * SIZE) -> None:
        generator = torch.Generator().manual_seed(11)
        self.data = torch.randn(samples, FEATURES, generator=generator)
        self.target = torch.randint(0, CLASSES, (samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(FEATURES) * 0.1 + random.random() * 0.1 + float(np.random.rand()) * 0.1
        return self.data[place] + noise, self.target[place]


class NoisyStream(IterableDataset[Any]):
    """The same as a stream."""

    def __iter__(self):
        samples = Noisy()
        return (samples[place] for place in range(len(samples)))


class Noise(Plugin):
    """Adds noise to the gradients of every second update, from the global generator, and counts in a filter."""

    def __init__(self) -> None:
        self.drawn = 0

    @on_enter("optimizer_update", every=2)
    def add(self, run: Run) -> None:
        self.drawn += 1
        for parameter in run.network.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(torch.randn_like(parameter.grad), alpha=0.01)

    @on_exit("after_step", every=4, first=3)
    def report(self, run: Run) -> None:
        assert run.loss is not None
        run.record("every fourth loss", run.loss)

    def detours(self) -> list[Detour]:
        return [Detour("look", ("after_step", "optimizer_update"), lambda run: True, self.look, every=4)]

    def look(self, run: Run) -> None:
        run.record("looked", run.step)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = int(state["drawn"])


class Tilts(Plugin):
    """Steps a side optimizer, of a parameter that only it holds."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        (tilt,) = run.side_optimizers["tilt"].param_groups[0]["params"]
        (tilt * run.update).sin().backward()
        run.side_optimizers["tilt"].step()


class Skips(Plugin):
    """Leaves a step out now and then, by a die of its own: whole windows too."""

    def __init__(self) -> None:
        self.die = random.Random(5)

    def on_loss(self, run: Run) -> None:
        if self.die.random() < 0.4:
            run.skip_batch("the die fell so")

    def state_dict(self) -> dict[str, Any]:
        return {"die": self.die.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.die.setstate(state["die"])


class Tight(Plugin):
    """From step 5 on, memory holds two samples at a time; the output of step 9 is not finite, but when it is redone."""

    def open(self, run: Run) -> None:
        run.network.register_forward_pre_hook(lambda network, given: self.needs(run, len(given[0])))
        run.network.register_forward_hook(lambda network, given, output: self.glitch(run, output))

    def needs(self, run: Run, samples: int) -> None:
        if run.network.training and run.step >= 5 and samples > 2:
            raise torch.OutOfMemoryError(f"no memory for {samples} samples")

    def glitch(self, run: Run, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if run.state == "process_batch" and run.step == 9 else output


def network() -> nn.Module:
    """Return a network with dropout and batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, CLASSES)
        )


class Guesses:
    """A metric object that counts guesses by class and target: an array in the log."""

    def reset(self) -> None:
        self.table = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        for guess, right in zip(output.argmax(1), target, strict=True):
            self.table[guess, right] += 1

    def compute(self) -> torch.Tensor:
        return self.table


def held_out() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return three batches to evaluate on."""
    generator = torch.Generator().manual_seed(12)
    return [
        (torch.randn(4, FEATURES, generator=generator), torch.randint(0, CLASSES, (4,), generator=generator))
        for _ in range(3)
    ]


def stateful() -> Any:
    """Return torchdata's loader, which knows its place."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", UserWarning)  # it calls something of torch's that is going to go
        torch.manual_seed(13)  # its sampler takes a seed when it is built, which must not be one of the process's past
        return StatefulDataLoader(Noisy(), batch_size=SIZE, shuffle=True)


FEEDS: dict[str, Callable[[], dict[str, Any]]] = {
    "dataset": lambda: {"dataset": Noisy()},
    "workers": lambda: {"dataset": Noisy()},
    "stream": lambda: {"dataset": NoisyStream()},
    "loader": lambda: {"loader": DataLoader(Noisy(), batch_size=SIZE, shuffle=True)},
    "unsized": lambda: {
        "loader": Unsized(list(zip(Noisy().data.split(SIZE), Noisy().target.split(SIZE), strict=True)))
    },
    "unsized loader": lambda: {"loader": DataLoader(NoisyStream(), batch_size=SIZE)},
    "stateful": lambda: {"loader": stateful()},
}
"""What the data may come from."""


def full_engine(
    directory: Path,
    plugins: Iterable[Plugin] = (),
    *,
    feed: str = "dataset",
    at: Any = EVERYWHERE,
    engine_class: type[Engine] = Engine,
    checkpoint: Checkpoint | None = None,
    schedule: bool = True,
    again: bool = False,
    odd: bool = False,
    closure: bool = False,
    tight: bool = False,
    thaws: bool = False,
    **config: Any,
) -> Engine:
    """Return the engine of the scenario; its checkpoints are in `directory`.

    With `again`, each window is computed again from its batches, and there is a side optimizer. With `odd`, steps are
    left out, there are fewer of them than batches, and the schedule follows evaluations, the first of them before the
    loop. With `closure`, the optimizer is L-BFGS, beside which nobody may change gradients. With `tight`, memory runs
    out, and numbers are not finite once: windows are computed again, in halves. With `thaws`, a part is frozen in the
    first epoch and joins the optimizer in the second.
    """
    model = network()
    given = FEEDS[feed]()
    own = {"batch_size": SIZE, "num_workers": 2 if feed == "workers" else 0} if "dataset" in given else {}
    if tight:
        given, own["batch_size"] = {"dataset": Noisy(2 * BATCHES * SIZE)}, 2 * SIZE
        config = {"redo": ("out_of_memory", "non_finite"), **config}
    components = Components(
        network=model,
        criterion=nn.CrossEntropyLoss(),
        optimizer=quasi_newton if closure else trainable,
        side_optimizers={"tilt": torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1, momentum=0.9)}
        if again
        else {},
        **given,
    )
    members: list[Plugin] = [
        *([] if closure else [Noise(), GradientClipping(max_norm=1.0)]),
        EMA(decay=0.8, every=2, start=1, dtype=torch.float64),
        Evaluate(held_out(), {"guesses": Guesses()}),
        EarlyStopping("valid/loss", patience=50),
        checkpoint or Checkpoint(directory, at=at),
        *plugins,
    ]
    if tight:
        members.append(Tight())
    if thaws:
        members += [Freeze("1.*", "4.*", until=1, lr=0.02), SWA(0, evaluate=False), OptimizerMonitor(ratio=True)]
    if again:
        members += [SAM(), Tilts()]
    if odd:
        early = Evaluate(held_out(), at="before_loop", name="early", limit=2, preserve_rng=False)
        plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0)
        members += [Skips(), early, LRSchedule(plateau, monitor="valid/loss", interval="evaluation")]
        config = {"limit_batches": 5, **config}
    elif schedule:
        # a fixed length where that of the data is unknown
        members.append(LRSchedule(lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=8)))
    settings = {"epochs": 2, "accumulation": 3, "seed": 9, **own, **config}
    return engine_class(components, RunConfig(**settings), plugins=members)


def trainable(network: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of what is trained when it is built."""
    return torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=0.01)


def quasi_newton(network: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that computes each window several times."""
    return torch.optim.LBFGS(network.parameters(), lr=0.1, max_iter=3, history_size=4)


def outcome(engine: Engine) -> dict[str, str]:
    """Return digests of all that two runs are compared by, a name for each."""
    run = engine.current
    plugins = {plugin.name: plugin for plugin in engine._manager.plugins}
    parts: dict[str, Any] = {
        "weights": {**dict(run.network.named_parameters()), **dict(run.network.named_buffers())},
        "optimizer": [one.state_dict() for one in (*run.optimizers, *run.side_optimizers.values())],
        "random state": global_states(),
        "recorded values": [(r.name, r.value, r.seq, r.epoch, r.step, r.update) for r in run.records()],
        "counters": [run.epoch, run.batch_index, run.step, run.update, run.windows, run.samples, run.state, run.reason],
        "loss scale": run._runtime.scaling and run._runtime.scaling.state(),
        "plugins": {name: plugin.state_dict() for name, plugin in plugins.items() if name != "Checkpoint"},
    }
    return {name: digest(part) for name, part in parts.items()}


def digest(value: Any) -> str:
    """Return a digest of plain data, arrays and tensors, of every bit."""
    hashed = hashlib.sha256()

    def add(part: Any) -> None:
        if hasattr(part, "to_local"):  # what ranks share: the part of this one
            add(part.to_local())
        elif isinstance(part, torch.Tensor):
            hashed.update(f"{part.dtype}{tuple(part.shape)}".encode())
            hashed.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray):
            hashed.update(part.tobytes())
        elif isinstance(part, dict):
            for key, item in part.items():
                hashed.update(repr(key).encode())
                add(item)
        elif isinstance(part, list | tuple):
            hashed.update(f"{len(part)}[".encode())
            for item in part:
                add(item)
        else:
            hashed.update(repr(part).encode())

    add(value)
    return hashed.hexdigest()[:16]


def path_of(log: Iterable[Transition]) -> list[Any]:
    """Return transitions without their times."""
    return [
        [t.seq, t.source, t.dest, json.dumps(dict(t.guards)), t.epoch, t.batch_index, t.step, t.update] for t in log
    ]
