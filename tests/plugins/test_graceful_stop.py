"""`GracefulStop`: a signal pauses the run between two steps, plugins save, and the program ends with 128 + its number.

Run as a program this file is what the tests below send signals to.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from builders import STATES, Witness, batches, small_engine, small_network
from heptad import Components, Detour, Engine, EngineError, Plugin, PluginError, Run, RunConfig, on_enter, on_exit
from heptad_plugins.evaluate import Evaluate
from heptad_plugins.graceful_stop import GracefulStop
from heptad_plugins.time_limit import TimeLimit
from programs import environment

MID_STEP = {"process_batch", "after_step", "optimizer_update"}
"""The states in which a run never pauses."""
SEED = 10
"""What the moments of the signals are drawn by."""
GATES = (("forward", 2), ("fetch", 5), ("before the step", 3))
"""Where a process waits for a signal from outside: the kind of moment, and which of these."""
SIGTERM, SIGUSR1, SIGUSR2 = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


# -- a run with a hook in every place where a signal may come


class Hooks:
    """Counts the moments of a run, and calls a function at them: at every moment, and inside of what the user gave."""

    def __init__(self, at: Callable[[int, str], None] = lambda number, where: None) -> None:
        self.at = at
        self.count = 0

    def moment(self, where: str) -> None:
        self.count += 1
        self.at(self.count - 1, where)


class Samples(Dataset[Any]):
    """Eight samples; fetching one is a moment."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.items = [(data, int(target)) for pair in batches(4) for data, target in zip(*pair, strict=True)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        self.hooks.moment("fetch")
        return self.items[place]


class Hooked(nn.Module):
    """A network whose forward and backward pass are moments, and that draws random numbers."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__()
        self.hooks = hooks
        self.layers = nn.Sequential(nn.Dropout(0.5), small_network())

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        output = self.layers(data)
        self.hooks.moment("forward")
        if output.requires_grad:
            output.register_hook(lambda gradient: self.hooks.moment("backward"))
        return output


class HookedSGD(torch.optim.SGD):
    """An optimizer in whose step a moment lies."""

    hooks: Hooks

    def step(self, closure: Any = None) -> None:
        self.hooks.moment("before the step")
        super().step()
        self.hooks.moment("after the step")


class Moments(Plugin):
    """All moments are moments; so are guard and body of a detour."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks

    def detours(self) -> list[Detour]:
        return [Detour("side", ("after_step", "after_epoch"), self.due, self.visit)]

    def due(self, run: Run) -> bool:
        self.hooks.moment("guard")
        return run.step % 2 == 1

    def visit(self, run: Run) -> None:
        self.hooks.moment("side")


def _moment(moment: str, state: str) -> Any:
    return lambda self, run: self.hooks.moment(f"{moment} {state}")


for _name in (*STATES, "side"):
    for _kind in ("enter", "exit"):
        setattr(Moments, f"on_{_kind}_{_name}", _moment(_kind, _name))


class Reporter(Plugin):
    """Records which hooks are called at the end of `run()`, and the state of the run at each."""

    runs_after = ("GracefulStop",)

    def __init__(self, name: str = "Reporter") -> None:
        self.name = name
        self.called: list[Any] = []

    def on_pause(self, run: Run) -> None:
        handled = getattr(signal.getsignal(SIGTERM), "__qualname__", "")
        self.called.append(["on_pause", run.state, run.paused, handled == "GracefulStop._handle"])

    def close(self, run: Run) -> None:
        self.called.append(["close", run.state])


def hooked_engine(hooks: Hooks, *plugins: Plugin) -> Engine:
    """Return an engine over two epochs of four batches, extended to whole windows of three."""
    network = Hooked(hooks)
    optimizer = HookedSGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.hooks = hooks
    return Engine(
        Components(network=network, dataset=Samples(hooks), criterion=nn.CrossEntropyLoss(), optimizer=optimizer),
        RunConfig(epochs=2, batch_size=2, accumulation=3, seed=3),
        [Moments(hooks), GracefulStop(), *plugins],
    )


