"""The store: what it writes, in which order it keeps checkpoints, and which of them it takes."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from disk import CountedFiles, number_of, refusing, same, snapshot, stored

import heptad.checkpoints.digest
from heptad import CheckpointError
from heptad.checkpoints import Entry, Snapshot, Store, is_checkpoint


def names(directory: Path) -> list[str]:
    """Return what is in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path):
    """Summary and sections come back, in their order, with the types and the bits they had."""
    store = Store(tmp_path)
    found = store.load(store.save(snapshot(3)))
    assert list(found.sections) == ["network", "optimizers", "random"]
    assert number_of(found) == 3


def test_a_directory_is_made_with_its_parents(tmp_path: Path):
    """Nothing is made before the first save."""
    store = Store(tmp_path / "runs" / "digits")
    assert store.entries() == []
    assert names(tmp_path) == []
    assert store.save(snapshot(1)).path == tmp_path / "runs" / "digits" / "checkpoint-00000001"


def test_a_checkpoint_is_a_directory_of_these_files(tmp_path: Path):
    """One manifest, one file for what is no tensor, one for what is the rank's own, one for each section's tensors."""
    path = Store(tmp_path).save(snapshot(1)).path
    assert names(path) == [
        "manifest.json",
        "network-00000.safetensors",
        "optimizers-00000.safetensors",
        "rank-00000.json",
        "state.json",
    ]


def test_anyone_can_read_the_weights(tmp_path: Path):
    """The safetensors library alone gives them, by the names of the parameters."""
    path = Store(tmp_path).save(snapshot(2)).path
    found = safetensors.torch.load_file(path / "network-00000.safetensors")
    assert sorted(found) == ["first.bias", "first.weight"]
    assert torch.equal(found["first.weight"], snapshot(2).sections["network"]["tensors"]["first.weight"])


def test_anyone_can_read_the_manifest(tmp_path: Path):
    """It names the files with their sizes, what wrote them, and the summary, as JSON."""
    path = Store(tmp_path).save(snapshot(1)).path
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["world"]) == (2, 1)
    assert sorted(manifest["created_by"]) == ["heptad", "python", "safetensors", "torch"]
    assert manifest["summary"]["seq"] == 1
    assert {name: file["size"] for name, file in manifest["files"].items()} == {
        file.name: file.stat().st_size for file in path.iterdir() if file.name != "manifest.json"
    }


def test_numbers_grow_by_one_past_the_highest_there_is(tmp_path: Path):
    """Those that are damaged count too, so that a run that continued from an older one supersedes the newer ones."""
    store = stored(tmp_path, 2)
    (tmp_path / "checkpoint-00000007").mkdir()
    assert store.save(snapshot(3)).number == 8
    assert [entry.number for entry in store.entries()] == [1, 2, 7, 8]


def test_what_is_no_checkpoint_is_not_listed(tmp_path: Path):
    """Only names of the fixed form are."""
    store = stored(tmp_path, 1)
    for name in ("checkpoint-1", "checkpoint-00000002.old", "best", "checkpoint-0000000x"):
        (tmp_path / name).mkdir()
    assert [entry.number for entry in store.entries()] == [1]


def test_the_newest_is_taken(tmp_path: Path):
    """By number; a directory's times are nothing to go by."""
    entry, found, damage = stored(tmp_path, 3).newest_sound()
    assert (entry, number_of(found), damage) == (Entry(3, tmp_path / "checkpoint-00000003"), 3, [])


def test_with_no_checkpoint_the_error_says_so(tmp_path: Path):
    """And it distinguishes an empty directory from a missing one."""
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Store(tmp_path).newest_sound()
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        Store(tmp_path / "nowhere").newest_sound()


def test_one_checkpoint_is_loaded_by_its_path(tmp_path: Path):
    """As a str or a Path, under any name, from any directory."""
    path = Store(tmp_path / "a").save(snapshot(1)).path
    copy = path.rename(tmp_path / "kept")
    assert number_of(Store(tmp_path / "b").load(str(copy))) == 1
    assert is_checkpoint(copy)
    assert is_checkpoint(Path("checkpoint-00000001"))
    assert not is_checkpoint(tmp_path / "a")


