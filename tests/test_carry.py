"""`remainder="carry"`: a window spans passes and epochs, as in a loop over `cycle(loader)`."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES, Unsized, batches, small_components, small_engine, small_network
from heptad import Engine, RunConfig, TransitionLog
from heptad.checkpoints.store import Store
from heptad_plugins import Checkpoint, EarlyStopping, Evaluate, Journal
from scenario import full_engine, outcome, path_of
from test_limit_batches import Stream

torch.set_num_threads(1)

SAMPLES = TensorDataset(torch.cat([x for x, _ in batches(5)]), torch.cat([y for _, y in batches(5)]))
LOADERS: dict[str, Any] = {
    "list": lambda: batches(5),
    "unsized": lambda: Unsized(batches(5)),
    "shuffled": lambda: DataLoader(SAMPLES, 2, shuffle=True, generator=torch.Generator().manual_seed(6)),
    "stream": lambda: DataLoader(Stream(), 2),
}
"""Five batches of two samples."""


def network() -> nn.Module:
    """Return a network that draws random numbers and counts its passes."""
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def by_hand(net: nn.Module, loader: Any, k: int, epochs: int, most: int | None = None) -> int:
    """Train by a plain loop over `cycle(loader)`; return the number of updates."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    steps = updates = 0
    torch.manual_seed(0)
    for _ in range(epochs):
        for data, target in loader:
            if most == updates:
                return updates
            if steps == 0:
                optimizer.zero_grad()
            (nn.functional.cross_entropy(net(data), target) / k).backward()
            steps = (steps + 1) % k
            if steps == 0:
                optimizer.step()
                updates += 1
    if steps:
        for parameter in net.parameters():
            parameter.grad *= k / steps
        optimizer.step()
        updates += 1
    return updates


def carrying(loader: Any, plugins: Any = (), net: nn.Module | None = None, **config: Any) -> Engine:
    """Return an engine that carries windows over."""
    net = network() if net is None else net
    components = small_components(net, loader=loader, optimizer=torch.optim.AdamW(net.parameters(), lr=0.01))
    return Engine(components, RunConfig(remainder="carry", **config), plugins=plugins)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize("epochs", [1, 3])
