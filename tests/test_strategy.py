"""`Strategy`: when the engine asks it, and what it is asked; `Alone` answers as a plain loop would."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from builders import CLASSES, FEATURES, Unsized, batches, equal, small_engine, small_network, weights
from heptad import Components, Engine, Run, RunConfig
from heptad.ranks.strategy import Alone
from heptad.run.runtime import Runtime
from programs import environment


class Spy(Alone):
    """Does what `Alone` does, and writes down what it is asked."""

    announces = True

    def __init__(self, share: tuple[int, int] = (0, 1)) -> None:
        self.asked: list[Any] = []
        self.part = share

    def place(self, runtime: Runtime) -> None:
        self.asked.append(("place", len(runtime.optimizers)))
        super().place(runtime)

    def window_closes(self, closes: bool) -> None:
        self.asked.append(closes)

    def reduce(self, run: Run) -> None:
        self.asked.append("reduce")
        super().reduce(run)

    def share(self) -> tuple[int, int]:
        return self.part


def spied(spy: Spy) -> type[Engine]:
    """Return an engine class with this strategy."""

    class SpiedEngine(Engine):
        strategy_class = staticmethod(lambda config: spy)

    return SpiedEngine


def test_the_network_is_placed_before_optimizers_are_built():
    spy = Spy()
    small_engine(1, engine_class=spied(spy)).run()
    assert spy.asked[0] == ("place", 0)


@pytest.mark.parametrize(
    ("remainder", "closes"),
    [
        ("extend", [False, False, True, False, False, True]),
        ("flush", [False, False, True, True]),
        ("drop", [False, False, True]),
    ],
)
def test_each_step_says_before_its_forward_whether_it_closes_the_window(remainder: str, closes: list[bool]):
    spy = Spy()
    small_engine(4, engine_class=spied(spy), accumulation=3, remainder=remainder).run()
    assert [asked for asked in spy.asked if isinstance(asked, bool)] == closes


def test_a_stream_is_read_a_batch_further_before_the_step_that_may_close_its_window():
    spy = Spy()
    small_engine(Unsized(batches(4)), engine_class=spied(spy), accumulation=3, remainder="flush").run()
    assert [asked for asked in spy.asked if isinstance(asked, bool)] == [False, False, True, True]


def test_the_gradient_is_reduced_before_any_handler_on_entry_to_the_update():
    spy = Spy()
    engine = small_engine(2, engine_class=spied(spy), accumulation=2)
    engine.on_enter("optimizer_update")(lambda run: spy.asked.append("handler"))
    engine.run()
    assert spy.asked[-2:] == ["reduce", "handler"]


def test_a_strategy_that_does_nothing_more_changes_no_bit():
    networks = [small_network(), small_network()]
    small_engine(5, network=networks[0], accumulation=2).run()
    small_engine(5, network=networks[1], accumulation=2, engine_class=spied(Spy())).run()
    assert equal(weights(networks[0]), weights(networks[1]))


def test_the_correction_of_a_window_of_one_step_is_exactly_one():
    """Also after longer ones, whose sum is no longer its: a strategy may ask for it in any window."""

    class Asks(Spy):
        def reduce(self, run: Run) -> None:
            self.asked.append((run._position.window.size, run._position.window.correction()))
            super().reduce(run)

    spy = Asks()
    engine = small_engine(6, accumulation=3, engine_class=spied(spy))
    engine.on_exit("optimizer_update", once=True)(lambda run: run.set_accumulation(1))
    engine.run()
    assert [asked for asked in spy.asked if isinstance(asked, tuple)][1:] == [(3, 1.0)] + [(1, 1.0)] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_share_the_batches_of_a_pass_out_by_their_number(workers: int):
    """Together they take each batch once, in the order that one process has."""
    data = TensorDataset(torch.arange(12.0).repeat(FEATURES, 1).T.contiguous(), torch.arange(12) % CLASSES)

    def taken(rank: int, world: int) -> list[list[float]]:
        network = small_network()
        parts = Components(
            network=network,
            dataset=data,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        )
        engine = spied(Spy((rank, world)))(parts, RunConfig(epochs=2, batch_size=2, num_workers=workers))
        seen: list[list[float]] = []
        engine.on_enter("process_batch")(lambda run: seen.append(run.batch[0][:, 0].tolist()))
        engine.run()
        return seen

    whole, first, second = taken(0, 1), taken(0, 2), taken(1, 2)
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == whole


def test_ddp_imports_nothing_of_what_shards():
    """DTensors take 0.4 s to import, and torch's own DDP does without them."""
    code = "import sys, heptad.ranks.ddp; print([name for name in sys.modules if name == 'torch.distributed.tensor'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
