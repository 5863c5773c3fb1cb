"""`RunConfig(limit_batches=)`: an epoch of so many batches, whatever the data come from."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from builders import Unsized, batches, dataset_engine, small_engine
from heptad import ConfigError, Engine
from heptad_plugins import Checkpoint, Evaluate
from scenario import full_engine, outcome
from test_feed import SizedProbe

torch.set_num_threads(1)

SAMPLES = TensorDataset(torch.cat([x for x, _ in batches(5)]), torch.cat([y for _, y in batches(5)]))
KINDS: dict[str, Any] = {
    "dataset": lambda **config: dataset_engine(SAMPLES, **config),
    "workers": lambda **config: dataset_engine(SAMPLES, num_workers=1, **config),
    "stream": lambda **config: dataset_engine(Stream(), **config),
    "stream in workers": lambda **config: dataset_engine(Stream(), num_workers=1, **config),
    "list": lambda **config: small_engine(5, **config),
    "loader": lambda **config: small_engine(DataLoader(SAMPLES, batch_size=2, shuffle=True), **config),
    "unsized": lambda **config: small_engine(Unsized(batches(5)), **config),
}
"""Engines over five batches of two samples."""


class Stream(IterableDataset[Any]):
    """Ten samples."""

    def __iter__(self) -> Any:
        return iter([SAMPLES[place] for place in range(10)])


class Endless:
    """Batches without an end and without a length, which it counts."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Any:
        for number in count():
            self.asked += 1
            yield batches(3)[number % 3]


def steps_of(engine: Engine) -> tuple[list[int], int]:
    """Run an engine; return the steps of each epoch, and the updates."""
    run = engine.run()
    return [t.batch_index for t in run.log.where(source="after_epoch")], run.update


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 3, 5, 9])
def test_an_epoch_has_so_many_batches_at_most(limit, kind):
    """Three epochs of five batches; a limit beyond them changes nothing."""
    length = min(limit, 5)
    assert steps_of(KINDS[kind](epochs=3, limit_batches=limit)) == ([length] * 3, 3 * length)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("remainder", "steps", "updates"), [("extend", [6, 6], 4), ("flush", [4, 4], 4), ("drop", [3, 3], 2)]
)
def test_a_window_that_the_limit_leaves_unfilled_is_extended_flushed_or_dropped(remainder, steps, updates, kind):
    """Four of five batches, three to an update."""
    engine = KINDS[kind](epochs=2, limit_batches=4, accumulation=3, remainder=remainder)
    known = engine.current.total_updates
    if remainder == "drop" and known is None:
        steps = [4, 4]  # nobody knows ahead that no window can be filled
    assert steps_of(engine) == (steps, updates)
    assert known in (updates, None)
    assert (known is None) == ("stream" in kind or kind == "unsized")


def test_a_window_larger_than_the_limit_is_filled_by_further_passes_of_that_length():
    """Each takes two batches at most."""
    loader = SizedProbe(batches(5))
    engine = small_engine(loader, limit_batches=2, accumulation=5)
    run = engine.run()
    assert (run.step, run.update, run._position.pass_index, loader.asked) == (5, 1, 2, 5)


def test_data_that_never_end_are_read_up_to_the_limit_and_no_further():
    """No batch is read ahead of the one that is the last."""
    data = Endless()
    assert steps_of(small_engine(data, epochs=3, limit_batches=4)) == ([4] * 3, 12)
    assert data.asked == 12


def test_batches_that_can_be_iterated_once_serve_one_epoch():
    """Those of a generator that does not end."""
    assert steps_of(small_engine(iter(Endless()), epochs=1, limit_batches=4)) == ([4], 4)


def test_a_limited_epoch_takes_the_first_batches_of_the_pass():
    """In the order that it has without a limit."""

    def seen(limit: int | None) -> list[Any]:
        found: list[Any] = []
        engine = dataset_engine(SAMPLES, epochs=2, limit_batches=limit)
        engine.on_enter("process_batch")(lambda run: found.append((run.epoch, run.batch_index, run.batch[0].tolist())))
        engine.run()
        return found

    assert seen(2) == [row for row in seen(None) if row[1] < 2]


def test_a_limit_does_not_shorten_an_evaluation():
    """Its mean is taken over all batches."""
    limited, whole = (
        small_engine(3, [Evaluate(batches(4), at="after_step")], limit_batches=1, max_updates=1),
        small_engine(3, [Evaluate(batches(4), at="after_step")], max_updates=1),
    )
    assert limited.run().metrics["valid/loss"] == whole.run().metrics["valid/loss"]


@pytest.mark.parametrize("feed", ["workers", "stream", "loader", "unsized loader"])
def test_a_limited_run_resumes_exactly(feed, tmp_path: Path):
    """On the last batch of an epoch, in its extended window and between epochs."""

    def build(folder: str, every: int) -> Engine:
        checkpoint = Checkpoint(tmp_path / folder, at=("after_step", "after_epoch"), every=every)
        return full_engine(tmp_path, feed=feed, limit_batches=4, checkpoint=checkpoint)

    straight = build("straight", 100)
    straight.run()
    for stop in (4, 5, 6):
        first = build(f"{stop}", 100)
        first.on_exit("after_step" if stop < 6 else "after_epoch", when=lambda run, stop=stop: run.step == stop)(
            lambda run: run.pause("here")
        )
        first.run()
        first.close()
        second = build(f"{stop}", 100)
        assert second.run(resume="auto").resumed_from
        assert outcome(second) == outcome(straight), f"resumed after step {stop}"


def test_another_limit_is_another_run(tmp_path: Path):
    """It changes what an epoch is."""
    small_engine(3, [Checkpoint(tmp_path, at="after_step")], limit_batches=2).run()
    with pytest.raises(Exception, match="limit_batches: 2 in the checkpoint, None here"):
        small_engine(3, [Checkpoint(tmp_path, at="after_step")]).run(resume="auto")


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2", True])
def test_a_limit_is_a_whole_number_from_1_on(limit):
    """Anything else is refused when the configuration is built."""
    with pytest.raises(ConfigError, match=r"RunConfig\.limit_batches must be"):
        small_engine(3, limit_batches=limit)
