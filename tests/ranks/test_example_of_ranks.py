"""The language model, sharded over two processes: one is killed, and one process goes on along the same curve."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from launching import Outcome, outcomes

SMALL = "--width=64 --layers=1 --every=3 --threads=1 --adamw --float32 --store-every=2"


def run(folder: Path, name: str, world: int, options: str) -> list[Outcome]:
    """Return what becomes of the example on so many ranks, which are forked in place of started."""
    (folder / name).mkdir()
    variables = [{"ARGUMENTS": f"{SMALL} {options}"}] * world
    return outcomes("example_cases", "main", world, folder / name, limit=60, variables=variables)


def curve(text: str) -> list[str]:
    """Return the lines with losses."""
    return re.findall(r"^(?:update .*|the model: .*) bits a character$", text, re.MULTILINE)


def values(path: Path) -> dict[tuple[str, str], float]:
    """Return what is in a file of values, by update and name."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (row["update"], name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("step", "update", "epoch")
        }


def test_two_are_killed_and_one_goes_on_along_the_same_curve(tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    (straight,) = run(tmp_path, "straight", 1, f"--folder={whole} --strategy=none --updates=6")
    killed = run(tmp_path, "killed", 2, f"--folder={broken} --strategy=fsdp --updates=6 --die-at=5")
    (resumed,) = run(tmp_path, "resumed", 1, f"--folder={broken} --strategy=none --updates=6")
    assert [one.code for one in (straight, *killed, resumed)] == [0, 1, -9, 0]
    assert "resumed from checkpoint-00000002" in resumed.output
    assert len(curve(straight.output)) == 3
    assert curve(killed[0].output) + curve(resumed.output) == curve(straight.output)
    assert values(broken / "values.csv") == pytest.approx(values(whole / "values.csv"), rel=0, abs=1e-5)


def test_two_end_by_themselves_and_print_once(tmp_path: Path):
    """The text that the first of them writes is of the average in the last checkpoint."""
    first, second = run(tmp_path, "sharded", 2, f"--folder={tmp_path / 'runs'} --strategy=fsdp --updates=3")
    assert (first.code, second.code) == (0, 0)
    assert len(curve(first.output)) == 2
    assert re.search(r"^\| class ", first.output, re.MULTILINE)
    assert curve(second.output) == []
