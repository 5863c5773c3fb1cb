"""Three ranks are one process with three times their windows, also where a case is odd: each was wrong once."""

from __future__ import annotations

import pytest
from launching import Launch, launch
from odd_equality_cases import ODD, learn

WORLD = 3


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launch("odd_equality_cases", WORLD, tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("name", ODD)
def test_ranks_are_one_process(launched: Launch, name: str):
    """Weights, the mean loss of each window, and the counters; the weights of the ranks are equal to the bit."""
    told, alone = launched.of(name), learn(ODD[name], times=WORLD)
    assert told == [told[0]] * WORLD
    assert told[0]["counters"] == alone["counters"]
    assert told[0]["means"] == pytest.approx(alone["means"], rel=1e-12, abs=1e-12)
    assert told[0]["weights"] == pytest.approx(alone["weights"], rel=1e-12, abs=1e-12)


def test_a_run_that_is_resumed_inside_a_window_has_the_samples_of_all_ranks(launched: Launch):
    """And the bits of the unbroken one, with what was measured of the epoch; of the mean losses those that follow."""
    for whole, *resumed in launched.of("resumed"):
        for one in resumed:
            assert one["counters"] == whole["counters"]
            assert one["weights"] == whole["weights"]
            assert one["metrics"] == whole["metrics"]
            assert one["means"] == whole["means"][-len(one["means"]) :]


def test_epochs_shorter_than_a_step_of_unknown_length_are_refused(launched: Launch):
    """Nobody could tell which step is the last, and its window would be lost."""
    for told in launched.of("too_few_of_unknown_length"):
        assert "epoch 0 has 2 batches, fewer than the 3 ranks" in told


def test_a_step_takes_the_batches_of_several_epochs_of_unknown_length(launched: Launch):
    """Epochs of one batch on three ranks: two of three have no step of their own."""
    assert launched.of("long_epochs_of_few_batches") == [[3, 3 * 2 * WORLD]] * WORLD


def test_a_stop_that_is_not_agreed_on_yet_is_stored(launched: Launch):
    assert launched.of("stopped_between_agreements") == [[[1, "enough"]] * 2] * WORLD


def test_what_a_side_optimizer_steps_on_each_rank_for_itself_is_found(launched: Launch):
    """It begins equal on all; the gradients of one rank would make it another one on each, without a word."""
    for began, told in launched.of("stepped_apart"):
        assert began == 0.0
        assert "the weights of the ranks differ: side/temperature[0] of rank 1, 2 from" in told
