"""`GracefulStop` changes the run: a signal such as SIGTERM pauses it between two steps, and ends the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

from heptad import Plugin, PluginError, Run

REFUSED = ("SIGINT", "SIGKILL", "SIGSTOP")


class GracefulStop(Plugin):
    """Pause the run when the process is asked to end, so that every plugin's `on_pause` can save what there is.

    At the first signal the run pauses at the end of the turn, never between the beginning of a step and the end of its
    update. `on_pause` of all plugins is called and all are closed; then `run()` raises `SystemExit(128 + number)`,
    which is 143 for SIGTERM. A second signal before the run has paused raises it at once, and the run has failed; one
    that comes while `on_pause` is being called changes nothing. After a signal in a run's last turn the run finishes
    first.

    With several ranks a signal to one of them is enough. They pause together where they agree, with the window under
    way, and all raise: give a run the time of a window between the signal and SIGKILL, as by `#SBATCH --signal`.

    The handlers are installed for the length of `run()`, and those before them are restored. (Under `advance()` they
    stay until the plugins are closed, which is what raises.) Only the main thread can have signal handlers: in another
    thread the plugin does nothing but add a note to the log. A signal that the process ignores, as under nohup, stays
    ignored.

    Args:
        signals: What to listen for. Not SIGINT: Ctrl-C pauses a run without this plugin.
        exit: False: `run()` returns in place of raising, `Run.paused` is the signal's name, and another `run()`
            continues.

    Raises:
        PluginError: If `signals` holds something that is no signal, or one that cannot be handled here; if `exit` is
            neither True nor False.
        SystemExit: From `run()`, as said above.
    """

    ranks = "all"  # whoever gets the signal asks, and all pause

    def __init__(self, signals: Iterable[signal.Signals | int] = (signal.SIGTERM,), exit: bool = True) -> None:
        if not isinstance(signals, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - for untyped callers
            raise PluginError(f"GracefulStop(signals=…) takes several, such as (signal.SIGTERM,), got {signals!r}")
        if not isinstance(exit, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
            raise PluginError(f"GracefulStop(exit=…) must be True or False, got {exit!r}")
        self._signals = tuple(dict.fromkeys(_checked_signal(number) for number in signals))
        self.requests = tuple(number.name for number in self._signals)
        self._exit = exit
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._run: Run | None = None

    def open(self, run: Run) -> None:
        """Install the handlers."""
        for number in self._signals:
            run.ask(self._request(number), wanted=False)
        if threading.current_thread() is not threading.main_thread():
            run.note("GracefulStop does nothing: the run is not driven by the main thread")
            return
        self._run = run
        for number in self._signals:
            before = signal.getsignal(number)
            if before not in (None, signal.SIG_IGN):
                self._before[number] = before
                signal.signal(number, self._handle)

    def on_pause(self, run: Run) -> None:
        """Take over the signal that another rank has received."""
        if self._received is None and self._run is not None:
            agreed = (number for number in self._signals if run.agreed(self._request(number)))
            self._received = next(agreed, None)

    def close(self, run: Run) -> None:
        """Restore the handlers that were there; exit if a signal asked for it."""
        while self._before:
            signal.signal(*self._before.popitem())
        received, self._received, self._run = self._received, None, None
        if received is not None and self._exit and run.state != "failed":
            raise SystemExit(128 + received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Pause the run, or exit. Python calls this between two instructions of the main thread, wherever that is."""
        del frame
        run = self._run
        assert run is not None
        if self._received is None:
            self._received = signal.Signals(number)
            if not run.ended:
                run.ask(self._request(self._received))
                run.pause(self._received.name)
        elif not run.ended and run.paused is None:
            raise SystemExit(128 + number)

    def _request(self, number: signal.Signals) -> str:
        return f"{self.name}.{number.name}"


def _checked_signal(number: signal.Signals | int) -> signal.Signals:
    if type(number) not in (int, signal.Signals) or number not in set(signal.Signals):
        raise PluginError(f"GracefulStop(signals=…) takes signals such as signal.SIGTERM, got {number!r}")
    checked = signal.Signals(number)
    if checked.name in REFUSED:
        why = "Ctrl-C pauses a run without this plugin" if checked.name == "SIGINT" else "no process can handle it"
        raise PluginError(f"GracefulStop(signals=…) cannot take {checked.name}: {why}")
    return checked