def outcome(run: Run) -> list[Any]:
    """Return the bits of the weights, and the path, as plain data."""
    bits = [tensor.numpy().tobytes().hex() for tensor in run.network.state_dict().values()]
    return [run.state, bits, run.log.path()]


def scene(hooks: Hooks) -> dict[str, Any]:
    """Run until a signal ends it, say what happened, and continue to the end of the run."""
    reporter = Reporter()
    engine = hooked_engine(hooks, reporter)
    report: dict[str, Any] = {}
    try:
        engine.run()
    except SystemExit as error:
        report = {
            "code": error.code,
            "called": reporter.called[:],
            "put back": signal.getsignal(SIGTERM) is signal.SIG_DFL,
        }
        hooks.at = lambda number, where: None
        if not engine.current.ended:
            engine.run()
    return {**report, "outcome": outcome(engine.current), "raised": bool(report)}


def send(text: object) -> None:
    """Write a line for the tests to read."""
    os.write(1, (json.dumps(text) + "\n").encode())


def at_moment(moment: int) -> Hooks:
    """Return hooks that send the signal to their own process at a moment."""
    return Hooks(lambda number, where: os.kill(os.getpid(), SIGTERM) if number == moment else None)


def at_gate(gate: str, nth: int) -> Hooks:
    """Return hooks that say which process this is at the n-th moment of a kind, and wait there to be released."""
    seen: list[str] = []

    def at(number: int, where: str) -> None:
        if where == gate:
            seen.append(where)
            if len(seen) == nth:
                send(os.getpid())
                os.read(0, 1)

    return Hooks(at)


def program(gates: list[tuple[str, int]], moments: list[int]) -> None:
    """Make a run that a signal ends for each gate and for each moment, each in a process of its own.

    The processes are forked off before anything was trained. Each ends as any Python does that a SystemExit leaves.
    """
    torch.set_num_threads(1)
    send([number.name for number in signal.Signals if callable(signal.getsignal(number))])
    torch.optim.SGD([torch.zeros(1, requires_grad=True)]).zero_grad()  # imports what would take each of them seconds
    for hooks in [*(at_gate(*gate) for gate in gates), *map(at_moment, moments)]:
        child = os.fork()
        if not child:
            report = scene(hooks)
            send(report)
            sys.exit(report.get("code", 0))
        send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    program(*json.loads(sys.argv[1]))


# -- real processes


