"""`checkpoints/background.py` and `copying.py`: a thread writes the state at the call, by the rules of the store."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disk import CountedFiles, Holder, die, in_child, number_of, refusing, snapshot, stored

from builders import small_engine
from heptad import CheckpointError, Run
from heptad.checkpoints import copying
from heptad.checkpoints.background import BackgroundWriter
from heptad.checkpoints.store import Store
from heptad.plugin import Snapshot, Written


@pytest.fixture
def run() -> Run:
    """A run whose log the writers follow."""
    return small_engine(1).current


def files_in(directory: Path) -> dict[str, bytes]:
    """Return the content of all files of all checkpoints in a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.glob("checkpoint-*/*")}


@pytest.fixture(autouse=True)
def no_thread_of_the_test_before() -> Iterator[None]:
    """A thread lives on for an instant after it has said that all is written."""
    yield
    while threads():
        time.sleep(0.001)


def threads() -> list[str]:
    """Return the names of the threads that write checkpoints."""
    return [thread.name for thread in threading.enumerate() if thread.name == "heptad-checkpoint"]


def all_kinds() -> dict[str, Any]:
    """Return a tensor, an array or a container of every kind that a checkpoint holds."""
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        "tensors": {"weight": torch.randn(3, 4), "bias": torch.randn(3).bfloat16()},
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.0),
        "transposed": whole.clone().t(),
        "every other row": whole.clone()[::2],
        "expanded": torch.randn(1, 3).expand(5, 3),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(4).to_sparse(),
        "large": torch.randn(600, 600),
        "array": np.arange(6.0).reshape(2, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "nested": [1, {"two": [torch.ones(2), (3, torch.zeros(1))]}, OrderedDict(four=4)],
    }


def change(value: Any) -> None:
    """Change all that can be changed in nested values, in place."""
    match value:
        case torch.Tensor() if value.layout is torch.sparse_coo:
            value._values().fill_(7)
        case torch.Tensor():
            value.detach().copy_(torch.full_like(value, 7)) if 0 not in value.stride() else value[0].fill_(7)
        case np.ndarray():
            value.fill(7)
        case dict():
            for item in value.values():
                change(item)
            value["new"] = 1
        case list() | tuple():
            for item in value:
                change(item)
            if isinstance(value, list):
                value.append(1)
        case _:
            pass


def test_the_files_are_byte_for_byte_those_of_a_foreground_save(tmp_path: Path, run: Run):
    kept = Snapshot({"seq": 1}, {"all": all_kinds(), "more": {"state": [1.5, None]}})
    Store(tmp_path / "before").save(kept)
    writer = BackgroundWriter(Store(tmp_path / "behind"), "A.save")
    writer.save(run, kept, 2)
    writer.finish()
    assert files_in(tmp_path / "behind") == files_in(tmp_path / "before")
    assert len(files_in(tmp_path / "before")) == 4


def test_the_files_hold_the_state_at_the_call_while_everything_is_changed(tmp_path: Path, run: Run):
    values = all_kinds()
    kept = Snapshot({"seq": 1}, {"all": values})
    Store(tmp_path / "before").save(kept)
    held = Holder()
    writer = BackgroundWriter(Store(tmp_path / "behind", held), "A.save")
    writer.save(run, kept, 2)
    assert held.reached.wait(20)
    change(values)
    kept.summary["seq"] = 2
    held.gate.set()
    writer.finish()
    assert files_in(tmp_path / "behind") == files_in(tmp_path / "before")
    Store(tmp_path / "after").save(kept)
    after = files_in(tmp_path / "after")
    same = [name for name, content in files_in(tmp_path / "before").items() if after[name] == content]
    assert same == ["checkpoint-00000001/rank-00000.json"]  # nothing here is a rank's own


def test_the_next_one_waits_for_the_one_before(tmp_path: Path, run: Run):
    held = Holder()
    store = Store(tmp_path, held)
    writer = BackgroundWriter(store, "A.save")
    writer.save(run, snapshot(1), 5)
    assert held.reached.wait(20)
    assert store.entries() == []
    threading.Timer(0.1, held.gate.set).start()
    writer.save(run, snapshot(2), 5)
    assert number_of(store.load(store.entries()[0])) == 1
    writer.finish()
    assert [number_of(store.load(entry)) for entry in store.entries()] == [1, 2]


