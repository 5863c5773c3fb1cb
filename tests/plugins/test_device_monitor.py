"""`DeviceMonitor`: its values, by a device and a process that say what the tests put there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from builders import batches, small_engine
from heptad import Engine, Plugin, Run
from heptad_plugins import DeviceMonitor

NAMES = ["device/allocated", "device/reserved", "device/peak", "device/utilisation", "host/memory"]


class FakeCUDA:
    """What `torch.cuda` offers of that which waits for nothing; anything else that is asked for is a mistake."""

    def __init__(self, load: Any = 37) -> None:
        self.load = load
        self.asked = 0

    def memory_stats(self, device: torch.device) -> dict[str, int]:
        self.asked += 1
        return {
            "allocated_bytes.all.current": 1000 + self.asked,
            "reserved_bytes.all.current": 2000 + self.asked,
            "allocated_bytes.all.peak": 3000 + self.asked,
            "num_ooms": 0,
        }

    def utilization(self, device: torch.device) -> int:
        if isinstance(self.load, Exception):
            raise self.load
        return self.load


class FakeMPS:
    """What `torch.mps` offers."""

    def current_allocated_memory(self) -> int:
        return 10

    def driver_allocated_memory(self) -> int:
        return 20


def monitored(monkeypatch: pytest.MonkeyPatch, module: Any, plugins: list[Plugin], **config: Any) -> Engine:
    """Return an engine over six batches whose device is described by a module of the test's."""
    monkeypatch.setattr("heptad_plugins._device.module_of", lambda device: module)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: type("Info", (), {"rss": 4096 + self.pid}))
    return small_engine(6, plugins, **config)


def recorded(run: Run) -> list[tuple[str, int, float]]:
    """Return names, updates and values, in order."""
    return [(value.name, value.update, value.value) for value in run.records()]


def test_five_values_are_recorded_every_n_updates(monkeypatch):
    """Bytes as the allocator and the system count them, and the load as a share."""
    run = monitored(monkeypatch, FakeCUDA(), [DeviceMonitor(every=2)]).run()
    host = 4096 + os.getpid()
    assert recorded(run) == [
        (name, 2 * number, value)
        for number in (1, 2, 3)
        for name, value in zip(NAMES, (1000 + number, 2000 + number, 3000 + number, 0.37, host), strict=True)
    ]


def test_every_counts_updates_and_not_steps(monkeypatch):
    """In windows of four steps, the last one filled by another pass."""
    run = monitored(monkeypatch, FakeCUDA(), [DeviceMonitor(first=1, every=2)], accumulation=4, epochs=2).run()
    assert [value.update for value in run.records() if value.name == "host/memory"] == [1, 3]


def test_a_skipped_update_has_no_values(monkeypatch):
    """It is none of the n."""

    class Skip(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            if run.step == 3:
                run.skip_update("asked by the test")

    run = monitored(monkeypatch, FakeCUDA(), [DeviceMonitor(), Skip()]).run()
    assert [value.update for value in run.records() if value.name == "host/memory"] == [1, 2, 3, 4, 5]


def test_apple_devices_say_what_they_know(monkeypatch):
    """No peak and no load, and no note: nothing is missing that could be installed."""
    run = monitored(monkeypatch, FakeMPS(), [DeviceMonitor(every=6)]).run()
    host = ("host/memory", 6, 4096 + os.getpid())
    assert recorded(run) == [("device/allocated", 6, 10), ("device/reserved", 6, 20), host]
    assert not run.log.notes("note")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ModuleNotFoundError("no pynvml"), "it needs nvidia-ml-py: pip install 'heptad[monitor]'"),
        (RuntimeError("the driver is asleep"), "RuntimeError: the driver is asleep"),
    ],
)
def test_a_load_that_is_not_known_is_left_out_and_the_log_says_why(error, why, monkeypatch):
    """Once, however often the run is paused; the other four are recorded."""
    engine = monitored(monkeypatch, FakeCUDA(error), [DeviceMonitor()])
    while not engine.current.ended:
        engine.run(until="before_step")
    assert [value.name for value in engine.current.records()] == [n for n in NAMES if n != "device/utilisation"] * 6
    (note,) = engine.current.log.notes("note")
    assert str(note).endswith(f"DeviceMonitor: device/utilisation is not known; {why}")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc")
def test_on_a_cpu_it_records_the_memory_of_the_process_alone():
    """The number of the system's own file, to within what the process takes meanwhile."""
    run = small_engine(batches(4), [DeviceMonitor()]).run()
    assert [value.name for value in run.records()] == ["host/memory"] * 4
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    assert run.metrics["host/memory"] == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.1)
