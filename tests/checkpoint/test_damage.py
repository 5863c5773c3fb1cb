"""Damage: what is not, bit for bit, what was written is named and passed over, and never believed or run."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted import put, sign
from disk import CountedFiles, number_of, refusing, snapshot, stored

from heptad import CheckpointError
from heptad.checkpoints.store import Store


def newest_files(store: Store) -> dict[Path, bytes]:
    """Return the files of the newest checkpoint with their content."""
    return {path: path.read_bytes() for path in sorted(store.entries()[-1].path.iterdir())}


def one_of(files: dict[Path, bytes], place: int) -> tuple[Path, int]:
    """Return the file, and the place in it, of a place in all files one after the other."""
    for path, content in files.items():
        if place < len(content):
            return path, place
        place -= len(content)
    raise AssertionError(place)


def assert_named_and_passed_over(store: Store, path: Path) -> None:
    """The newest of two is named with the damaged file, and the one before is taken."""
    entry, found, damage = store.newest_sound()
    assert (entry.number, number_of(found)) == (1, 1)
    assert len(damage) == 1
    assert str(path) in damage[0]


def test_a_cut_file_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path):
    """At 50 places over all files, the ends of each among them."""
    store = stored(tmp_path, 2)
    files = newest_files(store)
    total = sum(map(len, files.values()))
    places = sorted({*range(0, total, total // 45), total - 1})
    assert len(places) >= 46
    cuts = [one_of(files, place) for place in places] + [(path, 0) for path in files]
    assert len(cuts) >= 50
    for path, place in cuts:
        path.write_bytes(files[path][:place])
        assert_named_and_passed_over(store, path)
        path.write_bytes(files[path])
    assert store.newest_sound()[0].number == 2


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path):
    """Each of 200, drawn over all bits of all files, and one in each file."""
    store = stored(tmp_path, 2)
    files = newest_files(store)
    drawn = random.Random(0).sample(range(8 * sum(map(len, files.values()))), 200)
    hit = set()
    places = [(*one_of(files, bit // 8), bit) for bit in drawn] + [(path, 0, 3) for path in files]
    for path, place, bit in places:
        torn = bytearray(files[path])
        torn[place] ^= 1 << bit % 8
        path.write_bytes(torn)
        assert_named_and_passed_over(store, path)
        path.write_bytes(files[path])
        hit.add(path)
    assert hit == set(files)
    assert store.newest_sound()[0].number == 2


def test_every_bit_of_a_manifest_counts(tmp_path: Path):
    """Blanks, brackets and line ends too: it has one form only."""
    store = stored(tmp_path, 2)
    path = store.entries()[-1].path / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        torn = bytearray(content)
        torn[place] ^= 1 << place % 8
        path.write_bytes(torn)
        with pytest.raises(CheckpointError, match=r"manifest.json"):
            store.summary(store.entries()[-1])


def test_a_missing_file_is_named_and_the_checkpoint_before_is_taken(tmp_path: Path):
    """Each of them, and all of them."""
    store = stored(tmp_path, 2)
    files = newest_files(store)
    for path in files:
        path.unlink()
        assert_named_and_passed_over(store, path)
        path.write_bytes(files[path])
    for path in files:
        path.unlink()
    assert_named_and_passed_over(store, store.entries()[-1].path / "manifest.json")


def test_a_longer_file_is_named(tmp_path: Path):
    """Nothing beyond what was written is read."""
    store = stored(tmp_path, 2)
    for path, content in newest_files(store).items():
        path.write_bytes(content + b" ")
        assert_named_and_passed_over(store, path)
        path.write_bytes(content)


def test_with_no_sound_checkpoint_left_the_error_says_what_was_found(tmp_path: Path):
    """All of it, the newest first, each with its file and what is wrong with that."""
    store = stored(tmp_path, 3)
    first, second, third = (entry.path for entry in store.entries())
    (first / "state.json").unlink()
    (second / "network-00000.safetensors").write_bytes(b"half")
    (third / "manifest.json").write_bytes(b"{")
    with pytest.raises(CheckpointError) as caught:
        store.newest_sound()
    head, *lines = str(caught.value).splitlines()
    assert head == f"{tmp_path} holds no sound checkpoint; what there is:"
    assert [line.split(" is ")[0].split(" holds ")[0].strip() for line in lines] == [
        str(third / "manifest.json"), str(second / "network-00000.safetensors"), str(first / "state.json"),
    ]  # fmt: skip
    assert "is not readable JSON" in lines[0]
    assert "4 bytes" in lines[1]
    assert "missing" in lines[2]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def pickles(canary: Path) -> dict[str, bytes]:
    """Return the payload as a raw pickle, and in both of torch's formats."""
    made = {"raw": pickle.dumps(Payload(canary))}
    for name, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(Payload(canary), buffer, _use_new_zipfile_serialization=zipped)
        made[name] = buffer.getvalue()
    return made


