"""Small runs for tests: a network, batches, an engine around them, and plugins that write down what they see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from heptad import Components, Detour, Engine, Plugin, Run, RunConfig, Transition

FEATURES, CLASSES = 4, 3
STATES = (
    "before_loop",
    "before_epoch",
    "before_step",
    "process_batch",
    "after_step",
    "optimizer_update",
    "after_epoch",
    "after_loop",
)
"""The eight states that have a body."""


def small_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a linear layer with weights that are the same in every test."""
    network = nn.Linear(FEATURES, CLASSES, dtype=dtype)
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(
                torch.linspace(-1, 1, parameter.numel(), dtype=dtype).reshape(parameter.shape) * (number + 1)
            )
    return network


def batches(count: int, size: int = 2, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return `count` different batches of (data, target)."""
    generator = torch.Generator().manual_seed(count * 1000 + size)
    return [
        (
            torch.randn(size, FEATURES, generator=generator, dtype=dtype),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


class Unsized:
    """A re-iterable of batches that has no length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self):
        return iter(self.items)


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of a network's parameters."""
    return torch.optim.SGD(network.parameters(), lr=0.1)


def small_components(network: Any = None, **given: Any) -> Components:
    """Return components around a small network, over three batches unless data are given.

    Args:
        network: In place of the small one.
        given: Other fields; one that is `...` is left out.
    """
    fields = {"network": small_network() if network is None else network, "optimizer": sgd}
    if not {"dataset", "loader"} & given.keys():
        fields["loader"] = batches(3)
    if "compute_loss" not in given:
        fields["criterion"] = nn.CrossEntropyLoss()
    return Components(**{name: value for name, value in {**fields, **given}.items() if value is not ...})


def small_config(**config: Any) -> RunConfig:
    """Return a configuration, one epoch long where it says no end."""
    return RunConfig(**config if {"epochs", "max_updates"} & config.keys() else {"epochs": 1, **config})


def small_engine(
    loader: Any = 3,
    plugins: Any = (),
    *,
    network: nn.Module | None = None,
    engine_class: type[Engine] = Engine,
    **config: Any,
) -> Engine:
    """Return an engine over `loader`, or over that many batches, one epoch long where no end is given."""
    network = small_network() if network is None else network
    components = small_components(
        network,
        loader=batches(loader) if isinstance(loader, int) else loader,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    )
    return engine_class(components, small_config(**config), plugins=plugins)


def dataset_engine(
    dataset: Any, plugins: Any = (), *, network: nn.Module | None = None, collate_fn: Any = None, **config: Any
) -> Engine:
    """Return an engine over a dataset in batches of two, one epoch long where no end is given."""
    components = small_components(network, dataset=dataset, collate_fn=collate_fn)
    return Engine(components, small_config(**{"batch_size": 2, **config}), plugins=plugins)


