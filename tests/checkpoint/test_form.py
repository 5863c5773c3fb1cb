"""The form of a checkpoint: signed content that never came from a run is refused before anything changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heptad import CheckpointError
from heptad.checkpoints import Store
from heptad.checkpoints.form import Stored, StoredCounters, StoredWindow, read_form
from scenario import full_engine

KEPT = Path(__file__).parent / "run_of_format_1"


def section(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what leads to a part of the sections of a checkpoint."""

    def part(sections: dict[str, Any]) -> dict[str, Any]:
        for name in names:
            sections = sections[name]
        return sections

    return part


RUN, PLACED = section("run"), section("run", "position", "placed")
POSITION, DATA, RANDOM = section("run", "position"), section("run", "data"), section("run", "random")

MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no position": (lambda s: RUN(s).pop("position"), "run.position: Field required"),
    "no random state": (lambda s: RUN(s).pop("random"), "run.random: Field required"),
    "no data": (lambda s: RUN(s).pop("data"), "run.data: Field required"),
    "no plugins": (lambda s: s.pop("plugins"), "plugins: Field required"),
    "no run": (lambda s: s.pop("run"), "run: Field required"),
    "no optimizers": (lambda s: s.pop("optimizers"), "optimizers: Field required"),
    "a side optimizer without a state": (
        lambda s: s["run"]["position"].update(side_optimizers={"a": {"class": "SGD", "groups": []}}),
        "the side optimizers are not those",
    ),
    "an optimizer without a state": (lambda s: s["optimizers"]["states"][0].pop("state"), r"optimizers.states.0.state"),
    "a module without parts": (lambda s: s["network"].pop("parts"), "network.parts: Field required"),
    "a mode of no part": (lambda s: s["network"]["training"].update(x=True), "speak of parts that there are not"),
    "text for a tensor": (lambda s: s["network"]["tensors"].update({"0.bias": "x"}), r"network.tensors.0.bias"),
    "an epoch in words": (lambda s: PLACED(s).update(epoch="x"), "run.position.placed.epoch: .*got 'x'"),
    "a step below 0": (lambda s: PLACED(s).update(step=-1), r"run.position.placed.step: .*got -1"),
    "a window of no steps": (lambda s: POSITION(s)["window"].update(size=0), r"run.position.window.size: .*got 0"),
    "an unknown state": (lambda s: POSITION(s).update(node="sleep"), "was in 'sleep', where no run can be resumed"),
    "an end": (lambda s: POSITION(s).update(node="finished"), "was in 'finished', where no run can be resumed"),
    "the start": (lambda s: POSITION(s).update(node="idle"), "was in 'idle', where no run can be resumed"),
    "too many detours": (lambda s: POSITION(s)["visits"].append(0), r"counts \d+ detours, and there are \d+"),
    "a filter that is cut": (lambda s: POSITION(s)["filters"][0].pop(), r"run.position.filters.0"),
    "a batch below 0": (lambda s: DATA(s).update(next=-5), "next: .*got -5"),
    "a batch behind the last": (lambda s: DATA(s).update(next=8), "the next batch is 8, behind the last"),
    "a pass that is too long": (lambda s: DATA(s).update(stop=8), "the pass is longer than the data"),
    "no pass": (lambda s: DATA(s).update(key=[1, 2]), "key: "),
    "random state that is cut": (lambda s: RANDOM(s).update(torch=RANDOM(s)["torch"][:9]), "run.random: RuntimeError"),
    "no generator of python": (lambda s: RANDOM(s).pop("python"), "run.random: KeyError: 'python'"),
    "values without names": (lambda s: RUN(s)["values"]["names"].clear(), "a recorded value has no name"),
    "values that are cut": (lambda s: RUN(s)["values"].update(value=torch.zeros(0).double()), "differ in length"),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_what_no_run_has_stored_is_refused(what, tmp_path):
    """With its path and the first thing that is wrong; the network and the generators are what they were."""
    change, says = MALFORMED[what]
    (kept,) = Store(KEPT).entries()
    snapshot = Store(KEPT).load(kept)
    change(snapshot.sections)
    Store(tmp_path / "a").save(snapshot)
    engine = full_engine(tmp_path / "a")
    before = [parameter.clone() for parameter in engine.current.network.parameters()]
    random = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=says):
        engine.run(resume="auto")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, before, engine.current.network.parameters()))
    assert engine.current.state == "idle"


