"""What all tests share: one thread, and hypothesis that says how to repeat a failure."""

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "heptad", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("heptad")


@pytest.fixture(autouse=True)
def _seeded():
    """Starts every test from the same global random state."""
    torch.manual_seed(0)
