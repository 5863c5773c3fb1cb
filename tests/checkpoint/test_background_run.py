"""`Checkpoint(background=True)`: a run continues while a thread writes, waits where it must, and hides nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk import Holder, same

from builders import equal, small_engine, weights
from heptad import CheckpointError, Engine, Plugin, PluginError, Run, TransitionLog
from heptad.checkpoints.store import Store
from heptad.plugin import Detach, Failed
from heptad_plugins import Checkpoint, Journal
from scenario import full_engine

ROOT = Path(__file__).resolve().parents[2]


def held(directory: Path, error: int = 0, **options: Any) -> tuple[Checkpoint, Holder]:
    """Return a `Checkpoint` whose thread stops until it is let go, and what lets it go."""
    files = Holder(error)
    checkpoint = Checkpoint(directory, **{"at": "after_step", "background": True, **options})
    checkpoint.store = Store(directory, files)
    return checkpoint, files


class At(Plugin):
    """Calls a function on exit of `process_batch` in one step."""

    observes = True

    def __init__(self, step: int, call: Callable[[], object]) -> None:
        self.step, self.call = step, call

    def on_exit_process_batch(self, run: Run) -> None:
        if run.step == self.step:
            self.call()


def ended() -> None:
    """Wait until no thread writes."""
    deadline = time.monotonic() + 20
    while any(thread.name == "heptad-checkpoint" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def let_go(files: Holder) -> None:
    """Let a thread go, and wait for its end."""
    files.gate.set()
    ended()


def let_go_soon(files: Holder) -> None:
    """Let it go while somebody waits for it."""
    threading.Timer(0.1, files.gate.set).start()


def numbers(directory: Path) -> list[int]:
    """Return the numbers of the checkpoints in a directory."""
    return [entry.number for entry in Store(directory).entries()]


def sections_of(directory: Path, number: int) -> dict[str, Any]:
    """Return what a checkpoint holds but for the id of the run."""
    sections = Store(directory).load(directory / f"checkpoint-{number:08d}").sections
    del sections["run"]["position"]["id"]
    return sections


# -- what is stored


def test_it_holds_the_state_at_the_call_while_the_run_continues(tmp_path: Path):
    """Held for three steps and an update: gradients of a window, moments, buffers, generators, averages, counts."""
    gates = [At(number, lambda: None) for number in (7, 11)]
    before = Checkpoint(tmp_path / "before", "after_step", 4, keep_last=9)
    straight = full_engine(tmp_path, gates[:1], checkpoint=before).run()
    behind, files = held(tmp_path / "behind", every=4, keep_last=9)
    run = full_engine(tmp_path, [At(7, lambda: let_go(files))], checkpoint=behind).run()
    assert numbers(tmp_path / "behind") == numbers(tmp_path / "before") == [1, 2, 3, 4]
    for number in range(1, 5):
        assert same(*(sections_of(tmp_path / name, number) for name in ("before", "behind")))
    assert equal(weights(straight.network), weights(run.network))


def test_the_run_differs_in_nothing_but_the_events_of_the_thread(tmp_path: Path):
    """Not in its handlers, its table or its states; and the same checkpoints stay."""
    runs = [
        full_engine(
            tmp_path,
            checkpoint=Checkpoint(
                tmp_path / str(background),
                at=("after_step", "after_epoch"),
                keep_best=1,
                monitor="valid/loss",
                background=background,
            ),
        ).run()
        for background in (False, True)
    ]
    found = runs[0].log.diff(runs[1].log)
    assert found.same, str(found)
    saved = runs[0].log.counts()["checkpoint"]
    assert [len(run.log.notes("written")) for run in runs] == [0, saved]
    assert len(runs[1].log.notes()) == saved + len(runs[0].log.notes())
    assert numbers(tmp_path / "True") == numbers(tmp_path / "False")
    for number in numbers(tmp_path / "True"):
        assert same(*(sections_of(tmp_path / name, number) for name in ("False", "True")))


@pytest.mark.parametrize("background", [False, True])
def test_it_is_resumed_in_either_way(background: bool, tmp_path: Path):
    """In the middle of a window; `background` is no part of the run's identity."""
    straight = full_engine(tmp_path / "straight").run()
    first = Checkpoint(tmp_path / "kept", "after_step", background=background)
    full_engine(tmp_path, checkpoint=first).run(until=lambda run: run.step == 8 and run.state == "before_step")
    second = Checkpoint(tmp_path / "kept", "after_step", background=not background)
    run = full_engine(tmp_path, checkpoint=second).run(resume="auto")
    assert run.resumed_from == str(tmp_path / "kept" / "checkpoint-00000008")
    assert [note.text for note in run.log.notes("resume")][1:] == []
    assert equal(weights(run.network), weights(straight.network))


