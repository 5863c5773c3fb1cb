"""The writer of safetensors files, held against the library that reads them."""

from __future__ import annotations

import json
import math
import sys
from typing import Any, cast

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heptad import CheckpointError
from heptad.checkpoints import tensors
from heptad.checkpoints.tensors import DTYPES, header_size, parse, pieces, read_header


def content(held: dict[str, Tensor]) -> bytes:
    """Return the whole file, after checking that it has the size that `pieces` gives."""
    size, parts = pieces(held, "network")
    whole = b"".join(parts)
    assert len(whole) == size
    return whole


def bits(tensor: Tensor) -> list[int]:
    """Return the bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@st.composite
def drawn(draw: st.DrawFn) -> Tensor:
    """Draw a tensor of any dtype, with any bits."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.lists(st.integers(0, 1 if dtype is torch.bool else 255), min_size=size, max_size=size))
    return torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape)


@given(st.dictionaries(st.text().filter(lambda name: name != "__metadata__"), drawn(), max_size=6))
def test_the_library_reads_what_is_written(held: dict[str, Tensor]):
    """Names, dtypes, shapes and bits, of every dtype; 0-dim and empty tensors too."""
    found = safetensors.torch.load(content(held))
    assert found.keys() == held.keys()
    for name, tensor in held.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor)


def test_every_tensor_lies_on_a_multiple_of_its_element_size():
    """So that a file can be mapped and read in place: the largest elements come first, after a whole cache line."""
    sizes = {"a": torch.int8, "b": torch.complex64, "c": torch.int16, "d": torch.int32, "e": torch.int8}
    whole = content({name: torch.ones(3, dtype=dtype) for name, dtype in sizes.items()})
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert [header[name]["data_offsets"][0] % dtype.itemsize for name, dtype in sizes.items()] == [0] * 5
    assert list(header) == ["b", "d", "c", "a", "e"]


def test_a_large_tensor_is_not_copied():
    """What is written of it is its own memory; small ones are joined into one piece."""
    large = torch.zeros(2_000_000)
    _, parts = pieces({"large": large, "small": torch.ones(3), "one more": torch.ones(4)}, "network")
    head, own, rest = parts
    assert torch.frombuffer(own, dtype=torch.float32).data_ptr() == large.data_ptr()
    assert head.nbytes % 64 == 0
    assert rest.nbytes == 28


def test_many_small_tensors_are_few_pieces():
    """A thousand biases are not a thousand calls to the operating system."""
    _, parts = pieces({f"bias{number}": torch.ones(1000) for number in range(1000)}, "network")
    assert len(list(parts)) == 4


def test_no_tensors_are_a_file_too():
    """With an empty header."""
    assert parse(content({}), "network") == {}


def test_what_is_no_safetensors_file_is_an_error_that_names_it():
    """Cut, with a header that claims 10 GB, with tensors out of bounds, or something else altogether."""
    whole = content({"a": torch.ones(4)})
    length = int.from_bytes(whole[:8], "little")
    huge = (10 << 30).to_bytes(8, "little") + whole[8:]
    outside = whole[:8] + whole[8 : 8 + length].replace(b"[0,16]", b"[0,99]") + whole[8 + length :]
    unknown = whole[:8] + whole[8 : 8 + length].replace(b'"F32"', b'"F99"') + whole[8 + length :]
    for wrong in (b"", whole[:-1], whole + b"0", huge, outside, unknown, b"\x80\x04pickle"):
        with pytest.raises(CheckpointError, match=r"^network.safetensors is not a safetensors file: "):
            parse(wrong, "network.safetensors")


def test_a_header_that_the_library_would_not_read_is_not_written(monkeypatch: pytest.MonkeyPatch):
    """The error says what to do; the library's limit is 100 MB, here it is a thousand bytes."""
    monkeypatch.setattr(tensors, "_MOST_HEADER", 1000)
    with pytest.raises(CheckpointError, match=r"network: the names of 20 tensors come to .* join tensors"):
        pieces({f"layer{number}.weight": torch.ones(1) for number in range(20)}, "network")


def test_a_machine_with_the_other_byte_order_writes_nothing(monkeypatch: pytest.MonkeyPatch):
    """Its bytes would be read as other numbers."""
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(CheckpointError, match="this machine is big-endian"):
        pieces({}, "network")


