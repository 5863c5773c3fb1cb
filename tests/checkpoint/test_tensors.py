"""The writer of safetensors files, held against the library that reads them."""

from __future__ import annotations

import json
import math
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heptad import CheckpointError
from heptad.checkpoints import tensors
from heptad.checkpoints.tensors import DTYPES, parse, pieces


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