def test_the_payload_would_run(tmp_path: Path):
    """Or the tests below would show nothing."""
    for number, content in enumerate(pickles(tmp_path / "canary").values()):
        torch.load(io.BytesIO(content), weights_only=False) if number else pickle.loads(content)
        (tmp_path / "canary").unlink()


@pytest.mark.parametrize("form", ["raw", "zip", "legacy"])
@pytest.mark.parametrize("digest_fits", [False, True])
def test_a_pickle_in_place_of_a_file_is_refused_and_does_not_run(tmp_path: Path, form: str, digest_fits: bool):
    """Of any file; also where somebody has put its size and digest in the manifest."""
    canary = tmp_path / "canary"
    content = pickles(canary)[form]
    store = stored(tmp_path / "run", 2)
    for path, before in newest_files(store).items():
        manifest = path.with_name("manifest.json").read_bytes()
        path.write_bytes(content)
        if digest_fits and path.name != "manifest.json":
            put(path.parent, path.name, content)
        if digest_fits and path.name != "manifest.json":
            with pytest.raises(CheckpointError, match=f"{path.name} is (not a safetensors file|not what a checkpoint)"):
                store.newest_sound()
        else:
            assert_named_and_passed_over(store, path)
        path.write_bytes(before)
        path.with_name("manifest.json").write_bytes(manifest)
    assert not canary.exists()


FACTS = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda manifest: manifest["files"].update({"../../secret.safetensors": FACTS}), "files.*secret"),
        (lambda manifest: manifest["files"].update({"/etc/passwd": FACTS}), "files.*passwd"),
        (lambda manifest: manifest["files"].update({"..": FACTS}), r"files"),
        (lambda manifest: manifest["files"].update({"network-00000.safetensors\n": FACTS}), "files"),
        (lambda manifest: manifest["files"].update({"a.pt": FACTS}), "files.*a.pt"),
        (lambda manifest: manifest["files"].update({"stray-00000.safetensors": FACTS}), "stray-00000.* is missing"),
        (lambda manifest: manifest["files"].pop("state.json"), "it lists no state.json"),
        (lambda manifest: manifest["files"]["state.json"].update(size=-1), "size"),
        (lambda manifest: manifest["files"]["state.json"].update(size="12"), "size"),
        (lambda manifest: manifest["files"]["state.json"].update(size=1 << 60), "state.json holds .* bytes, but"),
        (lambda manifest: manifest["files"]["state.json"].update(sha256="A" * 64), "sha256"),
        (lambda manifest: manifest["files"]["state.json"].update(link="x"), "link"),
        (lambda manifest: manifest.update(files=[]), "files"),
        (lambda manifest: manifest.update(run="x" * 300), "run"),
        (lambda manifest: manifest.update(format="1"), "format"),
        (lambda manifest: manifest.update(format=True), "format"),
        (lambda manifest: manifest.update(format=0), "format"),
        (lambda manifest: manifest.pop("summary"), "summary"),
        (lambda manifest: manifest["summary"].update(seq={"eval": "1"}), r"summary\['seq'\] is not a value of this"),
        (lambda manifest: manifest["summary"].update(seq={"tensor": "first.bias"}), r"summary\['seq'\]"),
    ],
)
def test_a_manifest_that_nobody_wrote_is_refused(tmp_path: Path, change: Callable[[Any], object], text: str):
    """Though its digest is right: no name leads out of the directory, and nothing is converted."""
    (tmp_path / "secret.safetensors").write_bytes(b"")
    path = stored(tmp_path / "run", 1).entries()[0].path
    sign(path, change)
    with pytest.raises(CheckpointError, match=text):
        Store(tmp_path / "run").load(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not readable JSON"),
        (b"[]\n", "is not a JSON object"),
        (b"\xff", "is not readable JSON"),
        (b'{"format": 1, "format": 1}', "the key 'format' is there twice"),
        (b'{"format": NaN}', "NaN is not a number of JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b'{"format": ' + b"1" * 5000 + b"}", "is not readable JSON"),
        (b" " * ((1 << 25) + 1), "larger than was written: 33,554,433 bytes, where at most 33,554,432"),
    ],
    ids=["empty", "list", "bytes", "twice", "NaN", "deep", "long number", "long file"],
)
def test_an_invalid_manifest_is_refused(tmp_path: Path, content: bytes, text: str):
    """Whatever it is instead, it is an error of one kind."""
    path = stored(tmp_path, 1).entries()[0].path
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        Store(tmp_path).load(path)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("state.json", b'{"sections":{"network":{"dict":{"a":1,"a":2}}}}', "the key 'a' is there twice"),
        ("state.json", b'{"sections":' + b'{"a":' * 50_000, "state.json is not what"),
        ("state.json", b'{"sections":{"../x":1}}', "state.json is not what"),
        ("state.json", b'{"sections":{}}', "network-00000.safetensors belongs to no section"),
        ("state.json", b'{"sections":{"network":1,"optimizers":{"eval":"1"}}}', r"optimizers is not a value of this"),
        (
            "network-00000.safetensors",
            (10 << 30).to_bytes(8, "little") + b"{}",
            "network-00000.safetensors is not a safetensors file",
        ),
        ("network-00000.safetensors", b"", "network-00000.safetensors is not a safetensors file"),
    ],
)
def test_files_that_nobody_wrote_are_refused(tmp_path: Path, name: str, content: bytes, text: str):
    """Though size and digest are right: a header that claims 10 GB, keys that stand twice, endless nesting."""
    path = stored(tmp_path, 1).entries()[0].path
    put(path, name, content)
    with pytest.raises(CheckpointError, match=text):
        Store(tmp_path).load(path)


