"""`checkpoints/mirror.py`, `mirroring.py`, `remote.py`: copies of checkpoints elsewhere, whole or not there."""

from __future__ import annotations

import errno
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import pytest
from disk import CountedFiles, die, in_child, number_of, refusing, snapshot
from faulty_remote import contents, emptied, made_faulty, mirroring_of, refused, sound_in
from store_ranks import ThreadPeers, on_ranks, run_of, snapshot_of

from builders import equal, small_engine, weights
from heptad import CheckpointError, PluginError, Run
from heptad.checkpoints.files import Files
from heptad.checkpoints.mirroring import MOST_SKIPPED, NoMirror
from heptad.checkpoints.remote import redacted
from heptad.checkpoints.store import Store
from heptad.plugin import Event, MirrorFailed, MirrorRestored, NotMirrored, Resume
from heptad.run.peers import Peers
from heptad_plugins import Checkpoint


class Told:
    """As much of a run as a mirror asks for: it keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, make: Callable[..., Event], **fields: Any) -> None:
        self.events.append(make(0, 0, **fields))

    def of(self, store: Store) -> list[Event]:
        """Return what a mirror says since the last time."""
        mirroring_of(store).tell(cast("Run", self))
        found, self.events = self.events, []
        return found


class Unsynced(Files):
    """Files that are not synced: a process is killed here, not the machine."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


def mirrored(tmp_path: Path, files: Files | None = None) -> Store:
    """Return the store of a directory with a mirror, both in a folder."""
    return Store(tmp_path / "runs", files or Unsynced(), mirror=f"file://{tmp_path}/mirror")


def save(store: Store, number: int, keep_last: int = 2, keep_best: int = 0) -> None:
    """Write a checkpoint and rotate, as the plugin does."""
    store.save(snapshot(number))
    store.rotate(keep_last, keep_best)


def two_there(tmp_path: Path) -> Store:
    """Return a store with two checkpoints that are mirrored."""
    store = mirrored(tmp_path)
    for number in (1, 2):
        save(store, number)
    return store


# -- there and back


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_the_mirror_holds_what_the_directory_holds_and_gives_it_back(tmp_path: Path, protocol: str):
    """File for file, after each save; an empty directory is filled with the newest."""
    url = f"{protocol}://{tmp_path}/mirror"
    store = Store(tmp_path / "runs", mirror=url)
    files = fsspec.filesystem(protocol)
    for number in (1, 2, 3):
        save(store, number)
        there = {path.rpartition("/mirror/")[2]: files.cat_file(path) for path in files.find(f"{tmp_path}/mirror")}
        assert there == contents(tmp_path / "runs")
    assert [name for name in there if "manifest" in name] == [f"checkpoint-0000000{n}/manifest.json" for n in (2, 3)]
    newest = {name: held for name, held in there.items() if "00000003" in name}
    emptied(tmp_path / "runs")
    text = f"checkpoint-00000003 was fetched from the mirror {url}: {tmp_path / 'runs'} held no checkpoint"
    assert Store(tmp_path / "runs", mirror=url).refill() == [text]
    assert contents(tmp_path / "runs") == newest
    assert number_of(Store(tmp_path / "runs").newest_sound()[1]) == 3


def test_the_manifest_is_written_last_and_removed_first(tmp_path: Path):
    store = two_there(tmp_path)
    faulty = made_faulty(store)
    save(store, 3)
    done = [(name, path.rpartition("/mirror/")[2]) for name, path in faulty.calls]
    new = [(name, path) for name, path in done if path.startswith("checkpoint-00000003/")]
    moved = new.index(("mv", "checkpoint-00000003/manifest.json.part"))
    assert [path for name, path in new[moved + 1 :]] == ["checkpoint-00000003/manifest.json"]
    assert not any(path.endswith("manifest.json") for name, path in new[1:moved])
    removed = [path for name, path in done[done.index(new[-1]) :] if name == "rm_file"]
    assert removed[0] == "checkpoint-00000001/manifest.json"
    assert len(removed) == 5


def test_a_mirror_of_nothing_lets_a_run_begin(tmp_path: Path):
    """A folder that is not there yet, and what an upload that was killed left."""
    assert mirrored(tmp_path).refill() == []
    torn = tmp_path / "mirror" / "checkpoint-00000007"
    torn.mkdir(parents=True)
    (torn / "state.json").write_bytes(b"{")
    assert mirrored(tmp_path).refill() == []
    assert contents(tmp_path / "runs") == {}


