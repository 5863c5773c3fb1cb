"""`Checkpoint(monitor=…)`: a value counts for the weights that it was measured of, and for no others."""

from pathlib import Path

import pytest
import torch
from torch import nn

from builders import batches, small_engine
from heptad import CheckpointError, Plugin, load_weights
from heptad.checkpoints.entry import Entry, best_of, rank
from heptad.plugin import Store
from heptad_plugins import EMA, Checkpoint, Evaluate

VALID = batches(4, size=8)
ONE_CLASS = [(data, torch.full_like(target, 2)) for data, target in VALID]


def network(*, normed=False):
    """Return a network that overfits: its validation loss falls and rises."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if normed else nn.Tanh(), nn.Linear(6, 3))


def loss_of(weights, data=VALID):
    """Return the mean validation loss, written out."""
    weights.eval()
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(weights(x), y).double().item() for x, y in data]
    return sum(losses) / len(losses)


def trained(directory, evaluate=None, plugins=(), *, normed=False, resume=None, until=None, loader=5, **options):
    """Train with an evaluation and checkpoints, of which all stay unless it is said."""
    config = {name: options.pop(name) for name in ("accumulation", "epochs", "remainder") if name in options}
    options = {"keep_last": 1, "keep_best": 1, "monitor": "valid/loss", **options}
    members = [*plugins, evaluate or Evaluate(VALID), Checkpoint(directory, **options)]
    engine = small_engine(loader, members, network=network(normed=normed), **{"epochs": 4, **config})
    return engine.run(until=until, resume=resume)


def best(directory, *, normed=False, average=False):
    """Return the loss of the best weights, and the value that was stored with them."""
    loaded = network(normed=normed)
    path = load_weights(directory, loaded, "best", average=average)
    return loss_of(loaded), Store(directory).summary(path)["monitor"]["value"]


def assert_best_was_measured(directory, run, **options):
    """The best checkpoint holds the weights of the lowest value that some checkpoint could have."""
    measured, stored = best(directory, **options)
    assert measured == pytest.approx(stored, rel=1e-6)
    assert stored == min(run.history("valid/loss"))


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("at", [("after_step", "after_epoch"), ("after_step", "optimizer_update", "after_epoch")])
def test_the_best_weights_give_the_best_value(tmp_path, at, k, normed):
    """Also where many checkpoints follow an evaluation."""
    run = trained(tmp_path, at=at, accumulation=k, normed=normed)
    assert_best_was_measured(tmp_path, run, normed=normed)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("every", [2])
def test_an_evaluation_at_every_second_update_counts_for_that_update(tmp_path, every, k):
    """The checkpoint of the update after it has no value."""
    trained(tmp_path, Evaluate(VALID, at="optimizer_update", every=every), at="optimizer_update", accumulation=k)
    measured, stored = best(tmp_path)
    assert measured == pytest.approx(stored, rel=1e-6)
    rows = [Store(tmp_path).summary(entry) for entry in Store(tmp_path).entries()]
    assert all(row["update"] % every == 0 for row in rows if "monitor" in row)


def test_a_run_resumed_between_evaluation_and_checkpoint_gives_it_no_value_of_before(tmp_path):
    """Recorded values come back with the update at which they were recorded."""
    places = ("after_step", "after_epoch")
    straight = trained(tmp_path / "a", at=places)
    for step in (7, 13, 22):
        trained(tmp_path / "b", at=places, resume="auto", until=lambda run, at=step: run.step == at)
    resumed = trained(tmp_path / "b", at=places, resume="auto")
    assert resumed.history("valid/loss") == straight.history("valid/loss")
    assert_best_was_measured(tmp_path / "b", resumed)


class Skips(Plugin):
    """Skips the updates of these steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_enter_optimizer_update(self, run):
        if run.step in self.steps:
            run.skip_update("planned")


def test_after_a_skipped_update_the_weights_are_still_those_that_were_measured(tmp_path):
    """So the value counts there as well."""
    trained(tmp_path, plugins=[Skips(6, 7)], at=("after_step", "after_epoch"), keep_last=99, epochs=3)
    store = Store(tmp_path)
    # that of a step comes before its update: 8 is the last before the weights move
    steps = [s["step"] for s in map(store.summary, store.entries()) if "monitor" in s]
    assert steps == [5, 6, 7, 8, 10, 11, 15]
    measured, stored = best(tmp_path)
    assert measured == pytest.approx(stored, rel=1e-6)


def test_buffers_that_move_in_a_skipped_step_are_others_than_those_that_were_measured(tmp_path):
    """Batch norm has seen another batch."""
    at = ("after_step", "after_epoch")
    trained(tmp_path, plugins=[Skips(6, 7)], at=at, keep_last=99, epochs=3, normed=True)
    store = Store(tmp_path)
    assert [s["step"] for s in map(store.summary, store.entries()) if "monitor" in s] == [5, 10, 15]


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("at", ["after_epoch", "optimizer_update"])
def test_with_an_average_the_best_is_the_average_that_was_measured(tmp_path, at, normed):
    """`average=True` loads it; the weights that were trained have another loss."""
    valid = Evaluate(VALID, at=at)
    places = ("after_step", "optimizer_update", "after_epoch")
    run = trained(tmp_path, valid, [EMA(0.8)], at=places, normed=normed, loader=batches(5, size=8))
    assert_best_was_measured(tmp_path, run, normed=normed, average=True)
    trained_loss, stored = best(tmp_path, normed=normed)
    assert trained_loss != pytest.approx(stored, rel=1e-4)


