"""What a file says of a run as a whole has a right checksum and a wrong form: a `LogError` says so."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heptad import EngineError, LogError, TransitionLog
from heptad.history.journal import schema
from heptad.record import arrays
from heptad.record.arrays import pack_array, unpack_array

KEPT = Path(__file__).parent / "format_1" / "failed.journal"


def copied(folder: Path) -> Path:
    """Return the path of a copy of a journal of a run that failed."""
    return Path(shutil.copy(KEPT, folder / "run.journal"))


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "null",
        "[1]",
        '{"accumulation": "3"}',
        '{"accumulation": 0}',
        '{"handlers": 1}',
        '{"handlers": [["a"]]}',
        '{"epochs": "5"}',
        '{"max_updates": {"of": 1}}',
        '{"batches": -1}',
        '{"batch_size": true}',
        '{"samples": 1e999}',
        f'{{"samples": {10**30}}}',
    ],
)
def test_facts_of_another_form_are_refused(text: str, tmp_path: Path):
    path = copied(tmp_path)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE session SET facts = ?, crc = ?", (text, schema.crc(text)))
    with pytest.raises(LogError, match="is damaged: "):
        TransitionLog.load(path)


@pytest.mark.parametrize(
    ("column", "value"), [("guards", "5"), ("guards", '{"update_due": 1}'), ("state", "sleep"), ("state", 7)]
)
def test_a_failure_of_another_form_is_refused(column: str, value: Any, tmp_path: Path):
    path = copied(tmp_path)
    with closing(sqlite3.connect(path)) as file, file:
        file.row_factory = sqlite3.Row
        row = {**dict(file.execute("SELECT * FROM failure").fetchone()), column: value}
        fields = schema.signed(*list(row.values())[:-1])
        file.execute("DELETE FROM failure")
        file.execute(f"INSERT INTO failure VALUES ({', '.join('?' * len(fields))})", fields)
    with pytest.raises(LogError):
        TransitionLog.load(path)


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_a_pipe_beside_a_journal_is_not_waited_for(suffix: str, tmp_path: Path):
    path = copied(tmp_path)
    os.mkfifo(f"{path}{suffix}")
    with pytest.raises(LogError, match=f"has 'run.journal{suffix}' beside it, which is a link or no regular file"):
        TransitionLog.load(path)


def test_the_text_of_an_array_stands_for_as_many_bytes_as_its_shape_has(monkeypatch: pytest.MonkeyPatch):
    """And for no more than a log takes, whatever it deflates to."""
    text = pack_array("zeros", np.zeros(1000))
    assert (unpack_array(text) == 0).all()
    monkeypatch.setattr(arrays, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="holds 1001 bytes"):
        unpack_array(text)
    with pytest.raises(EngineError, match="takes at most 1,000 bytes, got 8,000"):
        pack_array("zeros", np.zeros(1000))