@pytest.fixture(scope="module")
def real_processes(ctrl_c: None) -> dict[str, Any]:
    """Start this file as a program, send the signals that are to come from outside, and return what was said."""
    drawn = random.Random(SEED).sample(range(len(straight()[1])), 30)
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps([GATES, drawn])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[Any] = [json.loads(process.stdout.readline())]
    for _ in GATES:
        os.kill(json.loads(process.stdout.readline()), SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        said += [json.loads(process.stdout.readline()) for _ in range(2)]
    rest, errors = process.communicate(timeout=100)
    said += map(json.loads, rest.splitlines())
    ends = list(zip(said[1::2], said[2::2], strict=True))
    return {
        "drawn": drawn,
        "handled": said[0],
        "outside": ends[: len(GATES)],
        "seeded": ends[len(GATES) :],
        "errors": errors,
    }


def straight() -> tuple[list[Any], list[str]]:
    """Return the outcome of the run that no signal ends, and its moments."""
    moments: list[str] = []
    engine = hooked_engine(Hooks(lambda number, where: moments.append(where)))
    return outcome(engine.run()), moments


def check(report: dict[str, Any], expected: list[Any]) -> str:
    """Check what a process says of its end; return the state that its run was in then."""
    assert report["code"] == 143
    assert report["put back"]
    *pause, (closed, state) = report["called"]
    assert closed == "close"
    assert pause == ([] if state == "finished" else [["on_pause", state, "SIGTERM", True]])
    assert state not in MID_STEP
    assert report["outcome"] == expected
    return state


def test_thirty_seeded_moments(real_processes):
    """Whenever it comes, the process exits with 143; its run was paused between two steps and can continue exactly."""
    expected, moments = straight()
    kinds = {moments[moment] for moment in real_processes["drawn"]}
    assert {"fetch", "forward", "backward", "guard", "side", "after the step"} <= kinds
    assert [code for _, code in real_processes["seeded"]] == [143] * 30, real_processes["errors"]
    states = {check(report, expected) for report, _ in real_processes["seeded"]}
    assert states >= {"before_epoch", "before_step", "side"}


def test_three_signals_from_outside(real_processes):
    """Sent by another process while the run is at work in a forward pass, in its data, and in an optimizer's step."""
    expected, _ = straight()
    assert [code for _, code in real_processes["outside"]] == [143] * 3, real_processes["errors"]
    states = [check(report, expected) for report, _ in real_processes["outside"]]
    assert states == ["before_step", "side", "before_step"]


def test_importing_puts_no_handler_in(real_processes):
    """In a process that has imported all plugins Python handles Ctrl-C, and nothing else."""
    assert real_processes["handled"] == ["SIGINT"]


# -- in this process


@pytest.fixture
def strays() -> Iterator[list[int]]:
    """Handlers of one's own for three signals: what reached them, in place of ending the tests."""
    reached: list[int] = []

    def own(number: int, frame: Any) -> None:
        reached.append(number)

    before = {number: signal.signal(number, own) for number in (SIGTERM, SIGUSR1, SIGUSR2)}
    yield reached
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == dict.fromkeys(before, own), "the handlers that were there are put back"


def kill(number: int = SIGTERM) -> None:
    """Send a signal to this process; it is heard before this returns."""
    os.kill(os.getpid(), number)


class Killer(Plugin):
    """Sends a signal, or does something else, on a moment of a state: at one event of it, or at all."""

    def __init__(
        self, moment: str, state: str, event: int | None = 0, act: Callable[[Run], None] | None = None
    ) -> None:
        self.moment, self.state, self.event = moment, state, event
        self.act = act or (lambda run: kill())
        self.events = 0

    def hear(self, moment: str, state: str, run: Run) -> None:
        if (moment, state) == (self.moment, self.state):
            self.events += 1
            if self.event in (None, self.events - 1):
                self.act(run)


def _hear(moment: str, state: str) -> Any:
    return lambda self, run: self.hear(moment, state, run)


for _name in STATES:
    for _kind in ("enter", "exit"):
        setattr(Killer, f"on_{_kind}_{_name}", _hear(_kind, _name))


def raises_exit(engine: Engine, code: int = 143, **options: Any) -> Run:
    """Run an engine that a signal ends."""
    with pytest.raises(SystemExit) as caught:
        engine.run(**options)
    assert caught.value.code == code
    return engine.current


def test_run_raises_after_every_plugin_was_called_and_closed(strays):
    """First `on_pause` of every plugin, then `close` of every plugin, then SystemExit(143) out of `run()`."""
    called: list[str] = []

    class Records(Plugin):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_pause(self, run: Run) -> None:
            called.append(f"{self.name} pause")

        def close(self, run: Run) -> None:
            called.append(f"{self.name} close")

    engine = small_engine(3, [Records("a"), GracefulStop(), Killer("enter", "process_batch"), Records("b")])
    run = raises_exit(engine)
    assert called == ["a pause", "b pause", "b close", "a close"]
    assert (run.state, run.paused, run.step, run.update) == ("before_step", "SIGTERM", 1, 1)
    assert [note.text for note in run.log.notes("pause")] == ["SIGTERM"]
    assert strays == []


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("moment", ["enter", "exit"])
def test_no_moment_leads_to_a_pause_in_mid_step(moment, state, strays):
    """Neither in the state where the signal came nor in the next; continuing gives the bits of the straight run."""
    engine = small_engine(3, [GracefulStop(), Killer(moment, state)], epochs=2)
    run = raises_exit(engine)
    assert run.state not in MID_STEP
    if not run.ended:
        engine.run()
    assert outcome(run) == outcome(small_engine(3, epochs=2).run())


def test_without_exit_run_returns_and_continues(strays):
    """As often as a signal comes."""
    engine = small_engine(4, [GracefulStop(exit=False), Killer("enter", "process_batch", event=None)])
    states = []
    while not engine.current.ended:
        run = engine.run()
        states.append((run.state, run.paused))
    assert states == [("before_step", "SIGTERM")] * 3 + [("after_epoch", "SIGTERM"), ("finished", None)]
    assert outcome(engine.current) == outcome(small_engine(4).run())


def test_a_signal_comes_before_until(strays):
    """A state that the run was to be driven to does not keep it from ending."""
    engine = small_engine(3, [GracefulStop(), Killer("enter", "after_step")])
    assert raises_exit(engine, until="after_step").paused == "SIGTERM"


def test_a_run_finishes_after_a_signal_in_the_last_turn(strays):
    """There is nothing to save; the program ends all the same."""
    reporter = Reporter()
    run = raises_exit(small_engine(3, [GracefulStop(), reporter, Killer("exit", "after_loop")]))
    assert (run.state, run.paused, reporter.called) == ("finished", None, [["close", "finished"]])


def test_a_signal_while_plugins_close_is_not_lost(strays):
    """Whether the run has ended or is paused for another reason."""

    class Late(Plugin):
        def close(self, run: Run) -> None:
            kill()

    assert raises_exit(small_engine(3, [GracefulStop(), Late()])).state == "finished"
    assert raises_exit(small_engine(3, [GracefulStop(), Late()]), until="after_step").paused == "until after_step"
    engine = small_engine(3, [TimeLimit(1e-9, "pause"), GracefulStop(), Late()])
    assert (raises_exit(engine).paused or "").startswith("TimeLimit")


def test_a_signal_during_an_evaluation_pauses_in_it(strays):
    """It ends at its next batch; when the run continues it begins anew, with the values of the straight run."""
    armed = [True]

    def metric(output: Any, batch: Any) -> Any:
        if armed and armed.pop():
            kill()
        return output.mean()

    engine = small_engine(3, [GracefulStop(), Evaluate(batches(3), {"mean": metric}, trial=False)])
    run = raises_exit(engine)
    assert (run.state, run.paused, run.metrics) == ("evaluate", "SIGTERM", {})
    engine.run()
    other = small_engine(3, [Evaluate(batches(3), {"mean": metric})]).run()
    assert run.metrics == other.metrics
    assert outcome(run) == outcome(other)


def test_under_advance_the_turn_that_pauses_raises(strays):
    """The handlers stand from the first turn on; a signal between two turns is heard."""
    engine = small_engine(3, [GracefulStop()])
    while engine.advance().dest != "process_batch":
        pass
    kill()
    assert engine.advance().dest == "after_step"
    engine.advance()
    with pytest.raises(SystemExit) as caught:
        engine.advance()
    assert caught.value.code == 143
    assert (engine.current.state, engine.current.paused) == ("before_step", "SIGTERM")
    assert strays == []
    kill()
    assert strays == [SIGTERM]
    engine.run()
    assert outcome(engine.current) == outcome(small_engine(3).run())


# -- a second signal


@pytest.mark.parametrize(("moment", "state"), [("enter", "process_batch"), ("exit", "optimizer_update")])
def test_a_second_signal_raises_at_once(moment, state, strays):
    """The run has failed there: `on_pause` is not called, every plugin is closed."""

    def twice(run: Run) -> None:
        kill()
        kill(SIGUSR1)
        raise AssertionError("the second one raised nothing")

    witness = Witness()
    engine = small_engine(3, [GracefulStop([SIGTERM, SIGUSR1]), Killer(moment, state, act=twice), witness])
    run = raises_exit(engine, 128 + SIGUSR1)
    assert (run.state, run.paused, run.log[-1].source, run.log[-1].dest) == ("failed", None, state, "failed")
    assert (witness.paused, witness.closed) == (0, 1)
    with pytest.raises(EngineError, match="build a new Engine"):
        engine.run()


def test_a_second_signal_on_the_way_to_the_pause_raises_at_once(strays):
    """Where the first came in mid-step, the second is heard in a later turn of that step."""
    engine = small_engine(
        3, [GracefulStop(), Killer("enter", "process_batch"), Other("exit", "after_step", act=lambda run: kill())]
    )
    assert raises_exit(engine).log.path()[-3:] == ["process_batch", "after_step", "failed"]


class Other(Killer):
    """Another one beside it."""


def test_a_second_signal_while_plugins_save_changes_nothing(strays):
    """The save is completed, and the exit code is the first one's."""
    saved = []

    class Slow(Plugin):
        def on_pause(self, run: Run) -> None:
            kill(SIGUSR1)
            kill(SIGTERM)
            saved.append(run.state)

    engine = small_engine(3, [GracefulStop([SIGTERM, SIGUSR1]), Slow(), Killer("enter", "process_batch")])
    assert raises_exit(engine).paused == "SIGTERM"
    assert saved == ["before_step"]
    engine.run()
    assert outcome(engine.current) == outcome(small_engine(3).run())


def test_a_save_that_fails_comes_out_in_place_of_the_exit(strays):
    """A program that could not save does not end as if it had; a note says that it was about to exit."""

    class Full(Plugin):
        def on_pause(self, run: Run) -> None:
            raise OSError("the disk is full")

    engine = small_engine(3, [GracefulStop(), Full(), Killer("enter", "process_batch")])
    with pytest.raises(OSError, match="the disk is full") as caught:
        engine.run()
    assert "heptad: and closing the plugins raised: SystemExit: 143" in caught.value.__notes__


def test_a_failure_after_the_signal_comes_out_in_place_of_the_exit(strays):
    """What a handler raises on the way to the pause is the news."""

    def fail(run: Run) -> None:
        kill()
        raise ZeroDivisionError

    engine = small_engine(3, [GracefulStop(), Killer("enter", "process_batch", act=fail)])
    with pytest.raises(ZeroDivisionError) as caught:
        engine.run()
    assert engine.current.state == "failed"
    place, batch = caught.value.__notes__
    assert batch.startswith("heptad: the batch: ")
    assert place.startswith("heptad: in Killer.on_enter_process_batch on entry to process_batch")


# -- the handlers


def test_handlers_stand_for_the_length_of_run(strays):
    """Not when plugin and engine are built, not before, not after `run()`; whether it pauses, finishes or fails."""
    own = signal.getsignal(SIGTERM)
    inside: list[bool] = []

    class Look(Plugin):
        @on_enter("before_step")
        @on_exit("after_loop")
        def look(self, run: Run) -> None:
            inside.append(signal.getsignal(SIGTERM) == plugin._handle == signal.getsignal(SIGUSR1))

    plugin = GracefulStop((SIGTERM, SIGUSR1, SIGTERM))
    fail = Killer("enter", "process_batch", event=2, act=lambda run: 1 // 0)
    engine = small_engine(3, [plugin, Look(), fail])
    assert signal.getsignal(SIGTERM) is own
    engine.run(until="process_batch")
    assert signal.getsignal(SIGTERM) is signal.getsignal(SIGUSR1) is own
    kill()
    assert strays == [SIGTERM]
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert signal.getsignal(SIGTERM) is signal.getsignal(SIGUSR1) is own
    small_engine(3, [plugin, Look()]).run()
    assert inside == [True] * 7
    assert signal.getsignal(SIGTERM) is own


def test_they_are_put_back_where_a_plugin_does_not_open(strays):
    """The one that fails comes after it; the fixture looks at the handlers."""

    class Shut(Plugin):
        def open(self, run: Run) -> None:
            raise OSError("no such folder")

    with pytest.raises(OSError, match="no such folder"):
        small_engine(3, [GracefulStop(), Shut()]).run()


def test_only_what_was_asked_for_is_handled(strays):
    """Another signal goes where it went before."""
    act = Killer("enter", "process_batch", act=lambda run: kill(SIGUSR2))
    assert small_engine(3, [GracefulStop([SIGTERM, SIGUSR1]), act]).run().state == "finished"
    assert strays == [SIGUSR2]


def test_an_ignored_signal_stays_ignored(strays):
    """As under nohup: the run is not paused, and the signal is ignored afterwards as well."""
    before = signal.signal(SIGUSR1, signal.SIG_IGN)
    try:
        act = Killer("enter", "process_batch", act=lambda run: kill(SIGUSR1))
        run = small_engine(3, [GracefulStop([SIGUSR1]), act]).run()
        assert signal.getsignal(SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(SIGUSR1, before)
    assert (run.state, run.log.notes("pause")) == ("finished", [])


def test_a_handler_that_is_not_pythons_is_left_alone(strays, monkeypatch):
    """What Python cannot put back is not taken away."""
    own = signal.getsignal(SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    run = small_engine(3, [GracefulStop(), Killer("enter", "process_batch")]).run()
    monkeypatch.undo()
    assert (run.state, signal.getsignal(SIGTERM) is own, strays) == ("finished", True, [SIGTERM])


def test_in_another_thread_it_does_nothing_but_a_note(strays):
    """Only the main thread can have handlers."""
    seen: list[Any] = []
    engine = small_engine(3, [GracefulStop(), Killer("enter", "process_batch", act=lambda run: look())])

    def look() -> None:
        seen.append(getattr(signal.getsignal(SIGTERM), "__qualname__", None))

    thread = threading.Thread(target=engine.run)
    thread.start()
    thread.join()
    (note,) = engine.current.log.notes("note")
    assert note.text == "GracefulStop does nothing: the run is not driven by the main thread"
    assert (engine.current.state, seen) == ("finished", ["strays.<locals>.own"])


def test_ctrl_c_stays_the_engines(strays):
    """It pauses the run and `run()` raises KeyboardInterrupt, with this plugin as without it."""
    act = Killer("enter", "process_batch", act=lambda run: kill(signal.SIGINT))
    engine = small_engine(3, [GracefulStop(), act])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert engine.current.paused == "Ctrl-C"


# -- options


@pytest.mark.parametrize(
    "signals", [["SIGTERM"], "SIGTERM", [999], [-1], [0], [15.0], [True], [None], [SIGTERM, "TERM"]]
)
def test_what_is_no_signal_is_refused(signals):
    """The message names it, and what was expected."""
    with pytest.raises(PluginError, match=r"GracefulStop\(signals=…\) takes signals such as signal\.SIGTERM, got"):
        GracefulStop(signals)


@pytest.mark.parametrize("signals", [SIGTERM, 15, None])
def test_one_signal_alone_is_refused(signals):
    """The message says how to write it."""
    with pytest.raises(PluginError, match=r"takes several, such as \(signal\.SIGTERM,\), got"):
        GracefulStop(signals)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGINT, "Ctrl-C pauses a run without this plugin"),
        (signal.SIGKILL, "no process can handle it"),
        (signal.SIGSTOP, "no process can handle it"),
    ],
)
def test_what_cannot_be_handled_is_refused(number, why):
    """With the reason."""
    with pytest.raises(PluginError, match=rf"cannot take {number.name}: {why}"):
        GracefulStop([SIGTERM, number])


@pytest.mark.parametrize("value", [1, None, "no"])
def test_exit_must_be_a_truth_value(value):
    """Neither a number nor a word."""
    with pytest.raises(PluginError, match=r"GracefulStop\(exit=…\) must be True or False, got"):
        GracefulStop(exit=value)


def test_the_number_of_a_signal_will_do(strays):
    """It is known by its name afterwards."""
    act = Killer("enter", "process_batch", act=lambda run: kill(SIGUSR1))
    run = raises_exit(small_engine(3, [GracefulStop([int(SIGUSR1)]), act]), 128 + SIGUSR1)
    assert run.paused == "SIGUSR1"
