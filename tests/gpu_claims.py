"""What a run of the GPU tests has seen to hold: the module of rows, and the page made of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from heptad.run.verified import card_name, installed_version
from heptad.run.verified_rows import ROWS, Row

ROOT = Path(__file__).resolve().parent.parent
MODULE, PAGE = ROOT / "engine" / "heptad" / "run" / "verified_rows.py", ROOT / "docs" / "verified.md"

HEAD = """# What was verified on a device

Written by `make test-gpu`, never by hand. A claim is a test marked `gpu`; a row says that all tests of the claim passed
on that card. What has no row was tested on the CPU only, and the log of a run on such a device says so when it begins
(`unverified`).
"""
EMPTY = "\nThere is no row: nothing was verified on a GPU.\n"

NOT_SHOWN = """
## What no test shows yet

One device was the most that tests are written for. These have not been seen to work, nor how fast they are:

- several devices: NCCL between cards, what it does when a rank dies or hangs, and whether it gives the same bits after
  a restart; gloo on CPUs, with 2 and 3 processes, does what the pages say;
- `strategy="fsdp"` on a card, of which torch 2.11, which the machine with the card had, lacks a part; on several, that
  gathering and averaging overlap with forward and backward, how much memory sharding saves, and `bf16-mixed` with its
  halved traffic between them;
- several nodes, restart counts that differ between them, and file systems that they share, where all ranks write their
  pieces of a checkpoint.
"""

Claim = tuple[str, tuple[str, ...]]
"""What a test shows, and the values of `RunConfig` that it covers."""


class Found:
    """The outcomes of the claims of a run, each of one or several tests."""

    def __init__(self) -> None:
        self.outcomes: dict[Claim, set[str]] = {}

    def add(self, claim: str, covers: Iterable[str], outcome: str) -> None:
        """Add the outcome of one phase of a test: `"passed"`, `"failed"` or `"skipped"`."""
        self.outcomes.setdefault((claim, tuple(covers)), set()).add(outcome)

    def held(self) -> list[Claim]:
        """Return the claims of which tests ran, and all of these passed."""
        return [claim for claim, seen in self.outcomes.items() if "call passed" in seen and not _has_failed(seen)]

    def failed(self) -> list[Claim]:
        """Return those of which a test failed."""
        return [claim for claim, seen in self.outcomes.items() if _has_failed(seen)]


def _has_failed(seen: set[str]) -> bool:
    return any(outcome.endswith("failed") for outcome in seen)


def merged(rows: Iterable[Row], found: Found, place: Mapping[str, str]) -> list[Row]:
    """Return the rows, with those of the claims that held on a card made anew and those that failed left out.

    Args:
        rows: Those that there are.
        found: The outcomes.
        place: Device, card, versions, commit and date of the run.
    """

    def key(claim: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
        return claim, row["device"], row["card"]

    kept = {key(row["claim"], row): row for row in rows}
    for claim, _ in found.failed():
        kept.pop(key(claim, place), None)
    for claim, covers in found.held():
        kept[key(claim, place)] = {"claim": claim, "covers": list(covers), **place}
    return [kept[name] for name in sorted(kept)]


def rendered(rows: Iterable[Row]) -> str:
    """Return the page."""
    lines = [
        f"| {row['claim']} | {', '.join(row['covers'])} | {row['card']} | {row['torch']} | {row['heptad']} "
        f"| {row['commit']} | {row['date']} |"
        for row in rows
    ]
    if not lines:
        return HEAD + EMPTY + NOT_SHOWN
    titles = ["| claim | covers | card | torch | heptad | commit | date |", "|---|---|---|---|---|---|---|"]
    return HEAD + "\n" + "\n".join([*titles, *lines]) + "\n" + NOT_SHOWN


def as_module(rows: Iterable[Row]) -> str:
    """Return the source of the module that holds the rows."""
    lines = [
        "    {\n"
        + "".join(f"        {json.dumps(name)}: {json.dumps(value)},\n" for name, value in row.items())
        + "    },\n"
        for row in rows
    ]
    start = MODULE.read_text(encoding="utf-8").partition("ROWS: list[Row] = ")[0]
    return f"{start}ROWS: list[Row] = [{chr(10) if lines else ''}{''.join(lines)}]\n"


def here(device: torch.device) -> dict[str, str]:
    """Return where and when a run of the tests is made."""
    return {
        "device": device.type,
        "card": card_name(device),
        "torch": str(torch.__version__),
        "heptad": installed_version(),
        "commit": os.environ.get("HEPTAD_COMMIT") or _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def write(found: Found, device: torch.device) -> None:
    """Write what was found into the module and the page."""
    rows = merged(ROWS, found, here(device))
    MODULE.write_text(as_module(rows), encoding="utf-8")
    PAGE.write_text(rendered(rows), encoding="utf-8")


def _commit() -> str:
    """Return the commit, marked if tracked files differ from it; a copy without git does not know."""
    try:
        name, changed = (
            subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} and changes" if changed else name