def test_the_log_says_when_it_was_durable_and_how_long_it_took(tmp_path: Path, run: Run):
    held = Holder()
    writer = BackgroundWriter(Store(tmp_path, held), "A.save")
    began = time.time_ns()
    writer.save(run, snapshot(1), 5)
    time.sleep(0.02)
    held.gate.set()
    while threads():
        time.sleep(0.001)
    ended = time.time_ns()
    time.sleep(0.05)
    writer.finish()
    (event,) = run.log.notes("written")
    assert isinstance(event, Written)
    assert event.checkpoint == "checkpoint-00000001"
    assert 20_000_000 <= event.duration_ns <= ended - began
    assert began + 20_000_000 <= event.time_ns <= ended + 1_000_000  # not when the run looked
    assert str(event).startswith("#0 written: checkpoint-00000001 was written in the background in 0.")
    writer.finish()
    writer.poll()
    assert len(run.log.notes("written")) == 1


def test_the_copy_is_dropped_when_it_is_written(tmp_path: Path, run: Run, monkeypatch):
    copies: list[weakref.ref[torch.Tensor]] = []

    def remembered(packed: Any) -> Any:
        packed = copying.copied(packed)
        copies.extend(weakref.ref(tensor) for held in packed.tensors.values() for tensor in held.values())
        return packed

    monkeypatch.setattr("heptad.checkpoints.background.copied", remembered)
    writer = BackgroundWriter(Store(tmp_path), "A.save")
    writer.save(run, snapshot(1), 2)
    while threads():
        time.sleep(0.001)
    assert len(copies) == 4
    assert [copy() for copy in copies] == [None] * 4
    writer.finish()


def test_older_checkpoints_are_removed_when_the_new_one_is_durable(tmp_path: Path, run: Run):
    store = stored(tmp_path, 3)
    held = Holder()
    writer = BackgroundWriter(Store(tmp_path, held), "A.save")
    writer.save(run, snapshot(4), 1, 1)
    assert held.reached.wait(20)
    assert [entry.number for entry in store.entries()] == [1, 2, 3]
    held.gate.set()
    writer.finish()
    assert [entry.number for entry in store.entries()] == [4]  # the best, too: the value is 1 / number
    writer.save(run, snapshot(1), 1, 1)
    writer.finish()
    assert [entry.number for entry in store.entries()] == [4, 5]


