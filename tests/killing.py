"""Killing a training process at a chosen moment, resuming it in another, and comparing the two with one that lived.

Children are forked from a process that has imported all that training imports, so a trial takes about a second. A
moment is a tick: every moment of every state, both ends of every body, places within bodies (in the data, in forward,
in backward, in the optimizer), and every operation on the files of a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from heptad import Engine, Plugin, Run, TransitionLog, on_enter, on_exit
from heptad.checkpoints.files import Files
from heptad.machine import Body, Machine
from heptad_plugins import Checkpoint, GracefulStop, Journal, TrainingMetrics
from scenario import EVERYWHERE, full_engine, outcome, path_of

FILE_OPERATIONS = [name for name in vars(Files) if not name.startswith("_") and callable(getattr(Files, name))]


@dataclass
class Ticks:
    """Counts the moments of a process, and kills it at one of them.

    Attributes:
        at: The moment, from 0; `None` to live.
        labels: What each was.
    """

    at: int | None = None
    labels: list[str] = field(default_factory=list)
    _one_by_one: threading.Lock = field(default_factory=threading.Lock)

    def tick(self, label: str) -> None:
        with self._one_by_one:  # the run, and the thread that writes in the background
            if len(self.labels) == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.labels.append(label)


def ticking_files(ticks: Ticks) -> Files:
    """Return the operations on files, each of which ticks."""

    def ticking(name: str) -> Callable[..., Any]:
        def operation(self: Files, *args: Any, **kwargs: Any) -> Any:
            ticks.tick(f"before {name} of a file")
            return getattr(Files, name)(self, *args, **kwargs)

        return operation

    return type("TickingFiles", (Files,), {name: ticking(name) for name in FILE_OPERATIONS})()


def ticking_machine(ticks: Ticks) -> type[Machine]:
    """Return a machine whose bodies tick at both ends."""

    class TickingMachine(Machine):
        def __init__(self, run: Run, bodies: Mapping[str, Body], *args: Any, **kwargs: Any) -> None:
            super().__init__(run, {name: wrap(name, body) for name, body in bodies.items()}, *args, **kwargs)

    def wrap(name: str, body: Body) -> Body:
        def ticking(run: Run) -> None:
            ticks.tick(f"body of {name} begins")
            body(run)
            ticks.tick(f"body of {name} ends")

        return ticking

    return TickingMachine


def ticking_plugin(ticks: Ticks, states: tuple[str, ...]) -> Plugin:
    """Return a plugin that ticks on every moment, and hooks into forward, backward and the optimizer's step."""
    methods: dict[str, Any] = {"name": "Ticking", "observes": True}
    for state in states:
        for moment, mark in (("enter", on_enter), ("exit", on_exit)):

            def call(self: Plugin, run: Run, label: str = f"on {moment} of {state}") -> None:
                ticks.tick(label)

            methods[f"{moment}_{state}"] = mark(state)(call)

    def open_(self: Plugin, run: Run) -> None:
        run.network.register_forward_hook(lambda module, args, output: ticks.tick("after forward"))
        first = next(run.network.parameters())
        first.register_post_accumulate_grad_hook(lambda parameter: ticks.tick("in backward"))

    methods["open"] = open_
    return type("Ticking", (Plugin,), methods)()


STATES = (
    "before_loop",
    "before_epoch",
    "before_step",
    "process_batch",
    "after_step",
    "optimizer_update",
    "after_epoch",
    "after_loop",
    "evaluate",
    "checkpoint",
    "redo_window",
)


def ticking_engine(directory: Path, ticks: Ticks, *, plugins: tuple[Plugin, ...] = (), **options: Any) -> Engine:
    """Return the engine of the scenario, all of whose moments tick."""

    class TickingEngine(Engine):
        machine_class = ticking_machine(ticks)

    checkpoint = Checkpoint(directory, at=options.pop("places", EVERYWHERE), **options.pop("keep", {}))
    checkpoint.store = type(checkpoint.store)(directory, ticking_files(ticks))
    members = (*plugins, ticking_plugin(ticks, STATES))
    return full_engine(directory, members, checkpoint=checkpoint, engine_class=TickingEngine, **options)


