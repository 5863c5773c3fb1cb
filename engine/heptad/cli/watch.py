"""`heptad watch`: look at a run while it goes on. Its journal is read and never written; the run does not notice."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import Any

from heptad.cli.arguments import load_log, takes_journals, takes_rank
from heptad.cli.follow import follow, has_ended
from heptad.cli.grid import cell_width, print_fields, terminal_width, wrapped
from heptad.cli.output import encodable, print_line, visible
from heptad.history.now import Now, look, sparkline
from heptad.history.query import TransitionLog
from heptad.history.wording import first_words, long_time, rate, short_value

MOST_VALUES = 12
"""Names of values that are shown."""

LONGEST = 1_000
"""Characters of an event."""

SPARK = 40
"""Values in a sparkline, at most."""

MOST_EVENT_LINES = 3
"""Lines that an event takes, at most."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file", data=False)
    takes_rank(parser, "rank 0's")
    parser.add_argument("--once", action="store_true", help="show where it is now, and end")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    log = load_log(arguments)
    if arguments.once:
        for line in lines_of(look(log.source), terminal_width() or 100):
            print_line(line)
        return 0
    live = _live()
    if live is None:
        _Plain(log).watch()
        return 0
    with live:
        show = _Redraws(log, live)
        show()
        follow(log, show)
        show()
    print_fields({line.title: line.parts for line in log.verdict().lines[:3]})
    return 0


def _live() -> Any:
    """Return what redraws lines in their place; `None` where rich is missing or standard output is no terminal."""
    if terminal_width() is None:
        return None
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra is imported where it is used
        from rich.live import Live  # noqa: PLC0415 - as above
    except ImportError:
        return None
    return Live(console=Console(markup=False, emoji=False, highlight=False), auto_refresh=False, transient=True)


class _Redraws:
    """Draws where the run is, in place of what was drawn before."""

    def __init__(self, log: TransitionLog, live: Any) -> None:
        self._log, self._live = log, live

    def __call__(self) -> None:
        from rich.text import Text  # noqa: PLC0415 - an extra is imported where it is used

        width = terminal_width() or 80
        lines = lines_of(look(self._log.source), width - 1)[: max(shutil.get_terminal_size().lines - 1, 4)]
        self._live.update(Text(encodable("\n".join(lines)), no_wrap=True, overflow="ellipsis"), refresh=True)


class _Plain:
    """Prints a line whenever an epoch is over or an event came: for a pipe, and for who has no rich."""

    def __init__(self, log: TransitionLog) -> None:
        self._log = log
        self._said: object = None

    def watch(self) -> None:
        """Print until the run has ended."""
        self._show()
        follow(self._log, self._show)
        if has_ended(self._log):
            self._show()

    def _show(self) -> None:
        now = look(self._log.source)
        said = (now.last.epoch, now.last.dest in ("finished", "failed"), now.event) if now.last else now.event
        if said != self._said:
            self._said = said
            values = "  ".join(f"{name} {short_value(some[-1])}" for name, some in _shown(now))
            event = f"  {first_words(str(now.event), LONGEST)}" if now.event else ""
            print_line("  ".join(filter(None, (_where(now), values))) + event)
            sys.stdout.flush()


def lines_of(now: Now, width: int) -> list[str]:
    """Return where a run is, as lines: a bar, the newest values with how they moved, the last event.

    None is wider than that, and no number is cut: a name that is too long is, and so is an event.
    """
    lines = [*wrapped(_where(now), width), *wrapped(_bar(now, width), width)]
    shown = [(visible(" ".join(name.split())), short_value(some[-1]), some) for name, some in _shown(now)]
    widest = max((len(value) for _, value, _ in shown), default=0)
    longest = min(max((cell_width(name) for name, _, _ in shown), default=0), max(width - widest - 2, 1))
    for name, value, values in shown:
        first = _cut_to(name, longest)
        line = f"{first}{' ' * (longest - cell_width(first))}  {value:>{widest}}"
        room = min(SPARK, width - cell_width(line) - 2)
        lines.append(f"{line}  {sparkline(values, room)}" if room > 0 and len(values) > 1 else line)
    if now.event is not None:
        some = wrapped(visible(f"last event {first_words(str(now.event), LONGEST)}"), width)
        lines += some[:MOST_EVENT_LINES]
        if len(some) > MOST_EVENT_LINES:
            lines.append("…")
    return lines


def _cut_to(name: str, width: int) -> str:
    """Return a name, or as much of it as has room."""
    if cell_width(name) <= width:
        return name
    while cell_width(name) >= width and name:
        name = name[:-1]
    return f"{name}…"


def _shown(now: Now) -> list[tuple[str, Any]]:
    return list(now.recent.items())[:MOST_VALUES]


def _where(now: Now) -> str:
    if now.last is None:
        return "no transition yet"
    at = now.last
    epoch = f"epoch {at.epoch}{f'/{now.epochs}' if now.epochs else ''} complete"
    update = f"update {at.update:,}{f'/{now.total_updates:,}' if now.total_updates else ''}"
    return f"in {at.dest}  {epoch}  step {at.step:,}  {update}"


def _bar(now: Now, width: int) -> str:
    """Return a bar, with the speed and the time left behind it."""
    ended = now.last is not None and now.last.dest in ("finished", "failed")
    left = "" if now.seconds_left is None or ended else f"  {long_time(now.seconds_left * 1e9)} left"
    speed = rate(now.updates_per_second, "updates") if now.updates_per_second else ""
    if now.share is None:
        return speed
    words = f" {100 * now.share:3.0f} %  {speed}{left}"
    room = max(min(width - len(words), 40), 4)
    full = round(now.share * room)
    return f"{'━' * full}{'·' * (room - full)}{words}"
