"""`BackgroundWriter` of several ranks: a thread of each writes, and all commit at one agreement; as threads here."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import BrokenBarrierError
from types import SimpleNamespace
from typing import Any, cast

import pytest
from disk import CountedFiles, Holder, refusing
from store_ranks import Died, on_ranks, snapshot_of, store_of
from test_many_ranks import Dying, loaded, names, written

from heptad import CheckpointError, PluginError
from heptad.checkpoints.background import BackgroundWriter
from heptad.checkpoints.files import Files
from heptad.run.agreed import Agreed
from heptad.run.peers import Peers
from heptad.run.run import Run

REQUEST = "A.writing"


class RunOfOne:
    """As much of a rank's run as the writer asks for.

    Attributes:
        events: What was put into its log.
        turns: Agreements at which each checkpoint was written.
    """

    epoch = step = update = 0
    state, ended = "before_step", False

    def __init__(self, peers: Peers) -> None:
        self._peers, self._runtime = peers, SimpleNamespace(peers=peers)
        self._position = SimpleNamespace(agreed=Agreed(), asked=set[str]())
        self._buffer = SimpleNamespace(seq=0, emit=self._emit)
        self.written: list[int] = []

    def _emit(self, make: Callable[..., Any], seq: int) -> None:
        self.written.append(self._position.agreed.number)

    def follow(self, follower: object) -> None: ...

    def unfollow(self, follower: object) -> None: ...

    def fail(self, *given: object) -> None:
        self.state = "failed"

    def ask(self, name: str, wanted: bool = True) -> None:
        asked, names = self._position.asked, self._position.agreed.names
        (asked.add if wanted else asked.discard)(name)
        if not wanted:
            names.discard(name)

    def agreed(self, name: str) -> bool:
        return name in self._position.agreed.names

    def agree(self) -> None:
        """Agree with the other ranks, as on exit of `optimizer_update`."""
        wanted = self._peers.gather(b"!" if REQUEST in self._position.asked else b"")
        self._position.agreed.number += 1
        self._position.agreed.names = {REQUEST} if any(wanted) else set()


def begun(
    directory: Path, peers: Peers, files: Files | None = None, **options: Any
) -> tuple[RunOfOne, BackgroundWriter]:
    """Return the run of a rank, and its writer, which has the directory locked."""
    store = store_of(directory, peers, files)
    store.lock()
    return RunOfOne(peers), BackgroundWriter(store, "A.save", request=REQUEST, **options)


def save(writer: BackgroundWriter, run: RunOfOne, number: int) -> None:
    writer.save(cast("Run", run), lambda: snapshot_of(number, run._peers), 2)


def turns(run: RunOfOne, writer: BackgroundWriter, count: int) -> None:
    """Make turns with an agreement in each."""
    for _ in range(count):
        run.agree()
        writer.settled()


def saved_by_threads(directory: Path, number: int, files: dict[int, Files]) -> Callable[[Peers], Any]:
    """Return what a rank does from one checkpoint to its end."""

    def work(peers: Peers) -> str:
        run, writer = begun(directory, peers, files.get(peers.rank))
        try:
            save(writer, run, number)
            while run._peers.gather(b"" if writer._job is None else b"!") != [b""] * peers.world:
                turns(run, writer, 1)
        finally:
            writer.close()
        return f"checkpoint-{number:08d}"

    return work


def test_all_commit_at_the_first_agreement_at_which_all_have_written(tmp_path: Path):
    """Those that were ready before make turns meanwhile: rank 1 is let go before the third, rank 2 the fifth."""

    def work(peers: Peers) -> Any:
        files = Holder()
        run, writer = begun(tmp_path, peers, files)
        seen: list[int] = []
        save(writer, run, 1)
        for turn in range(1, 8):
            if turn == (1, 3, 5)[peers.rank]:
                files.gate.set()
                if writer._job is not None:
                    writer._job.ended.wait()
                writer.settled()
            turns(run, writer, 1)
            seen.append(len(writer._store.entries()))
            peers.gather(b"")
        writer.close()
        return seen, run.written, run._position.asked

    assert on_ranks(3, work) == [([0, 0, 0, 0, 1, 1, 1], [5], set())] * 3


def test_an_agreement_before_the_request_does_not_count(tmp_path: Path):
    """The newest one knew nothing of it, and the ranks have none of it among what is agreed."""

    def work(peers: Peers) -> Any:
        files = Holder()
        run, writer = begun(tmp_path, peers, files)
        run.agree()
        save(writer, run, 1)
        files.gate.set()
        assert writer._job is not None
        writer._job.ended.wait()
        for _ in range(3):  # turns without an agreement
            writer.settled()
        assert not writer._job.done
        turns(run, writer, 1)
        writer.close()
        return run.written

    assert on_ranks(2, work) == [[2], [2]]


@pytest.mark.parametrize("who", ["finish", "close", "save"])
def test_who_waits_needs_no_agreement(who: str, tmp_path: Path):
    def work(peers: Peers) -> Any:
        run, writer = begun(tmp_path, peers)
        save(writer, run, 1)
        if who == "save":
            save(writer, run, 2)
        else:
            getattr(writer, who)()
        writer.close()
        return len(run.written)

    assert on_ranks(2, work) == [1 + (who == "save")] * 2
    assert loaded(tmp_path) == [(1 + (who == "save"),) * 2 + ([],)] * 2


def operations(directory: Path, rank: int) -> list[str]:
    files = CountedFiles()
    on_ranks(2, saved_by_threads(directory, 3, {rank: files}))
    return [call[0] for call in files.calls]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_operation_of_a_rank_fails_once(tmp_path: Path, rank: int):
    """All raise the same text, which names the rank; one checkpoint is sound; the next save passes and sweeps."""
    two = written(tmp_path / "two", 2)
    count = len(operations(Path(shutil.copytree(two, tmp_path / "0")), rank))
    assert count > (25 if rank == 0 else 7)
    for place in range(1, count + 1):
        directory = Path(shutil.copytree(two, tmp_path / str(place)))
        files = CountedFiles(place, refusing(errno.ENOSPC))
        found = on_ranks(2, saved_by_threads(directory, 3, {rank: files}))
        assert [type(error) for error in found] == [CheckpointError] * 2, place
        assert str(found[0]) == str(found[1])
        assert f"rank {rank}: " in str(found[0])
        assert "ENOSPC" in str(found[0])
        check(directory, [error.__notes__ for error in found if hasattr(error, "__notes__")])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_dies_before_every_operation(tmp_path: Path, rank: int):
    two = written(tmp_path / "two", 2)
    count = len(operations(Path(shutil.copytree(two, tmp_path / "0")), rank))
    for place in range(1, count + 1):
        directory = Path(shutil.copytree(two, tmp_path / str(place)))

        def work(peers: Peers, directory: Path = directory, place: int = place) -> None:
            files = {rank: Dying(place, peers)} if peers.rank == rank else {}
            saved_by_threads(directory, 3, cast("dict[int, Files]", files))(peers)

        found = on_ranks(2, work)
        assert isinstance(found[rank], Died | BrokenBarrierError)
        assert isinstance(found[1 - rank], BrokenBarrierError)
        check(directory, [])


def check(directory: Path, notes: Sequence[list[str]]) -> None:
    """Check that the newest checkpoint is sound, the old or the new one, and that the next save passes and sweeps."""
    assert len(notes) in (0, 2)
    assert len({tuple(lines) for lines in notes}) <= 1
    ((number, content, damage), other) = loaded(directory)
    assert (number, content, damage) == other
    assert number == content in (2, 3)
    assert damage == []
    number += 1
    assert on_ranks(2, saved_by_threads(directory, number, {})) == [f"checkpoint-{number:08d}"] * 2
    assert [name for name in names(directory) if name.startswith(".temp")] == []


def test_the_threads_exchange_nothing(tmp_path: Path):
    """One exchange begins it, three commit it and remove older ones; between these there are agreements alone."""
    counts: list[int] = []

    def work(peers: Any) -> None:
        files = Holder()
        run, writer = begun(tmp_path, peers, files)
        save(writer, run, 1)
        counts.append(peers._hall.exchanges)
        files.gate.set()
        assert writer._job is not None
        writer._job.ended.wait()
        counts.append(peers._hall.exchanges)
        peers.gather(b"")
        writer.finish()
        counts.append(peers._hall.exchanges)
        writer.close()

    on_ranks(2, work)
    assert sorted(counts) == [2, 2, 2, 2, 6, 6]


def test_after_a_failure_of_the_run_nothing_is_exchanged_and_the_thread_stops(tmp_path: Path):
    """Also where an exception is passing by; what is written by then is swept by the next lock."""
    written(tmp_path, 1)

    def work(peers: Any) -> Any:
        files = Holder()
        run, writer = begun(tmp_path, peers, files)
        save(writer, run, 2)
        assert files.reached.wait(20)
        threading.Timer(0.1, files.gate.set).start()
        if peers.rank:
            run.state = "failed"
            writer.close()
        else:
            try:
                raise ValueError("of the script")
            except ValueError:
                writer.close()
        return peers._hall.exchanges

    assert on_ranks(2, work) == [2, 2]
    (left,) = tmp_path.glob(".temp*")
    assert names(left) == ["network-00000.safetensors", "rank-00001.safetensors"]
    assert [path.stat().st_size for path in left.iterdir()] == [0, 0]
    on_ranks(2, saved_by_threads(tmp_path, 2, {}))
    assert names(tmp_path) == [".lock", "checkpoint-00000001", "checkpoint-00000002"]


def test_an_exception_in_which_the_writer_was_made_is_no_failure(tmp_path: Path):
    """A script may begin another run where it handles what became of one."""

    def work(peers: Peers) -> Any:
        try:
            raise ValueError("of the run before")
        except ValueError:
            run, writer = begun(tmp_path, peers)
            save(writer, run, 1)
            writer.close()
        return len(run.written)

    assert on_ranks(2, work) == [1, 1]


def test_an_error_of_the_thread_is_not_lost_where_the_run_fails_of_another(tmp_path: Path):
    def work(peers: Peers) -> Any:
        files = Holder(errno.ENOSPC if peers.rank else 0)
        run, writer = begun(tmp_path, peers, files)
        save(writer, run, 2)
        files.gate.set()
        assert writer._job is not None
        writer._job.ended.wait()
        run.state = "failed"
        writer.close()

    nothing, error = on_ranks(2, work)
    assert nothing is None
    assert "no checkpoint was written" in str(error)


def test_a_thread_that_cannot_be_started_fails_all_ranks_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    start, odd = threading.Thread.start, set[int]()

    def work(peers: Peers) -> None:
        run, writer = begun(tmp_path, peers)
        if peers.rank:
            odd.add(threading.get_ident())
        save(writer, run, 1)
        writer.finish()

    def start_or_not(thread: threading.Thread) -> None:
        if threading.get_ident() in odd:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    found = on_ranks(2, work)
    assert str(found[0]) == str(found[1])
    assert str(found[0]) == "rank 1: RuntimeError: can't start new thread"
    assert names(tmp_path) == [".lock"]


def test_a_save_of_the_script_meanwhile_passes_and_sweeps_nothing_away(tmp_path: Path):
    """Through the store of a `Checkpoint`, in a handler; what was begun before keeps the number before."""

    def work(peers: Peers) -> Any:
        files = Holder()
        run, writer = begun(tmp_path, peers, files)
        save(writer, run, 1)
        files.gate.set()
        number = writer._store.save(snapshot_of(2, peers)).number
        writer.finish()
        return number, [entry.number for entry in writer._store.entries()]

    assert on_ranks(2, work) == [(2, [1, 2])] * 2
    assert loaded(tmp_path) == [(2, 2, [])] * 2


def test_a_writer_of_several_ranks_needs_a_request(tmp_path: Path):
    def work(peers: Peers) -> None:
        BackgroundWriter(store_of(tmp_path, peers), "A.save")

    for error in on_ranks(2, work):
        assert isinstance(error, PluginError)
        assert "needs request=…, one of the plugin's requests" in str(error)
