"""A signal to the whole process group, such as Ctrl-C: the run pauses, and the workers of a loader do not end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from builders import FEATURES, small_engine
from programs import environment

PROGRAM = """
import os, random, signal, sys, threading, time
import torch
from torch.utils.data import DataLoader, IterableDataset
from builders import FEATURES, equal, small_engine, weights

torch.set_num_threads(1)
SAMPLES = [(torch.full((FEATURES,), number / 64), number % 3) for number in range(64)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(SAMPLES)


def init(worker):
    torch.set_num_threads(1)


def wrapped():
    class Loader:  # starts workers of which the engine knows nothing
        def __len__(self):
            return 32

        def __iter__(self):
            yield from DataLoader(SAMPLES, batch_size=2, num_workers=2)

    return Loader()


MAKE = {
    "loader": lambda: small_engine(DataLoader(SAMPLES, batch_size=2, num_workers=2, worker_init_fn=init), epochs=6),
    "persistent": lambda: small_engine(
        DataLoader(SAMPLES, batch_size=2, num_workers=2, persistent_workers=True), epochs=6
    ),
    "spawn": lambda: small_engine(
        DataLoader(SAMPLES, batch_size=2, num_workers=1, multiprocessing_context="spawn"), epochs=1
    ),
    "stream": lambda: small_engine(DataLoader(Stream(), batch_size=2, num_workers=2), epochs=6),
    "wrapped": lambda: small_engine(wrapped(), epochs=6),
}


def main(kind, presses):
    draw, engine = random.Random(kind), MAKE[kind]()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background inherits that it is ignored
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    @engine.on_exit("before_step")
    def _(run):
        time.sleep(0.001)

    pressed = 0
    while not engine.current.ended:
        timer = threading.Timer(draw.uniform(0.01, 0.06), lambda: os.killpg(0, signal.SIGINT))
        if pressed < presses:
            timer.start()
        try:
            engine.run()
            timer.cancel()
        except KeyboardInterrupt:
            pressed += 1
        try:
            timer.join() if pressed <= presses and timer.ident else None
        except KeyboardInterrupt:
            pass
    same = equal(weights(engine.current.network), weights(MAKE[kind]().run().network))
    print(engine.current.state, pressed >= min(2, presses), same)


if __name__ == "__main__":
    for kind in sys.argv[2:]:
        main(kind, int(sys.argv[1]))
"""

KINDS = {"forked": (6, "loader", "persistent", "wrapped", "stream"), "spawned": (2, "spawn")}
"""How often Ctrl-C is pressed, and what loads the data."""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups here")
@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_get_ctrl_c_too_do_not_end_the_run(kind, tmp_path):
    """Pressed again and again, at times drawn at random; the weights are those of a run that nobody paused."""
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), *map(str, KINDS[kind])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    try:
        out, err = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        out, err = program.communicate()
    assert (out.split(), program.returncode) == (["finished", "True", "True"] * (len(KINDS[kind]) - 1), 0), err


STOPPED = """
import os, subprocess, time
import torch
from torch.utils.data import DataLoader
from builders import FEATURES, small_engine
from heptad_plugins import GracefulStop

SAMPLES = [(torch.full((FEATURES,), number / 64), number % 3) for number in range(64)]
engine = small_engine(DataLoader(SAMPLES, batch_size=2, num_workers=2), [GracefulStop()], epochs=6)


@engine.on_enter("process_batch", every=20, once=True)
def _(run):
    # from another process: a worker of torch ends in silence if it is the parent that asks for it
    subprocess.run(["/bin/sh", "-c", f"kill -TERM -{os.getpgid(0)}"])
    time.sleep(0.5)  # a step takes its time, in which a worker that the signal ended would be missed


try:
    engine.run()
finally:
    print(engine.current.paused, engine.current.step)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups here")
def test_sigterm_to_the_whole_group_pauses_the_run_too(tmp_path):
    """As torchrun and timeout send it: the workers of a loader stay, and the process ends as `GracefulStop` says."""
    (tmp_path / "program.py").write_text(STOPPED)
    program = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        start_new_session=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert (program.returncode, program.stdout.split()) == (143, ["SIGTERM", "20"]), program.stderr


def test_persistent_workers_that_were_started_before_are_warned_of_once():
    """They do not ignore Ctrl-C, and nothing can make them; those that the engine starts are not warned of."""
    peeked = DataLoader(samples(), batch_size=2, num_workers=1, persistent_workers=True)
    next(iter(peeked))
    with pytest.warns(UserWarning, match="were started before the engine iterated it, so Ctrl-C") as said:
        assert small_engine(peeked, epochs=2).run().state == "finished"
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:'set_vital'")
def test_workers_of_one_pass_are_not_warned_of():
    """torchdata's loader keeps the iterator of these too."""
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(
        samples(), batch_size=2, num_workers=1
    )
    next(iter(loader))
    assert small_engine(loader).run().state == "finished"


def samples():
    return [(torch.full((FEATURES,), float(number)), number % 3) for number in range(4)]
