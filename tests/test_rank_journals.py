"""The journals of the ranks of one run: a file each, opened as one log.

The ranks are runs of one process, one after another, that share an id: they take one path, as ranks do.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from builders import small_engine
from heptad import Engine, EngineError, LogError, PluginError, Run, TransitionLog
from heptad.cli.main import main
from heptad.history.journal.family import files_of_ranks
from heptad.history.journal.reader import FileSource
from heptad.history.journal.writer import FileWriter
from heptad.history.waiting import slowest_ranks
from heptad.plugin import write_report
from heptad.record.buffer import PackedChunk
from heptad_plugins import Journal

Act = Callable[[Engine], None]

US = 1000
"""Nanoseconds in a microsecond."""


@dataclass
class Standing:
    """Stands in for the ranks of a run: says which this is, and exchanges nothing."""

    rank: int
    world: int

    def gather(self, content: bytes) -> list[bytes]:
        return [content] * self.world


def ranked(
    path: Path,
    rank: int,
    world: int,
    act: Act | None = None,
    *,
    run: str = "one",
    plugins: Sequence[Any] = (),
    overwrite: bool = False,
    **config: Any,
) -> Engine:
    """Return an engine that is to write the journal of a rank."""
    given = {"accumulation": 2, "epochs": 2, **config}
    engine = small_engine(6, [Journal(path, overwrite=overwrite), *plugins], **given)
    engine.current._runtime.peers = Standing(rank, world)  # type: ignore[assignment] - as far as a journal asks
    engine.current._id = run
    if act is not None:
        act(engine)
    return engine


def family(path: Path, world: int, acts: dict[int, Act] | None = None, **given: Any) -> list[Run]:
    """Write the journals of a run of several ranks."""
    return [ranked(path, rank, world, (acts or {}).get(rank), **given).run() for rank in range(world)]


def speaks(engine: Engine) -> None:
    """Note and record something once an epoch."""

    @engine.on_exit("after_epoch")
    def speak(run: Run) -> None:
        if run.rank:
            run.note(f"from rank {run.rank}")
            run.record("of the rank", run.rank)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.journal"


# -- files


def test_each_rank_writes_a_file_of_its_own(path: Path):
    family(path, 3)
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.journal", "a.journal.rank1", "a.journal.rank2"]
    logs = [TransitionLog.load(file) for file in (path, *files_of_ranks(path).values())]
    assert [(log.rank, log.world, log.facts["rank"], log.facts["world"]) for log in logs] == [
        (rank, 3, rank, 3) for rank in range(3)
    ]


def test_one_process_is_rank_0_of_1(path: Path):
    run = small_engine(2, [Journal(path)]).run()
    assert (run.log.rank, run.log.world, run.log.ranks, run.log.missing) == (0, 1, (0,), {})
    log = TransitionLog.load(path)
    assert (log.facts["rank"], log.facts["world"], log.ranks, log.missing) == (0, 1, (0,), {})
    assert log.slowest_ranks() == log.diff_ranks() == {}


def test_a_file_that_says_nothing_of_ranks_is_rank_0_of_1():
    log = TransitionLog.load(Path(__file__).parent / "journal" / "format_1" / "finished.journal")
    assert (log.rank, log.world, log.ranks) == (0, 1, (0,))


def test_the_rank_is_known_before_the_first_body(path: Path):
    """A rank that fails in `before_loop` belongs to its run all the same."""

    def fails(engine: Engine) -> None:
        engine.on_enter("before_loop")(lambda run: 1 / 0)

    for rank in range(2):
        with pytest.raises(ZeroDivisionError):
            ranked(path, rank, 2, fails).run()
    assert TransitionLog.load(path).ranks == (0, 1)


def test_a_rank_is_refused_another_runs_file_and_leaves_it_alone(path: Path):
    family(path, 2, run="before")
    path.unlink()
    before = files_of_ranks(path)[1].read_bytes()
    ranked(path, 0, 2).run()
    with pytest.raises(PluginError, match=r"a\.journal\.rank1 holds the log of another run"):
        ranked(path, 1, 2).run()
    assert files_of_ranks(path)[1].read_bytes() == before
    assert TransitionLog.load(path).ranks == (0,)


def test_overwriting_replaces_each_file_and_removes_those_of_ranks_that_are_no_more(path: Path):
    family(path, 4, run="before")
    first, second = ranked(path, 0, 2, overwrite=True), ranked(path, 1, 2, overwrite=True)
    first.run()
    assert [FileSource(file).run for file in files_of_ranks(path).values()] == ["before"]  # rank 1's is its own affair
    second.run()
    log = TransitionLog.load(path)
    assert (log.ranks, log.missing, list(files_of_ranks(path))) == ((0, 1), {}, [1])


def test_overwriting_leaves_what_a_living_run_writes_and_what_is_no_journal(path: Path):
    path.with_name("a.journal.rank7").write_text("mine")
    living = ranked(path, 3, 4, run="living")
    living.advance()
    ranked(path, 0, 2, overwrite=True).run()
    assert list(files_of_ranks(path)) == [3, 7]
    living.run()
    assert FileSource(files_of_ranks(path)[3]).run == "living"


def test_what_an_older_run_of_more_ranks_left_is_no_part(path: Path):
    family(path, 4, run="before")
    path.unlink()
    for rank in (1, 2):
        files_of_ranks(path)[rank].unlink()
    family(path, 3)
    assert TransitionLog.load(path).ranks == (0, 1, 2)  # rank 3 of the run before is still there
    assert list(files_of_ranks(path)) == [1, 2, 3]


# -- one log


def test_transitions_are_rank_0s_and_events_and_values_say_their_rank(path: Path):
    runs = family(path, 3, dict.fromkeys(range(3), speaks))
    log = TransitionLog.load(path)
    assert (log.ranks, log.missing) == ((0, 1, 2), {})
    assert list(log) == list(runs[0].log)
    assert [(note.rank, note.text) for note in log.notes("note")] == [(1, "from rank 1"), (2, "from rank 2")] * 2
    assert [(value.rank, value.value) for value in log.values("of the rank")] == [(1, 1.0), (2, 2.0)] * 2
    assert [note.seq for note in log.notes()] == sorted(note.seq for note in log.notes())
    assert log.durations() == runs[0].log.durations()


def test_the_log_of_one_rank(path: Path):
    runs = family(path, 2, dict.fromkeys(range(2), speaks))
    one = TransitionLog.load(path).of_rank(1)
    alone = TransitionLog.load(files_of_ranks(path)[1])
    for log in (one, alone):
        assert (log.rank, log.world, log.ranks, log.missing) == (1, 2, (1,), {})
        assert list(log) == list(runs[1].log)
        assert {note.rank for note in log.notes()} == {value.rank for value in log.values()} == {1}
        assert log.notes() == runs[1].log.notes()
    assert TransitionLog.load(path).of_rank(0).notes("note") == []


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (2, EngineError, "there is no rank 2: the run has 2, numbered from 0"),
        (-1, EngineError, "there is no rank -1"),
        ("1", EngineError, "of_rank takes the number of a rank, got str"),
        (1, LogError, r"there is no log of rank 1: .*a\.journal\.rank1: there is no such file"),
    ],
)
def test_a_rank_that_is_not_there(rank: Any, error: type[Exception], message: str, path: Path):
    family(path, 2)
    files_of_ranks(path)[1].unlink()
    with pytest.raises(error, match=message):
        TransitionLog.load(path).of_rank(rank)


def test_ranks_that_are_missing_damaged_or_of_another_run_are_said_and_the_others_read(path: Path):
    family(path, 5, dict.fromkeys(range(5), speaks))
    files = files_of_ranks(path)
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:5000])
    ranked(path.with_name("other"), 3, 5, run="another").run()
    path.with_name("other.rank3").replace(files[3])
    log = TransitionLog.load(path)
    assert (log.ranks, list(log.missing)) == ((0, 4), [1, 2, 3])
    assert "there is no such file" in log.missing[1]
    assert "is damaged" in log.missing[2]
    assert "another run" in log.missing[3]
    assert {note.rank for note in log.notes("note")} == {4}


def test_damage_that_a_question_meets_counts_as_missing(path: Path):
    family(path, 3, dict.fromkeys(range(3), speaks))
    ask = sqlite3.connect(files_of_ranks(path)[1])
    ask.execute("UPDATE note SET time_ns = time_ns + 1")
    ask.commit()
    ask.close()
    log = TransitionLog.load(path)
    assert {note.rank for note in log.notes("note")} == {2}
    assert "an event of transition" in log.missing[1]
    assert {value.rank for value in log.values()} == {0, 1, 2}


def test_a_rank_that_begins_its_file_later_is_found(path: Path):
    ranked(path, 0, 2).run()
    log = TransitionLog.load(path)
    assert log.ranks == (0,)
    ranked(path, 1, 2).run()
    assert log.ranks == (0, 1)


def test_facts_of_a_stranger_that_name_no_rank_are_refused(path: Path):
    run = small_engine(2).run()
    for number, (rank, world) in enumerate([(2, 2), (-1, 2), ("0", 2), (0, 1 << 40), (0, 0)]):
        file = path.with_name(f"{number}")
        writer = FileWriter(file, run.table, run.id)
        writer.begin(0, None)
        writer.state({"rank": rank, "world": world}, [], [], None)
        writer.commit()
        writer.close()
        with pytest.raises(LogError, match="it says that it is of rank"):
            TransitionLog.load(file)


# -- killed, resumed, cut short


def test_a_rank_that_failed_parts_where_it_failed(path: Path):
    def fails(engine: Engine) -> None:
        @engine.on_exit("after_step", every=5)
        def fail(run: Run) -> None:
            if run.rank:
                raise ZeroDivisionError

    ranked(path, 0, 2, fails).run()
    with pytest.raises(ZeroDivisionError):
        ranked(path, 1, 2, fails).run()
    found = TransitionLog.load(path).diff_ranks()[1]
    assert (found.facts, found.seq, found.there[0].dest) == ((), len(TransitionLog.load(path).of_rank(1)) - 1, "failed")


def cut(path: Path, end: int) -> None:
    """Cut a journal behind a transition, as a kill does."""
    source = FileSource(path)
    kept = source.view()
    (chunk,) = kept.chunks
    counters, facts, run = chunk.counters, source.facts, source.run
    short = PackedChunk(
        0, chunk.clock, chunk.offset, counters, (), (), array("H", chunk.arcs()[:end]), array("q", chunk.times()[:end])
    )
    table, events = source.table, source.events(0)
    path.unlink()
    writer = FileWriter(path, table, run)
    writer.begin(0, None)
    writer.transitions([short])
    writer.events([event for event in events if event.seq < end])
    writer.state(facts, source.windows, [], None)
    writer.commit()
    writer.close()


def test_a_rank_that_was_killed_a_few_turns_earlier_is_read_as_far_as_it_went(path: Path):
    family(path, 3)
    cut(files_of_ranks(path)[2], 20)
    log = TransitionLog.load(path)
    assert [len(log.of_rank(rank)) for rank in log.ranks] == [49, 49, 20]
    assert log.diff_ranks() == {}
    assert main(["diff", "--ranks", str(path)]) == 0
    assert len(log.to_dataframe()) == 49 + 49 + 20
    assert slowest_ranks(log.all_ranks.sources()).keys() >= {"process_batch", "optimizer_update"}


# -- where the ranks part


def parts_at(update: int) -> Act:
    """Return what skips one update on rank 1."""

    def act(engine: Engine) -> None:
        @engine.on_enter("optimizer_update")
        def skip(run: Run) -> None:
            if run.rank == 1 and run.update == update:
                run.skip_update("on this rank only")

    return act


def stops_early(engine: Engine) -> None:
    """Ask for a stop on rank 2 alone."""

    @engine.on_exit("optimizer_update")
    def stop(run: Run) -> None:
        if run.rank == 2 and run.update == 2:
            run.stop("on this rank only")


def test_the_first_rank_to_part_is_named_with_transition_and_guard(path: Path, capsys: pytest.CaptureFixture[str]):
    def act(engine: Engine) -> None:
        parts_at(4)(engine)
        stops_early(engine)

    family(path, 4, dict.fromkeys(range(4), act))
    log = TransitionLog.load(path)
    found = log.diff_ranks()
    assert list(found) == [1, 2]
    (parting,) = found[2].parted
    assert (parting.kind, parting.name) == ("guard", "batches_remain")
    assert (found[1].parted[0].kind, found[1].here[0].update, found[1].there[0].update) == ("transition", 5, 4)
    assert main(["diff", "--ranks", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rank 2 parts from rank 0: here is rank 0, there is rank 2"
    assert lines[1] == f"the runs part in turn #{found[2].seq}:"
    assert lines[2].startswith("    guard batches_remain: yes (")
    assert main(["diff", "--ranks", "--json", str(path)]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert (plain["same"], plain["ranks"], list(plain["parts"])) == (False, [0, 1, 2, 3], ["2", "1"])


def test_notes_and_values_of_one_rank_are_no_parting(path: Path, capsys: pytest.CaptureFixture[str]):
    family(path, 2, dict.fromkeys(range(2), speaks))
    assert main(["diff", "--ranks", str(path)]) == 0
    assert capsys.readouterr().out == "the path is the same on the ranks 0, 1\n"
    log = TransitionLog.load(path)
    assert log.of_rank(0).diff(log.of_rank(1)).parted[0].there == "note from rank 1"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["diff", "{}"], "diff takes two journals, or one and --ranks"),
        (["diff", "--ranks", "{}", "{}"], "diff --ranks takes one journal"),
        (["diff", "--ranks", "{}.rank1"], "holds rank 1 of 2: there is no other to compare it with"),
        (["show", "--rank", "2", "{}"], "there is no rank 2: the run has 2, numbered from 0"),
        (["export", "{}", "-o", "{}.rank1"], "is the journal of a run"),
    ],
)
def test_what_cannot_be_asked_of_ranks(argv: list[str], message: str, path: Path, capsys: pytest.CaptureFixture[str]):
    family(path, 2)
    assert main([word.format(path) for word in argv]) == 2
    assert message in capsys.readouterr().err


def test_what_each_rank_may_set_for_itself_is_no_parting(path: Path):
    for rank in range(2):
        ranked(path, rank, 2, log_capacity=100 + rank, trace_handlers=bool(rank)).run()
    log = TransitionLog.load(path)
    assert log.diff_ranks() == {}
    assert not log.of_rank(0).diff(log.of_rank(1))


# -- at a terminal, and in other forms


def test_show_names_the_rank_of_what_others_noted(path: Path, capsys: pytest.CaptureFixture[str]):
    family(path, 2, dict.fromkeys(range(2), speaks))
    main(["show", str(path)])
    assert "rank 1 note: from rank 1" in capsys.readouterr().out
    main(["show", str(path), "--notes", "--json"])
    assert [json.loads(line)["rank"] for line in capsys.readouterr().out.splitlines()] == [1, 1]
    main(["show", str(path), "--values", "--json", "--all"])
    assert {json.loads(line)["rank"] for line in capsys.readouterr().out.splitlines()} == {0, 1}
    main(["show", str(path), "--rank", "0", "--notes"])
    assert capsys.readouterr().out == "nothing matches\n"
    main(["explain", str(path), "--source", "after_epoch"])
    assert "rank 1 note: from rank 1" in capsys.readouterr().out
    main(["explain", str(path), "--source", "after_epoch", "--rank", "1"])
    assert "    note: from rank 1" in capsys.readouterr().out


def test_following_shows_each_row_of_each_rank_once(path: Path, capsys: pytest.CaptureFixture[str]):
    """The run has ended on rank 0, and rank 1 lacks some turns: nothing is waited for."""
    family(path, 2, dict.fromkeys(range(2), speaks))
    cut(files_of_ranks(path)[1], 30)
    main(["show", str(path), "--follow", "--notes", "--json"])
    assert [json.loads(line)["rank"] for line in capsys.readouterr().out.splitlines()] == [1]


def test_a_missing_rank_is_said_on_standard_error(path: Path, capsys: pytest.CaptureFixture[str]):
    family(path, 3)
    files_of_ranks(path)[1].unlink()
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().err == f"heptad: rank 1 is left out: {path}.rank1: there is no such file\n"


def test_exports_and_frames_have_a_column_of_ranks(path: Path):
    runs = family(path, 2, dict.fromkeys(range(2), speaks))
    log = TransitionLog.load(path)
    frame = log.to_dataframe()
    assert list(frame.columns[:3]) == ["rank", "seq", "time_ns"]
    for rank, run in enumerate(runs):
        rows = frame[frame["rank"] == rank]
        assert list(rows["duration_ns"]) == [turn.duration_ns for turn in run.log]
    main(["export", str(path), "--format", "csv", "-o", str(path.with_suffix(".csv"))])
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == [0] * 49 + [1] * 49
    assert [row["notes"] for row in rows if row["notes"]] == ["note: from rank 1"] * 2
    header, *lines = map(json.loads, log.to_jsonl(path.with_suffix(".jsonl")).read_text().splitlines())
    assert [one["rank"] for one in header["ranks"]] == [0, 1]
    assert [line["rank"] for line in lines] == [0] * 49 + [1] * 49
    assert [line["time_ns"] for line in lines] == [turn.time_ns for run in runs for turn in run.log]


def test_exports_of_one_process_and_of_one_rank_have_none(path: Path, capsys: pytest.CaptureFixture[str]):
    family(path, 2)
    one = TransitionLog.load(path).of_rank(1)
    assert list(one.to_dataframe().columns[:2]) == ["seq", "time_ns"]
    header, line, *_ = map(json.loads, one.to_jsonl(path.with_suffix(".jsonl")).read_text().splitlines())
    assert "ranks" not in header
    assert "rank" not in line
    main(["show", str(path), "--rank", "1", "--values", "--json"])
    assert "rank" not in json.loads(capsys.readouterr().out.splitlines()[0])


def test_the_trace_has_a_process_for_each_rank_on_one_time_line(path: Path):
    runs = family(path, 2)
    trace = json.loads(TransitionLog.load(path).to_trace(path.with_suffix(".json")).read_text())
    names = {
        event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event.get("name") == "process_name"
    }
    assert names == {1: "heptad rank 0", 2: "heptad rank 1"}
    for rank, run in enumerate(runs):
        ends = [
            event["ts"] for event in trace["traceEvents"] if event["pid"] == rank + 1 and event.get("cat") == "state"
        ]
        begins = trace["otherData"]["begins_ns_since_1970"]
        assert max(ends) == (run.log[-1].time_ns - begins) / 1e3
        depth = 0
        for event in trace["traceEvents"]:
            if event["pid"] == rank + 1:
                depth += {"B": 1, "E": -1}.get(event["ph"], 0)
                assert depth >= 0
        assert depth == 0


# -- who waited for whom


def timed(path: Path, rank: int, world: int, spent: dict[tuple[str, int], int]) -> None:
    """Write a journal whose stays have these lengths: by state and, counted from 0, which stay in it; else 1 µs."""
    run = small_engine(4, accumulation=2, epochs=2).run()
    (chunk,) = run._buffer.view().chunks
    seen: dict[str, int] = {}
    times, now = array("q"), 0
    for turn in run.log:
        number = seen[turn.source] = seen.get(turn.source, -1) + 1
        now += spent.get((turn.source, number), US)
        times.append(now)
    file = path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")
    writer = FileWriter(file, run.table, "one")
    writer.begin(0, None)
    # the clocks of two hosts: those of rank 1 are a minute late
    assert isinstance(chunk, PackedChunk)
    writer.transitions([replace(chunk, clock=0, offset=rank * 60 * 10**9, gaps=(), _times=times)])
    writer.state({**run._buffer.facts, "rank": rank, "world": world}, run._buffer.windows, [], None)
    writer.commit()
    writer.close(finished=True)


def test_a_rank_that_comes_late_to_the_gradients_is_the_slowest_where_it_lost_the_time(path: Path):
    """Rank 1 needs 50 µs for a batch; rank 0 stands in the step that closes the window until it has come."""
    timed(path, 0, 2, {("process_batch", 1): 101 * US})
    timed(path, 1, 2, {("before_step", 0): 51 * US, ("before_step", 1): 51 * US})
    found = TransitionLog.load(path).slowest_ranks()
    assert found["before_step"].rank == 1
    assert found["before_step"].own_ns == {0: 8 * US, 1: 108 * US}
    assert found["before_step"].waited_ns == {0: 100 * US, 1: 0}
    assert found["before_step"].stood_ns == {0: 0, 1: 0}
    assert found["process_batch"].stood_ns == {0: 100 * US, 1: 0}
    assert found["process_batch"].own_ns == {0: 8 * US, 1: 8 * US}


def test_a_step_inside_a_window_exchanges_nothing(path: Path):
    """Rank 0 needs longer for the first step of the window, and rank 1 waits in the second."""
    timed(path, 0, 2, {("process_batch", 2): 31 * US})
    timed(path, 1, 2, {("process_batch", 3): 31 * US})
    slow = TransitionLog.load(path).slowest_ranks()["process_batch"]
    assert (slow.rank, slow.waited_ns, slow.stood_ns) == (0, {0: 0, 1: 30 * US}, {0: 0, 1: 30 * US})


def test_what_comes_after_the_gradients_is_waited_for_at_the_agreement(path: Path):
    """A handler on exit of the closing step is slow on rank 1: rank 0 stands in `optimizer_update`."""
    timed(path, 0, 2, {("optimizer_update", 0): 21 * US})
    timed(path, 1, 2, {("process_batch", 1): 21 * US})
    found = TransitionLog.load(path).slowest_ranks()
    assert (found["process_batch"].rank, found["process_batch"].waited_ns[0]) == (1, 20 * US)
    assert found["optimizer_update"].stood_ns == {0: 20 * US, 1: 0}
    assert found["optimizer_update"].own_ns == {0: 4 * US, 1: 4 * US}


def test_a_rank_waits_no_longer_than_it_stays(path: Path):
    """What rank 0 is late by in one window is not counted again after the agreement."""
    timed(path, 0, 2, {})
    timed(path, 1, 2, {("after_step", 0): 1001 * US})
    found = TransitionLog.load(path).slowest_ranks()
    assert found["process_batch"].stood_ns[0] == found["optimizer_update"].stood_ns[0] == US
    assert found["after_epoch"].stood_ns[0] == 0


def test_stats_names_the_slowest_rank_and_who_waited(path: Path, capsys: pytest.CaptureFixture[str]):
    timed(path, 0, 2, {("process_batch", 1): 101 * US})
    timed(path, 1, 2, {("before_step", 0): 51 * US, ("before_step", 1): 51 * US})
    main(["stats", str(path)])
    out = capsys.readouterr().out.splitlines()
    (heading,) = (number for number, line in enumerate(out) if line.split()[:2] == ["state", "slowest"])
    assert out[heading + 2].split() == ["before_step", "rank", "1", "108.0", "µs", "rank", "0", "100.0", "µs"]
    main(["stats", str(path), "--json"])
    plain = json.loads(capsys.readouterr().out)
    assert plain["ranks"] == [0, 1]
    assert plain["slowest"]["before_step"]["waited_ns"] == {"0": 100 * US, "1": 0}
    main(["stats", str(path), "--json", "--rank", "1"])
    assert "slowest" not in json.loads(capsys.readouterr().out)


def test_a_report_names_the_slowest_rank_and_those_that_are_missing(path: Path, tmp_path: Path):
    timed(path, 0, 3, {("process_batch", 1): 101 * US})
    timed(path, 1, 3, {("before_step", 0): 51 * US, ("before_step", 1): 51 * US})
    write_report(TransitionLog.load(path), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = page.partition('id="time-0"')[2].partition("</section>")[0]
    cells = re.findall("<td[^>]*>(.*?)</td>", section.partition("The slowest rank in each state")[2], re.DOTALL)
    row = cells.index("before_step")
    assert cells[row : row + 4] == ["before_step", "rank 1", "108.0 µs", "rank 0 100.0 µs"]
    assert "Left out: rank 2: " in section
