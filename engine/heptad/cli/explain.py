"""`heptad explain`: why a transition took its arc, and which handlers were called."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from heptad.cli.arguments import any_given, conditions, count, load_log, takes_conditions, takes_journals, takes_rank
from heptad.cli.grid import print_text
from heptad.cli.output import print_json
from heptad.errors import LogError
from heptad.history.explain import Explanation
from heptad.history.export.rows import finite, note_row, transition_row, value_row
from heptad.history.query import TransitionLog


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    takes_journals(parser, "file")
    takes_rank(parser, "rank 0's, with what the others noted")
    parser.add_argument("seq", metavar="SEQ", type=int, nargs="?", help="its number; -1 is the last one")
    takes_conditions(parser)
    parser.add_argument("--tail", metavar="N", type=count, default=1, help="without SEQ: the last N that match; 1")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    log = load_log(arguments)
    for seq in _numbers(log, arguments):
        explanation = log.explain(seq)
        if arguments.json:
            print_json(finite(_explanation_row(explanation)))
        else:
            print_text(explanation)
    return 0


def _numbers(log: TransitionLog, arguments: argparse.Namespace) -> list[int]:
    """Return the numbers of the transitions to explain.

    Raises:
        LogError: If neither a number nor a condition is given, if both are, or if nothing matches.
    """
    asked = conditions(arguments)
    if arguments.seq is not None:
        if any_given(asked):
            raise LogError("explain takes the number of a transition or conditions such as --step, not both")
        return [arguments.seq if arguments.seq >= 0 else log.source.view().end + arguments.seq]
    if not any_given(asked):
        raise LogError("explain needs the number of a transition, or conditions: --source, --step, …")
    found = log.where(source=asked.source, dest=asked.dest, **asked.counters, limit=-max(arguments.tail, 1))
    if not found:
        raise LogError("no transition matches; `heptad show` lists the transitions")
    return [transition.seq for transition in found]


def _explanation_row(explanation: Explanation) -> dict[str, object]:
    return {
        **transition_row(explanation.transition),
        "skipped": explanation.skipped,
        "tried": [asdict(tried) for tried in explanation.tried],
        "calls": [asdict(call) for call in explanation.calls],
        "values": [value_row(value) for value in explanation.values],
        "notes": [note_row(note) | ({"rank": note.rank} if note.rank else {}) for note in explanation.notes],
    }