def test_the_journal_tells_when_each_was_written(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path / "kept", "after_step", background=True)
    run = small_engine(4, [Journal(tmp_path / "log"), checkpoint]).run()
    read = TransitionLog.load(tmp_path / "log")
    assert read.notes("written") == run.log.notes("written")
    assert [event.checkpoint for event in read.notes("written")] == [f"checkpoint-{n:08d}" for n in range(1, 5)]


# -- who waits


def test_the_next_checkpoint_waits(tmp_path: Path):
    """And the time is that of the state `checkpoint`."""
    checkpoint, files = held(tmp_path)
    run = small_engine(2, [checkpoint, At(1, lambda: let_go_soon(files))]).run()
    assert numbers(tmp_path) == [1, 2]
    first, second = run.log.where(source="checkpoint")
    assert first.duration_ns < 50_000_000 < second.duration_ns


def test_a_pause_waits_and_writes_its_own_before_it_returns(tmp_path: Path):
    checkpoint, files = held(tmp_path, every=2)
    engine = small_engine(6, [checkpoint])

    def pause() -> None:
        engine.current.pause("enough")
        let_go_soon(files)

    engine.on_exit("process_batch")(lambda run: pause() if run.step == 2 else None)
    run = engine.run()
    assert (run.paused, run.step) == ("enough", 3)
    assert numbers(tmp_path) == [1, 2]
    assert Store(tmp_path).newest_sound()[1].summary["step"] == 3
    assert len(run.log.notes("written")) == 1
    assert engine.run().state == "finished"


def test_until_waits_and_the_directory_is_free_then(tmp_path: Path):
    checkpoint, files = held(tmp_path)
    let_go_soon(files)
    small_engine(4, [checkpoint]).run(until=lambda run: run.step == 1 and run.state == "before_step")
    assert numbers(tmp_path) == [1]
    Store(tmp_path).lock()


def test_the_end_waits_in_its_last_state(tmp_path: Path):
    checkpoint, files = held(tmp_path, every=3)
    let_go_soon(files)
    run = small_engine(3, [checkpoint]).run()
    assert numbers(tmp_path) == [1]
    assert run.log[-1].duration_ns > 50_000_000


def test_close_waits_for_what_advance_began(tmp_path: Path):
    checkpoint, files = held(tmp_path)
    engine = small_engine(3, [checkpoint])
    while engine.advance().source != "checkpoint":
        pass
    assert numbers(tmp_path) == []
    let_go_soon(files)
    engine.close()
    assert numbers(tmp_path) == [1]
    Store(tmp_path).lock()


def test_a_direct_save_of_a_paused_run_is_written_when_it_returns(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path, every=100, background=True)
    engine = small_engine(3, [checkpoint])
    run = engine.run(until="after_step")
    engine.run(until="before_step")
    checkpoint.save(run)
    assert numbers(tmp_path) == [1]


