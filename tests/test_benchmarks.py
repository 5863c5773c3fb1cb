"""What the benchmarks count is held here; what they time is not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import overhead


def test_a_null_step_costs_eight_python_calls_beside_its_own_five():
    """Four bodies, fetching the batch, two guards and the engine's own subscriber; the clock and two appends a turn."""
    python, c = overhead.count_calls(overhead.build_null_engine(4000, 0), 4000)
    assert python == pytest.approx(5 + 8, abs=0.2)
    assert c == pytest.approx(4 * 3 + 2, abs=0.2)


def test_a_subscriber_costs_one_call():
    """Nothing stands between the machine and a handler without a filter."""
    none, _ = overhead.count_calls(overhead.build_null_engine(4000, 0), 4000)
    ten, _ = overhead.count_calls(overhead.build_null_engine(4000, 5), 4000)
    assert ten - none == pytest.approx(10, abs=0.01)