def test_an_invalid_summary_is_refused(tmp_path):
    """The newest is found by it."""
    (kept,) = Store(KEPT).entries()
    snapshot = Store(KEPT).load(kept)
    snapshot.summary.clear()
    path = Store(tmp_path).save(snapshot).path
    with pytest.raises(
        CheckpointError, match=f"{path.name} is sound, but it is not the checkpoint of a run: run: Field required"
    ):
        full_engine(tmp_path).run(resume="auto")


@pytest.mark.parametrize("feed", ["dataset", "stream", "loader", "unsized", "stateful"])
def test_a_place_in_any_data_has_a_form(feed, tmp_path):
    """A missing part is reported, whatever the data come from."""
    full_engine(tmp_path / "a", feed=feed, at="after_step").run(until=lambda run: run.step == 4)
    store = Store(tmp_path / "a")
    newest = store.entries()[-1]
    for name in store.load(newest).sections["run"]["data"]:
        if name in ("samples", "batches", "varies") or (
            name in ("samplers", "began", "generators") and feed != "dataset"
        ):
            continue  # they came later, or may be missing
        snapshot = store.load(newest)
        del snapshot.sections["run"]["data"][name]
        path = Store(tmp_path / name).save(snapshot).path
        with pytest.raises(CheckpointError, match=f"{name}: Field required"):
            full_engine(tmp_path / "b", feed=feed, at="after_step").run(resume=path)


LATER = {
    ("network", "first"),
    ("network", "classes"),
    ("criterion", "first"),
    ("criterion", "classes"),
    ("run", "detached"),
    ("position", "events"),
    ("position", "side_optimizers"),
    ("position", "kept"),
    ("position", "redo"),
    ("optimizers", "side"),
    ("position", "epoch_loss"),
    ("position", "asked"),
    ("position", "agreed"),
    ("position", "frozen"),
    ("position", "placed", "idle"),
    ("position", "placed", "skips"),
    ("position", "window", "empty"),
    ("position", "window", "losses"),
    ("position", "window", "closed"),
    ("position", "window", "reference"),
    ("run", "scaler"),
}
"""Fields that came after the kept checkpoint was written."""


def keys(sections: dict[str, Any]) -> set[tuple[str, ...]]:
    """Return the names of the fields of sections, and of the parts of the position."""
    position = sections["run"]["position"]
    return {
        *((name, field) for name, section in sections.items() if name != "plugins" for field in section),
        *(("position", field) for field in position),
        *(("position", part, field) for part in ("placed", "window") for field in position[part]),
        *(("plugins", field) for plugin in sections["plugins"].values() for field in plugin),
        *(("optimizer", field) for one in sections["optimizers"]["states"] for field in one),
        *(("values", field) for field in sections["run"]["values"]),
    }


def test_what_is_captured_has_the_fields_of_format_1(tmp_path):
    """With the names that they have on disk, and the later ones."""
    (kept,) = Store(KEPT).entries()
    now = full_engine(tmp_path, at="after_step").run(until=lambda run: run.step == 4).snapshot().sections
    assert keys(now) - keys(Store(KEPT).load(kept).sections) <= LATER
    assert keys(Store(KEPT).load(kept).sections) <= keys(now)


def test_a_checkpoint_of_before_has_skipped_no_update_that_it_counts():
    """And none of the steps of its open window was empty, for that was an error."""
    (kept,) = Store(KEPT).entries()
    position = Store(KEPT).load(kept).sections["run"]["position"]
    assert "skips" not in position["placed"]
    assert StoredCounters.model_validate(position["placed"]).skips == 0
    assert StoredWindow.model_validate(position["window"]).empty is False


def test_a_checkpoint_without_classes_has_them_from_its_parts():
    """They came later; the text of a part begins with its class."""
    (kept,) = Store(KEPT).entries()
    _, sections = read_form(kept.path, Store(KEPT).load(kept))
    assert sections.network is not None
    assert sections.network.classes == {
        "": "Sequential", "0": "Linear", "1": "BatchNorm1d", "2": "ReLU", "3": "Dropout", "4": "Linear"
    }  # fmt: skip


def test_a_value_keeps_its_type_in_the_plain_form():
    """What a plugin stores is not gone into: a Counter stays a Counter."""

    class Holder(Stored):
        state: Any

    state = {"counts": Counter("aab"), "size": torch.Size((2, 3))}
    plain = Holder(state=state).plain()
    assert plain["state"] is state