def weights(network: nn.Module) -> list[torch.Tensor]:
    """Return copies of all parameters and buffers."""
    return [tensor.detach().clone() for tensor in network.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Return whether two lists of tensors are the same, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Clock:
    """A clock that stands still unless a test moves it: `clock.now += 3`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> Any:
        return self.now


class Witness(Plugin):
    """A plugin that notes every moment in order: ("enter" | "exit", state), and the counters there."""

    def __init__(self, states: tuple[str, ...] = STATES, name: str = "Witness") -> None:
        self.name = name
        self.seen: list[tuple[str, str]] = []
        self.counters: list[tuple[int, int, int, int]] = []
        self.opened = 0
        self.closed = 0
        self.paused = 0
        self.states = states

    def open(self, run: Any) -> None:
        self.opened += 1

    def close(self, run: Any) -> None:
        self.closed += 1

    def on_pause(self, run: Any) -> None:
        self.paused += 1


def _moments() -> None:
    def handler(moment: str, state: str):
        def call(self: Witness, run: Any) -> None:
            self.seen.append((moment, state))
            self.counters.append((run.epoch, run.batch_index, run.step, run.update))

        return call

    for state in STATES:
        for moment in ("enter", "exit"):
            setattr(Witness, f"on_{moment}_{state}", handler(moment, state))


_moments()


class Side(Plugin):
    """A plugin that adds detours and counts nothing."""

    def __init__(self, *detours: Detour, name: str = "Side") -> None:
        self.name = name
        self._detours = detours

    def detours(self) -> tuple[Detour, ...]:
        return self._detours


class Planned(Exception):
    """What an `Actor` raises."""


class Actor:
    """A handler of every moment, called after all plugins: notes each, and acts at chosen events, counted from 0.

    Attributes:
        heard: (moment, state, epoch, batch_index, step, update) of every event.
    """

    def __init__(self, engine: Engine, acts: Mapping[int, str] | None = None) -> None:
        self.heard: list[tuple[str, str, int, int, int, int]] = []
        self.acts = dict(acts or {})
        self.skips = False
        for state in engine.current.table.scopes():
            engine.on_enter(state)(self._handler("enter", state))
            engine.on_exit(state)(self._handler("exit", state))

    def _handler(self, moment: str, state: str) -> Callable[[Run], None]:
        def hear(run: Run) -> None:
            act = self.acts.get(len(self.heard), "")
            self.heard.append((moment, state, run.epoch, run.batch_index, run.step, run.update))
            if act == "stop":
                run.stop("asked by the actor")
            elif act == "pause":
                run.pause("asked by the actor")
            elif act == "grow":
                run.set_accumulation(run.accumulation + 1)
            elif act == "skip":
                self.skips = True  # at the next place where it is legal
            elif act == "fail":
                raise Planned(f"on {moment} of {state}")
            if self.skips and (moment, state) == ("enter", "optimizer_update"):
                self.skips = False
                run.skip_update("asked by the actor")

        hear.__qualname__ = f"hear_{moment}_{state}"
        return hear


def records(log: Iterable[Transition]) -> list[tuple[Any, ...]]:
    """Return transitions without their times."""
    return [(t.seq, t.source, t.dest, dict(t.guards), t.epoch, t.batch_index, t.step, t.update) for t in log]


def remarks(run: Run) -> list[tuple[int, str, str]]:
    """Return the notes of a run without their times."""
    return [(note.seq, note.kind, note.text) for note in run.log.notes()]


def drive(engine: Engine) -> BaseException | None:
    """Run an engine to its end, on from wherever it pauses; return what it raised."""
    try:
        while not engine.current.ended:
            engine.run()
    except Exception as error:
        return error
    return None


@dataclass(frozen=True)
class Plan:
    """What a run drawn at random is like.

    Attributes:
        batches: Batches in a pass.
        unsized: The data have no length.
        config: Fields of `RunConfig`.
        detours: For each detour the states that it leaves from, and its `every`.
        acts: What an `Actor` does at which event.
    """

    batches: int
    unsized: bool
    config: dict[str, Any]
    detours: list[tuple[list[str], int | None]]
    acts: dict[int, str]

    def build(self, engine_class: type[Engine] = Engine, plugins: Iterable[Plugin] = ()) -> tuple[Engine, Actor]:
        """Return an engine for this plan, and the actor that hears it."""
        loader = Unsized(batches(self.batches)) if self.unsized else self.batches
        sides = [
            Side(_side(f"side_{number}", after, every), name=f"side {number}")
            for number, (after, every) in enumerate(self.detours)
        ]
        engine = small_engine(loader, [*plugins, *sides], engine_class=engine_class, **self.config)
        return engine, Actor(engine, self.acts)


def _side(state: str, after: list[str], every: int | None) -> Detour:
    return Detour(state, after, lambda run: every is not None or run.step % 2 == 1, lambda run: None, every=every)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a run: small, but with all that makes a difference to its path."""
    config = {
        "accumulation": draw(st.integers(1, 4)),
        "remainder": draw(st.sampled_from(["extend", "flush", "drop", "carry"])),
        "epochs": draw(st.integers(0, 3)),
        "max_updates": draw(st.none() | st.integers(0, 6)),
    }
    sources = st.lists(st.sampled_from(STATES), min_size=1, max_size=3, unique=True)
    acts = st.sampled_from(["stop", "pause", "pause", "fail", "skip", "grow"])
    return Plan(
        batches=draw(st.integers(1, 6)),
        unsized=draw(st.booleans()),
        config=config,
        detours=draw(st.lists(st.tuples(sources, st.sampled_from([None, 1, 2, 3])), max_size=3)),
        acts=draw(st.dictionaries(st.integers(0, 80), acts, max_size=4)),
    )
