"""A process that trains is killed by SIGKILL at any moment; resumed in another, the run is the one that never was.

A seeded sample of the moments; `make kill-matrix` takes them all. What is compared: weights and buffers, the optimizer,
all random generators, recorded values, counters, the state of every plugin, and the whole log, bit for bit.
"""

from __future__ import annotations

import random
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import heptad.checkpoints.capture as capturing
from killing import BACKGROUND, MEMORY, differences, in_child, live, trial
from scenario import FEEDS

VARIANTS: dict[str, dict[str, Any]] = {
    "journal": {"journal": True},
    **{feed: {"feed": feed} for feed in FEEDS if feed != "dataset"},
    "flush": {"remainder": "flush"},
    "drop": {"remainder": "drop"},
    "carry": {"remainder": "carry"},
    "again": {"again": True},
    "odd": {"odd": True},
    "closure": {"closure": True, "schedule": False},
    "background": BACKGROUND,
    "bf16": {"precision": "bf16-mixed"},
    "fp16": {"precision": "fp16-mixed", "again": True},
    "tight": {"tight": True, "journal": True},
    "thaws": {"thaws": True, "journal": True},
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where checkpoints lie."""
    with tempfile.TemporaryDirectory(prefix="lived-", dir=MEMORY) as name:
        yield Path(name)


@cache
def lived(variant: str) -> dict[str, Any]:
    """Return what becomes of the run if nobody kills it."""
    with tempfile.TemporaryDirectory(prefix="lived-", dir=MEMORY) as name:
        return in_child(lambda: live(Path(name) / "checkpoints", None, None, **VARIANTS[variant]))


def moments(variant: str, count: int, *, of_files: bool) -> list[int]:
    """Return a sample of the moments of a run: those within the writing of a checkpoint, or all others."""
    labels = lived(variant)["labels"]
    found = [number for number, label in enumerate(labels) if label.endswith("of a file") == of_files]
    return sorted(random.Random(f"{variant} {of_files}").sample(found, count))


@pytest.mark.parametrize("place", range(20))
def test_killed_on_a_moment_or_in_a_body(place):
    """On entry to a state, at both ends of its body and within it, on its exit."""
    at = moments("journal", 20, of_files=False)[place]
    assert trial(at, lived("journal"), **VARIANTS["journal"]) == [], lived("journal")["labels"][at]


@pytest.mark.parametrize("place", range(12))
def test_killed_while_a_checkpoint_is_written(place):
    """Before each kind of operation on its files."""
    at = moments("journal", 12, of_files=True)[place]
    assert trial(at, lived("journal"), **VARIANTS["journal"]) == [], lived("journal")["labels"][at]


@pytest.mark.parametrize("place", range(6))
def test_killed_while_a_thread_writes_a_checkpoint(place):
    """Before an operation on its files, wherever the run is meanwhile; or in the run, wherever the thread is."""
    at = moments("background", 6, of_files=True)[place]
    assert trial(at, lived("background"), **BACKGROUND) == [], lived("background")["labels"][at]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "journal"])
def test_killed_whatever_the_data_come_from(variant, place):
    """Worker processes, streams, loaders of the user's; each remainder; steps left out; computed again; a thaw."""
    at = moments(variant, 3, of_files=False)[place]
    assert trial(at, lived(variant), **VARIANTS[variant]) == [], lived(variant)["labels"][at]


@pytest.mark.parametrize("seed", range(2))
def test_a_chain_of_ten_kills(seed, folder):
    """Killed again and again, while resuming included; what is resumed last is the run that nobody killed."""
    draw = random.Random(seed)
    killed = 0
    while killed < 10:
        at = draw.choice([draw.randrange(60), draw.randrange(250)])
        ended = in_child(lambda at=at: live(folder / "checkpoints", at, "auto", journal=True))
        killed += ended is None
        if ended is not None:
            break
    ended = ended or in_child(lambda: live(folder / "checkpoints", None, "auto", journal=True))
    assert killed >= 5
    assert differences(lived("journal"), ended, journal=True) == []


FORGOTTEN = {
    "gradients": lambda snapshot: snapshot.sections["optimizers"]["gradients"].clear(),
    "random state": lambda snapshot: snapshot.sections["run"].update(random=in_another_place()),
    "data position": lambda snapshot: snapshot.sections["run"]["data"].update(next=0),
    "filter counts": lambda snapshot: snapshot.sections["run"]["position"]["filters"].clear(),
    "counts of detours": lambda snapshot: snapshot.sections["run"]["position"].update(
        visits=[0] * len(snapshot.sections["run"]["position"]["visits"])
    ),
    "plugins": lambda snapshot: [one.update(state={}) for one in snapshot.sections["plugins"].values()],
    "buffers": lambda snapshot: snapshot.sections["network"]["tensors"]["1.running_mean"].add_(1),
    "optimizer": lambda snapshot: snapshot.sections["optimizers"]["states"][0]["state"]["state"].clear(),
}


def in_another_place() -> dict[str, Any]:
    """Return states of the random generators that are not those of the run."""
    from heptad.data.generators import global_states, preserved, seed_all

    with preserved():
        seed_all(123)
        return global_states()


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_the_suite_goes_red_where_something_is_forgotten(forgotten, folder, monkeypatch):
    """A test of the tests: each part that is left out of a checkpoint makes a difference that they see."""
    whole = capturing.capture

    def partly(*parts: Any) -> Any:
        snapshot = whole(*parts)
        snapshot.sections["network"]["tensors"] = {
            k: v.clone() for k, v in snapshot.sections["network"]["tensors"].items()
        }
        FORGOTTEN[forgotten](snapshot)
        return snapshot

    labels = lived("journal")["labels"]
    at = [number for number, label in enumerate(labels) if label == "on exit of process_batch"][10]  # mid-window
    monkeypatch.setattr("heptad.checkpoints.resumption.capture", partly)
    try:
        found = trial(at, lived("journal"), **VARIANTS["journal"])
    except AssertionError as error:  # it failed outright
        found = [str(error)]
    assert found


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_paused_by_a_signal_and_resumed(how, folder):
    """The checkpoint is the one stored where the run paused; no other is asked for."""
    number = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}[how]
    options: dict[str, Any] = {"journal": True, "places": "after_epoch", "keep": {"every": 1000}}
    straight = in_child(lambda: live(folder / "straight", None, None, **options))
    for seed in range(4):
        directory = folder / f"{how} {seed}"
        step = random.Random(f"{how} {seed}").randrange(1, 17)
        ended = in_child(
            lambda step=step, directory=directory: live(directory, None, None, raised=(number, step), **options)
        )
        assert ended == {"Ctrl-C": "KeyboardInterrupt", "SIGTERM": "SystemExit(143)"}[how]
        resumed = in_child(lambda directory=directory: live(directory, None, "auto", **options))
        assert resumed["resumed"] is not None
        assert differences(straight, resumed, journal=True) == []
