"""A log as CSV: a row for each transition, in the columns of `Transition`; guards and notes are words."""

from __future__ import annotations

import codecs
import csv

from heptad.history.decode import Decoder, by_seq
from heptad.history.export.output import Target, replacing
from heptad.history.export.rows import transition_row
from heptad.history.source import Source


def write(source: Source, target: Target) -> None:
    """Write a log, with one chunk in memory at a time.

    Raises:
        OSError: If the target cannot be written.
    """
    view = source.view()
    notes = by_seq(source.events(view.first))
    with replacing(target) as file:
        # A file name that is no UTF-8 may stand in a note, as half a surrogate pair: it is written as its escape.
        rows = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        for number, transition in enumerate(Decoder(source).all(view)):
            row = transition_row(transition) | {"guards": transition.answers()}
            words = "; ".join(f"{note.kind}: {note.text}" for note in notes.get(transition.seq, ()))
            if number == 0:
                rows.writerow([*row, "notes"])
            rows.writerow([*row.values(), words])