def test_what_cannot_be_stored_is_refused_at_the_call(tmp_path: Path, run: Run):
    writer = BackgroundWriter(Store(tmp_path), "A.save")
    with pytest.raises(CheckpointError, match=r"network\['odd'\] is a complex, which a checkpoint cannot hold"):
        writer.save(run, Snapshot({}, {"network": {"odd": 1j}}), 2)
    assert threads() == []
    writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_for_which_there_is_no_memory_is_refused_at_the_call(tmp_path: Path, run: Run, monkeypatch):
    def copied(*given: Any) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(copying, "_host_copy", copied)
    with pytest.raises(CheckpointError, match=r"a copy of 544 bytes .* can't allocate .*background=False"):
        BackgroundWriter(Store(tmp_path), "A.save").save(run, snapshot(1), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_raised_once_with_what_it_says_in_the_foreground(tmp_path: Path, run: Run):
    store = stored(tmp_path, 2)
    with pytest.raises(CheckpointError) as expected:
        Store(tmp_path, CountedFiles(5, refusing(errno.ENOSPC))).save(snapshot(3))
    writer = BackgroundWriter(Store(tmp_path, CountedFiles(5, refusing(errno.ENOSPC))), "A.save")
    writer.save(run, snapshot(3), 1)
    with pytest.raises(CheckpointError) as caught:
        writer.finish()
    free = r"[\d,]+ are free|-[0-9a-f]{8}(?=/)"
    assert re.sub(free, "", str(caught.value)) == re.sub(free, "", str(expected.value))
    assert re.search(free, str(caught.value))
    assert caught.value.__notes__ == [
        "heptad: in the background, of the checkpoint that was taken at epoch 0, step 0, update 0"
    ]
    writer.finish()
    writer.poll()
    assert run.log.notes("written") == []
    assert [entry.number for entry in store.entries()] == [1, 2]
    writer.save(run, snapshot(3), 1)
    writer.finish()
    assert [entry.number for entry in store.entries()] == [3]


def test_a_failed_removal_of_older_ones_is_raised_and_the_new_one_is_in_the_log(tmp_path: Path, run: Run):
    stored(tmp_path, 2)

    class Stays(CountedFiles):
        def rename(self, source: Path, target: Path) -> None:
            if target.name.endswith("-removed"):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            super().rename(source, target)

    writer = BackgroundWriter(Store(tmp_path, Stays()), "A.save")
    writer.save(run, snapshot(3), 1)
    with pytest.raises(CheckpointError, match=r"removing .*checkpoint-00000001 failed: EACCES"):
        writer.finish()
    assert [event.checkpoint for event in run.log.notes("written")] == ["checkpoint-00000003"]


@pytest.mark.parametrize("kind", [MemoryError, SystemExit, KeyboardInterrupt])
def test_whatever_the_thread_raises_is_raised_by_who_waits(kind: type[BaseException], tmp_path: Path, run: Run):
    def strike(name: str) -> None:
        raise kind("here")

    writer = BackgroundWriter(Store(tmp_path, CountedFiles(4, strike)), "A.save")
    writer.save(run, snapshot(1), 2)
    with pytest.raises(kind, match="here"):
        writer.finish()


def test_a_thread_that_cannot_be_started_leaves_nothing_behind(tmp_path: Path, run: Run, monkeypatch):
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = BackgroundWriter(Store(tmp_path), "A.save")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            writer.save(run, snapshot(1), 2)
    writer.finish()
    assert writer.limit > 1 << 60
    writer.save(run, snapshot(2), 2)
    writer.finish()
    assert number_of(Store(tmp_path).newest_sound()[1]) == 2


def test_a_large_file_is_hashed_where_no_second_thread_can_be_started(tmp_path: Path, monkeypatch):
    """Python 3.12.1 starts none once the main thread has ended."""
    kept = Snapshot({}, {"network": {"tensors": {"large": torch.randn(600, 600)}}})
    Store(tmp_path / "two").save(kept)

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    Store(tmp_path / "one").save(kept)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def held_while_writing(directory: Path, run: Run) -> tuple[Holder, Store, BackgroundWriter]:
    """Return a writer that is held at its first checkpoint, its store, and what holds it."""
    held = Holder()
    store = Store(directory, held)
    store.lock()
    writer = BackgroundWriter(store, "A.save")
    writer.save(run, snapshot(1), 5)
    assert held.reached.wait(20)
    return held, store, writer


def test_a_save_of_another_thread_waits_and_sweeps_nothing_away(tmp_path: Path, run: Run):
    """As that of a script which stores by itself, through the store of its `Checkpoint`."""
    held, store, writer = held_while_writing(tmp_path, run)
    threading.Timer(0.1, held.gate.set).start()
    assert store.save(snapshot(2)).number == 2
    writer.finish()
    assert [number_of(store.load(entry)) for entry in store.entries()] == [1, 2]


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_wait_leaves_the_lock_to_the_thread(tmp_path: Path, run: Run):
    held, _, writer = held_while_writing(tmp_path, run)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), 2)).start()
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    writer.release()
    with pytest.raises(CheckpointError, match="is in use"):
        Store(tmp_path).lock()
    held.gate.set()
    writer.finish()
    while threads():
        time.sleep(0.001)
    other = Store(tmp_path)
    other.lock()
    assert number_of(other.newest_sound()[1]) == 1


def test_a_forked_child_waits_for_no_thread_of_its_parent(tmp_path: Path, run: Run):
    held = Holder()
    writer = BackgroundWriter(Store(tmp_path, held), "A.save")
    writer.save(run, snapshot(1), 5)
    assert held.reached.wait(20)
    assert in_child(writer.finish) == 0
    held.gate.set()
    writer.finish()
    assert number_of(Store(tmp_path).newest_sound()[1]) == 1


def test_killed_before_every_operation_the_old_or_the_new_one_is_sound(tmp_path: Path, run: Run):
    """The process dies in the thread, or the operation fails there: old or new, never neither."""
    files = CountedFiles()
    ended: list[int] = []

    def save(directory: Path, files: CountedFiles) -> None:
        writer = BackgroundWriter(Store(directory, files), "A.save")
        writer.save(run, snapshot(3), 2)
        writer.finish()

    stored(tmp_path / "0", 2)
    save(tmp_path / "0", files)
    for place in range(1, len(files.calls) + 1):
        directory = tmp_path / str(place)
        stored(directory, 2)
        assert in_child(lambda place=place, directory=directory: save(directory, CountedFiles(place, die))) == -9
        entry, found, damage = Store(directory).newest_sound()
        assert damage == []
        assert number_of(found) == entry.number
        ended.append(entry.number)
    assert ended == sorted(ended)
    assert set(ended) == {2, 3}