def test_only_the_sections_that_are_asked_for_are_returned(tmp_path: Path):
    """The files of the others are verified all the same."""
    store = stored(tmp_path, 1)
    (entry,) = store.entries()
    assert list(store.load(entry, ["random", "unknown"]).sections) == ["random"]
    (entry.path / "network-00000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"network-00000.safetensors holds 0 bytes"):
        store.load(entry, ["random"])


def test_a_summary_is_read_without_the_files(tmp_path: Path):
    """Only the manifest is opened."""
    store = stored(tmp_path, 1)
    (entry,) = store.entries()
    for file in entry.path.glob("*.safetensors"):
        file.unlink()
    assert store.summary(entry) == snapshot(1).summary


def test_a_snapshot_without_tensors_has_no_tensor_files(tmp_path: Path):
    """An empty one neither."""
    store = Store(tmp_path)
    entry = store.save(Snapshot({}, {"run": {"step": 1}, "empty": {}}))
    assert names(entry.path) == ["manifest.json", "rank-00000.json", "state.json"]
    assert store.load(entry).sections == {"run": {"step": 1}, "empty": {}}
    assert store.load(store.save(Snapshot())).sections == {}


def test_large_tensors_are_hashed_beside_the_writing(tmp_path: Path):
    """Above and below the size from which on a second thread hashes, what is loaded is what was saved."""
    store = Store(tmp_path)
    large = {"tensors": {f"t{size}": torch.arange(size, dtype=torch.int32) for size in (10, 300_000, 1_000_000)}}
    found = store.load(store.save(Snapshot({}, {"network": large})))
    assert same(found.sections["network"], large)


def test_what_waits_to_be_hashed_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With room for less than one tensor writing and hashing go in step, and what is loaded is what was saved."""
    monkeypatch.setattr(heptad.checkpoints.digest, "_MOST_LAG", 1000)
    store = Store(tmp_path)
    large = {"tensors": {str(number): torch.full((300_000,), float(number)) for number in range(5)}}
    assert same(store.load(store.save(Snapshot({}, {"network": large}))).sections["network"], large)


def test_a_save_leaves_no_thread(tmp_path: Path):
    """Neither one that passes nor one that fails while a large file is being hashed."""
    before = threading.enumerate()
    large = Snapshot({}, {"network": {"tensors": {"a": torch.zeros(1_000_000)}}})
    files = CountedFiles()
    Store(tmp_path / "0", files).save(large)
    for place in range(1, len(files.calls) + 1):
        with pytest.raises(CheckpointError):
            Store(tmp_path / str(place), CountedFiles(place, refusing(errno.EIO))).save(large)
        assert threading.enumerate() == before


def test_rotation_keeps_the_newest(tmp_path: Path):
    """And says what it removed."""
    store = stored(tmp_path, 5)
    assert [entry.number for entry in store.rotate(2)] == [1, 2, 3]
    assert names(tmp_path) == [".lock", "checkpoint-00000004", "checkpoint-00000005"]
    assert store.rotate(2) == []


def test_at_least_the_newest_stays(tmp_path: Path):
    """Whatever is asked for."""
    assert [entry.number for entry in stored(tmp_path, 2).rotate(0)] == [1]


@pytest.mark.parametrize(("mode", "kept"), [("min", [1, 2, 7]), ("max", [3, 6, 7])], ids=["the lowest", "the highest"])
def test_rotation_keeps_the_best(tmp_path: Path, mode: str, kept: list[int]):
    """By the monitored value; NaN is never the best, and one without a value is neither."""
    store = Store(tmp_path)
    for value in (0.1, 0.2, 0.9, float("nan"), None, 0.9, 0.5):
        monitor = {} if value is None else {"monitor": {"name": "loss", "mode": mode, "value": value}}
        store.save(Snapshot(monitor))
    store.rotate(1, keep_best=2)
    assert [entry.number for entry in store.entries()] == kept


def test_only_what_monitors_the_same_is_compared(tmp_path: Path):
    """Where a run continued with another monitor, the values before are of another kind."""
    store = Store(tmp_path)
    for name, value in (("loss", 0.1), ("error", 5), ("error", 6.0), ("error", 7)):
        store.save(Snapshot({"monitor": {"name": name, "mode": "min", "value": value}}))
    store.rotate(1, keep_best=1)
    assert [entry.number for entry in store.entries()] == [2, 4]


def test_rotation_removes_what_was_found_damaged(tmp_path: Path):
    """It counts as none of those to keep; what nobody has looked at stays by its number."""
    store = stored(tmp_path, 3)
    (tmp_path / "checkpoint-00000003" / "state.json").write_bytes(b"")
    assert store.newest_sound()[0].number == 2
    store.save(snapshot(4))
    assert [entry.number for entry in store.rotate(2)] == [1, 3]


def test_rotation_finds_a_damaged_manifest_where_it_looks_for_the_best(tmp_path: Path):
    """Such a checkpoint is not kept for its number."""
    store = stored(tmp_path, 3)
    (tmp_path / "checkpoint-00000002" / "manifest.json").unlink()
    store.rotate(2, keep_best=1)
    assert [entry.number for entry in store.entries()] == [1, 3]


def test_nothing_is_removed_where_all_are_damaged(tmp_path: Path):
    """They may be all that is left of a run."""
    store = stored(tmp_path, 2)
    for file in tmp_path.glob("*/state.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        store.newest_sound()
    assert store.rotate(1) == []
    assert len(store.entries()) == 2


def test_files_that_somebody_put_in_are_neither_read_nor_in_the_way(tmp_path: Path):
    """They go with the checkpoint; links among them are removed, not followed."""
    store = stored(tmp_path / "run", 2)
    path = tmp_path / "run" / "checkpoint-00000001"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (path / "notes.txt").write_text("a good one")
    (path / "more").mkdir()
    (path / "more" / "plot.png").write_bytes(b"")
    (path / "link").symlink_to(tmp_path / "mine")
    assert number_of(store.load(path)) == 1
    store.rotate(1)
    assert names(tmp_path / "run") == [".lock", "checkpoint-00000002"]
    assert names(tmp_path / "mine") == ["notes.txt"]


def test_a_checkpoint_that_goes_while_it_is_read_is_no_damage(tmp_path: Path):
    """The newest is taken of those that are there then."""
    writer = stored(tmp_path, 2)

    class Overtaken(CountedFiles):
        def open(self, name: str, directory: int) -> int:
            if name == "state.json" and len(writer.entries()) == 2:
                writer.save(snapshot(3))
                writer.rotate(1)
            return super().open(name, directory)

    entry, found, damage = Store(tmp_path, Overtaken()).newest_sound()
    assert (entry.number, number_of(found), damage) == (3, 3, [])


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path):
    """With its place; the checkpoints that are there stay."""
    store = stored(tmp_path, 1)
    before = names(tmp_path)
    files = CountedFiles()
    with pytest.raises(CheckpointError, match=r"^plugins\['Mine'\]\['cache'\]\[1\] is a Path"):
        Store(tmp_path, files).save(Snapshot({}, {"plugins": {"Mine": {"cache": [1, type("Path", (), {})()]}}}))
    assert files.calls == []
    assert names(tmp_path) == before
    assert store.newest_sound()[0].number == 1


@pytest.mark.parametrize(
    ("snap", "text"),
    [
        (Snapshot({"loss": torch.ones(1)}), "the summary holds a tensor, loss"),
        (Snapshot({"loss": {1}}), r"summary\['loss'\] is a set"),
        (Snapshot({1: 2}), "a dict whose keys are str"),  # pyright: ignore[reportArgumentType]
        (Snapshot({}, {"../network": 1}), "'../network' names no section"),
        (Snapshot({}, {"Network": 1}), "'Network' names no section"),
        (Snapshot({"text": "x" * (1 << 20)}), "the summary comes to .* bytes"),
    ],
)
def test_a_summary_is_small_plain_data_and_sections_have_plain_names(tmp_path: Path, snap: Snapshot, text: str):
    """What would not be read again is not written."""
    with pytest.raises(CheckpointError, match=text):
        Store(tmp_path).save(snap)
    assert Store(tmp_path).entries() == []


def test_a_directory_that_cannot_be_used_is_an_error_with_its_cause(tmp_path: Path):
    """Here a file stands where the directory is to be."""
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match=r"run.* failed: ENOTDIR") as caught:
        Store(tmp_path / "run").save(snapshot(1))
    assert isinstance(caught.value.__cause__, OSError)
