"""`heptad explain`: why a transition went where it went, and who was called."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from heptad.cli.arguments import Commands, command, conditions, count, given, takes_conditions, takes_file
from heptad.cli.files import open_log
from heptad.cli.output import data, line, number
from heptad.errors import LogError
from heptad.history.explain import Explanation
from heptad.history.export.jsonl import plain
from heptad.history.query import TransitionLog


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "explain", run, "say why a transition went where it went, and who was called")
    takes_file(parser)
    parser.add_argument("seq", metavar="SEQ", type=int, nargs="?", help="its number; -1 is the last one")
    takes_conditions(parser)
    parser.add_argument("--tail", metavar="N", type=count, default=1, help="without SEQ: the last N that match; 1")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    log = open_log(arguments.file)
    for seq in _numbers(log, arguments):
        explanation = log.explain(seq)
        if arguments.json:
            data(_plain(explanation))
        else:
            line(explanation)
    return 0


def _numbers(log: TransitionLog, arguments: argparse.Namespace) -> list[int]:
    asked = conditions(arguments)
    if arguments.seq is not None:
        if given(asked):
            raise LogError("explain takes the number of a transition or what it is to be like, not both")
        view = log.source.view()
        return [arguments.seq if arguments.seq >= 0 else view.end + arguments.seq]
    if not given(asked):
        raise LogError("explain needs the number of a transition, or what it is to be like: --source, --step, …")
    found = log.where(source=asked.source, dest=asked.dest, **asked.counters, limit=-max(arguments.tail, 1))
    if not found:
        raise LogError("no transition is like that; `heptad show` shows what there is")
    return [transition.seq for transition in found]


def _plain(explanation: Explanation) -> dict[str, object]:
    return {
        **plain(explanation.transition),
        "skipped": explanation.skipped,
        "tried": [asdict(tried) for tried in explanation.tried],
        "calls": [asdict(call) for call in explanation.calls],
        "values": [{"name": value.name, "value": number(value.value)} for value in explanation.values],
        "notes": [{"kind": note.kind, "text": note.text, "time_ns": note.time_ns} for note in explanation.notes],
    }
