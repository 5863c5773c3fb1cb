"""`os.fork` in a handler: the parent's run continues, the child's copy makes no further turn and hangs nowhere."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch.utils.data import DataLoader

from builders import FEATURES, Unsized, batches, dataset_engine, equal, small_engine, weights
from heptad import LogError, Plugin, TransitionLog
from heptad_plugins import Checkpoint, CSVLogger, Evaluate, Journal, TensorBoardLogger

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")

SAMPLES = [(torch.full((FEATURES,), float(number)), number % 3) for number in range(24)]


class Child:
    """Forks in a handler. The child ends with what `run` raised in its exit code and a pipe."""

    def __init__(self) -> None:
        self.pid = -1
        self.reading, self.writing = os.pipe()

    def fork(self, run=None):
        if self.pid < 0:
            self.pid = os.fork()

    def drive(self, engine):
        """Drive a run, and return it with the error of the child."""
        try:
            run = engine.run()
        except BaseException as error:
            if not self.pid:
                os.write(self.writing, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
            raise
        if not self.pid:
            os.write(self.writing, b"it returned")
            os._exit(0)
        return run, self.words()

    def words(self):
        os.close(self.writing)
        deadline = time.monotonic() + 20
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self.pid, 9)
                os.waitpid(self.pid, 0)
                return "it hangs"
            time.sleep(0.01)
        return os.read(self.reading, 4096).decode()


PLACES = ["enter before_epoch", "exit before_step", "enter process_batch", "exit after_step", "enter optimizer_update"]
PLACES += ["exit optimizer_update", "exit after_epoch", "enter after_loop"]


@pytest.mark.parametrize("place", PLACES)
def test_the_child_gets_an_error_and_the_parent_its_journal(place, tmp_path):
    child = Child()
    engine = small_engine(6, [Journal(tmp_path / "run"), CSVLogger(tmp_path / "values.csv")], accumulation=2)
    moment, state = place.split()
    (engine.on_enter if moment == "enter" else engine.on_exit)(state, once=True)(child.fork)
    run, words = child.drive(engine)
    assert words.startswith("EngineError: this process")
    assert f"is a fork of the one that drives the run ({os.getpid()})" in words
    assert run.state == "finished"
    assert list(TransitionLog.load(tmp_path / "run")) == list(run.log)
    alone = [Journal(tmp_path / "alone"), CSVLogger(tmp_path / "alone.csv")]
    again = small_engine(6, alone, accumulation=2).run()
    assert equal(weights(run.network), weights(again.network))
    assert (tmp_path / "values.csv").read_text() == (tmp_path / "alone.csv").read_text()


@pytest.mark.parametrize(
    "make",
    [
        lambda: dataset_engine(SAMPLES, num_workers=2, epochs=2, seed=1),
        lambda: small_engine(DataLoader(SAMPLES, batch_size=4, num_workers=2), epochs=2),
        lambda: small_engine(Unsized(batches(8)), epochs=2),
    ],
    ids=["dataset", "loader", "unsized"],
)
def test_the_workers_stay_with_the_parent(make):
    """A child that took a batch from their pipe, or ended them, would show in the weights, or as an error."""
    child, engine = Child(), make()
    engine.on_exit("after_step", every=2, once=False)(child.fork)
    run, words = child.drive(engine)
    assert words.startswith("EngineError: this process")
    assert equal(weights(run.network), weights(make().run().network))


def test_a_child_that_pauses_waits_for_no_thread(tmp_path):
    """`on_pause` and the entry of a checkpoint wait for the writer of the journal."""
    child = Child()
    engine = small_engine(
        8, [Journal(tmp_path / "run", flush_every=1), Checkpoint(tmp_path / "c", "optimizer_update", every=2)]
    )

    @engine.on_exit("optimizer_update", every=2, once=False)
    def _(run):
        child.fork(run)
        if not child.pid:
            run.pause("in the child")

    run, words = child.drive(engine)
    assert words.startswith(("EngineError: this process", "LogError: Journal"))
    assert run.state == "finished"


class Forks(Plugin):
    """Comes before the loggers, whose handlers the child calls to the end of its turn."""

    def __init__(self, child, state, moment="exit"):
        self._given = child, (moment, state)

    def _act(self, moment, state):
        child, where = self._given
        if where == (moment, state):
            child.fork()

    def on_exit_optimizer_update(self, run):
        self._act("exit", "optimizer_update")

    def on_exit_after_epoch(self, run):
        self._act("exit", "after_epoch")

    def on_exit_evaluate(self, run):
        self._act("exit", "evaluate")

    def on_enter_checkpoint(self, run):
        self._act("enter", "checkpoint")


@pytest.mark.parametrize("place", ["exit optimizer_update", "exit after_epoch", "exit evaluate", "enter checkpoint"])
@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_the_child_writes_nothing_to_the_files_of_loggers(logger, place, tmp_path):
    """It wrote rows into the parent's file, or waited for ever for a thread that is not there."""
    if logger is TensorBoardLogger:
        pytest.importorskip("tensorboard")
    moment, state = place.split()

    def plugins(name, *first):
        path = tmp_path / name
        return [*first, logger(path / "log"), Evaluate(batches(2)), Checkpoint(path / "c", "optimizer_update", every=3)]

    child = Child()
    run, words = child.drive(small_engine(6, plugins("forked", Forks(child, state, moment)), epochs=2))
    assert "is a fork of" in words
    assert run.state == "finished"
    small_engine(6, plugins("alone"), epochs=2).run()
    assert written(tmp_path / "forked" / "log") == written(tmp_path / "alone" / "log")


def written(path):
    """Return the rows of a CSV file, or how many bytes of events there are."""
    if path.is_file():
        return path.read_text()
    return [one.stat().st_size for one in path.iterdir()]


def test_the_journal_says_that_it_belongs_to_the_parent(tmp_path):
    child, journal = Child(), Journal(tmp_path / "run")
    engine = small_engine(6, [journal])

    @engine.on_exit("after_step", once=True)
    def _(run):
        child.fork(run)
        if not child.pid:
            try:
                journal.on_pause(run)
            except LogError as error:
                os.write(child.writing, str(error).encode())
            os._exit(0)

    run, words = child.drive(engine)
    assert f"run belongs to the process {os.getpid()}" in words
    assert len(TransitionLog.load(tmp_path / "run")) == len(run.log)


def test_a_child_may_drive_a_run_of_its_own(tmp_path):
    """With a journal of its own; it is not told that another run is driven beside it."""
    child = Child()
    engine = small_engine(6, [Journal(tmp_path / "run")])

    @engine.on_exit("after_step", once=True)
    def _(run):
        child.fork(run)
        if not child.pid:
            own = small_engine(3, [Journal(tmp_path / "own")]).run()
            os.write(child.writing, f"{own.state} {len(own.log.notes('shared'))}".encode())
            os._exit(0)

    run, words = child.drive(engine)
    assert (words, run.state) == ("finished 0", "finished")
    assert len(TransitionLog.load(tmp_path / "own")) > 0
