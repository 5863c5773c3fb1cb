"""Where `Progress` shows its lines: a terminal, where some are redrawn in their place; a notebook; any other file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

FULL, EMPTY = "━", "·"
"""The signs of a bar."""

_ASCII = str.maketrans({FULL: "#", EMPTY: "."})

MOST_LINES = 1000
"""Lines that a notebook shows: the last ones."""


class Screen(Protocol):
    """Shows lines that stay, and below them lines that are drawn again and again.

    Attributes:
        draws: Whether it shows what is drawn.
    """

    draws: bool

    @property
    def width(self) -> int | None:
        """Characters in a line; `None` where it has no end."""
        ...

    def write(self, lines: Sequence[str]) -> None:
        """Show lines that stay."""
        ...

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines in place of those that were drawn before."""
        ...

    def close(self) -> None:
        """Remove what was drawn."""
        ...


class PlainFile:
    """A file: what is drawn is left out."""

    draws = False

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int | None:
        """None: a line has no end."""
        return None

    def write(self, lines: Sequence[str]) -> None:
        """Show lines that stay."""
        for line in lines:
            self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def draw(self, lines: Sequence[str]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Terminal(PlainFile):
    """A terminal."""

    draws = True

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    @property
    def width(self) -> int | None:
        """Characters in a line: the last place stays free, since some terminals begin a line there."""
        return self._console.width - 1

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines in place of those that were drawn before."""
        from rich.text import Text

        text = "\n".join(lines)
        if self._console.options.ascii_only:
            text = text.translate(_ASCII)
        self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)

    def close(self) -> None:
        """Remove what was drawn, so that whatever is printed next stands on a line of its own."""
        self.draw([])
        self._live.stop()


class Notebook:
    """The output of a notebook's cell: one display, whose text is replaced; it needs no widgets.

    Args:
        display: `IPython.display.display`.
    """

    draws = True

    def __init__(self, display: Callable[..., Any]) -> None:
        self._written: list[str] = []
        self._drawn: Sequence[str] = ()
        self._handle = display(self._bundle(), raw=True, display_id=True)

    @property
    def width(self) -> int | None:
        """What a cell shows beside each other, about."""
        return 100

    def _bundle(self) -> dict[str, str]:
        text = "\n".join([*self._written, *self._drawn])
        return {"text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"}

    def write(self, lines: Sequence[str]) -> None:
        """Show lines that stay."""
        self._written = [*self._written, *lines][-MOST_LINES:]
        self._handle.update(self._bundle(), raw=True)

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines in place of those that were drawn before."""
        self._drawn = lines
        self._handle.update(self._bundle(), raw=True)

    def close(self) -> None:
        """Remove what was drawn."""
        self.draw(())


def notebook() -> Callable[..., Any] | None:
    """Return what displays something in the notebook that this process is the kernel of; `None` where it is none."""
    ipython: Any = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return None if ipython is None or getattr(shell, "kernel", None) is None else ipython.display.display


def bar(share: float, width: int) -> str:
    """Return a bar of which a share is full."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return FULL * full + EMPTY * (width - full)


def pulse(seconds: float, width: int) -> str:
    """Return a bar that says nothing but that something is done: a piece of it moves with the time."""
    piece = max(width // 5, 1)
    at = int(seconds * 4) * 2 % (width - piece + 1)
    return EMPTY * at + FULL * piece + EMPTY * (width - piece - at)


class Ticker:
    """Calls a function at intervals in a thread of its own, until it is stopped.

    Args:
        call: The function. What it raises ends the thread: a display is not worth a run.
        seconds: Between two calls.
    """

    def __init__(self, call: Callable[[], None], seconds: float) -> None:
        self._call, self._seconds = call, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="heptad progress", daemon=True)
        self._thread.start()

    def _tick(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._call()
            except Exception:
                return

    def stop(self) -> None:
        """Stop, and wait for a call under way."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
