"""Two engines in one process: what they share, and what the logs say of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from builders import (
    FEATURES,
    batches,
    dataset_engine,
    equal,
    small_components,
    small_config,
    small_engine,
    small_network,
    weights,
)
from heptad import Engine, EngineError, TransitionLog
from heptad_plugins import Journal


def together(*engines):
    """Drive engines at the same time, each in a thread, from the first batch to the last."""
    barrier = threading.Barrier(len(engines))
    for engine in engines:
        engine.on_enter("before_epoch", once=True)(lambda run: barrier.wait(10))
        engine.on_exit("after_epoch")(lambda run: barrier.wait(10))
    with ThreadPoolExecutor(len(engines)) as pool:
        return list(pool.map(Engine.run, engines))


def test_each_of_two_runs_says_that_the_other_was_driven():
    for run in together(small_engine(3), small_engine(3)):
        (note,) = run.log.notes("shared")
        assert "dropout" in note.text
        assert note.thread.startswith("the thread ThreadPoolExecutor")


def test_the_journal_of_each_says_so_too(tmp_path):
    together(*(small_engine(3, [Journal(tmp_path / name)]) for name in "ab"))
    for name in "ab":
        assert len(TransitionLog.load(tmp_path / name).notes("shared")) == 1


def test_one_run_after_another_shares_nothing():
    runs = [small_engine(3).run() for _ in range(2)]
    paused = small_engine(3)
    paused.run(until="after_step")
    runs += [small_engine(3).run(), paused.run()]
    assert not any(run.log.notes("shared") for run in runs)


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_in_a_handler_of_another_says_so_once(fails):
    """Driven turn by turn, or failing, the outer one says so as well; a later run in the process does not."""
    outer, inner = small_engine(3), small_engine(3)

    @outer.on_exit("after_step", once=True)
    def _(run):
        while not inner.current.ended:
            inner.advance()
        if fails:
            raise ValueError

    try:
        outer.run()
    except ValueError:
        assert fails
    for engine in (outer, inner):
        (note,) = engine.current.log.notes("shared")
        assert note.thread == "this thread"
    assert not small_engine(3).run().log.notes("shared")


def test_what_draws_nothing_at_random_is_right_in_two_threads():
    """Weights are those of each run alone: fetching from a list needs no generator, and the order has its own."""
    samples = [(data[0], int(target[0])) for data, target in batches(24, 1)]
    alone = [dataset_engine(samples, seed=seed).run() for seed in (1, 2)]
    beside = together(*(dataset_engine(samples, seed=seed) for seed in (1, 2)))
    for one, other in zip(alone, beside, strict=True):
        assert equal(weights(one.network), weights(other.network))


TOUCHED = ("seed", "setstate")


@pytest.mark.parametrize(
    "dataset",
    [
        [(torch.ones(FEATURES), 1)] * 4,
        ((torch.ones(FEATURES), 1),) * 4,
        Subset([(torch.ones(FEATURES), 1)] * 8, [0, 2, 4, 6]),
        TensorDataset(torch.ones(4, FEATURES), torch.ones(4, dtype=torch.int64)),
    ],
    ids=["list", "tuple", "subset", "tensors"],
)
def test_fetching_what_needs_no_generator_touches_none(dataset, monkeypatch):
    """Seeding one for a batch and restoring it would disturb another thread that draws."""

    def touched(*given):
        raise AssertionError("a global generator was seeded or restored")

    engine = dataset_engine(dataset, seed=None)
    engine.on_enter("before_epoch")(lambda run: [monkeypatch.setattr(random, name, touched) for name in TOUCHED])
    assert engine.run().step == 2


class Draws(Mapping):
    """A sample that draws when it is read."""

    def __getitem__(self, key):
        return torch.rand(FEATURES)

    def __iter__(self):
        return iter(["data"])

    def __len__(self):
        return 1


def test_a_sample_in_a_list_that_computes_is_read_under_the_seed_of_its_batch():
    def drawn(disturb):
        seen = []
        components = small_components(
            dataset=[Draws() for _ in range(4)],
            compute_loss=lambda network, batch: seen.append(batch["data"]) or network(batch["data"]).sum(),
        )
        engine = Engine(components, small_config(batch_size=2))
        engine.on_enter("before_step")(lambda run: torch.rand(disturb))
        engine.run()
        return torch.stack(seen)

    assert torch.equal(drawn(1), drawn(5))


def test_an_engine_that_is_driven_refuses_a_second_thread():
    engine = small_engine(3)
    errors = []

    def intrude():
        try:
            engine.run()
        except EngineError as error:
            errors.append(str(error))

    @engine.on_exit("after_step", once=True)
    def _(run):
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()

    assert engine.run().state == "finished"
    assert ["another thread" in text for text in errors] == [True]


def in_a_thread(call):
    """Return what a function returns, or the text of its error, in another thread."""

    def caught():
        try:
            return call()
        except EngineError as error:
            return str(error)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(caught).result(10)


def inner_engine(engine):
    """Return an engine for a part of another one's network."""
    return small_engine(3, network=engine.current.network[0])


ASKED = {
    "evaluate": lambda engine: engine.evaluate(batches(2)),
    "predict": lambda engine: list(engine.predict(batches(2))),
    "run.evaluate": lambda engine: engine.current.evaluate(batches(2)),
    "a part": lambda engine: inner_engine(engine).evaluate(batches(2)),
}


@pytest.mark.parametrize("asked", ASKED)
def test_the_network_that_is_trained_is_not_evaluated_in_another_thread(asked):
    """Steps would be made in evaluation mode: BatchNorm and dropout would be other ones, and nobody would know."""
    engine = small_engine(3, network=nn.Sequential(small_network()))
    said = []
    engine.on_enter("process_batch", once=True)(lambda run: said.append(in_a_thread(lambda: ASKED[asked](engine))))
    run = engine.run()
    assert "trains this network: its steps would be made in evaluation mode" in said[0]
    assert not run.log.notes("shared")
    ASKED[asked](engine)  # afterwards it may be
    assert equal(weights(run.network), weights(small_engine(3, network=nn.Sequential(small_network())).run().network))


@pytest.mark.parametrize("asked", ["evaluate", "predict"])
def test_a_run_says_that_another_network_was_evaluated_in_another_thread(asked):
    engine, other = small_engine(3), small_engine(3)
    engine.on_enter("process_batch", once=True)(lambda run: in_a_thread(lambda: ASKED[asked](other)))
    (note,) = engine.run().log.notes("shared")
    assert "or evaluates in this process" in note.text
    assert note.thread.startswith("the thread ThreadPoolExecutor")


@pytest.mark.parametrize("same", [True, False])
def test_a_run_that_begins_while_another_thread_evaluates(same):
    evaluated, engine = small_engine(3), small_engine(3)
    driven = evaluated if same else engine
    said = []

    def metric(output, batch):
        if not said:
            said.append(in_a_thread(driven.run))
        return output.mean()

    evaluated.evaluate(batches(2), {"said": metric})
    if same:
        assert "is evaluating this network" in said[0]
        assert driven.run().state == "finished"  # nothing was begun
    else:
        assert len(said[0].log.notes("shared")) == 1


def test_an_evaluation_in_a_handler_and_one_after_the_run_share_nothing():
    engine, other = small_engine(3), small_engine(3)

    @engine.on_exit("after_step")
    def _(run):
        for one in (engine, other):
            one.evaluate(batches(2))
            next(one.predict(batches(2)))

    assert not engine.run().log.notes("shared")
