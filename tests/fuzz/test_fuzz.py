"""A file from a stranger is refused or read rightly, in bounded time and memory: a seeded sample; `make fuzz` has more.

What stands for the readers below is as bad as a reader can be: the fuzzer must see it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fuzz import checkpoints, journals, worker
from fuzz.kinds import KINDS, Kind
from fuzz.worker import Case, Trial, try_all

SAMPLE = {"checkpoint-damaged": 100, "checkpoint-crafted": 300, "journal-damaged": 60, "journal-crafted": 200}


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_sample_is_refused_or_read_rightly(kind: str, tmp_path: Path):
    """Some of each kind are refused."""
    trials = list(try_all([Case(kind, number) for number in range(SAMPLE[kind])], tmp_path))
    assert [f"{trial.case.name}: {trial.text}" for trial in trials if trial.outcome == "failed"] == []
    assert len(trials) == SAMPLE[kind]
    assert sum(trial.outcome == "refused" for trial in trials) > SAMPLE[kind] // 4


def test_the_sample_has_every_kind():
    assert SAMPLE.keys() == KINDS.keys()


def made(folder: Path, number: int, draw: Random) -> None:
    """Write an input of one byte."""
    (folder / "input").write_bytes(draw.randbytes(1))


def tried(ask: Any, keep: Path) -> list[Trial]:
    """Return what comes of three inputs of which a reader cannot read the second."""

    def ask_second(folder: Path, number: int, draw: Random) -> Any:
        return ask() if number == 1 else "answered"

    return list(try_all([Case("x", number) for number in range(3)], keep, {"x": Kind(list, made, ask_second)}))


def raise_an_error() -> None:
    raise KeyError("raw")


def wait_for_ever() -> None:
    os.read(os.pipe()[0], 1)


def compute_for_ever() -> None:
    while True:
        pass


def take_memory() -> str:
    return "answered" if bytearray(400 << 20) else ""


def take_far_too_much_memory() -> str:
    return "answered" if bytearray(8 << 30) else ""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_without_end() -> None:
    with Path("endless").open("wb") as file:
        while True:
            file.write(bytes(1 << 20))


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        (raise_an_error, "KeyError: 'raw'"),
        (wait_for_ever, "ended by SIGALRM: it took more than 1 s by the clock"),
        (compute_for_ever, "ended by SIGXCPU: it took more than 0 s of the processor"),
        (take_memory, "MB of memory, and 256 are allowed"),
        (take_far_too_much_memory, "MemoryError"),
        (die, "ended by SIGKILL"),
        (write_without_end, "ended by SIGXFSZ: it wrote more than 64 MB"),
    ],
)
def test_a_bad_reader_is_seen(reader: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The input is kept under its name, and those that follow are tried."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "PATIENCE", 1 if reader is wait_for_ever else 20)
    monkeypatch.setattr(worker, "SECONDS", 0 if reader is compute_for_ever else 20)
    trials = tried(reader, tmp_path / "kept")
    assert [trial.outcome for trial in trials] == ["answered", "failed", "answered"]
    assert says in trials[1].text
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["x-1"]


def test_an_input_that_was_kept_is_tried_as_it_is(tmp_path: Path):
    (tmp_path / "x-0").mkdir()
    (tmp_path / "x-0" / "input").write_bytes(b"kept")

    def ask(folder: Path, number: int, draw: Random) -> Any:
        return (folder / "input").read_text()

    assert list(try_all([Case("x", 0)], tmp_path, {"x": Kind(list, made, ask)})) == [Trial(Case("x", 0), "kept")]


@pytest.mark.parametrize("kind", ["checkpoint-damaged", "checkpoint-crafted"])
def test_an_input_is_made_again_from_its_name(kind: str, tmp_path: Path):
    """Within a process; between two, originals differ in their times, so what fails is kept whole."""
    KINDS[kind].prepare()
    found: list[dict[str, bytes]] = []
    for name in ("one", "other"):
        KINDS[kind].make(tmp_path / name, 4, Random("4"))
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert found[0]


def test_an_original_is_read_rightly(tmp_path: Path):
    """By every reader and every command, so that a damaged one can be compared with it."""
    for number in range(len(checkpoints.VARIANTS)):
        name = checkpoints.variant_of(number)
        expected = checkpoints.original(name)
        folder = tmp_path / name
        checkpoints._write(folder, expected.parts)
        for reader in (checkpoints._resume, checkpoints._load):
            assert reader(folder, name, expected, Random(0)) == "answered"
    for parts in journals.originals().values():
        original = (*parts.items(),)
        assert journals.truth_of.__wrapped__(original) == journals.truth_of(original)