def test_a_failing_handler_leaves_a_checkpoint_that_is_whole(tmp_path: Path):
    """The plugins are closed after it, and closing waits."""
    checkpoint, files = held(tmp_path)

    def fail() -> None:
        let_go_soon(files)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        small_engine(3, [checkpoint, At(1, fail)]).run()
    assert numbers(tmp_path) == [1]
    assert Store(tmp_path).newest_sound()[2] == []


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_checkpoint_waits_pauses_behind_it(tmp_path: Path):
    checkpoint, files = held(tmp_path)

    def press() -> None:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        threading.Timer(0.15, files.gate.set).start()

    engine = small_engine(4, [checkpoint, At(1, press)])
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert engine.current.paused == "Ctrl-C"
    assert [Store(tmp_path).load(entry).summary["step"] for entry in Store(tmp_path).entries()] == [2, 2]
    assert engine.run().state == "finished"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_that_is_pressed_on_ends_the_run_and_the_thread_ends_its_work(tmp_path: Path):
    """The second one ends the run, the third its closing; the lock is the thread's until it has written."""
    checkpoint, files = held(tmp_path)

    def press() -> None:
        for number in range(1, 4):
            threading.Timer(0.05 * number, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    engine = small_engine(4, [checkpoint, At(1, press)])
    with pytest.raises(KeyboardInterrupt) as caught:
        engine.run()
    assert engine.current.state == "failed"
    assert "and closing the plugins raised: SecondInterrupt" in "".join(caught.value.__notes__)
    with pytest.raises(CheckpointError, match="is in use"):
        Store(tmp_path).lock()
    let_go(files)
    Store(tmp_path).lock()
    assert numbers(tmp_path) == [1]


def test_two_engines_write_at_the_same_time(tmp_path: Path):
    """Each in its own thread and directory; one directory is refused to the other."""
    made = [held(tmp_path / name) for name in "ab"]
    engines = [small_engine(2, [checkpoint]) for checkpoint, _ in made]
    for engine in engines:
        while engine.advance().source != "checkpoint":
            pass
    with pytest.raises(CheckpointError, match="is in use: another Checkpoint in this process"):
        small_engine(2, [Checkpoint(tmp_path / "a", overwrite=True)]).run()
    for _, files in made:
        assert files.reached.wait(20)
        files.gate.set()
    for engine in engines:
        assert engine.run().state == "finished"
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b") == [1, 2]


def test_one_object_in_a_second_engine_waits_for_the_first(tmp_path: Path):
    checkpoint, files = held(tmp_path, overwrite=True)
    engine = small_engine(2, [checkpoint])
    while engine.advance().source != "checkpoint":
        pass
    let_go_soon(files)
    run = small_engine(2, [checkpoint]).run()
    assert numbers(tmp_path) == [1, 2]
    assert Store(tmp_path).newest_sound()[1].summary["run"] == run.id
    assert len(engine.current.log.notes("written")) == 1


# -- what fails


@pytest.mark.parametrize("turn", range(6))
def test_a_failure_ends_the_run_after_the_turn_in_which_it_came(turn: int, tmp_path: Path):
    """Whatever the state; the log names it as any other."""
    checkpoint, files = held(tmp_path, errno.ENOSPC, every=2)
    engine = small_engine(6, [checkpoint], accumulation=3)
    while engine.advance().source != "checkpoint":
        pass
    for _ in range(turn):
        engine.advance()
    here = len(engine.current.log), engine.current.state
    let_go(files)
    with pytest.raises(CheckpointError, match=r"no checkpoint was written: writing .* failed: ENOSPC") as caught:
        engine.advance()
    run = engine.current
    assert run.state == "failed"
    (failure,) = run.log.notes("failure")
    assert isinstance(failure, Failed)
    if here[1] == "after_step":  # where the handler that reads the clock looks as well
        assert (run.log[here[0]].source, run.log[here[0]].dest) == ("after_step", "failed")
        place = "in Checkpoint.on_exit_after_step on exit of after_step"
    else:
        turn_made, failed = run.log[here[0] :]
        assert (turn_made.source, failed.dest) == (here[1], "failed")
        place = f"in Checkpoint.save on entry to {failed.source}"
        assert run.log.explain(failed.seq).transition == failed
    assert place in str(failure)
    notes = "\n".join(caught.value.__notes__)
    assert "of the checkpoint that was taken at epoch 0, step 2, update 0" in notes
    assert place in notes
    assert "closing" not in notes  # raised once
    assert numbers(tmp_path) == []


def test_a_run_stops_at_a_failure_without_being_looked_at_turn_by_turn(tmp_path: Path):
    checkpoint, files = held(tmp_path, errno.EIO, every=2)
    engine = small_engine(40, [checkpoint, At(3, lambda: let_go(files))])
    with pytest.raises(CheckpointError, match="EIO"):
        engine.run()
    assert engine.current.state == "failed"
    assert engine.current.log[-1].source == "after_step"
    assert engine.current.step == 3


def test_a_failure_of_the_last_one_ends_the_run_in_its_last_state(tmp_path: Path):
    checkpoint, files = held(tmp_path, errno.ENOSPC, every=3)
    let_go_soon(files)
    engine = small_engine(3, [checkpoint])
    with pytest.raises(CheckpointError, match="ENOSPC"):
        engine.run()
    assert (engine.current.state, engine.current.log[-1].source) == ("failed", "after_loop")


def test_a_failure_is_raised_at_until_and_the_run_can_continue(tmp_path: Path):
    checkpoint, files = held(tmp_path, errno.ENOSPC)
    engine = small_engine(3, [checkpoint])
    let_go_soon(files)
    with pytest.raises(CheckpointError, match="ENOSPC"):
        engine.run(until=lambda run: run.step == 1 and run.state == "before_step")
    assert engine.current.state == "before_step"
    assert engine.run().state == "finished"
    assert numbers(tmp_path) == [1, 2]


def test_a_pause_stores_its_own_although_the_one_before_failed(tmp_path: Path):
    checkpoint, files = held(tmp_path, errno.ENOSPC, every=2)
    engine = small_engine(6, [checkpoint])

    def pause() -> None:
        engine.current.pause("enough")
        let_go_soon(files)

    engine.on_exit("process_batch")(lambda run: pause() if run.step == 2 else None)
    with pytest.raises(CheckpointError, match="ENOSPC"):
        engine.run()
    assert engine.current.paused == "enough"
    assert Store(tmp_path).newest_sound()[1].summary["step"] == 3
    assert engine.run().state == "finished"


def test_a_detached_plugin_says_why_and_the_run_continues(tmp_path: Path):
    checkpoint, files = held(tmp_path, errno.ENOSPC, every=2, on_error="detach")
    run = small_engine(6, [checkpoint, At(2, lambda: let_go(files))]).run()
    assert run.state == "finished"
    (event,) = run.log.notes("detach")
    assert isinstance(event, Detach)
    assert event.handler == "Checkpoint.on_exit_after_step"
    assert "ENOSPC" in event.error
    assert run.log.counts()["checkpoint"] == 1
    Store(tmp_path).lock()


@pytest.mark.parametrize("given", [1, None, "yes"])
def test_background_is_true_or_false(given: Any, tmp_path: Path):
    with pytest.raises(PluginError, match=r"Checkpoint\(background=…\) must be True or False, got"):
        Checkpoint(tmp_path, background=given)


# -- the process

SCRIPT = """
import errno, os, sys, time
from builders import small_engine
from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store
from heptad_plugins import Checkpoint

class Slow(Files):
    def create(self, path):
        time.sleep(0.2)
        if "fails" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)

engines = []
for directory in sys.argv[1:]:
    checkpoint = Checkpoint(directory, "after_step", background=True)
    checkpoint.store = Store(directory, Slow())
    engines.append(small_engine(3, [checkpoint]))
    while engines[-1].advance().source != "checkpoint":
        pass
    print(len(checkpoint.store.entries()), "so far")
"""


def test_the_interpreter_does_not_exit_before_it_is_written(tmp_path: Path):
    """A script that ends while threads write, and never asks; what failed is shown."""
    path = os.pathsep.join(str(ROOT / name) for name in ("engine", "plugins", "tests"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "passes"), str(tmp_path / "fails")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0 so far\n0 so far\n"
    assert numbers(tmp_path / "passes") == [1]
    assert numbers(tmp_path / "fails") == []
    assert done.stderr.count("CheckpointError: no checkpoint was written") == 1


def test_a_fork_while_it_is_written_hangs_nowhere(tmp_path: Path):
    """As that of a worker: the child ends, and the parent's thread writes on."""
    checkpoint, files = held(tmp_path)
    status: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            checkpoint.close(engine.current)
            os._exit(0)
        status.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        let_go(files)

    engine: Engine = small_engine(2, [checkpoint, At(1, fork)])
    assert engine.run().state == "finished"
    assert status == [0]
    assert numbers(tmp_path) == [1, 2]