def library_reads(whole: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Return dtype, shape and bytes by name as the library reads them, or nothing if it refuses."""
    deserialize = cast("Any", safetensors).deserialize
    try:
        return {name: (one["dtype"], one["shape"], bytes(one["data"])) for name, one in deserialize(whole)}
    except safetensors.SafetensorError:
        return None


def reads(whole: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Return the same as it is read here."""
    try:
        begin = 8 + header_size(whole[:8], len(whole), "file")
        header = read_header(whole[8:begin], len(whole) - begin, "file")
    except CheckpointError:
        return None
    return {
        name: (one.dtype, list(one.shape), whole[begin + one.start : begin + one.end]) for name, one in header.items()
    }


def file_of(header: bytes, data: bytes = b"") -> bytes:
    """Return a file with a header that may be anything."""
    return len(header).to_bytes(8, "little") + header + data


@given(st.dictionaries(st.text().filter(lambda name: name != "__metadata__"), drawn(), max_size=6))
def test_a_header_says_here_what_it_says_to_the_library(held: dict[str, Tensor]):
    whole = content(held)
    assert reads(whole) == library_reads(whole)


@given(
    st.dictionaries(st.text("ab.", max_size=3), drawn(), min_size=1, max_size=3),
    st.integers(0, 1 << 20),
    st.integers(0, 255),
)
def test_what_the_library_refuses_of_a_changed_file_is_refused_here(held: dict[str, Tensor], place: int, byte: int):
    """And what is read here is what the library reads: one byte of it is another, mostly of the header."""
    whole = bytearray(content(held))
    whole[place % min(len(whole), 8 + int.from_bytes(whole[:8], "little"))] = byte
    found = reads(bytes(whole))
    assert found is None or found == library_reads(bytes(whole))


def row(name: str, dtype: str, shape: str, start: int, end: int) -> str:
    """Return what a header says of a tensor, which may be anything."""
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


ONE = row("a", "F32", "[2]", 0, 8)
ODD = {
    "offsets that overlap": f"{{{ONE},{row('b', 'F32', '[2]', 0, 8)}}}",
    "a hole": f"{{{row('a', 'F32', '[1]', 4, 8)}}}",
    "a hole between": f"{{{row('a', 'U8', '[1]', 0, 1)},{row('b', 'U8', '[6]', 2, 8)}}}",
    "an end before the start": f"{{{row('a', 'U8', '[0]', 8, 0)}}}",
    "too few bytes": f"{{{row('a', 'F32', '[1]', 0, 8)}}}",
    "too many bytes": f"{{{row('a', 'F32', '[3]', 0, 8)}}}",
    "beyond the file": f"{{{row('a', 'F32', '[4]', 0, 16)}}}",
    "bytes left": f"{{{row('a', 'F32', '[1]', 0, 4)}}}",
    "an unknown dtype": f"{{{row('a', 'F99', '[2]', 0, 8)}}}",
    "a negative size": f"{{{row('a', 'F32', '[-2]', 0, 8)}}}",
    "a size that is no integer": f"{{{row('a', 'F32', '[2.0]', 0, 8)}}}",
    "a size that is a truth": f"{{{row('a', 'F64', '[true]', 0, 8)}}}",
    "a size that is NaN": f"{{{row('a', 'F32', '[NaN]', 0, 8)}}}",
    "a size that wraps": f"{{{row('a', 'F32', '[4611686018427387905,2]', 0, 8)}}}",
    "a line end in a name": f"{{{row(chr(10), 'F32', '[2]', 0, 8)}}}",
    "half a surrogate pair": f"{{{row(chr(92) + 'ud800', 'F32', '[2]', 0, 8)}}}",
    "three offsets": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}',
    "no shape": '{"a":{"dtype":"F32","data_offsets":[0,8]}}',
    "a field twice": '{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "not an object": '["a"]',
    "text behind": f"{{{ONE}}} x",
    "no end": f"{{{ONE}",
    "metadata that is no text": f'{{"__metadata__":{{"x":1}},{ONE}}}',
    "metadata that is a list": f'{{"__metadata__":[],{ONE}}}',
}


@pytest.mark.parametrize("what", ODD)
def test_a_header_that_the_library_refuses_is_refused(what: str):
    whole = file_of(ODD[what].encode(), bytes(8))
    assert library_reads(whole) is None
    assert reads(whole) is None


STRICTER = {
    "a name twice": f"{{{ONE},{ONE}}}",
    "a field more": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}}',
    "a tensor that is a list": '{"a":["F32",[2],[0,8]]}',
    "a blank in front": f" {{{ONE}}}",
    "a shape that no tensor has": f"{{{row('b', 'F32', '[0,9223372036854775807]', 0, 0)},{ONE}}}",
    "many dimensions": f"{{{row('a', 'F64', str([1] * 65), 0, 8)}}}",
    "a dtype that checkpoints do not hold": f"{{{row('a', 'F8_E8M0', '[8]', 0, 8)}}}",
    "characters beyond ASCII": f"{{{row('é', 'F32', '[2]', 0, 8)}}}",
}


@pytest.mark.parametrize("what", STRICTER)
def test_a_header_that_no_checkpoint_has_is_refused(what: str):
    """Though the library takes it."""
    whole = file_of(STRICTER[what].encode(), bytes(8))
    assert library_reads(whole) is not None
    assert reads(whole) is None


def test_metadata_and_blanks_are_no_tensors():
    whole = file_of(f'{{"__metadata__":{{"format":"pt"}},{ONE}}}   '.encode(), bytes(8))
    assert reads(whole) == library_reads(whole) == {"a": ("F32", [2], bytes(8))}
