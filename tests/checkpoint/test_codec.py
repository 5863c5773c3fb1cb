"""The codec: what comes back has the types and the bits of what went in, and what would not is refused by its place."""

from __future__ import annotations

import enum
import json
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from heptad import CheckpointError
from heptad.checkpoints.decoding import decode
from heptad.checkpoints.encoding import MOST_DEPTH, encode
from heptad.checkpoints.strict_json import read_json, write_json
from heptad.checkpoints.tensors import DTYPES, parse, pieces


def returned(value: Any) -> Any:
    """Return a value as it comes back from JSON and a safetensors file."""
    plain, held = encode(value, "value")
    _, content = pieces(held, "value")
    return decode(read_json(write_json(plain)), parse(b"".join(content), "value"), "value")


def bits(tensor: torch.Tensor) -> bytes:
    """Return the bits of a tensor's elements, in the order of its indices."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def alike(one: Any, other: Any) -> bool:
    """Return whether two values are the same in type, order, bits, shape and strides."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.layout is torch.sparse_coo:
            parts = [(one._indices(), other._indices()), (one._values(), other._values())]
            return (
                one.shape == other.shape
                and one.is_coalesced() == other.is_coalesced()
                and all(alike(*part) for part in parts)
            )
        strides = one.stride() == other.stride()
        return one.dtype == other.dtype and one.shape == other.shape and strides and bits(one) == bits(other)
    if isinstance(one, np.ndarray | np.generic):
        strides = one.strides == other.strides or not one.size
        return one.dtype == other.dtype and one.shape == other.shape and strides and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    if isinstance(one, dict):
        return alike(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=3)
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw a tensor of any dtype that can be stored, with any bits, dense or not, its dimensions in any order."""
    dtype, shape = draw(st.sampled_from(list(DTYPES))), draw(shapes)
    step = draw(st.sampled_from([1, 1, 2]))
    count = math.prod(shape) * step
    high = 2 if dtype is torch.bool else 256
    raw = torch.tensor([draw(st.integers(0, high - 1)) for _ in range(count * dtype.itemsize)], dtype=torch.uint8)
    tensor = raw.view(dtype)[::step].reshape(shape)
    if step == 2 and shape:
        tensor = raw.view(dtype).reshape(*shape[:-1], shape[-1] * 2)[..., ::2]
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    return tensor if draw(st.booleans()) else nn.Parameter(tensor, requires_grad=False)


arrays = st.builds(
    lambda dtype, shape, order: np.arange(math.prod(shape)).astype(dtype).reshape(shape, order=order),
    st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex64"]),
    shapes,
    st.sampled_from("CF"),
)
values = st.recursive(
    scalars | tensors() | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
    ),
    max_leaves=12,
)


def stored_form(value: Any) -> Any:
    """Return what is to come back: parameters as tensors, and what is not dense in the strides that torch gives."""
    if isinstance(value, torch.Tensor):
        plain = value.detach()
        return torch.empty_like(plain).copy_(plain)
    if isinstance(value, dict):
        return type(value)({key: stored_form(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(stored_form(item) for item in value)
    return value


@given(values)
def test_what_comes_back_is_what_went_in(value: Any):
    """Types, order of keys, bits of numbers (NaN and -0.0 too), shapes and strides."""
    assert alike(returned(value), stored_form(value))


@given(values)
def test_a_value_is_not_changed_by_being_encoded(value: Any):
    """Nor does what is encoded depend on having been encoded before."""
    assert encode(value, "value")[0] == encode(value, "value")[0]


@pytest.mark.parametrize(
    "value",
    [
        {"dict": {}},
        {"tuple": [1]},
        {"tensor": "a"},
        [{"int": "0x1"}],
        {"items": [[1, 2]]},
        {},
        {"a": {"dict": {"b": {"float": "00"}}}},
    ],
)
def test_a_dict_of_a_user_is_taken_for_nothing_else(value: Any):
    """Whatever its keys."""
    assert alike(returned(value), value)


@pytest.mark.parametrize(
    "value",
    [
        2**63 - 1,
        -(2**63),
        2**63,
        -(10**6000),
        float("inf"),
        -float("inf"),
        -0.0,
        5e-324,
        float("nan"),
        "",
        "\0 ü 𝄞 \N{LINE SEPARATOR}",
        b"\xff\0",
        torch.Size((2, 3)),
        torch.bfloat16,
        torch.device("cuda", 1),
        np.float32("nan"),
        np.uint64(2**64 - 1),
        np.bool_(True),
        np.complex128(1 - 2j),
        random.Random(0).getstate(),
        np.random.RandomState(0).get_state(),
        np.random.Generator(np.random.PCG64(0)).bit_generator.state,
        torch.Generator().get_state(),
        np.arange(6).reshape(2, 3)[::-1],
        {10**6000: torch.ones(1)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_run_is_made_of_comes_back(value: Any):
    """The moments of numbers, and the states of all generators."""
    expected = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
    assert alike(returned(value), expected)


def test_a_read_only_array_is_stored():
    """Torch warns of such an array; it is copied instead, and comes back writable."""
    array = np.arange(3)
    array.flags.writeable = False
    assert returned(array).tolist() == [0, 1, 2]


@pytest.mark.parametrize("coalesced", [False, True])
def test_sparse_tensors_come_back_as_they_are(coalesced: bool):
    """Gradients of embeddings are not coalesced, and adding them up would change their bits."""
    places, rows = torch.tensor([[2, 0, 2]]), torch.tensor([[1.0], [2.0], [3.0]])
    tensor = torch.sparse_coo_tensor(places, rows, (4, 1), check_invariants=True)
    tensor = tensor.coalesce() if coalesced else tensor
    found = returned({"grad": tensor})["grad"]
    assert alike(found, tensor)
    assert found._nnz() == (2 if coalesced else 3)


def test_the_order_in_memory_comes_back():
    """Channels last and transposed; kernels, and so bits, depend on it."""
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found = returned([image, torch.randn(3, 4).t(), torch.randn(2, 1, 4, 5).to(memory_format=torch.channels_last)])
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[0], image)
    assert [tensor.stride() for tensor in found] == [(60, 1, 15, 3), (1, 4), (20, 1, 5, 1)]


def test_a_tensor_that_is_not_dense_comes_back_dense():
    """An expanded tensor, or every other row: the elements, without the memory between them."""
    expanded, rows = torch.arange(3.0).reshape(3, 1).expand(3, 4), torch.arange(12.0).reshape(6, 2)[::2]
    found = returned([expanded, rows])
    assert torch.equal(found[0], expanded)
    assert torch.equal(found[1], rows)
    assert [tensor.untyped_storage().nbytes() for tensor in found] == [48, 24]


def test_parameters_come_back_as_tensors_that_require_nothing():
    """Conjugated and negated views come back as their values."""
    whole = torch.tensor([1 + 2j], dtype=torch.complex64)
    found = returned([nn.Parameter(torch.ones(2)), whole.conj(), whole.conj().imag])
    assert type(found[0]) is torch.Tensor
    assert not found[0].requires_grad
    assert found[1].tolist() == [1 - 2j]
    assert found[2].tolist() == [-2.0]


def test_shared_tensors_are_written_under_each_name():
    """Tied weights are readable under both names, and come back as two tensors."""
    tied = torch.ones(2)
    _, held = encode({"a": tied, "b": tied}, "value")
    assert list(held) == ["a", "b"]
    found = returned({"a": tied, "b": tied})
    assert found["a"].data_ptr() != found["b"].data_ptr()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"layer.weight": 1, "layer.bias": 1}, ["layer.weight", "layer.bias"]),
        ({"tensors": {"layer.weight": 1, "bias": 1}, "modes": {"a": True}}, ["layer.weight", "bias"]),
        ({"other": {"bias": 1}, "tensors": {"other.bias": 1, "bias": 1}}, ["other.bias#2", "other.bias", "bias"]),
        ({"tensors": {"a": {"b": 1}}}, ["tensors.a.b"]),
        ({"a": {"b": 1}, "a.b": 1, "a.b#2": 1}, ["a.b", "a.b#2", "a.b#2#2"]),
        ([{"state": {0: {"step": 1}}}], ["0.state.0.step"]),
        ({"__metadata__": 1}, ["__metadata__#2"]),
        ({"tensors": {"__metadata__": 1}}, ["tensors.__metadata__"]),
        (1, ["value"]),
    ],
    ids=str,
)
def test_tensors_are_named_by_the_path_to_them(value: Any, names: list[str]):
    """Unique, and under bare names below the key "tensors"; the numbers stand for tensors."""

    def filled(plain: Any) -> Any:
        if isinstance(plain, dict):
            return {key: filled(item) for key, item in plain.items()}
        if isinstance(plain, list):
            return list(map(filled, plain))
        return plain if isinstance(plain, bool) else torch.rand(2)

    tensors = filled(value)
    assert list(encode(tensors, "value")[1]) == names
    assert alike(returned(tensors), tensors)


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


itself: list[Any] = []
itself.append(itself)
Pair = namedtuple("Pair", "one other")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [{1, 2}]}, r"plugins\['a'\]\[0\] is a set, which a checkpoint cannot hold; a checkpoint holds None"),
        ({("x", 1): object()}, r"plugins\[\('x', 1\)\] is an object"),
        ([Pair(1, 2)], r"plugins\[0\] is a Pair"),
        ([Colour.RED], r"plugins\[0\] is a Colour"),
        ([Text("a")], r"plugins\[0\] is a Text"),
        ([defaultdict(int)], "is a defaultdict"),
        ([deque()], "is a deque"),
        ([1j], "is a complex"),
        ([torch.Generator()], "is a Generator"),
        ([lambda: 1], "is a function"),
        ([nn.Linear(1, 1)], "is a Linear"),
        ([nn.UninitializedParameter()], "is an UninitializedParameter"),
        ({Colour.RED: 1}, r"plugins has the key <Colour.RED: 1>, a Colour"),
        ({"a": {(1, torch.float32): 1}}, r"plugins\['a'\]\[.*\] has the key torch.float32, a dtype"),
        (["\ud800"], r"plugins\[0\] is the text '\\ud800', which is not valid Unicode"),
        ({"\ud800": torch.ones(1)}, r"plugins has the key '\\ud800', which is not valid Unicode"),
        ({("\ud800",): torch.ones(1)}, "not valid Unicode"),
        ([np.zeros(1, dtype="complex128")], "is an array of dtype complex128"),
        ([np.zeros(1, dtype=">f4")], "is an array of dtype >f4"),
        ([np.array(["a"])], "is an array of dtype <U1"),
        ([np.array([None])], "is an array of dtype object"),
        ([np.ma.masked_array([1])], "is a MaskedArray"),
        ([np.datetime64("2000-01-01")], "is a number of numpy's dtype datetime64"),
        ([np.longdouble(1)], "is a number of numpy's dtype"),
        ([torch.zeros(1, dtype=torch.complex128)], "the safetensors format has no dtype complex128"),
        ([torch.zeros(1, device="meta")], "it is on the meta device"),
        ([torch.ones(2, dtype=torch.complex128).to_sparse()], r"plugins\[0\]\['values'\].* complex128"),
        ({10**6000: {1}}, r"plugins\[…\] is a set"),
        (itself, "is nested deeper than 100; does it hold itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_not_come_back_is_refused_with_its_place(value: Any, text: str):
    """A subclass would come back as its base, an object not at all."""
    with pytest.raises(CheckpointError, match=text):
        encode(value, "plugins")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of both
def test_tensors_of_other_kinds_are_refused():
    """Quantized ones, and sparse ones of a layout that is not COO."""
    with pytest.raises(CheckpointError, match=r"plugins\['q'\] is a tensor .* has no dtype qint8"):
        encode({"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "plugins")
    with pytest.raises(CheckpointError, match="its layout is sparse_csc"):
        encode(torch.ones(2, 2).to_sparse(layout=torch.sparse_csc), "plugins")


def test_nesting_that_is_allowed_comes_back():
    """As deep as it may be, and no deeper."""
    value: Any = 1
    for _ in range(MOST_DEPTH):
        value = {"a": value}
    assert returned(value) == value
    with pytest.raises(CheckpointError, match="nested deeper"):
        encode([[value]], "value")
    key: Any = 1
    for _ in range(MOST_DEPTH):
        key = (key,)
    assert returned({key: torch.ones(1)}) == {key: torch.ones(1)}
    with pytest.raises(CheckpointError, match="nested deeper"):
        encode({((key,),): 1}, "value")


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"dict": {}, "tuple": []},
        {"eval": "1"},
        {"dict": []},
        {"tuple": {}},
        {"tuple": 1},
        {"size": [1, -1]},
        {"size": "12"},
        {"int": "x"},
        {"int": 1},
        {"float": "00"},
        {"float": 1.5},
        {"bytes": "?"},
        {"bytes": None},
        {"items": [[1]]},
        {"items": [[[1], 2]]},
        {"items": 3},
        {"Counter": {"a": 1}},
        {"dtype": "nn"},
        {"dtype": "no_such"},
        {"dtype": ["float32"]},
        {"device": "nowhere"},
        {"numpy": ["object", "00"]},
        {"numpy": ["float32", "00"]},
        {"numpy": ["int8", "0000"]},
        {"array": 1},
        {"tensor": "absent"},
        {"tensor": ["there"]},
        {"strided": ["there", [1]]},
        {"strided": ["there", [1, 1]]},
        {"strided": ["there", [1 << 40, 1]]},
        {"strided": ["there", [-1, 2]]},
        {"strided": ["there", [True, 2]]},
        {"sparse": [{"tensor": "there"}, {"tensor": "there"}, [1 << 40], True]},
        {"sparse": [1, 2]},
    ],
    ids=json.dumps,
)
def test_what_no_encoder_wrote_is_refused(plain: Any):
    """With its place, and before memory is asked for."""
    with pytest.raises(CheckpointError, match=r"state\[1\]"):
        decode([0, plain], {"there": torch.ones(2, 2)}, "state")


@pytest.mark.parametrize("tag", ["array", "tuple", "dict", "sparse"])
def test_nesting_that_no_encoder_wrote_is_refused(tag: str):
    """It ends in the same error, not in the interpreter's stack."""
    plain: Any = 1
    for _ in range(400):
        plain = {"array": {"array": plain}, "tuple": {"tuple": [plain]}, "dict": {"dict": {"a": plain}}}.get(
            tag, {"sparse": [plain, 1, [], True]}
        )
    with pytest.raises(CheckpointError, match="is not a value of this format"):
        decode(plain, {}, "state")
