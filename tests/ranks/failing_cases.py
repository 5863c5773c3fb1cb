"""Runs of which one rank does something of its own, each in fresh processes: the rows of `test_failures.py`.

On all ranks the same script: what rank 1 alone does stands in it, as in a script of a user, behind a look at the rank.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rank_program import Rank
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import heptad.ranks.grouped
from builders import CLASSES, FEATURES, small_network
from heptad import Components, Detour, Engine, EngineError, Plugin, Run, RunConfig
from heptad_plugins import CSVLogger, Evaluate, GracefulStop

STEP = 5
"""The step in which something goes wrong, from 1: the first of the third window."""

PATIENCE = 2.0
SAMPLES = 48
"""In batches of 2, two steps of a rank an update: 6 updates an epoch on 2 ranks, 4 on 3."""


def is_odd(rank: Rank) -> bool:
    """Return whether this is the rank that does something of its own."""
    return rank.number == int(os.environ.get("ODD", "1"))


def samples(count: int = SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(data, torch.randint(0, CLASSES, (count,), generator=generator))


class OneFails(Dataset[Any]):
    """Samples; on rank 1 one of them cannot be read in the third window."""

    def __init__(self, rank: Rank) -> None:
        self._samples, self._rank, self._left = samples(), rank, 2 * (STEP - 1)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> Any:
        self._left -= 1
        if is_odd(self._rank) and self._left < 0:
            self._rank.fault()
            raise OSError("the disk is gone")
        return self._samples[place]


def engine_of(
    plugins: Sequence[Plugin] = (),
    *,
    dataset: Any = None,
    loader: Any = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    **config: Any,
) -> Engine:
    """Return an engine in float64 with three epochs and windows of two steps."""
    torch.set_num_threads(1)
    components = Components(
        network=small_network(torch.float64),
        loader=loader,
        dataset=samples() if dataset is None and loader is None else dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=optimizer or (lambda network: torch.optim.SGD(network.parameters(), lr=0.1)),
    )
    given = {"epochs": 3, "batch_size": 2, "patience": PATIENCE, "seed": 3, **config}
    if "window" not in given:
        given.setdefault("accumulation", 2)
    return Engine(components, RunConfig(**given), plugins)


def ended(run: Run) -> list[Any]:
    """Return how a run ended: equal on all ranks."""
    return [run.state, run.paused, run.reason, len(run.log), run.log[-1].seq, run.update]


def once(rank: Rank, act: Callable[[Run], object]) -> Callable[[Run], None]:
    """Return a handler that does something on rank 1, in the third window, once."""
    left = [act]

    def handler(run: Run) -> None:
        if is_odd(rank) and run.step >= STEP - 1 and left:
            rank.fault()
            left.pop()(run)

    return handler


def raises(run: Run) -> Any:
    raise ValueError("my own")


def dies(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(run: Run) -> None:
    time.sleep(1000)


def acting(rank: Rank, moment: str, state: str, act: Callable[[Run], object], plugins: Sequence[Plugin] = ()) -> Engine:
    """Return an engine with a handler that does something on rank 1."""
    engine = engine_of(plugins)
    subscribe = engine.on_enter if moment == "enter" else engine.on_exit
    subscribe(state)(once(rank, act))
    return engine


# -- one asks


def stops(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", lambda run: run.stop("enough")).run())


def pauses(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", lambda run: run.pause("lunch")).run())


def terminated(rank: Rank, plugins: Sequence[Plugin] = ()) -> list[Any]:
    def send(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    return ended(acting(rank, "exit", "process_batch", send, plugins).run())


def stopped_gracefully(rank: Rank) -> list[Any]:
    return terminated(rank, [GracefulStop(exit=False)])


def exits_gracefully(rank: Rank) -> list[Any]:
    return terminated(rank, [GracefulStop()])


# -- one raises


def raises_in_a_handler(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", raises).run())


def raises_at_the_update(rank: Rank) -> list[Any]:
    return ended(acting(rank, "enter", "optimizer_update", raises).run())


def exits_in_a_handler(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", lambda run: sys.exit(3)).run())


def raises_in_a_body(rank: Rank) -> list[Any]:
    return ended(engine_of(dataset=OneFails(rank)).run())


def raises_in_building(rank: Rank) -> list[Any]:
    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        if is_odd(rank):
            rank.fault()
            raise ValueError("no such optimizer")
        return torch.optim.SGD(network.parameters(), lr=0.1)

    return ended(engine_of(optimizer=optimizer).run())


class Wants(Plugin):
    """Refuses to be registered on rank 1."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def detours(self) -> list[Detour]:
        if is_odd(self._rank):
            self._rank.fault()
            raise ValueError("no detours here")
        return []