def test_a_checkpoint_of_a_later_version_is_refused_and_not_passed_over(tmp_path: Path):
    """Falling back to an older one would lose what the later version trained; and it is no damage to be removed."""
    store = stored(tmp_path, 2)
    sign(store.entries()[1].path, lambda manifest: manifest.update(format=3, new_field=1))
    for ask in (store.newest_sound, store.best_sound, lambda: store.load(store.entries()[1])):
        with pytest.raises(CheckpointError, match=r"manifest.json is of format 3, .* reads formats up to 2: install"):
            ask()
    store.save(snapshot(3))
    store.rotate(2)
    assert [entry.number for entry in store.entries()] == [2, 3]


def test_links_are_not_followed(tmp_path: Path):
    """Though what they lead to is right: neither in place of a file nor of the directory."""
    store = stored(tmp_path / "run", 2)
    for path, content in newest_files(store).items():
        moved = path.rename(tmp_path / "moved")
        path.symlink_to(moved)
        assert_named_and_passed_over(store, path)
        path.unlink()
        path.write_bytes(content)
    entry = store.entries()[1].path
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert_named_and_passed_over(store, entry)
    assert "is a link" in store.newest_sound()[2][0]


def test_what_is_no_regular_file_is_refused(tmp_path: Path):
    """A directory; a pipe, at which opening would wait for ever; a device, of which there is no end."""
    store = stored(tmp_path, 2)
    path = store.entries()[1].path / "state.json"
    for make in (Path.mkdir, os.mkfifo):
        path.unlink()
        make(path)
        assert_named_and_passed_over(store, path)
        if path.is_dir():
            path.rmdir()
            path.touch()


def test_a_medium_that_cannot_be_read_is_damage(tmp_path: Path):
    """The one before is taken."""
    stored(tmp_path, 2)
    files = CountedFiles(strike=refusing(errno.EIO))
    files.place = 1 + _first(tmp_path, "read")
    entry, found, damage = Store(tmp_path, files).newest_sound()
    assert (entry.number, number_of(found)) == (1, 1)
    assert "cannot be read: the medium is damaged" in damage[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("operation", ["names", "open_directory", "open", "read"])
def test_what_may_not_be_read_is_no_damage(tmp_path: Path, operation: str, number: int):
    """It is an error, for the checkpoint may well be sound; taking an older one would lose work."""
    stored(tmp_path, 2)
    files = CountedFiles(1 + _first(tmp_path, operation), refusing(number))
    store = Store(tmp_path, files)
    with pytest.raises(CheckpointError, match=f"failed: {errno.errorcode[number]}") as caught:
        store.newest_sound()
    assert isinstance(caught.value.__cause__, OSError)
    assert str(tmp_path) in str(caught.value)


def _first(directory: Path, operation: str) -> int:
    """Return how many operations come before the first of a kind, in loading the newest checkpoint."""
    files = CountedFiles()
    Store(directory, files).newest_sound()
    return [call[0] for call in files.calls].index(operation)
