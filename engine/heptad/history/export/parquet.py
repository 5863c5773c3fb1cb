"""A log, or its recorded values, as Parquet: columns with types; some 65,000 rows are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, cast

from heptad.errors import LogError
from heptad.history.export.csv_rows import rows_in_words
from heptad.history.export.output import Target, replacing
from heptad.history.export.rows import rank_column
from heptad.history.export.value_rows import each_value
from heptad.history.source import Source

_GROUP = 1 << 16
"""Rows that are written together."""

_WORDS = ("source", "dest", "guards", "name")
"""Columns with few different texts, which are stored once."""

_TRANSITION = {
    **dict.fromkeys(("seq", "time_ns", "duration_ns"), "int64"),
    **dict.fromkeys(("source", "dest", "guards"), "string"),
    **dict.fromkeys(("epoch", "batch_index", "step", "update"), "int64"),
    "notes": "string",
}
_VALUE = {**dict.fromkeys(("seq", "epoch", "step", "update"), "int64"), "name": "string", "value": "float64"}


def write_parquet(logs: Mapping[int, Source], target: Target) -> None:
    """Write the transitions of the logs of ranks.

    Raises:
        LogError: If pyarrow is not installed.
        OSError: If the target cannot be written.
    """
    _write_rows(rows_in_words(logs), rank_column(logs, 0), _TRANSITION, target)


def write_values_parquet(logs: Mapping[int, Source], target: Target) -> None:
    """Write the recorded values of the logs of ranks.

    Raises:
        LogError: If pyarrow is not installed.
        OSError: If the target cannot be written.
    """
    _write_rows(each_value(logs), rank_column(logs, 0), _VALUE, target)


def _write_rows(
    rows: Iterable[Mapping[str, Any]], rank: Mapping[str, Any], types: Mapping[str, str], target: Target
) -> None:
    try:
        import pyarrow  # noqa: PLC0415 - an extra is imported where it is used
        import pyarrow.parquet as arrow_parquet  # noqa: PLC0415 - as above
    except ImportError:
        raise LogError("Parquet needs pyarrow; install it with: pip install 'heptad[parquet]'") from None
    arrow, parquet = cast("Any", pyarrow), cast("Any", arrow_parquet)
    fields = {**dict.fromkeys(rank, "int64"), **types}
    schema = arrow.schema([(name, arrow.type_for_alias(kind)) for name, kind in fields.items()])
    words = [name for name in fields if name in _WORDS]
    waiting = iter(rows)
    with replacing(target) as file, parquet.ParquetWriter(file, schema, use_dictionary=words) as out:
        while some := list(islice(waiting, _GROUP)):
            columns = {name: [_storable(row[name]) for row in some] for name in fields}
            out.write_table(arrow.table(columns, schema=schema))


def _storable(value: Any) -> Any:
    """Return a text that is UTF-8: half a surrogate pair is written as its escape."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
