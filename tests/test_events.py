"""`record/events.py`, `event_codec.py` and `format_1.py`: the rare facts of a run, as data, in files and in words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from builders import small_engine
from heptad import Detour, Plugin, Run
from heptad.plugin import (
    Accumulation,
    Behind,
    Compilation,
    Detach,
    Drop,
    Event,
    Extend,
    Failed,
    Halved,
    MirrorFailed,
    MirrorRestored,
    Note,
    NotMirrored,
    NoUpdate,
    OptionChange,
    Pause,
    Recompilation,
    RecordedArray,
    Remark,
    Repeated,
    Resume,
    SharedGenerators,
    Skip,
    SkipBatch,
    StillDetached,
    Stop,
    Uncompiled,
    Untrained,
    Unverified,
    Written,
)
from heptad.record.arrays import pack_array
from heptad.record.chunk import Failure
from heptad.record.counters import Counters
from heptad.record.event_codec import EVENTS, from_plain, to_plain
from heptad.record.format_1 import from_format_1

AT = (7, 1_000)
"""The transition and the time of the events below."""


def failed(state: str, moment: str, who: str = "", guard: str = "") -> Failed:
    """Return a failure as format 1 describes it: without guards and without the steps of the window."""
    return Failed(*AT, Failure(7, state, moment, who, guard, "ValueError: no", Counters(0, 1, 2, 3), {}))


PLACE = "(epoch 0, batch 1, step 2, update 3)"

OLD: dict[tuple[str, str], Event] = {
    ("stop", "enough"): Stop(*AT, "enough"),
    ("park", "Ctrl-C"): Pause(*AT, "Ctrl-C"),
    ("skip_update", "too large"): Skip(*AT, "too large"),
    ("note", "half way"): Note(*AT, "half way"),
    ("untrained", "no parameter that the optimizer holds has a gradient, …"): Untrained(*AT),
    ("accumulation", "2 -> 3 from the next window on"): Accumulation(*AT, 2, 3),
    ("extension", "epoch 4 goes on for 1 more step, to fill its last window"): Extend(*AT, 4, 1),
    ("extension", "epoch 4 goes on for 5 more steps, to fill its last window"): Extend(*AT, 4, 5),
    ("drop", "epoch 1 makes no update: 3 of 4 batches of a window"): Drop(*AT, 1, 3, 4),
    ("detach", "CSVLogger.open raised OSError: a; b; CSVLogger is called no more"): Detach(
        *AT, "CSVLogger", "CSVLogger.open", "OSError: a; b"
    ),
    ("detach", "valid.evaluate_due_2 raised KeyError: 'x'; valid is called no more"): Detach(
        *AT, "valid", "valid.evaluate_due_2", "KeyError: 'x'", "guard"
    ),
    ("resume", "goes on from checkpoint-00000016, #16 in checkpoint"): Resume(*AT, "checkpoint-00000016", "checkpoint"),
    ("resume", "there is no checkpoint yet: the run begins at its start"): Resume(*AT, None, "idle"),
    ("resume", "the plugin A was detached before the checkpoint was taken: it is called no more"): StillDetached(
        *AT, "A"
    ),
    ("resume", "the plugin A cannot take back its state: KeyError: 'b'; it is called no more"): Detach(
        *AT, "A", "A.load_state_dict", "KeyError: 'b'"
    ),
    ("resume", "bits may differ"): Remark(*AT, "bits may differ"),
    ("failure", f"ValueError: no in the body of before_step {PLACE}"): failed("before_step", "body"),
    ("failure", f"ValueError: no in A.look on exit of after_step {PLACE}"): failed("after_step", "exit", "A.look"),
    ("failure", f"ValueError: no in the guard a_due asked in after_step {PLACE}"): failed(
        "after_step", "guard", guard="a_due"
    ),
    ("failure", f"ValueError: no in f on entry to process_batch {PLACE}"): failed("process_batch", "enter", "f"),
    ("interrupt", "Ctrl-C"): Note(*AT, "interrupt: Ctrl-C"),
    ("extension", "in words of its own"): Note(*AT, "extension: in words of its own"),
}
"""What each sentence of format 1 means."""

LATER: list[Event] = [
    SkipBatch(*AT, "the loss is NaN"),
    NoUpdate(*AT, 1000),
    Behind(*AT, 6_000_000),
    SharedGenerators(*AT, "the thread A"),
    Written(*AT, "checkpoint-00000003", 1_500_000_000),
    MirrorFailed(*AT, "listing s3://bucket/run failed: OSError: no", 2),
    MirrorRestored(*AT),
    NotMirrored(*AT, "listing s3://bucket/run failed: OSError: no", 1),
    Untrained(*AT, "the layer is another"),
    Compilation(*AT, 12, 2, 3.5),
    Recompilation(*AT, 1, 0.25, 4, "tensor 'x' size mismatch at index 0"),
    Uncompiled(*AT, "Dynamo recompile limit exceeded"),
    Unverified(*AT, "fp16-mixed", "cuda"),
    Halved(*AT, 3, 0, 2, 16, "OutOfMemoryError: no", "BatchNorm"),
    Repeated(*AT, "equal", 1, 5),
]
"""Events that format 1 did not have."""


@pytest.mark.parametrize(("kind", "text"), OLD)
def test_a_row_of_format_1_is_read_as_an_event(kind: str, text: str):
    assert from_format_1(7, kind, text, 1_000) == OLD[kind, text]


NEW: list[Event] = [
    OptionChange(*AT, "optimizers[0]", 1, "lr", "0.1", "0.2"),
    RecordedArray(*AT, "confusion", pack_array("confusion", np.eye(2))),
]
"""The events that format 1 did not have."""


def test_every_event_is_among_those_below():
    assert {type(event) for event in (*OLD.values(), *NEW, *LATER)} == set(EVENTS.values())


@pytest.mark.parametrize("event", [*OLD.values(), *NEW, *LATER], ids=str)
def test_an_event_is_read_back_from_json_as_it_was(event: Event):
    assert from_plain(json.loads(json.dumps(to_plain(event)))) == event


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"event": "Nothing", "seq": 7, "time_ns": 0},
        {"event": "Stop", "seq": 7, "time_ns": 0},
        {"event": "Stop", "seq": "7", "time_ns": 0, "reason": "x"},
        {"event": "Stop", "seq": 7, "time_ns": 0, "reason": "x", "more": 1},
        {"event": "Failed", "seq": 7, "time_ns": 0, "failure": {"seq": 7}},
    ],
)
def test_data_that_describe_no_event_are_refused(plain: dict[str, Any]):
    with pytest.raises(ValueError):
        from_plain(plain)


def test_an_event_says_its_transition_kind_and_words():
    assert str(Accumulation(*AT, 2, 3)) == "#7 accumulation: 2 -> 3 from the next window on"


@pytest.mark.parametrize("moment", ["enter", "exit", "body", "guard", ""])
def test_the_event_of_a_detached_plugin_names_the_moment(moment: str):
    """It is empty for a method that is called between two turns."""

    class Breaks(Plugin):
        on_error = "detach"

        def detours(self) -> list[Detour]:
            return [Detour("peek", "after_step", lambda run: self.at("guard"), lambda run: self.at("body"))]

        def at(self, place: str) -> bool:
            if place == moment:
                raise ValueError(place)
            return True

        def on_enter_after_step(self, run: Run) -> None:
            self.at("enter")

        def on_exit_after_step(self, run: Run) -> None:
            self.at("exit")

        def open(self, run: Run) -> None:
            self.at("")

    (event,) = small_engine(2, [Breaks()]).run().log.notes("detach")
    assert isinstance(event, Detach)
    assert (event.plugin, event.moment) == ("Breaks", moment)