def raises_in_the_constructor(rank: Rank) -> list[Any]:
    return ended(engine_of([Wants(rank)]).run())


def has_a_window_of_its_own(rank: Rank) -> list[Any]:
    rank.fault()
    return ended(engine_of(window=2 * rank.world + (is_odd(rank))).run())


class Opens(Plugin):
    """Cannot be opened on rank 1."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def open(self, run: Run) -> None:
        if is_odd(self._rank):
            self._rank.fault()
            raise OSError("the disk is full")


def raises_in_open(rank: Rank) -> list[Any]:
    return ended(engine_of([Opens(rank)]).run())


def raises_in_an_evaluation(rank: Rank) -> list[Any]:
    calls = []

    def metric(output: torch.Tensor, batch: Any) -> torch.Tensor:
        calls.append(1)
        if is_odd(rank) and len(calls) > 4:
            rank.fault()
            raise ValueError("cannot be measured")
        return output.mean(dim=1)

    held_out = [tuple(samples(4).tensors)] * 6
    return ended(engine_of([Evaluate(held_out, {"mean": metric})]).run())


# -- one dies


def dies_in_backward(rank: Rank) -> list[Any]:
    engine = engine_of()
    act = once(rank, dies)
    next(engine.current.network.parameters()).register_hook(lambda gradient: act(engine.current))
    return ended(engine.run())


def dies_in_the_update(rank: Rank) -> list[Any]:
    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.SGD(network.parameters(), lr=0.1)
        made.register_step_pre_hook(lambda *given: act(engine.current))
        return made

    act = once(rank, dies)
    engine = engine_of(optimizer=optimizer)
    return ended(engine.run())


def dies_between(rank: Rank) -> list[Any]:
    return ended(acting(rank, "enter", "before_step", dies).run())


def leaves_early(rank: Rank) -> list[Any]:
    engine = engine_of()
    engine.run(until=(lambda run: run.step == STEP) if is_odd(rank) else None)
    rank.fault()
    return ended(engine.current)


class WithWorkers(Dataset[Any]):
    """Samples read by worker processes, which leave their ids."""

    def __init__(self, folder: Path) -> None:
        self._samples, self._folder = samples(), folder

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: int) -> Any:
        (self._folder / f"worker.{os.getpid()}").touch()
        return self._samples[place]


def dies_with_workers(rank: Rank) -> list[Any]:
    engine = engine_of(dataset=WithWorkers(rank.folder), num_workers=1)
    engine.on_exit("process_batch")(once(rank, dies))
    return ended(engine.run())


def is_terminated(rank: Rank) -> list[Any]:
    return terminated(rank)


# -- one hangs


def is_stopped(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", lambda run: os.kill(os.getpid(), signal.SIGSTOP)).run())


def sleeps(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", hangs).run())


def sleeps_at_the_update(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "optimizer_update", hangs).run())


def comes_too_late(rank: Rank) -> list[Any]:
    return ended(acting(rank, "exit", "process_batch", lambda run: time.sleep(2 * PATIENCE)).run())


# -- one is another


def skips_an_update(rank: Rank) -> list[Any]:
    return ended(acting(rank, "enter", "optimizer_update", lambda run: run.skip_update("odd")).run())


def writes_to_weights(rank: Rank) -> list[Any]:
    def write(run: Run) -> None:
        with torch.no_grad():
            next(run.network.parameters())[0, 0] += 1e-12

    return ended(acting(rank, "exit", "optimizer_update", write).run())


def has_a_sample_fewer(rank: Rank) -> list[Any]:
    rank.fault()
    return ended(engine_of(dataset=samples(SAMPLES - (is_odd(rank)))).run())


def has_a_loader(rank: Rank) -> list[Any]:
    rank.fault()
    loader = DataLoader(samples(), batch_size=2)
    return ended((engine_of(loader=loader, batch_size=None) if is_odd(rank) else engine_of()).run())


class Stream(IterableDataset[Any]):
    """Samples that give each rank a part."""

    def __init__(self) -> None:
        self._data = samples()

    def share(self, rank: int, world: int) -> Iterable[Any]:
        return [self._data[place] for place in range(rank, SAMPLES, world)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.share(0, 1))


def has_a_stream(rank: Rank) -> list[Any]:
    rank.fault()
    return ended(engine_of(dataset=Stream() if is_odd(rank) else None).run())


def has_another_config(rank: Rank, name: str, value: Any) -> list[Any]:
    rank.fault()
    return ended(engine_of(**({name: value} if is_odd(rank) else {})).run())


has_another_seed = partial(has_another_config, name="seed", value=4)
has_another_accumulation = partial(has_another_config, name="accumulation", value=3)
has_another_batch_size = partial(has_another_config, name="batch_size", value=3)
has_another_remainder = partial(has_another_config, name="remainder", value="flush")
has_no_batch_size = partial(has_another_config, name="batch_size", value=None)


def has_another_plugin(rank: Rank) -> list[Any]:
    rank.fault()
    return ended(engine_of([GracefulStop()] if is_odd(rank) else []).run())


def has_another_order(rank: Rank) -> list[Any]:
    plugins: list[Plugin] = [GracefulStop(), CSVLogger(rank.folder / "values.csv")]
    rank.fault()
    return ended(engine_of(plugins[::-1] if is_odd(rank) else plugins).run())


def has_another_order_of_handlers(rank: Rank) -> list[Any]:
    engine = engine_of()

    def one(run: Run) -> None:
        pass

    def two(run: Run) -> None:
        pass

    for handler in (two, one) if is_odd(rank) else (one, two):
        engine.on_exit("process_batch")(handler)
    rank.fault()
    return ended(engine.run())


def has_another_version(rank: Rank) -> list[Any]:
    known = heptad.ranks.grouped.versions()
    if is_odd(rank):
        heptad.ranks.grouped.versions = lambda: {**known, "torch": "2.12.0"}
    rank.fault()
    return ended(engine_of().run())


def resumes_alone(rank: Rank) -> list[Any]:
    engine = engine_of()
    rank.fault()
    return ended(engine.run(resume=Path("ckpt") if is_odd(rank) else None))


# -- what comes after


def fail_at_two_places(rank: Rank) -> list[Any]:
    """Rank 0 and the last one raise at once, each elsewhere."""
    engine = engine_of()
    for number, state in ((0, "before_step"), (rank.world - 1, "after_step")):
        engine.on_exit(state)(partial(raises_of, rank, number))
    return ended(engine.run())


def raises_of(rank: Rank, number: int, run: Run) -> None:
    if run.step >= STEP and rank.number == number:
        rank.fault()
        raise ValueError(f"of rank {number}")


def raised_by(call: Callable[[], object]) -> str:
    """Return what a call raises, with its class."""
    try:
        call()
    except (EngineError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def goes_on_after_one_failed(rank: Rank) -> list[str]:
    """Each rank catches its error, and tries what a script may try."""
    engine = acting(rank, "exit", "process_batch", raises)
    held_out = [tuple(samples(4).tensors)] * 6
    return [
        raised_by(engine.run),
        raised_by(engine.run),
        raised_by(lambda: engine.evaluate(held_out)),
        raised_by(engine_of),
    ]


def weights_of(run: Run) -> str:
    """Return a digest of every bit."""
    digest = hashlib.sha256()
    for one in run.network.parameters():
        digest.update(one.detach().numpy().tobytes())
    return digest.hexdigest()


def begins_anew_after_all_failed(rank: Rank) -> list[Any]:
    """Return what one engine learns, how the next three end on all ranks, and what the fifth learns."""
    first = weights_of(engine_of().run())
    failing = engine_of()
    failing.on_exit("process_batch", every=STEP)(raises)
    bad = partial(engine_of, optimizer=lambda network: raises(failing.current))
    parting = acting(rank, "enter", "optimizer_update", lambda run: run.skip_update("odd"))
    found = [raised_by(failing.run), raised_by(lambda: bad().run()), raised_by(parting.run)]
    return [first, *found, weights_of(engine_of().run())]
