"""What all tests share: one thread, and hypothesis that says how to repeat a failure."""

import os
import shutil
import signal
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

from builders import Clock

# The trackers stay on this machine and are silent. They read these when they are imported, in child processes too. What
# is logged without a place of its own goes to a folder that goes with the tests.
TRACKED = tempfile.mkdtemp(prefix="heptad-trackers-")
os.environ |= {
    "TRACKIO_DIR": f"{TRACKED}/trackio",
    "MLFLOW_TRACKING_URI": f"file://{TRACKED}/mlruns",
    "WANDB_DIR": TRACKED,
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB__DISABLE_STATS": "true",
    "WANDB_DISABLE_GIT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
torch.set_num_threads(1)
settings.register_profile(
    "heptad", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("heptad")


def pytest_unconfigure():
    """Remove what trackers have stored."""
    shutil.rmtree(TRACKED, ignore_errors=True)


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