def test_the_average_of_the_newest_has_two_names(tmp_path):
    """`which="ema"` is as before."""
    trained(tmp_path, plugins=[EMA(0.8)])
    one, other = network(), network()
    assert load_weights(tmp_path, one, "ema") == load_weights(tmp_path, other, average=True)
    assert loss_of(one) == loss_of(other)


def test_without_an_average_it_is_refused(tmp_path):
    """The plugins that there were are named."""
    trained(tmp_path)
    with pytest.raises(CheckpointError, match="no plugin named EMA"):
        load_weights(tmp_path, network(), "best", average=True)


def test_two_monitors_have_their_own_best(tmp_path):
    """Each in a directory of its own, measured at other times."""

    class Second(Checkpoint):
        """A second one needs a name of its own."""

    places = ("after_step", "after_epoch")
    second = Second(tmp_path / "b", places, keep_last=1, keep_best=1, monitor="other/loss")
    other = Evaluate(ONE_CLASS, at="optimizer_update", every=3, name="other")
    run = trained(tmp_path / "a", plugins=[other, second], at=places)
    assert_best_was_measured(tmp_path / "a", run)
    loaded = network()
    path = load_weights(tmp_path / "b", loaded, "best")
    assert loss_of(loaded, ONE_CLASS) == pytest.approx(
        Store(tmp_path / "b").summary(path)["monitor"]["value"], rel=1e-6
    )


def test_for_each_of_several_best_values_one_checkpoint_stays(tmp_path):
    """Checkpoints of the same weights do not take the place of the second best."""
    valid = Evaluate(VALID, at="optimizer_update")
    run = trained(tmp_path, valid, at=("after_step", "optimizer_update"), accumulation=5, keep_best=3)
    store = Store(tmp_path)
    values = [s["monitor"]["value"] for s in map(store.summary, store.entries()) if "monitor" in s]
    assert set(sorted(run.history("valid/loss"))[:3]) <= set(values)


def test_of_equal_values_the_oldest_is_the_best():
    """Where an earlier version gave later checkpoints the value too, it is the one that was measured."""
    monitor = {"name": "loss", "mode": "min", "value": 0.5}
    rows = [(Entry(n, Path(str(n))), {"monitor": monitor, "update": update}) for n, update in ((1, 4), (2, 4), (3, 5))]
    assert [entry.number for entry in rank(rows)] == [1, 2, 3]
    assert [entry.number for entry in best_of(rows, 2)] == [1, 3]


def test_an_evaluation_that_comes_later_is_waited_for(tmp_path):
    """A checkpoint of the first epoch has no value where every second one is evaluated."""
    run = trained(tmp_path, Evaluate(VALID, every=2))
    assert run.state == "finished"
    assert len(run.history("valid/loss")) == 2
    assert_best_was_measured(tmp_path, run)


def test_where_no_value_counts_the_error_says_when_one_does(tmp_path):
    """A value that is recorded before each update is one of other weights."""

    class Early(Plugin):
        def on_exit_process_batch(self, run):
            run.record("early", run.loss)

    trained(tmp_path, plugins=[Early()], monitor="early", at="optimizer_update")
    with pytest.raises(CheckpointError, match="written after it and before the next update"):
        load_weights(tmp_path, network(), "best")


@pytest.mark.parametrize("monitor", ["valid/loss", "valid/los"])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_log_says_if_no_checkpoint_could_be_the_best(tmp_path, monitor, resumed):
    """An update lies between each value and each checkpoint, or the name is wrong: `which="best"` will find nothing."""
    options = {"at": "optimizer_update", "every": 7, "monitor": monitor}
    if resumed:
        trained(tmp_path, until=lambda run: run.update == 8, **options)
    run = trained(tmp_path, resume=tmp_path if resumed else None, **options)
    (note,) = run.log.notes("note")
    why = "none was taken between a value and" if monitor == "valid/loss" else "nothing was recorded under that name"
    assert note.text.startswith(f"Checkpoint(monitor='{monitor}'): no checkpoint is the best: {why}")
    with pytest.raises(CheckpointError, match="best"):
        load_weights(tmp_path, network(), "best")


def test_a_best_of_before_a_pause_is_remembered(tmp_path):
    """Nothing is said in a run whose only checkpoint with a value was written before it was resumed."""
    options = {"at": "after_epoch", "evaluate": Evaluate(VALID, every=2, first=1)}
    trained(tmp_path, until=lambda run: run.epoch == 1 and run.state == "process_batch", epochs=2, **options)
    assert trained(tmp_path, resume=tmp_path, epochs=2, **options).log.notes("note") == []
