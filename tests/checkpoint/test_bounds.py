"""Files made to take time or memory: they are refused within bounds, which are those of what a run may store."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from crafted import bounded, drop, put, sign
from disk import stored

from heptad import CheckpointError
from heptad.checkpoints.store import Store
from heptad.checkpoints.strict_json import MOST_CONTAINERS
from heptad.run.snapshot import Snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a checkpoint."""
    return stored(tmp_path / "run", 1).entries()[0].path


def many(item: bytes, count: int) -> bytes:
    """Return `state.json` with a list of so many of one."""
    return b'{"sections":{"network":[' + b",".join([item] * count) + b"]}}"


def one(value: bytes) -> bytes:
    """Return `state.json` with one value."""
    return b'{"sections":{"network":' + value + b"}}"


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty lists": (lambda: many(b"[]", 30_000_000), "30,000,003 lists and objects"),
    "empty objects": (lambda: many(b"{}", 5_000_000), "5,000,003 lists and objects"),
    "numbers": (lambda: many(b"0", 10_000_000), "10,000,00. values"),
    "texts": (lambda: many(b'""', 10_000_000), "10,000,002 texts"),
    "nothing but brackets": (lambda: b"[" * 10_000_000, "10,000,000 lists"),
    "one character beyond ASCII": (lambda: one(b'"\\u4e00' + b"a" * 90_000_000 + b'"'), "beyond ASCII"),
    "more bytes than are written": (lambda: one(b'"' + b"a" * 270_000_000 + b'"'), "larger than was written"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_state_that_would_fill_the_memory_is_refused(path: Path, what: str):
    """In three times the memory that the file takes."""
    content, says = BOMBS[what]
    put(path, "state.json", content())
    found = bounded(lambda: Store(path.parent).load(path))
    assert re.match(rf"(Checkpoint|Damaged)Error: .*state.json.*{says}", found)


def test_commas_and_brackets_in_a_text_do_not_count(tmp_path: Path):
    """Nor those behind an escaped quotation mark; what a run may store is read."""
    text = '[{,:"' * (MOST_CONTAINERS + 1)
    store = Store(tmp_path)
    entry = store.save(Snapshot({}, {"network": text}))
    assert store.load(entry).sections == {"network": text}


def test_what_would_not_be_read_is_not_written(tmp_path: Path):
    """With advice."""
    with pytest.raises(CheckpointError, match=r"1,048,57. lists and objects, .* store long lists"):
        Store(tmp_path).save(Snapshot({}, {"network": [[] for _ in range(MOST_CONTAINERS)]}))


def test_a_file_with_holes_that_fits_into_no_memory_is_not_read(path: Path):
    """It takes nothing of the disk, and its digest is not waited for."""
    size = 1 << 40
    os.truncate(path / "network-00000.safetensors", size)
    sign(path, lambda manifest: manifest["files"]["network-00000.safetensors"].update(size=size))
    found = bounded(lambda: Store(path.parent).load(path), megabytes=100, seconds=2)
    assert found == f"CheckpointError: {path} does not fit into the memory that there is"


def test_what_takes_more_than_there_is_is_refused_in_words(path: Path):
    """Not by a MemoryError."""
    put(path, "network-00000.safetensors", bytes(200 << 20))
    found = bounded(lambda: Store(path.parent).load(path), megabytes=100)
    assert found == f"CheckpointError: {path} does not fit into the memory that there is"


def test_a_file_that_is_verified_only_is_not_held(path: Path):
    """Whoever wants weights need not have the memory for moments."""
    put(path, "optimizers-00000.safetensors", bytes(200 << 20))
    assert bounded(lambda: Store(path.parent).load(path, ["network"]), megabytes=100) == ""


def test_a_manifest_of_many_keys_is_read_in_one_pass(path: Path):
    """One that is there twice is found as fast."""
    keys = b",".join(b'"%d":1' % number for number in range(110_000))
    (path / "manifest.json").write_bytes(b"{" + keys[: (1 << 20) - 20].rpartition(b",")[0] + b',"7":1}')
    assert "the key '7' is there twice" in bounded(lambda: Store(path.parent).load(path), seconds=2)


def test_a_manifest_of_many_files_ends_at_the_first_that_is_missing(path: Path):
    """It is signed, and none of them is there."""
    facts = {"size": 0, "sha256": "0" * 64}
    sign(path, lambda manifest: manifest["files"].update({f"s{n}-00000.safetensors": facts for n in range(7000)}))
    assert "s0-00000.safetensors is missing" in bounded(lambda: Store(path.parent).load(path), seconds=2)


def test_a_file_of_too_many_tensors_is_refused(path: Path):
    """Each would take twenty times its bytes in the header."""
    row = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(row % number for number in range(300_000)) + b"}"
    put(path, "network-00000.safetensors", len(header).to_bytes(8, "little") + header)
    found = bounded(lambda: Store(path.parent).load(path), megabytes=200)
    assert "network-00000.safetensors holds 300,000 tensors, and at most 262,144 are read" in found


@pytest.mark.parametrize(
    "second",
    [b'{"tensor":"first.weight"}', b'{"strided":["first.weight",[4,1]]}', b'{"array":{"tensor":"first.weight"}}'],
)
def test_a_tensor_stands_in_one_place(path: Path, second: bytes):
    """Two places would change together; and a file of a few bytes for each would ask for any number of copies."""
    drop(path, "optimizers-00000.safetensors")
    put(path, "state.json", one(b'[{"tensor":"first.bias"},{"tensor":"first.weight"},' + second + b"]"))
    with pytest.raises(CheckpointError, match=r"network\[2\].* is not a value of this format"):
        Store(path.parent).load(path)


def test_a_tensor_that_stands_nowhere_is_refused(path: Path):
    """It was not written by a run."""
    drop(path, "optimizers-00000.safetensors")
    put(path, "state.json", one(b'{"tensor":"first.bias"}'))
    with pytest.raises(CheckpointError, match=r"holds 'first.weight', which state.json does not mention"):
        Store(path.parent).load(path)


def test_half_a_surrogate_pair_is_refused(path: Path):
    """No file of a log takes such a text: the run would fail turns later."""
    drop(path, "optimizers-00000.safetensors")
    drop(path, "network-00000.safetensors")
    for text in (b'"\\ud800"', b'["\\udfff"]', b'{"dict":{"\\ud800":1}}'):
        put(path, "state.json", one(text))
        with pytest.raises(CheckpointError, match="is not a value of this format"):
            Store(path.parent).load(path)