def test_a_directory_that_holds_one_is_left_alone(tmp_path: Path):
    store = two_there(tmp_path)
    faulty = made_faulty(store, 1, refused, ever=True)
    assert store.refill() == []
    assert faulty.calls == []


def test_without_a_mirror_nothing_is_fetched_or_made(tmp_path: Path):
    store = Store(tmp_path / "runs")
    assert isinstance(store.copies.mirror, NoMirror)
    assert store.refill() == []
    assert not (tmp_path / "runs").exists()


def test_numbers_continue_above_those_in_the_mirror(tmp_path: Path):
    """Else a checkpoint of the run would be written over another one there."""
    two_there(tmp_path)
    emptied(tmp_path / "runs")
    store = mirrored(tmp_path)
    store.copies.claim(cast("str", None), True, False)  # these snapshots have no run
    assert store.save(snapshot(3)).number == 3


# -- what is kept


def test_the_best_stay_as_in_the_directory(tmp_path: Path):
    """The value of a snapshot falls with its number, so rewritten here: the first is the best."""
    store = mirrored(tmp_path)
    for number, value in enumerate((1.0, 3.0, 4.0, 2.0, 5.0), 1):
        found = snapshot(number)
        found.summary["monitor"]["value"] = value
        store.save(found)
        store.rotate(1, 2)
    assert [entry.number for entry in store.entries()] == [1, 4, 5]
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")


def test_the_best_stay_in_the_mirror_when_the_newest_alone_was_fetched(tmp_path: Path):
    store = mirrored(tmp_path)
    for number, value in enumerate((1.0, 3.0), 1):
        found = snapshot(number)
        found.summary["monitor"]["value"] = value
        store.save(found)
        store.rotate(1, 1)
    emptied(tmp_path / "runs")
    store = mirrored(tmp_path)
    assert len(store.refill()) == 1
    for number in (3, 4):
        found = snapshot(number)
        found.summary["monitor"]["value"] = 4.0
        store.save(found)
        store.rotate(1, 1)
    assert sound_in(tmp_path / "mirror") == [1, 4]


def test_what_is_left_of_an_upload_is_removed(tmp_path: Path):
    torn = tmp_path / "mirror" / "checkpoint-00000007"
    torn.mkdir(parents=True)
    (torn / "state.json").write_bytes(b"{")
    (tmp_path / "mirror" / "notes.txt").write_text("mine")
    two_there(tmp_path)
    there = sorted(path.name for path in (tmp_path / "mirror").iterdir())
    assert there == ["checkpoint-00000001", "checkpoint-00000002", "notes.txt"]


def test_one_that_is_damaged_in_the_directory_is_not_copied(tmp_path: Path):
    """And the sound one in the mirror is not removed for it."""
    store = mirrored(tmp_path)
    save(store, 1, 1)
    entry = store.save(snapshot(2))
    file = entry.path / "network-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    store.rotate(1)
    assert sound_in(tmp_path / "mirror") == [1]


# -- failures


def operations(tmp_path: Path) -> list[str]:
    """Return the operations on the mirror of a third save."""
    store = two_there(tmp_path)
    faulty = made_faulty(store)
    mirroring_of(store)._is_known = False  # as after a failure: what is there is asked
    save(store, 3)
    return faulty.names()


def test_every_operation_fails_once(tmp_path: Path):
    """The save does not; one event; nothing unsound has a name; the next save brings all that is missing."""
    names = operations(tmp_path / "0")
    assert set(names) >= {"ls", "open", "read", "write", "close", "info", "makedirs", "mv", "rm_file"}
    for place, name in enumerate(names, 1):
        folder, told = tmp_path / str(place), Told()
        store = two_there(folder)
        mirroring_of(store)._is_known = False
        faulty = made_faulty(store, place, refused)
        save(store, 3)
        assert len(sound_in(folder / "mirror")) >= 2, name
        if name == "rmdir":  # a folder that stays harms nobody
            continue
        (event,) = told.of(store)
        assert isinstance(event, MirrorFailed)
        assert "connection reset by peer" in event.error
        assert event.missing in (0, 1)
        faulty.place = 0
        save(store, 4)
        assert [type(event) for event in told.of(store)] == [MirrorRestored]
        assert contents(folder / "mirror") == contents(folder / "runs"), (place, name)


