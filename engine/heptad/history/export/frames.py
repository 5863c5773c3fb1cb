"""A log as a pandas data frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from heptad.errors import LogError
from heptad.history.decode import Decoder, blocks
from heptad.history.source import Source

if TYPE_CHECKING:
    import pandas


def frame(logs: Mapping[int, Source]) -> pandas.DataFrame:
    """Return a row for each transition, in the columns of `Transition`; about 75 bytes a row.

    With several ranks the first column is `rank`, and the rows of rank 1 follow those of rank 0.

    Raises:
        LogError: If pandas is not installed.
    """
    try:
        import pandas as pd  # noqa: PLC0415 - an extra is imported where it is used
    except ImportError:
        raise LogError("to_dataframe needs pandas; install it with: pip install 'heptad[frames]'") from None
    found = {rank: pd.DataFrame(_frame_columns(source)) for rank, source in logs.items()}
    if len(found) == 1:
        return next(iter(found.values()))
    for rank, rows in found.items():
        rows.insert(0, "rank", rank)
    return pd.concat(found.values(), ignore_index=True)


def _frame_columns(source: Source) -> dict[str, Any]:
    """Return the columns of a log."""
    import pandas as pd  # noqa: PLC0415 - as above

    view = source.view()
    read = [(block, block.spent(), block.times(), block.counters(source)) for block in blocks(view)]
    empty = np.empty(0, dtype=np.int64)

    def column(parts: list[Any]) -> Any:
        return np.concatenate(parts) if parts else empty

    arcs = column([block.arcs for block, *_ in read])
    decoder, effects, states = Decoder(source), source.effects, source.table.states
    names = list(dict.fromkeys(state.shown for state in states))
    number = np.array([names.index(state.shown) for state in states])
    guards = [_answers(decoder.guards(arc)) for arc in range(len(effects.sources))]
    answers = list(dict.fromkeys(guards))
    answer = np.array([answers.index(words) for words in guards])
    return {
        "seq": np.arange(view.first, view.end),
        "time_ns": column([times for _, _, times, _ in read]),
        "duration_ns": column([spent for _, spent, *_ in read]),
        "source": pd.Categorical.from_codes(number[effects.sources[arcs]], names),
        "dest": pd.Categorical.from_codes(number[effects.dests[arcs]], names),
        "guards": pd.Categorical.from_codes(answer[arcs], answers),
        **{
            name: column([counters[name] for *_, counters in read])
            for name in ("epoch", "batch_index", "step", "update")
        },
    }


def _answers(guards: dict[str, bool]) -> str:
    return " ".join(f"{name}={'yes' if answer else 'no'}" for name, answer in guards.items())
