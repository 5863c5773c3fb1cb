"""Shipped plugins on two real ranks, which are started once for all cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Launch, launch_warm
from plugins_cases import thawing, weights_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.swa_utils import update_bn

from builders import records
from heptad import TransitionLog


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return launch_warm("plugins_cases", 2, tmp_path_factory.mktemp("two ranks"))


@pytest.fixture
def found(launched: Launch, request: pytest.FixtureRequest) -> list[Any]:
    """Return what came of a case on each rank."""
    return launched.of(request.param)


@pytest.mark.parametrize("found", ["stopped"], indirect=True)
def test_all_end_in_the_turn_in_which_the_time_of_one_is_up(found: list[Any]):
    assert found[0] == found[1]
    assert found[0][0] == 3
    assert found[0][2].endswith("(rank 1)")


@pytest.mark.parametrize("found", ["paused"], indirect=True)
def test_each_pause_gives_all_ranks_the_full_time_again(found: list[Any]):
    """Rank 0, whose clock is slower, would else pause the run at update 4."""
    assert found == [[3, 6, 8]] * 2  # of 16 batches


@pytest.mark.parametrize("found", ["pruned"], indirect=True)
def test_all_ranks_are_pruned_in_one_turn_and_again_where_they_resume(found: list[Any]):
    """Only the first has told its storage anything."""
    reason = "TrialPruned: OptunaPruning: trial 0 is pruned: train/loss is "
    for ended, _ in found:
        assert [one.startswith(reason) for one in ended[::2]] == [True, True]
        assert ended[1][:2] == ended[3][:2] == ["finished", 3]
    assert found[0][0] == found[1][0]
    assert [row[1] for row in found] == [[[0, 1, 2], []], []]


@pytest.mark.parametrize("found", ["signalled"], indirect=True)
def test_a_signal_to_one_rank_pauses_and_ends_both(found: list[Any]):
    assert found == [[143, 3, "SIGTERM (rank 1)", "finished"]] * 2


@pytest.mark.parametrize("found", ["logged"], indirect=True)
def test_the_first_rank_writes_and_both_go_the_same_way(found: list[Any]):
    assert found[0][:2] == found[1][:2]
    assert [row[2] for row in found] == [True, False]
    assert found[0][3] == pytest.approx(4.0)  # two samples on each of two ranks


@pytest.mark.parametrize("found", ["averaged"], indirect=True)
def test_the_statistics_of_an_average_are_the_same_on_all_ranks(found: list[Any]):
    """Bit for bit, and so is what is measured of it; those of the trained network are each rank's own."""
    for first, second in zip(*found, strict=True):
        assert first[:2] == second[:2]
        assert first[2] != second[2]


@pytest.mark.parametrize("found", ["averaged"], indirect=True)
def test_the_statistics_of_an_average_are_those_of_all_data(found: list[Any]):
    """Computed anew by torch for the averaged weights, whatever each rank has read."""
    data = torch.linspace(-1, 1, 64).reshape(16, 4).sin()
    dealt = [*data[::2].split(2), *data[1::2].split(2)]
    for (state, _, _), order in zip(found[0], (data.split(2), dealt), strict=True):
        network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
        network.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        update_bn(order, network)
        for name, value in network.state_dict().items():
            if name.endswith(("mean", "var")):
                assert value.tolist() == pytest.approx(state[name], rel=1e-5)


def test_no_file_is_written_twice(launched: Launch):
    folder = launched.folder
    assert sorted(path.name for path in (folder / "files").iterdir()) == [
        "a.csv",
        "events",
        "trace.json",
        "trace.rank1.json",
    ]
    assert len(list((folder / "files" / "events").iterdir())) == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("found", ["thawed"], indirect=True)
def test_what_is_thawed_is_reduced_over_the_ranks(found: list[Any], strategy: str, tmp_path: Path):
    """The weights are those of one process; to the bit, on both ranks and resumed before, at and after the thaw."""
    rows = [row for rank in found for row in rank[strategy]]
    assert len(rows) == 8
    assert all(row == rows[0] for row in rows)
    one = weights_of(thawing(tmp_path, "auto").run())
    for here, alone in zip(rows[0], one, strict=True):
        torch.testing.assert_close(torch.tensor(here), torch.tensor(alone), atol=1e-12, rtol=0)


@pytest.mark.parametrize("found", ["searched"], indirect=True)
def test_a_range_test_goes_over_all_ranks_and_leaves_no_trace(found: list[Any]):
    """All find the same rate; the run is the one without it. Sharding could not be undone, so it is refused."""
    (losses, _, untouched, runs, refused), other = found
    assert found[0] == other
    assert len(losses) == 4
    assert untouched
    assert runs[0] == runs[1]
    assert "strategy='fsdp' shards the network for good" in refused


@pytest.mark.parametrize("found", ["monitored"], indirect=True)
def test_histograms_are_of_whole_parameters(found: list[Any], launched: Launch):
    """Each is gathered from the ranks."""
    weights, updates = found[0]
    events = EventAccumulator(str(launched.folder / "histograms"), {"histograms": 0}).Reload()
    written = [tag for tag in events.Tags()["histograms"] if tag.startswith("weights/")]
    assert len(written) == len(weights)
    head = events.Histograms("weights/3.weight")
    assert [event.step for event in head] == list(range(5, updates + 1, 5))
    assert head[-1].histogram_value.num == 18
    assert events.Histograms("gradients/3.weight")[0].histogram_value.num == 18


@pytest.mark.parametrize("found", ["steered"], indirect=True)
def test_a_first_only_plugin_that_steers_is_named_on_both(found: list[Any]):
    assert found[0].startswith("PluginError: Skips.on_enter_optimizer_update has skipped an update")
    assert found[1].startswith("RankFailed: rank 0 failed in optimizer_update at step 2: PluginError: Skips.")


def test_journals_of_two_ranks_say_which_was_slow(launched: Launch):
    """The second reads slowly."""
    assert launched.of("journalled") == [None, None]
    log = TransitionLog.load(launched.folder / "run.journal")
    assert (log.ranks, log.world, log.missing, log.diff_ranks()) == ((0, 1), 2, {}, {})
    assert [note.text for note in log.notes("note")] == ["rank 0 of 2", "rank 1 of 2"] * 2
    assert [note.rank for note in log.notes("note")] == [0, 1] * 2
    assert records(log) == records(log.of_rank(1))
    found = log.slowest_ranks()
    steps = log.counts()["before_step"]
    assert found["before_step"].rank == 1
    assert found["before_step"].waited_ns[0] > 0.008 * steps * 1e9
    stood = found["process_batch"].stood_ns[0] + found["optimizer_update"].stood_ns[0]
    assert stood > 0.008 * steps * 1e9