def test_every_operation_fails_for_ever_from_some_place_on(tmp_path: Path):
    """One event, and at the end one that counts; the mirror holds what it held."""
    for place in range(1, len(operations(tmp_path / "0")), 4):
        folder, told = tmp_path / str(place), Told()
        store = two_there(folder)
        mirroring_of(store)._is_known = False
        made_faulty(store, place, refused, ever=True)
        for number in range(3, 7):
            save(store, number)
        assert [entry.number for entry in store.entries()] == [5, 6]
        assert sound_in(folder / "mirror")[-1] in (2, 3)
        mirroring_of(store).end(cast("Run", told))
        first, last = told.events
        assert isinstance(first, MirrorFailed)
        assert isinstance(last, NotMirrored)
        assert last.missing == 2
        assert last.text.startswith("2 checkpoints not mirrored, kept in the directory alone: ")


def test_a_mirror_that_fails_is_tried_at_later_and_later_saves(tmp_path: Path):
    """At the 1st, 2nd, 4th, 8th save after the failure before."""
    store = two_there(tmp_path)
    faulty = made_faulty(store, 1, refused, ever=True)
    tries: list[int] = []
    for number in range(3, 20):
        before = len(faulty.calls)
        save(store, number)
        if len(faulty.calls) > before:
            tries.append(number)
    assert tries == [3, 4, 6, 10, 18]
    mirroring = mirroring_of(store)
    mirroring._failures = 1_000
    mirroring._failed(OSError())
    assert mirroring._skip == MOST_SKIPPED


def test_what_was_missed_is_copied_when_it_works_again(tmp_path: Path):
    """As long as it is there, the newest first; the end of a run does not wait for the next try."""
    store, told = two_there(tmp_path), Told()
    faulty = made_faulty(store, 1, refused, ever=True)
    for number in (3, 4, 5):
        save(store, number, 3)
    assert sound_in(tmp_path / "mirror") == [1, 2]
    assert len(told.of(store)) == 1
    faulty.place, faulty.calls = 0, []
    store.end_copies(cast("Run", told))
    assert [type(event) for event in told.events] == [MirrorRestored]
    assert sound_in(tmp_path / "mirror") == [3, 4, 5]
    made = [path[-8:] for name, path in faulty.calls if name == "makedirs"]
    assert made == ["00000005", "00000004", "00000003"]


def test_the_last_sound_one_is_not_removed_before_the_next_is_there(tmp_path: Path):
    """With `keep_last=1` every operation of the next save kills: there is always a sound one."""
    store = mirrored(tmp_path / "0")
    save(store, 1, 1)
    faulty = made_faulty(store)
    save(store, 2, 1)
    for place in range(1, len(faulty.calls) + 1):
        folder = tmp_path / str(place)
        store = mirrored(folder)
        save(store, 1, 1)
        made_faulty(store, place, refused, ever=True)
        save(store, 2, 1)
        assert sound_in(folder / "mirror") in ([1], [2], [1, 2])


def test_a_process_is_killed_at_every_operation_of_an_upload(tmp_path: Path):
    """What has a manifest is sound; the next process completes the mirror, and removes what is left."""
    count = len(operations(tmp_path / "0"))
    base = two_there(tmp_path / "base")
    for place in range(1, count + 1):
        folder = tmp_path / str(place)
        shutil.copytree(tmp_path / "base", folder)
        store = mirrored(folder)
        made_faulty(store, place, die)
        assert in_child(lambda store=store: save(store, 3)) == -9, place
        found = sound_in(folder / "mirror")
        assert {1, 2} & set(found), place
        emptied(folder / "lost")
        other = Store(folder / "lost", mirror=f"file://{folder}/mirror")
        assert len(other.refill()) == 1
        assert number_of(other.newest_sound()[1]) == found[-1]
        save(mirrored(folder), 4)
        assert contents(folder / "mirror") == contents(folder / "runs"), place
    assert [entry.number for entry in base.entries()] == [1, 2]


