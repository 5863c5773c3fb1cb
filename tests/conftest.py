"""What all tests share: one thread, and hypothesis that says how to repeat a failure."""

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from builders import Clock

torch.set_num_threads(1)
settings.register_profile(
    "heptad", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("heptad")


@pytest.fixture(autouse=True)
def _seeded():
    """Start every test from the same global random state."""
    torch.manual_seed(0)


@pytest.fixture
def clock(monkeypatch):
    """The clock that the machine and the log read, in nanoseconds."""
    clock = Clock(10**9)
    for name in ("heptad.machine.monotonic_ns", "heptad.record.buffer.monotonic_ns"):
        monkeypatch.setattr(name, clock)
    return clock


@pytest.fixture(scope="module")
def ctrl_c():
    """Python's own handler of Ctrl-C, here and in child processes, until the module ends.

    Where this process was started with SIGINT ignored (a job in the background, `nohup`, some CI runners), Python
    installs none, and a child would inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
