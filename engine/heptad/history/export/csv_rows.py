"""A log as CSV: a row for each transition, in the columns of `Transition`; guards and notes are words.

With several ranks the first column is `rank`, and the rows of rank 1 follow those of rank 0.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping
from typing import Any

from heptad.history.decode import Decoder, by_seq
from heptad.history.export.output import Target, replacing
from heptad.history.export.rows import rank_column, transition_row
from heptad.history.source import Source


def write(logs: Mapping[int, Source], target: Target) -> None:
    """Write the logs of ranks, with one chunk in memory at a time.

    Raises:
        OSError: If the target cannot be written.
    """
    with replacing(target) as file:
        # A file name that is no UTF-8 may stand in a note, as half a surrogate pair: it is written as its escape.
        rows = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        for number, row in enumerate(rows_in_words(logs)):
            if number == 0:
                rows.writerow(row)
            rows.writerow(row.values())


def rows_in_words(logs: Mapping[int, Source]) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each transition of the logs of ranks, guards and notes in words."""
    for rank, source in logs.items():
        view = source.view()
        notes = by_seq(source.events(view.first))
        for transition in Decoder(source).all(view):
            words = "; ".join(f"{note.kind}: {note.text}" for note in notes.get(transition.seq, ()))
            row = transition_row(transition) | {"guards": transition.answers(), "notes": words}
            yield rank_column(logs, rank) | row