def test_a_process_is_killed_at_every_operation_of_a_fetch(tmp_path: Path):
    """On the mirror or on the disk: a name is never that of something unsound, and the next one fetches it."""
    two_there(tmp_path / "base")
    emptied(tmp_path / "base" / "runs")
    files = CountedFiles()
    store = mirrored(Path(shutil.copytree(tmp_path / "base", tmp_path / "0")), files)
    faulty = made_faulty(store)
    store.refill()
    places = [(place, 0) for place in range(1, len(faulty.calls) + 1)]
    places += [(0, place) for place in range(1, len(files.calls) + 1)]
    assert len(places) > 40
    for far, near in places:
        folder = Path(shutil.copytree(tmp_path / "base", tmp_path / f"{far}-{near}"))
        store = mirrored(folder, CountedFiles(near, die))
        made_faulty(store, far, die)
        assert in_child(store.refill) == -9, (far, near)
        assert sound_in(folder / "runs") in ([], [2]) if (folder / "runs").exists() else True
        mirrored(folder).refill()
        assert sound_in(folder / "runs") == [2]
        assert [path.name for path in (folder / "runs").iterdir() if path.name.startswith(".temporary")] == []


def test_every_operation_on_the_disk_fails_once_in_a_fetch(tmp_path: Path):
    """It is an error of the disk, not of the mirror; and nothing half written stays."""
    two_there(tmp_path)
    files = CountedFiles()
    emptied(tmp_path / "runs")
    mirrored(tmp_path, files).refill()
    for place, (name, *_) in enumerate(files.calls, 1):
        emptied(tmp_path / "runs")
        with pytest.raises(CheckpointError, match="ENOSPC") as caught:
            mirrored(tmp_path, CountedFiles(place, refusing(errno.ENOSPC))).refill()
        assert "mirror does" not in str(caught.value), name
        assert [path.name for path in tmp_path.glob("runs/.temporary*")] == []
        mirrored(tmp_path).refill()
        assert sound_in(tmp_path / "runs") == [2]


def test_a_mirror_that_cannot_be_asked_does_not_let_a_run_begin_afresh(tmp_path: Path):
    """Each operation of a fetch: an error that says what to do, and an empty directory."""
    two_there(tmp_path)
    emptied(tmp_path / "runs")
    store = mirrored(tmp_path)
    faulty = made_faulty(store)
    store.refill()
    for place, name in enumerate(faulty.names(), 1):
        emptied(tmp_path / "runs")
        store = mirrored(tmp_path)
        made_faulty(store, place, refused)
        with pytest.raises(CheckpointError, match="whether its mirror does cannot be known") as caught:
            store.refill()
        assert "connection reset by peer; so the run does not begin afresh. Try again when" in str(caught.value), name
        assert contents(tmp_path / "runs") == {}


# -- damage in the mirror


def spoilt(path: Path) -> list[tuple[str, Callable[[], object]]]:
    """Return ways to spoil a file."""
    held = path.read_bytes()
    middle = len(held) // 2
    return [
        ("flipped", lambda: path.write_bytes(held[:middle] + bytes([held[middle] ^ 1]) + held[middle + 1 :])),
        ("cut", lambda: path.write_bytes(held[:-1])),
        ("longer", lambda: path.write_bytes(held + b"\0")),
        ("empty", lambda: path.write_bytes(b"")),
        ("missing", path.unlink),
    ]


def test_a_damaged_one_is_passed_over_with_a_remark(tmp_path: Path):
    """Each file of the newest, spoilt in each way: the one before is fetched, and the file is named."""
    two_there(tmp_path / "base")
    emptied(tmp_path / "base" / "runs")
    files = sorted(path.name for path in (tmp_path / "base" / "mirror" / "checkpoint-00000002").iterdir())
    assert len(files) == 5
    for file in files:
        for number in range(5):
            folder = Path(shutil.copytree(tmp_path / "base", tmp_path / f"{file}-{number}"))
            what, spoil = spoilt(folder / "mirror" / "checkpoint-00000002" / file)[number]
            spoil()
            remarks = mirrored(folder).refill()
            assert remarks[0].startswith("checkpoint-00000001 was fetched from the mirror")
            if (file, what) == ("manifest.json", "missing"):  # it is no checkpoint then
                assert remarks[1:] == []
            else:
                (remark,) = remarks[1:]
                assert f"/mirror/checkpoint-00000002/{file} " in remark, (file, what)
            assert sound_in(folder / "runs") == [1]
            assert [path.name for path in folder.glob("runs/.temporary*")] == []


def test_a_damaged_one_is_not_kept_in_place_of_a_sound_one(tmp_path: Path):
    """What a fetch has found damaged is removed from the mirror, and its number is not used again."""
    two_there(tmp_path)
    emptied(tmp_path / "runs")
    (tmp_path / "mirror" / "checkpoint-00000002" / "state.json").write_bytes(b"{}")
    store = mirrored(tmp_path)
    store.refill()
    store.copies.claim(cast("str", None), True, False)  # these snapshots have no run
    save(store, 3)
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")
    assert sound_in(tmp_path / "mirror") == [1, 3]


