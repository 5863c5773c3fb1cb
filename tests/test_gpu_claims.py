"""Claims about devices: rows are made by a run of the GPU tests, and what has none is said to have none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import small_engine
from gpu_claims import MODULE, PAGE, ROOT, Found, as_module, merged, rendered
from heptad import RunConfig
from heptad.run.verified import TRAINING, installed_version, note_unverified, unverified
from heptad.run.verified_rows import ROWS

HERE = {"device": "cuda", "card": "H100", "torch": "2.13", "heptad": installed_version(), "commit": "a", "date": "now"}


def found(**outcomes: str) -> Found:
    found = Found()
    for claim, outcome in outcomes.items():
        found.add(claim, ["prefetch"], outcome)
    return found


def test_a_claim_that_held_gets_a_row_and_one_that_failed_loses_its_own():
    rows = merged([], found(one="call passed", two="call passed", three="call skipped"), HERE)
    assert [row["claim"] for row in rows] == ["one", "two"]
    later = merged(rows, found(one="call failed"), {**HERE, "commit": "b"})
    assert [(row["claim"], row["commit"]) for row in later] == [("two", "a")]
    other = merged(rows, found(one="call failed"), {**HERE, "card": "A100"})
    assert other == rows


def test_a_claim_holds_if_all_of_its_tests_do():
    seen = found(one="call passed")
    seen.add("one", ["prefetch"], "teardown failed")
    assert (seen.held(), seen.failed()) == ([], [("one", ("prefetch",))])


def test_the_page_is_that_of_the_rows():
    assert PAGE.read_text(encoding="utf-8") == rendered(ROWS)
    assert MODULE.read_text(encoding="utf-8") == as_module(ROWS)
    rows = merged([], found(one="call passed"), HERE)
    assert "| one | prefetch | H100 | 2.13 |" in rendered(rows)
    scope: dict[str, Any] = {}
    exec(as_module(rows), scope)
    assert scope["ROWS"] == rows


def test_the_readme_says_so_where_nothing_was_verified():
    says = "not verified on a GPU" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert says == (not ROWS)


def test_values_without_a_row_of_this_version_are_unverified():
    rows = [{**HERE, "covers": ["prefetch", TRAINING]}]
    config = RunConfig(epochs=1, data_on_device=True)
    assert unverified(config, "cuda", rows) == ["data_on_device"]
    assert unverified(config, "xpu", rows) == [TRAINING, "prefetch", "data_on_device"]
    assert unverified(config, "cuda", [{**rows[0], "heptad": "0.0.1"}]) == [TRAINING, "prefetch", "data_on_device"]
    assert unverified(RunConfig(epochs=1, prefetch=0), "cuda", rows) == []


def test_the_log_says_what_is_unverified_when_a_run_begins(monkeypatch: pytest.MonkeyPatch):
    """Once, also where it is resumed; nothing on the CPU."""
    run = small_engine(1).run()
    assert run.log.notes("unverified") == []
    monkeypatch.setattr("heptad.run.verified.ROWS", [])
    monkeypatch.setattr(type(run), "device", torch.device("cuda"))
    for _ in range(2):
        note_unverified(run)
    assert [note.text for note in run.log.notes("unverified")] == [
        "training on cuda: not verified by this version",
        "prefetch on cuda: not verified by this version",
    ]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this is about machines without an accelerator")
def test_the_gpu_tests_are_skipped_with_a_reason_and_write_nothing():
    before = PAGE.read_bytes()
    done: Any = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "tests/gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "there is no accelerator here" in done.stdout
    assert (done.returncode, "passed" in done.stdout) == (0, False)
    assert PAGE.read_bytes() == before
    assert Path(ROOT / "tests" / "gpu").is_dir()
