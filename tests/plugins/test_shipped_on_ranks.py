"""What the shipped plugins do on several ranks, each on one rank of a run whose other ranks are made up."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import heptad_plugins
from as_rank import as_rank
from builders import Clock, records, small_engine
from heptad import Engine, Plugin, PluginError, Run
from heptad.checkpoints.copies import Copies
from heptad.checkpoints.mirroring import NoMirror
from heptad_plugins import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    GracefulStop,
    NonFiniteGuard,
    Profiler,
    TensorBoardLogger,
    Throughput,
    TimeLimit,
)

PAGE = (Path(__file__).parents[2] / "plugins" / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (all|first) \| (.+) \|$", PAGE, re.MULTILINE)


def test_the_table_has_a_row_for_each_plugin():
    assert [name for name, _, _ in ROWS] == sorted(heptad_plugins.__all__, key=str.lower)


@pytest.mark.parametrize(("name", "ranks", "why"), ROWS, ids=[name for name, _, _ in ROWS])
def test_each_plugin_says_itself_on_which_ranks_it_is_called(name: str, ranks: str, why: str):
    plugin = getattr(heptad_plugins, name)
    assert vars(plugin)["ranks"] == ranks
    assert why.endswith(".")


def agreeing_after(update: int, request: str, then: Callable[[Run], object] = lambda run: None) -> type[Engine]:
    """Return an engine class in which another rank has asked, and the ranks agree on it at the end of an update."""

    def agree(run: Run) -> None:
        if run.update == update:
            run._position.asked.add(request)
            then(run)

    return as_rank(0, agree=agree)


class TestRequests:
    def test_a_checkpoint_is_taken_when_the_clock_of_another_rank_says_so(self, tmp_path: Path):
        plugin = Checkpoint(tmp_path, at="optimizer_update", seconds=1e6, keep_last=9)
        run = small_engine(5, [plugin], engine_class=agreeing_after(3, "Checkpoint.save")).run()
        assert [t.update for t in run.log if t.dest == "checkpoint"] == [3]
        assert not run.agreed("Checkpoint.save")

    def test_of_two_checkpoints_the_one_is_taken_that_was_asked_for(self, tmp_path: Path):
        plugins = [Checkpoint(tmp_path / name, at="optimizer_update", seconds=1e6) for name in ("a", "b")]
        plugins[1].name = "second"
        small_engine(5, plugins, engine_class=agreeing_after(3, "second.save")).run()
        assert [len(plugin.store.entries()) for plugin in plugins] == [0, 1]

    def test_a_rank_gets_the_full_time_again_when_another_ones_was_up(self):
        plugin = TimeLimit(10.0, "pause")
        clock = plugin._watch.clock = Clock()

        def work(run: Run) -> None:
            clock.now += 1.5

        engine = small_engine(8, [plugin], engine_class=agreeing_after(5, "TimeLimit.end", lambda run: run.pause("it")))
        engine.on_exit("process_batch")(work)
        assert engine.run().paused == "it"
        assert plugin.state_dict() == {"seconds": 0.0, "stopped": False}
        engine.run()
        assert engine.current.ended

    def test_one_whose_time_is_up_asks_and_acts(self):
        plugin = TimeLimit(2.5)
        clock = plugin._watch.clock = Clock()
        engine = small_engine(8, [plugin])
        engine.on_exit("process_batch")(lambda run: setattr(clock, "now", clock.now + 1.0))
        run = engine.run()
        assert run.update == 3
        assert run.agreed("TimeLimit.end")

    def test_a_signal_to_one_rank_ends_all_of_them(self):
        engine_class = agreeing_after(2, "GracefulStop.SIGTERM", lambda run: run.pause("SIGTERM"))
        engine = small_engine(5, [GracefulStop([signal.SIGUSR1, signal.SIGTERM])], engine_class=engine_class)
        with pytest.raises(SystemExit) as ended:
            engine.run()
        assert ended.value.code == 128 + signal.SIGTERM
        assert (engine.current.paused, engine.current.update) == ("SIGTERM", 2)
        assert engine.run().ended  # it is no signal to the next call


class TestOneRankAlone:
    def test_a_checkpoint_needs_its_monitor_on_the_first_rank_only(self, tmp_path: Path):
        """A logger records `train/loss` there."""
        plugins = [CSVLogger(tmp_path / "a.csv"), Checkpoint(tmp_path, keep_best=1, monitor="train/loss")]
        plugins[1].store = Stored()  # type: ignore[attr-defined] - no rank 0 is there to write with
        run = small_engine(4, plugins, engine_class=as_rank(1)).run()
        assert "train/loss" not in run.metrics
        assert "no checkpoint is the best" not in str(run.log.notes())

    def test_the_same_path_with_all_loggers_on_both(self, tmp_path: Path):
        def run(rank: int) -> Run:
            plugins = [CSVLogger(tmp_path / f"{rank}.csv"), TensorBoardLogger(tmp_path / f"{rank}"), Throughput()]
            return small_engine(
                5, [*plugins, EarlyStopping("train/loss", patience=2)], engine_class=as_rank(rank)
            ).run()

        runs = [run(0), run(1)]
        assert records(runs[0].log) == records(runs[1].log)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "0.csv"]

    def test_the_writer_of_a_logger_says_where_it_is(self, tmp_path: Path):
        logger = TensorBoardLogger(tmp_path)
        engine = small_engine(2, [logger], engine_class=as_rank(1))
        engine.on_exit("after_step")(lambda run: logger.writer.add_scalar("x", 1.0, run.update))
        with pytest.raises(Exception, match=r"of several ranks on the first alone: .*ranks = 'first'"):
            engine.run()


class Stored:
    """A store that takes everything."""

    copies = Copies(NoMirror())

    def __getattr__(self, name: str) -> Any:
        return lambda *args: []


class TestFiles:
    def test_each_rank_has_a_trace_of_its_own(self, tmp_path: Path):
        for rank in (0, 1, 2):
            plugin = Profiler(tmp_path / "trace.json", range(1, 2))
            small_engine(3, [plugin], engine_class=as_rank(rank, 3)).run()
        names = ["trace.json", "trace.rank1.json", "trace.rank2.json"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert all(json.loads((tmp_path / name).read_text())["traceEvents"] for name in names)

    def test_a_compressed_trace_stays_compressed(self, tmp_path: Path):
        small_engine(3, [Profiler(tmp_path / "trace.json.gz", range(1, 2))], engine_class=as_rank(1)).run()
        assert [path.name for path in tmp_path.iterdir()] == ["trace.rank1.json.gz"]
        assert (tmp_path / "trace.rank1.json.gz").read_bytes()[:2] == b"\x1f\x8b"


class TestThroughput:
    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_samples_and_products_are_those_of_all_ranks(self, world: int):
        """The agreement makes of the samples of a rank those of all, in the step that is counted too."""

        def agree(run: Run) -> None:
            run._position.samples = 2 * world * run.step

        plugin = Throughput(peak_flops=1e9)
        found = small_engine(5, [plugin], engine_class=as_rank(0, world, agree)).run().metrics
        assert found["samples_per_second"] / found["steps_per_second"] == pytest.approx(2 * world)
        a_step = found["mfu"] * 1e9 / found["steps_per_second"]  # of one device
        alone = small_engine(5, [Throughput(peak_flops=1e9)]).run().metrics
        assert a_step == pytest.approx(alone["mfu"] * 1e9 / alone["steps_per_second"])


class TestNonFiniteGuard:
    def test_a_step_cannot_be_left_out_on_one_rank(self):
        with pytest.raises(PluginError, match=r"NonFiniteGuard\(action='skip_batch'\) leaves out .* the 2 others"):
            small_engine(2, [NonFiniteGuard("skip_batch")], engine_class=as_rank(1, 3))

    @pytest.mark.parametrize("action", ["stop", "skip", "raise"])
    def test_whole_updates_can(self, action: Any):
        small_engine(2, [NonFiniteGuard(action)], engine_class=as_rank(1)).run()


def test_a_run_of_all_plugins_declares_its_requests_once():
    plugins: list[Plugin] = [TimeLimit(1e6), GracefulStop()]
    assert small_engine(2, plugins)._manager.requests() == ("TimeLimit.end", "GracefulStop.SIGTERM")