def test_where_all_are_damaged_each_is_named(tmp_path: Path):
    two_there(tmp_path)
    emptied(tmp_path / "runs")
    for path in (tmp_path / "mirror").glob("*/state.json"):
        path.write_bytes(b"{}")
    with pytest.raises(
        CheckpointError, match=r"no sound one:(\n  .*/checkpoint-0000000[12]/state.json holds 2 bytes.*){2}"
    ):
        mirrored(tmp_path).refill()


def test_one_of_a_later_version_is_not_passed_over(tmp_path: Path):
    from heptad.checkpoints import manifest as manifests

    two_there(tmp_path)
    emptied(tmp_path / "runs")
    path = tmp_path / "mirror" / "checkpoint-00000002" / "manifest.json"
    content = path.read_bytes().replace(b'"format": 2', b'"format": 3')
    plain = re.sub(rb',\n "digest": "\w+"\n}\n$', b"\n}\n", content)
    path.write_bytes(manifests._sign(plain))
    with pytest.raises(CheckpointError, match=r"format 3.*install a newer one"):
        mirrored(tmp_path).refill()


def test_an_upload_that_was_cut_is_found_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file system that reports success for what it did not write."""
    store, told = two_there(tmp_path), Told()
    faulty = made_faulty(store)
    real = faulty._files.info
    monkeypatch.setattr(faulty._files, "info", lambda path: {"size": real(path)["size"] - 1}, raising=False)
    save(store, 3)
    (event,) = told.of(store)
    assert isinstance(event, MirrorFailed)
    assert re.search(r"checkpoint-00000003/\S+ has [\d,]+ bytes after [\d,]+ were written", event.error)
    assert sound_in(tmp_path / "mirror") == [1, 2]


# -- time


def test_a_mirror_that_hangs_is_given_up(tmp_path: Path):
    """While it hangs nothing else is begun; when it wakes up it does nothing more, and the next try completes it."""
    store, told, gate = two_there(tmp_path), Told(), threading.Event()
    mirroring_of(store)._patience.limit = 0.1
    faulty = made_faulty(store, 4, lambda name: gate.wait(20))
    save(store, 3)
    (event,) = told.of(store)
    assert isinstance(event, MirrorFailed)
    assert event.error.endswith("/mirror: TimeoutError: an operation has not ended in 0.1 s")
    calls = len(faulty.calls)
    save(store, 4)
    assert len(faulty.calls) == calls
    assert "has still not ended" in mirroring_of(store)._error
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "heptad-mirror":
            thread.join(20)
    assert sound_in(tmp_path / "mirror") == [1, 2]
    mirroring_of(store)._patience.limit = 20
    store.end_copies(cast("Run", told))
    assert [type(event) for event in told.events] == [MirrorRestored]
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")


def test_a_mirror_that_hangs_while_the_directory_is_empty_is_an_error(tmp_path: Path):
    two_there(tmp_path)
    emptied(tmp_path / "runs")
    store, gate = mirrored(tmp_path), threading.Event()
    mirroring_of(store)._patience.limit = 0.1
    made_faulty(store, 5, lambda name: gate.wait(20))
    with pytest.raises(
        CheckpointError, match=r"TimeoutError: an operation has not ended in 0.1 s; so the run does not"
    ):
        store.refill()
    gate.set()


# -- whose it is


def engine(tmp_path: Path, name: str = "runs", epochs: int = 2, **options: Any) -> Any:
    """Return an engine with checkpoints that are mirrored; and its plugin, as `engine.checkpoint`."""
    made = Checkpoint(tmp_path / name, **{"mirror": f"file://{tmp_path}/mirror", **options})
    found = small_engine(3, [made], epochs=epochs)
    found.checkpoint = made
    return found


def test_a_run_continues_from_the_mirror_alone(tmp_path: Path):
    """As one that was never interrupted, bit for bit; the log says where the checkpoint came from."""
    straight = small_engine(3, epochs=4).run()
    engine(tmp_path).run(resume="auto")
    emptied(tmp_path / "runs")
    run = engine(tmp_path, epochs=4).run(resume="auto")
    resumed, remark = run.log.notes("resume")
    assert isinstance(resumed, Resume)
    assert resumed.checkpoint == "checkpoint-00000002"
    assert remark.text.startswith("checkpoint-00000002 was fetched from the mirror file://")
    assert equal(weights(straight.network), weights(run.network))
    assert sound_in(tmp_path / "mirror") == [3, 4]
    assert run.log.notes("mirror") == []


def test_a_thread_that_writes_copies_too(tmp_path: Path):
    """The loop learns of a failure when the thread has ended."""
    made = engine(tmp_path, epochs=3, background=True)
    threads: list[str] = []
    made_faulty(made.checkpoint.store, 20, lambda name: threads.append(threading.current_thread().name))
    made.run()
    assert threads == ["heptad-mirror"]
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")
    failing = engine(tmp_path, "other", epochs=3, background=True, mirror=f"file://{tmp_path}/elsewhere")
    made_faulty(failing.checkpoint.store, 5, refused, ever=True)
    events = failing.run().log.notes("mirror")
    assert [type(event) for event in events] == [MirrorFailed, NotMirrored]


def test_in_the_background_nothing_waits_for_the_mirror(tmp_path: Path):
    """While it hangs checkpoints are written, and the one that is copied stays; the end copies the newest."""
    gate, hangs, held = threading.Event(), threading.Event(), list[list[str]]()

    def hang(name: str) -> None:
        hangs.set()
        gate.wait(20)

    def opens_late(run: Run) -> bool:
        if run.state == "before_epoch" and run.epoch == 2:  # the first is there
            hangs.wait(20)
        if run.state == "before_epoch" and run.epoch == 4:
            held.append(sorted(path.name for path in (tmp_path / "runs").glob("checkpoint-*")))
            gate.set()
        return False

    made = engine(tmp_path, epochs=5, background=True, keep_last=1)
    made_faulty(made.checkpoint.store, 10, hang)
    run = made.run(until=opens_late)
    assert (run.state, len(run.log.notes("written")), run.log.notes("mirror")) == ("finished", 5, [])
    assert {"checkpoint-00000001", "checkpoint-00000003"} <= {*held[0]}
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")
    assert sound_in(tmp_path / "mirror") == [5]


def test_what_is_written_during_a_copy_is_copied_at_the_end(tmp_path: Path):
    """The first copy takes as long as the run; what stayed in the directory for it is removed."""
    gate, begun = threading.Event(), threading.Event()

    def hang(name: str) -> None:
        begun.set()
        gate.wait(20)

    def ends(run: Run) -> bool:
        if run.state == "before_epoch" and run.epoch == 2:
            begun.wait(20)
        if run.state == "after_loop":
            gate.set()
        return False

    made = engine(tmp_path, epochs=5, background=True, keep_last=1)
    made_faulty(made.checkpoint.store, 10, hang)
    assert made.run(until=ends).log.notes("mirror") == []
    assert sound_in(tmp_path / "runs") == sound_in(tmp_path / "mirror") == [5]


def test_a_directory_that_cannot_be_listed_is_a_failure_of_the_mirror(tmp_path: Path):
    """Not of the save that came before: with several ranks the first would fail alone."""
    store, told = two_there(tmp_path), Told()
    (tmp_path / "file").touch()
    mirroring_of(store).follow(Store(tmp_path / "file").entries, 2, 0)
    (event,) = told.of(store)
    assert isinstance(event, MirrorFailed)
    save(store, 3)
    assert [type(event) for event in told.of(store)] == [MirrorRestored]


@pytest.mark.parametrize("background", [False, True])
def test_a_run_whose_mirror_fails_ends_as_without_one(tmp_path: Path, background: bool):
    straight = small_engine(3, [Checkpoint(tmp_path / "straight")], epochs=3).run()
    made = engine(tmp_path, epochs=3, background=background)
    made_faulty(made.checkpoint.store, 1, refused, ever=True)
    run = made.run()
    assert run.state == "finished"
    assert equal(weights(straight.network), weights(run.network))
    failed, last = run.log.notes("mirror")
    assert isinstance(failed, MirrorFailed)
    assert isinstance(last, NotMirrored)
    assert last.missing == 2
    assert straight.log.diff(run.log).same


def test_another_run_is_refused_the_mirror(tmp_path: Path):
    """Unless it overwrites; a run that is resumed from it goes on there."""
    engine(tmp_path).run()
    held = contents(tmp_path / "mirror")
    text = r"the mirror file://\S+ holds checkpoints of another run \(checkpoint-00000002 is the newest\); resume from"
    with pytest.raises(CheckpointError, match=text):
        engine(tmp_path, "other").run()
    assert contents(tmp_path / "mirror") == held
    for path in (tmp_path / "mirror").glob("*/manifest.json"):
        path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=text):
        engine(tmp_path, "fourth").run()
    run = engine(tmp_path, "third", overwrite=True).run()
    assert contents(tmp_path / "mirror") == contents(tmp_path / "third")
    assert run.log.notes("mirror") == []
    run = engine(tmp_path, "third", 3).run(resume="auto")
    assert run.resumed_from is not None
    assert contents(tmp_path / "mirror") == contents(tmp_path / "third")


def test_a_mirror_of_another_run_that_could_not_be_asked_is_left_alone(tmp_path: Path):
    """It is asked again before anything is written: then it is told, and not tried again."""
    engine(tmp_path).run()
    held = contents(tmp_path / "mirror")
    made = engine(tmp_path, "other", 4)
    made_faulty(made.checkpoint.store, 1, refused)
    failed, last = made.run().log.notes("mirror")
    assert "connection reset by peer" in failed.text
    assert isinstance(last, NotMirrored)
    assert "holds checkpoints of another run" in last.error
    assert contents(tmp_path / "mirror") == held


def test_an_empty_directory_and_a_mirror_that_fails_are_an_error_of_the_run(tmp_path: Path):
    made = engine(tmp_path)
    made_faulty(made.checkpoint.store, 1, refused, ever=True)
    with pytest.raises(CheckpointError, match="so the run does not begin afresh"):
        made.run(resume="auto")
    assert contents(tmp_path / "runs") == {}


def test_a_pause_tries_once_more(tmp_path: Path):
    """And says what is in the directory alone."""
    made = engine(tmp_path, epochs=9, keep_last=9)
    faulty = made_faulty(made.checkpoint.store, 1, refused, ever=True)

    def mend(run: Run) -> None:
        if run.epoch == 5:  # the saves after it pass without a try: those of the epochs 1, 2 and 4 failed
            faulty.place = 0
            run.pause("now")

    made.on_exit("before_step")(mend)
    run = made.run()
    assert [type(event) for event in run.log.notes("mirror")] == [MirrorFailed, MirrorRestored]
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")


# -- ranks


def test_of_several_ranks_the_first_copies_and_all_read(tmp_path: Path):
    """Threads as ranks; a mirror of each, of which the first one's alone is used."""

    def store_of_rank(peers: Peers, name: str = "runs") -> Store:
        store = Store(tmp_path / name, mirror=f"file://{tmp_path}/mirror")
        store.join(run_of(peers))
        return store

    def write(peers: Peers) -> bool:
        store = store_of_rank(peers)
        for number in (1, 2, 3):
            store.save(snapshot_of(number, peers))
            store.rotate(2)
        return isinstance(store.copies.mirror, NoMirror)

    assert on_ranks(2, write) == [False, True]
    assert contents(tmp_path / "mirror") == contents(tmp_path / "runs")
    assert sound_in(tmp_path / "mirror") == [2, 3]
    emptied(tmp_path / "runs")

    def read(peers: Peers) -> int:
        store = store_of_rank(peers)
        store.on_first(store.refill)
        entry, found, _ = store.newest_sound()
        assert found.sections["own"]["rank"] == peers.rank
        return entry.number

    assert on_ranks(2, read) == [3, 3]


