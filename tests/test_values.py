"""Recorded values that are still on their device: copied when they are recorded, read together, in order."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from builders import small_engine
from heptad.record import values
from heptad.record.counters import Counters
from heptad.record.values import RecordedValues, read_each


class OnDevice(torch.Tensor):
    """A tensor that says it is not on the CPU."""

    is_cpu = False

    def item(self) -> float:
        raise AssertionError("one transfer for each value")


def on_device(value: float) -> torch.Tensor:
    return torch.tensor(value).as_subclass(OnDevice)


class Reader:
    """Reads tensors and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[float]:
        self.calls += 1
        return [float(tensor) for tensor in tensors]


@pytest.fixture
def read() -> Reader:
    return Reader()


@pytest.fixture
def recorded(read: Reader) -> RecordedValues:
    return RecordedValues(read)


def record(recorded: RecordedValues, *given: float | torch.Tensor) -> None:
    for value in given:
        recorded.record("a", value, 0, Counters())


def test_nothing_is_read_while_values_are_recorded(recorded: RecordedValues, read: Reader):
    record(recorded, on_device(1.0), on_device(2.0))
    assert (len(recorded), recorded.names(0), read.calls) == (2, {"a"}, 0)


def test_values_on_a_device_are_read_at_once_and_in_order(recorded: RecordedValues, read: Reader):
    record(recorded, on_device(1.0), 2.0, on_device(3.0), torch.tensor(4.0))
    assert recorded.history("a") == [1.0, 2.0, 3.0, 4.0]
    assert read.calls == 1


def test_values_are_read_once(recorded: RecordedValues, read: Reader):
    record(recorded, on_device(1.0))
    assert [recorded.newest() for _ in range(2)] == [{"a": 1.0}] * 2
    assert read.calls == 1


def test_a_value_on_a_device_is_that_of_its_moment(recorded: RecordedValues):
    running = on_device(1.0)
    record(recorded, running)
    running += 1
    assert recorded.history("a") == [1.0]


def test_many_values_on_a_device_are_not_kept_there(
    recorded: RecordedValues, read: Reader, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(values, "_PENDING", 3)
    record(recorded, *(on_device(float(number)) for number in range(7)))
    assert read.calls == 2


def test_without_a_reader_tensors_are_read_one_by_one():
    assert read_each([torch.tensor(1.0), torch.tensor(2)]) == [1.0, 2.0]


def test_columns_restore_the_values(recorded: RecordedValues):
    record(recorded, 1.0, on_device(2.0))
    recorded.record("b", 3.0, 7, Counters(1, 2, 3, 4, 5))
    other = RecordedValues()
    other.restore(recorded.columns(0))
    assert other.since(0) == recorded.since(0)
    assert other.newest() == {"a": 2.0, "b": 3.0}


def test_an_engine_reads_values_on_a_device_in_one_transfer():
    run = small_engine(3).current
    for value in (1.0, 2.0):
        run.record("a", on_device(value))
    assert run.history("a") == [1.0, 2.0]


def test_another_thread_reads_a_history_while_values_are_recorded():
    recorded = RecordedValues()
    done = threading.Event()
    faults: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                seen = recorded.history("loss")
                assert seen == [float(i) for i in range(len(seen))]
                recorded.newest()
        except BaseException as fault:
            faults.append(fault)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(40_000):
            recorded.record("loss", float(i), i, Counters())
    finally:
        done.set()
        reader.join()
    assert faults == []
    assert len(recorded.history("loss")) == 40_000
