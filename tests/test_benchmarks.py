"""What the benchmarks count is held here; what they time is not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import overhead
import plugins


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


def test_a_state_without_subscriber_costs_no_call_and_each_further_handler_one():
    """Plugins elsewhere add nothing to a step, 40 handlers add 40 calls, and a filter is part of its handler's call."""
    kinds = {"none": (), "elsewhere": (plugins.ONCE_AN_EPOCH,), "40": (plugins.IN_STEP,), "1%": (plugins.IN_STEP, 100)}
    python = {name: overhead.count_calls(plugins.build_null(4000, *how), 4000)[0] for name, how in kinds.items()}
    assert python["elsewhere"] - python["none"] == pytest.approx(0, abs=0.05)
    assert python["40"] - python["none"] == pytest.approx(40, abs=0.05)
    assert python["1%"] - python["none"] == pytest.approx(40 + 40 / 100, abs=0.05)
