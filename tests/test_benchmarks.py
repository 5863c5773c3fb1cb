"""What the benchmarks count is held here; what they time is not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import log
import overhead
import plugins
from heptad import TransitionLog
from heptad_plugins import Journal


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


@pytest.mark.parametrize(("values", "calls"), [(False, 3), (True, 22)])
def test_a_journal_adds_few_calls_to_a_step(values, calls, tmp_path):
    """Three handlers; summing the loss of the epoch, reading and recording the loss and the rate."""
    none, _ = overhead.count_calls(overhead.build_null_engine(4000, 0), 4000)
    engine = overhead.build_null_engine(
        4000, 0, plugins=[Journal(tmp_path / "run", values=values)], criterion=log.quick_criterion
    )
    engine.on_exit("before_loop")(lambda run: run.optimizer.param_groups[0].update(lr=0.1))
    with_it, _ = overhead.count_calls(engine, 4000)
    assert with_it - none == pytest.approx(calls, abs=0.5)


def test_a_transition_takes_at_most_sixty_bytes_on_disk(tmp_path):
    """Rows, index, packed chunks; the file's own beginning shared among them."""
    log.write_synthetic(tmp_path / "run", 200 * log.CHUNK)
    assert len(TransitionLog.load(tmp_path / "run")) == 200 * log.CHUNK
    assert (tmp_path / "run").stat().st_size <= 60 * 200 * log.CHUNK