def test_it_has_the_bits_of_a_plain_loop_over_a_cycle(epochs, k, kind):
    """Windows smaller and larger than a pass; what is open at the very end is flushed."""
    plain = network()
    net = deepcopy(plain)
    updates = by_hand(plain, LOADERS[kind](), k, epochs)
    engine = carrying(LOADERS[kind](), net=net, epochs=epochs, accumulation=k)
    known = engine.current.total_updates
    run = engine.run()
    assert (run.update, run.step, run.epoch) == (updates, 5 * epochs, epochs)
    assert known in (None, -(-5 * epochs // k))
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", LOADERS)
def test_max_updates_ends_it_when_a_window_closes(kind):
    """Four updates of three steps: two passes of five and two batches of the third."""
    plain = network()
    net = deepcopy(plain)
    by_hand(plain, LOADERS[kind](), 3, epochs=9, most=4)
    run = carrying(LOADERS[kind](), net=net, max_updates=4, accumulation=3).run()
    assert (run.update, run.step, run.epoch) == (4, 12, 3)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_the_path_leaves_an_epoch_with_an_open_window():
    """Three batches, two to an update: the second window begins in epoch 0 and closes in epoch 1."""
    run = carrying(batches(3), epochs=2, accumulation=2).run()
    step = ["before_step", "process_batch", "after_step"]
    update = "optimizer_update"
    assert run.log.path()[2:-2] == [
        "before_epoch", *step, *step, update, *step, "after_epoch",
        "before_epoch", *step, update, *step, *step, update, "after_epoch",
    ]  # fmt: skip
    assert [t.update for t in run.log.where(source="after_epoch")] == [1, 3]
    assert run.log.notes("extend") == []


@pytest.mark.parametrize("feed", ["dataset", "loader", "unsized loader"])
def test_it_resumes_exactly_from_every_checkpoint(feed, tmp_path: Path):
    """After each step, update and epoch, with gradients and weights of a window that an epoch has left open."""
    kept = Checkpoint(tmp_path / "kept", at=("after_step", "optimizer_update", "after_epoch"), keep_last=99)
    straight = full_engine(tmp_path, feed=feed, remainder="carry", checkpoint=kept)
    straight.run()
    entries = kept.store.entries()
    assert len(entries) == 14 + 5 + 2
    for entry in entries if feed == "dataset" else entries[5:12]:
        again = Checkpoint(tmp_path / f"{feed} {entry.path.name}", at=kept._at, every=1, keep_last=1)
        again.save = lambda run: None
        resumed = full_engine(tmp_path, feed=feed, remainder="carry", checkpoint=again)
        run = resumed.run(resume=entry.path)
        assert outcome(resumed) == outcome(straight), entry.path.name
        assert path_of(run.log) == path_of(straight.current.log)[-len(run.log) :]


def test_a_checkpoint_between_epochs_holds_the_gradients_of_the_open_window(tmp_path: Path):
    """`after_epoch` may hold gradients, and what the window weighs."""
    store = Store(tmp_path)
    carrying(batches(3), [Checkpoint(tmp_path, keep_last=9)], epochs=2, accumulation=2).run()
    first, last = (store.load(entry).sections for entry in store.entries())
    assert first["run"]["position"]["window"]["steps"] == 1
    assert set(first["optimizers"]["gradients"]) >= {"network.0.weight", "network.3.bias"}
    assert last["run"]["position"]["window"]["steps"] == 0
    assert last["optimizers"]["gradients"] == {}


STOPS = [
    # in step, on which moment, (steps, updates, epochs): five batches, three to an update
    (0, ("exit", "process_batch"), (3, 1, 1)),
    (3, ("exit", "after_step"), (3, 1, 1)),
    (4, ("exit", "after_step"), (5, 2, 1)),  # the pass ends before the window is full: it is flushed
    (4, ("enter", "process_batch"), (5, 2, 1)),
    (5, ("exit", "after_step"), (5, 2, 1)),
    (5, ("enter", "after_epoch"), (6, 2, 2)),  # too late to flush: the window is filled in the next epoch
    (5, ("exit", "after_epoch"), (6, 2, 2)),
    (5, ("enter", "before_epoch"), (6, 2, 2)),
    (5, ("exit", "before_epoch"), (6, 2, 2)),
    (6, ("exit", "optimizer_update"), (6, 2, 2)),
]


@pytest.mark.parametrize(("step", "moment", "end"), STOPS, ids=str)
@pytest.mark.parametrize("kind", ["list", "unsized"])
def test_a_stop_completes_or_flushes_the_open_window(kind, step, moment, end):
    """So that no gradient is dropped, wherever it comes."""
    engine = carrying(LOADERS[kind](), epochs=4, accumulation=3)
    subscribe = engine.on_enter if moment[0] == "enter" else engine.on_exit
    subscribe(moment[1], when=lambda run: run.step == step and run.epoch < 2)(lambda run: run.stop("enough"))
    run = engine.run()
    assert (run.step, run.update, run.epoch) == end
    assert (run.state, run._position.window.steps) == ("finished", 0)


def test_early_stopping_after_an_evaluation_flushes_the_open_window():
    """The evaluation leaves from `after_step`; the update comes after it."""
    plugins = [Evaluate(batches(2)), EarlyStopping("valid/loss", patience=1, min_delta=1e9)]
    run = carrying(batches(5), plugins, epochs=9, accumulation=3).run()
    assert run.reason != "epochs=9 complete"
    assert run._position.window.steps == 0
    assert -(-run.step // 3) == run.update


@pytest.mark.parametrize("kind", ["list", "unsized"])
def test_set_accumulation_counts_from_the_next_window_on(kind):
    """Windows of 3, 3 and then 4 steps, over epochs of five; the last holds what is left."""
    engine = carrying(LOADERS[kind](), epochs=4, accumulation=3)
    engine.on_exit("after_step", when=lambda run: run.step == 4)(lambda run: run.set_accumulation(4))
    closed: list[tuple[int, int | None]] = []
    engine.on_exit("optimizer_update")(lambda run: closed.append((run.step, run.total_updates)))
    engine.run()
    assert [step for step, _ in closed] == [3, 6, 10, 14, 18, 20]
    assert [total for _, total in closed] == ([7, 6, 6, 6, 6, 6] if kind == "list" else [None] * 6)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_total_updates_is_what_the_run_comes_to_from_every_moment_on(k):
    """After a change of the window too."""
    engine = carrying(batches(5), epochs=3, accumulation=4)
    seen: list[int | None] = []
    engine.on_enter("after_step", when=lambda run: run.step == 3)(lambda run: run.set_accumulation(k))
    for state in ("before_step", "after_step", "optimizer_update", "before_epoch", "after_epoch"):
        for subscribe in (engine.on_enter, engine.on_exit):
            subscribe(state, when=lambda run: run.step > 3)(lambda run: seen.append(run.total_updates))
    assert set(seen) <= {engine.run().update}
    assert set(seen) == {engine.current.update}


def test_a_change_of_length_is_counted_by_steps():
    """Epochs of 2, 4 and 6 batches make 12 steps, 5 to an update."""

    class Grows(IterableDataset[Any]):
        epoch = 0

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(batches(2 * self.epoch))

    run = carrying(DataLoader(Grows(), None), epochs=3, accumulation=5).run()
    assert (run.step, run.update) == (12, 3)


def test_the_log_knows_the_open_window(tmp_path: Path):
    """In memory and in a journal: what the guards saw, and the trace."""
    run = carrying(batches(5), [Journal(tmp_path / "log")], epochs=2, accumulation=3).run()
    for log in (run.log, TransitionLog.load(tmp_path / "log")):
        (first,) = [t for t in log if t.source == "after_step" and t.step == 5]
        (second,) = [t for t in log if t.source == "after_step" and t.step == 6]
        assert log.explain(first.seq).tried[0].values == {
            "steps in the window": 2,
            "accumulation": 3,
            "remainder": "carry",
            "batches": 5,
            "in a pass": 5,
            "epochs": 0,
            "of": 2,
        }
        assert log.explain(second.seq).tried[0].values["steps in the window"] == 3
        log.to_trace(tmp_path / "trace.json")


def test_the_plan_is_what_the_run_does():
    """With a window that an epoch leaves open, and one that the end flushes."""
    engine = carrying(batches(5), epochs=2, accumulation=3)
    planned = [(turn.source, turn.dest, turn.update) for turn in engine.plan()]
    assert planned == [(t.source, t.dest, t.update) for t in engine.run().log]


def test_more_epochs_on_resume_continue_the_window(tmp_path: Path):
    """A checkpoint in the last epoch of a shorter run."""
    engine = carrying(batches(5), [Checkpoint(tmp_path, at="after_step")], epochs=1, accumulation=3)
    engine.run(until=lambda run: run.step == 4 and run.state == "before_step")
    engine.close()
    run = carrying(batches(5), [Checkpoint(tmp_path, at="after_step")], epochs=2, accumulation=3).run(resume="auto")
    assert (run.step, run.update) == (10, 4)


def test_fewer_epochs_on_resume_note_the_window_that_is_left_open(tmp_path: Path):
    """No step follows that could close it."""
    engine = carrying(batches(5), [Checkpoint(tmp_path)], epochs=3, accumulation=3)
    engine.run(until="before_epoch")
    engine.run(until="before_epoch")
    engine.close()
    run = carrying(batches(5), [Checkpoint(tmp_path)], epochs=1, accumulation=3).run(resume="auto")
    assert (run.step, run.update) == (5, 1)
    assert "2 steps of the window that epoch 0 left open make no update" in run.log.notes()[-1].text


def test_a_closure_computes_a_window_of_two_epochs_again(tmp_path: Path):
    """L-BFGS over three batches at a time has the bits of the plain loop, also resumed with such a window open."""

    def build(folder: str) -> Engine:
        net = small_network()
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
        parts = small_components(net, loader=batches(5), optimizer=optimizer)
        config = RunConfig(epochs=3, accumulation=3, remainder="carry")
        return Engine(parts, config, [Checkpoint(tmp_path / folder)])

    plain = small_network()
    optimizer, steps = torch.optim.LBFGS(plain.parameters(), lr=0.1, max_iter=3), batches(5) * 3
    for place in range(0, 15, 3):

        def closure(place: int = place) -> Any:
            optimizer.zero_grad()
            total: Any = 0.0
            for data, target in steps[place : place + 3]:
                loss = nn.functional.cross_entropy(plain(data), target) / 3
                loss.backward()
                total = total + loss
            return total

        optimizer.step(closure)

    straight, first = build("straight"), build("resumed")
    straight.run()
    first.run(until=lambda run: run.epoch == 1 and run.state == "before_epoch")
    first.close()
    resumed = build("resumed").run(resume="auto")
    for net in (straight.current.network, resumed.network):
        torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_data_that_can_be_iterated_once_serve_one_epoch_with_its_flush():
    """One pass makes two updates of three steps at most; the second of five batches is flushed."""
    assert small_engine(iter(batches(5)), epochs=1, accumulation=3, remainder="carry").run().update == 2
