"""Runs of ranks that write their checkpoints in the background, by case; and of which one fails, dies, or is late."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rank_program import Case, Rank
from resumed_cases import PLACES, end_of, engine_of

sys.path.append(str(Path(__file__).parents[1] / "checkpoint"))

from disk import CountedFiles, Holder, refusing

from heptad import CheckpointError, Engine, Run
from heptad.checkpoints.files import Files
from heptad.checkpoints.store import Store
from heptad_plugins import Checkpoint, GracefulStop, Journal

LATE = 1
"""The rank whose thread is held."""

LET_GO = 7
"""The step in which it is let go: the first of the fourth window of two steps."""


def engine_with(directory: Path, rank: Rank, files: Files | None = None, **options: Any) -> Engine:
    """Return an engine of 6 windows of two steps that stores at updates, in the background; with files on one rank."""
    world = rank.world
    given = {"at": "optimizer_update", "background": True, "window": 2 * world, "samples": 24 * world, "masks": False}
    engine = engine_of(directory, **{**given, "epochs": 1, **options})
    if files is not None:
        checkpoint_of(engine).store = Store(directory, files)
    return engine


def checkpoint_of(engine: Engine) -> Checkpoint:
    return next(plugin for plugin in engine._manager.plugins if isinstance(plugin, Checkpoint))


def held_on_one(directory: Path, rank: Rank, error: int = 0, **options: Any) -> tuple[Engine, Holder]:
    """Return an engine whose first checkpoint one rank does not write before its thread is let go."""
    files = Holder(error)
    return engine_with(directory, rank, files if rank.number == LATE else None, **options), files


def in_step(engine: Engine, step: int, act: Callable[[], object], here: bool = True) -> None:
    """Do something on exit of `process_batch` in a step, if it is to be done on this rank."""
    engine.on_exit("process_batch")(lambda run: act() if here and run.step == step - 1 else None)


def let_go(files: Holder) -> None:
    """Let the thread go, if it is held here, and wait for its end."""
    files.gate.set()
    while any(thread.name == "heptad-checkpoint" for thread in threading.enumerate()):
        time.sleep(0.001)


def let_go_soon(files: Holder) -> None:
    threading.Timer(0.2, files.gate.set).start()


def numbers(directory: Path) -> list[int]:
    return [entry.number for entry in Store(directory).entries()]


def left(directory: Path) -> list[str]:
    """Return what has a temporary name."""
    return [path.name for path in directory.iterdir() if path.name.startswith(".temp")]


def content_of(directory: Path, run: Run) -> dict[str, bytes]:
    """Return the content of all files of all checkpoints, but for the id of the run; manifests hold times."""
    paths = [path for path in directory.glob("checkpoint-*/*") if path.name != "manifest.json"]
    return {str(path.relative_to(directory)): path.read_bytes().replace(run.id.encode(), b"the run") for path in paths}


def written_in(run: Run) -> list[list[Any]]:
    """Return which checkpoints the log says were written, and after which turn."""
    return [[note.checkpoint, run.log[note.seq - run.log[0].seq].source, note.seq] for note in run.log.notes("written")]


def folder_of(rank: Rank, name: str) -> Path:
    return rank.folder / "runs" / name


# -- what is stored


def alike(rank: Rank) -> Any:
    """What a run stores in the foreground and in the background, in mid-window too, and how it ends."""
    found, ends, names = [], [], []
    for background in (False, True):
        directory = folder_of(rank, f"alike {background}")
        plugins = [Journal(directory.with_suffix(".journal"))]
        options = {"at": PLACES, "every": 3, "masks": True, "epochs": 2, "plugins": plugins}
        with engine_with(directory, rank, background=background, **options) as engine:
            run = engine.run()
            found.append(content_of(directory, run))
            ends.append(end_of(engine))
            names.append(len(numbers(directory)))
    different = [name for name, content in found[0].items() if found[1].get(name) != content]
    return {"count": names, "files": len(found[0]), "different": different, "ends": ends}


def sharded(rank: Rank) -> Any:
    """What ranks store that share the network, in the foreground and in the background."""
    found: list[dict[str, bytes]] = []
    for background in (False, True):
        directory = folder_of(rank, f"sharded {background}")
        with engine_with(directory, rank, background=background, strategy="fsdp", every=2) as engine:
            found.append(content_of(directory, engine.run()))
    return [sorted(found[0]), [name for name, content in found[0].items() if found[1].get(name) != content]]


def resumed(rank: Rank) -> Any:
    """From what was stored in the background, on to the end."""
    ends = []
    directory = folder_of(rank, "alike True")
    for entry in Store(directory).entries()[::4]:
        again = folder_of(rank, f"again {entry.number}")
        plugins = [Journal(again.with_suffix(".journal"))]
        with engine_with(again, rank, at=PLACES, every=2, masks=True, epochs=2, seed=2, plugins=plugins) as engine:
            engine.run(resume=entry.path)
            ends.append(end_of(engine))
    return ends


# -- when


def late(rank: Rank) -> Any:
    """One rank takes its time; what is there at each update, and when it was written."""
    found = {}
    for name, agree_every in (("each", 1), ("seldom", 3)):
        directory = folder_of(rank, f"late {name}")
        engine, files = held_on_one(directory, rank, every=100, first=1, agree_every=agree_every)
        seen: list[int] = []
        engine.on_exit("before_step")(lambda run, d=directory, s=seen: s.append(len(numbers(d))))
        in_step(engine, LET_GO, partial(let_go, files))
        with engine:
            run = engine.run()
            found[name] = {"seen": seen, "written": written_in(run), "updates": run.update, "left": left(directory)}
    return found


def in_a_row(rank: Rank) -> Any:
    """Each checkpoint waits for the one before, whichever rank is late."""
    directory = folder_of(rank, "row")

    class Slow(Files):
        def create(self, path: Path) -> int:
            time.sleep(0.01 * rank.number)
            return super().create(path)

    with engine_with(directory, rank, Slow()) as engine:
        run = engine.run()
        steps = [Store(directory).summary(entry)["update"] for entry in Store(directory).entries()]
        return {"updates": run.update, "stored": steps, "written": len(written_in(run)), "left": left(directory)}


def waits(rank: Rank) -> Any:
    """Who waits for the threads of all ranks: a pause, the end, `until`, `close`, a signal."""
    found: dict[str, Any] = {}
    for name in ("pause", "end", "until", "close", "signal"):
        directory = folder_of(rank, name)
        plugins = [GracefulStop(exit=False)] if name == "signal" else []
        engine, files = held_on_one(directory, rank, every=100, first=1, plugins=plugins)
        late, run = rank.number == LATE, engine.current
        act = {"pause": partial(run.pause, "lunch"), "signal": partial(os.kill, os.getpid(), signal.SIGTERM)}
        in_step(engine, LET_GO, act.get(name, str), late)
        in_step(engine, LET_GO, partial(let_go_soon, files), late and name != "close")
        before = []
        if name == "close":
            while run.step < LET_GO:
                engine.advance()
            before = numbers(directory)
            let_go_soon(files)
            engine.close()
        else:
            engine.run(until=(lambda run: run.step == LET_GO) if name == "until" else None)
        after = [Store(directory).summary(entry)["step"] for entry in Store(directory).entries()]
        found[name] = [run.state, run.paused, before, after, len(written_in(run)), left(directory)]
        if name in ("pause", "until"):
            found[name].append(engine.run().state)
        engine.close()
    return found


# -- what fails


def full(rank: Rank) -> Any:
    """The disk of one rank is full: all raise the same in one turn, or all detach, or the pause raises."""
    found: dict[str, Any] = {}
    for name in ("raise", "detach", "pause", "end", "until"):
        directory = folder_of(rank, f"full {name}")
        on_error = "detach" if name == "detach" else "raise"
        engine, files = held_on_one(directory, rank, errno.ENOSPC, every=100, first=1, on_error=on_error)
        odd, soon = rank.number == LATE, name in ("pause", "end")
        in_step(engine, 3, partial(engine.current.pause, "lunch"), odd and name == "pause")
        in_step(engine, 3, partial(let_go, files), not soon)
        if odd and soon:
            let_go_soon(files)
        raised = ""
        until = {"end": None, "until": lambda run: run.step == 3}.get(name)
        try:
            engine.run(until=until)
        except CheckpointError as error:
            raised = "; ".join([str(error), *error.__notes__]).replace(str(directory), "DIR")
        run = engine.current
        detached = [[str(note.handler), note.seq] for note in run.log.notes("detach")]
        torch.distributed.barrier()
        found[name] = [raised, run.state, run.paused, len(run.log), detached, numbers(directory), left(directory)]
        engine.close()
    return found


def some_operations(rank: Rank) -> Any:
    """Some operations of each rank fail once; then how all ranks end, what is sound, and whether the next run is."""
    found = []
    for odd, place in ((0, 4), (0, 15), (0, 27), (0, 44), (0, 83), (1, 1), (1, 5), (1, 12)):
        directory = folder_of(rank, f"operation {odd} {place}")
        files = CountedFiles(place, refusing(errno.EIO))
        given = {"keep_last": 1, "samples": 8 * rank.world}
        engine = engine_with(directory, rank, files if rank.number == odd else None, **given)
        raised = ""
        try:
            engine.run()
        except CheckpointError as error:
            raised = str(error)
        engine.close()
        torch.distributed.barrier()
        sound = numbers(directory)
        damage = Store(directory).newest_sound()[2] if sound else []
        torch.distributed.barrier()
        with engine_with(directory, rank, **given) as again:
            updates = again.run(resume="auto").update
        found.append([odd, raised, sound, damage, len(numbers(directory)), left(directory), updates])
    return found


def raises_elsewhere(rank: Rank) -> Any:
    """One rank raises in a handler while its thread, or that of another, is held; the checkpoint before stays."""
    directory = rank.folder / "run"
    engine = engine_with(directory, rank, every=2, first=1)
    files = Holder()

    def fail() -> None:
        assert files.reached.wait(20)
        if rank.number == int(os.environ["ODD"]):
            threading.Timer(0.5, files.gate.set).start()
            rank.fault()
            raise ValueError("my own")
        threading.Timer(0.5, files.gate.set).start()

    in_step(engine, 8, fail)
    engine.run(until=lambda run: run.update == 2)
    checkpoint_of(engine).store = Store(directory, files)
    engine.run()


def dies_writing(rank: Rank) -> Any:
    """One rank is killed before an operation of its thread, or of its commit."""
    directory = rank.folder / "run"
    engine = engine_with(directory, rank, every=2, first=1)
    engine.run(until=lambda run: run.update == 2)

    def die(name: str) -> None:
        rank.fault()
        os.kill(os.getpid(), signal.SIGKILL)

    if rank.number == int(os.environ["ODD"]):
        checkpoint_of(engine).store = Store(directory, CountedFiles(int(os.environ["PLACE"]), die))
    engine.run()


def continues(rank: Rank) -> Any:
    """A new start, as by torchrun, on the directory of a run that has failed."""
    directory = Path(os.environ["DIRECTORY"])
    with engine_with(directory, rank, every=2, first=1) as engine:
        run = engine.run(resume="auto")
        return [run.state, run.update, numbers(directory)[-2:], left(directory), Path(run.resumed_from or "").name]


CASES_OF_3: tuple[Case, ...] = (alike, resumed, late, waits)
CASES_OF_2: tuple[Case, ...] = (*CASES_OF_3, sharded, in_a_row, full, some_operations)
CASES = {world: {case.__name__: case for case in cases} for world, cases in ((2, CASES_OF_2), (3, CASES_OF_3))}