class Signal(Plugin):
    """Sends this process a signal in one step."""

    observes = True

    def __init__(self, number: signal.Signals, step: int) -> None:
        self.number, self.step = number, step

    def on_exit_process_batch(self, run: Run) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), self.number)


def live(
    directory: Path,
    at: int | None = None,
    resume: str | None = "auto",
    journal: bool = False,
    raised: tuple[signal.Signals, int] | None = None,
    **options: Any,
) -> Any:
    """Train in this process, to the end or to the moment at which it is killed; return what became of the run.

    With a journal, the log is the one that all processes have written together; else the last one's. With a signal
    that is raised in a step, returns what `run()` raised.
    """
    ticks = Ticks(at)
    file = directory.with_suffix(".journal")
    metrics = TrainingMetrics({"spread": lambda output, batch: output.std(dim=1)})
    plugins = [GracefulStop(), metrics, *([Journal(file)] if journal else []), *([Signal(*raised)] if raised else [])]
    engine = ticking_engine(directory, ticks, plugins=tuple(plugins), **options)
    try:
        run = engine.run(resume=resume)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    except SystemExit as error:
        return f"SystemExit({error.code})"
    log = TransitionLog.load(file) if journal else run.log
    notes = [[note.seq, note.kind, note.text] for note in log.notes() if note.kind not in KINDS_LEFT_OUT]
    history = {
        "path": path_of(log),
        "notes": notes,
        "values": [list(map(str, astuple(value))) for value in log.values()],
    }
    return {"outcome": outcome(engine), "log": history, "labels": ticks.labels, "resumed": run.resumed_from}


KINDS_LEFT_OUT = ("resume", "pause", "written")
"""The kinds of event that only a paused or resumed run has, or whose place depends on the clock."""

BACKGROUND: dict[str, Any] = {"journal": True, "keep": {"background": True}}
"""The options of a run whose checkpoints are written in the background, everywhere."""


@cache
def warm() -> None:
    """Make torch import here, once, what it imports in the first step: in each child that would take two seconds."""
    with tempfile.TemporaryDirectory() as name:
        live(Path(name) / "checkpoints", None, None, journal=True)


def in_child(function: Callable[[], Any], meanwhile: Callable[[int], object] | None = None) -> Any:
    """Return what a function returns in a forked child; `None` if that was killed.

    Args:
        function: What the child calls.
        meanwhile: Called in this process, with the id of the child.

    Raises:
        AssertionError: If the child failed, with its traceback.
    """
    warm()
    with tempfile.NamedTemporaryFile("r", prefix="child-") as answer:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                text = json.dumps({"result": function()})
            except BaseException:
                text = json.dumps({"failed": traceback.format_exc()})
            Path(answer.name).write_text(text)
            os._exit(0)
        if meanwhile is not None:
            meanwhile(child)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"the child was ended by signal {os.WTERMSIG(status)}"
            return None
        report = json.loads(answer.read())
    assert "failed" not in report, report["failed"]
    return report["result"]


def differences(lived: Mapping[str, Any], resumed: Mapping[str, Any], *, journal: bool = False) -> list[str]:
    """Return in what a resumed run differs from an uninterrupted one.

    A journal holds the whole log; without one, what the last process has of it is compared.
    """
    found = [name for name, digest in lived["outcome"].items() if resumed["outcome"][name] != digest]
    for name, rows in resumed["log"].items():
        whole = lived["log"][name]
        if rows != (whole if journal else whole[len(whole) - len(rows) :]):
            found.append(f"the {name} in the log")
    return found


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where the files of a trial lie: what is killed is the process, not the machine, so they need not reach a disk."""


def trial(at: int, lived: Mapping[str, Any], **options: Any) -> list[str]:
    """Kill a run at one moment and resumes it; returns in what it differs from the one that lived."""
    with tempfile.TemporaryDirectory(prefix="killed-", dir=MEMORY) as folder:
        directory = Path(folder) / "checkpoints"
        dead = in_child(lambda: live(directory, at, None, **options))
        if dead is not None:
            return [f"it was not killed at moment {at}, and lived to its end"]
        resumed = in_child(lambda: live(directory, None, "auto", **options))
        return differences(lived, resumed, journal=options.get("journal", False))