@pytest.mark.parametrize("wait", [True, False])
def test_ranks_wait_together_for_the_first_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool):
    """They exchange a sign meanwhile: it may take longer than they are patient. In the background none waits."""
    monkeypatch.setattr("heptad.checkpoints.together.SIGN", 0.02)
    gate, threads = threading.Event(), list[str]()

    def hang(name: str) -> None:
        threads.append(threading.current_thread().name)
        gate.wait(20)

    def write(peers: Peers) -> tuple[bool, int]:
        store = Store(tmp_path / "runs", Unsynced(), mirror=f"file://{tmp_path}/mirror")
        if not peers.rank:
            made_faulty(store, 5, hang)
        store.join(run_of(peers))
        store.save(snapshot_of(1, peers))
        later = threading.Timer(0.3, gate.set)
        if wait:
            later.start()
        store.rotate(1, wait=wait)
        returned = gate.is_set()
        if not wait:
            later.start()
        before = cast("ThreadPeers", peers).exchanges
        store.copies.finish()
        store.copies.finish()
        return returned, cast("ThreadPeers", peers).exchanges - before

    (first, exchanges), other = on_ranks(2, write)
    assert (first, exchanges) == other
    assert first == wait
    assert exchanges == 0 if wait else exchanges > 5
    assert threads == ["heptad-mirror"]
    assert sound_in(tmp_path / "mirror") == [1]


def test_ranks_all_raise_where_the_mirror_cannot_be_asked(tmp_path: Path):
    def read(peers: Peers) -> None:
        store = Store(tmp_path / "runs", mirror=f"file://{tmp_path}/mirror")
        if not peers.rank:
            made_faulty(store, 1, refused)
        store.join(run_of(peers))
        store.on_first(store.refill)

    errors = on_ranks(2, read)
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert all("rank 0: " in str(error) and "does not begin afresh" in str(error) for error in errors)


# -- the URL


def test_credentials_appear_nowhere(tmp_path: Path):
    """Not in events, errors, checkpoints; also where the file system names the URL in its own errors."""
    url = f"memory://user:hun/ter%212@{tmp_path.name}/run?token=t0ken&x=1"
    secrets = ("hun/ter", "hun/ter!2", "t0ken", "user:")

    def leaking(name: str) -> None:
        raise PermissionError(f"{name} of {url} is refused to user:hun/ter!2, token t0ken")

    made = engine(tmp_path, mirror=url)
    made_faulty(made.checkpoint.store, 1, leaking, ever=True)
    run = made.run()
    told = " ".join(event.text for event in run.log.notes())
    assert f"memory://***@{tmp_path.name}/run?***" in told
    assert "PermissionError" in told
    emptied(tmp_path / "other")
    store = Store(tmp_path / "other", mirror=url)
    made_faulty(store, 1, leaking)
    with pytest.raises(CheckpointError) as caught:
        store.refill()
    assert caught.value.__cause__ is None
    with pytest.raises(PluginError) as refusal:
        Checkpoint(tmp_path, mirror="s3://key:hun/ter@bucket/run?token=t0ken")
    held = b" ".join(contents(tmp_path / "runs").values()).decode(errors="replace")
    for secret in secrets:
        for text in (told, str(caught.value), str(refusal.value), held):
            assert secret not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("s3://key:se/cr@et@bucket/run", "s3://***@bucket/run"),
        ("sftp://joe@host/run@3", "sftp://***@host/run@3"),
        ("https://host/run?sig=abc#part", "https://host/run?***"),
        ("simplecache::s3://k:s@bucket/run", "simplecache::s3://***@bucket/run"),
        ("failed for s3://k:s@b/r at 3:00@x", "failed for s3://***@b/r at 3:00@x"),
    ],
)
def test_user_password_and_query_are_replaced(url: str, shown: str):
    assert redacted(url) == shown


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", r"takes a URL such as 's3://bucket/run', got ''"),
        ("runs/mirror", r"takes a URL such as 's3://bucket/run', got 'runs/mirror'"),
        (Path("/runs"), r"takes a URL such as 's3://bucket/run', got PosixPath"),
        (3, r"takes a URL such as 's3://bucket/run', got int"),
        ("s3://", r"takes a URL such as"),
        ("memory:///", r"takes the URL of a folder without the signs"),
        ("memory://a/*", r"takes the URL of a folder without the signs"),
        ("nope://bucket/run", r"cannot be opened: ValueError: Protocol not known: nope"),
    ],
)
def test_a_url_that_names_no_folder_is_refused(tmp_path: Path, url: Any, text: str):
    with pytest.raises(PluginError, match=text):
        Checkpoint(tmp_path, mirror=url)


def test_the_directory_itself_is_no_mirror(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for name in ("runs", "runs/", "other/../runs", "link"):
        with pytest.raises(PluginError, match="is the directory of the checkpoints itself; name another"):
            Checkpoint(tmp_path / "runs", mirror=f"file://{tmp_path}/{name}")


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """fsspec, with the extra; and what that needs for a protocol."""
    with pytest.raises(PluginError, match=r"needs a package beside the extra heptad\[mirror\].*s3fs"):
        monkeypatch.setitem(sys.modules, "s3fs", None)
        Checkpoint(tmp_path, mirror="s3://bucket/run")
    monkeypatch.setattr(fsspec, "core", SimpleNamespace(), raising=False)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(PluginError, match=r"needs fsspec; install it with: pip install 'heptad\[mirror\]'"):
        Checkpoint(tmp_path, mirror="memory://bucket/run")
    Checkpoint(tmp_path)
