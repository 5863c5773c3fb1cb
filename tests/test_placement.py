"""Placement: objects of fields, such as a dataclass, are moved field by field."""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque
from collections.abc import Iterator, MutableMapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pydantic
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

from heptad import DataError
from heptad.data.placement import Placement, count_samples, place


@dataclass
class Plain:
    data: torch.Tensor
    names: list[str]
    late: torch.Tensor = field(init=False)

    @cached_property
    def mask(self) -> torch.Tensor:
        return self.data > 0


@dataclass(frozen=True)
class Frozen:
    data: torch.Tensor
    nested: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    data: torch.Tensor
    label: str = "a"


@dataclass
class Checked:
    data: torch.Tensor
    extra: InitVar[int]

    def __post_init__(self, extra: int) -> None:
        assert extra == 1


@dataclass
class Moves:
    data: torch.Tensor

    def to(self, device: torch.device) -> str:
        return f"moved to {device}"


class Attrs:
    """What `attrs.frozen` makes: slots, a list of its attributes, and methods by which it is copied."""

    __slots__ = ("data",)
    __attrs_attrs__ = (SimpleNamespace(name="data"),)

    def __init__(self, data: torch.Tensor) -> None:
        object.__setattr__(self, "data", data)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("frozen")

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "data", state["data"])


class Model(pydantic.BaseModel):
    model_config = {"arbitrary_types_allowed": True, "frozen": True}
    data: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda t: Plain(t, ["a"]),
        Frozen,
        Slotted,
        lambda t: Checked(t, 1),
        Attrs,
        lambda t: Model(data=t),
    ],
    ids=["plain", "frozen", "slots", "init var", "attrs", "pydantic"],
)
def test_the_fields_of_an_object_are_placed_in_a_copy(make: Any):
    """Of its own class; the one that the loader yields stays as it is."""
    batch = make(torch.ones(3, 2))
    placed = place(batch, torch.device("meta"))
    assert type(placed) is type(batch)
    assert (placed.data.device.type, batch.data.device.type) == ("meta", "cpu")
    assert count_samples(batch) == 3


def test_objects_of_fields_are_placed_at_any_depth():
    """In containers, and containers and objects in them; what was computed from a field goes with it."""
    plain = Plain(torch.ones(2), ["a"])
    assert plain.mask.all()
    batch = {"one": [Frozen(torch.ones(5), nested=(Slotted(torch.ones(2)), {"x": plain}))]}
    placed = place(batch, torch.device("meta"))
    frozen = placed["one"][0]
    inner = frozen.nested[1]["x"]
    held = [frozen.data, frozen.nested[0].data, inner.data, inner.mask]
    assert {tensor.device.type for tensor in held} == {"meta"}
    assert (frozen.nested[0].label, inner.names) == ("a", ["a"])
    assert not hasattr(inner, "late")
    assert plain.mask.device.type == "cpu"
    assert count_samples(batch) == 5


def test_an_object_that_moves_itself_is_asked_to():
    """And a class is no object."""
    assert place(Moves(torch.ones(1)), torch.device("meta")) == "moved to meta"
    assert place(Plain, torch.device("meta")) is Plain


# -- any nesting, and what cannot be moved

META = torch.device("meta")


class Pair(NamedTuple):
    data: Any
    target: Any


class Registered:
    """A class that is no container, taken apart by torch's pytree."""

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name


pytree.register_pytree_node(
    Registered, lambda one: ([one.data], one.name), lambda parts, name: Registered(*parts, name)
)


class Encoding(UserDict):
    """As that of Hugging Face: its `to` changes it, and moves no lists."""

    def to(self, device: Any, *, non_blocking: bool = False) -> Encoding:
        raise AssertionError("its values are moved one by one, in a copy")


class Dictionary(MutableMapping):
    """As a TensorDict: it knows by itself how to move what is in it."""

    def __init__(self, held: dict[str, torch.Tensor]) -> None:
        self.held = held

    def to(self, device: Any, non_blocking: bool = False) -> Dictionary:
        assert non_blocking
        return Dictionary({name: one.to(device) for name, one in self.held.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.held[name]

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        raise AssertionError("it moves itself")

    def __delitem__(self, name: str) -> None:
        del self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


@pytest.mark.parametrize(("make", "read"), [
    (lambda t: Pair(t, {"y": (t,)}), lambda b: (b.data, b.target["y"][0])),
    (lambda t: deque([t, "a"], maxlen=3), lambda b: (b[0],)),
    (lambda t: {t}, tuple),
    (lambda t: frozenset([t]), tuple),
    (lambda t: SimpleNamespace(data=t, more=[t]), lambda b: (b.data, b.more[0])),
    (lambda t: Registered([t], "a"), lambda b: (b.data[0],)),
    (lambda t: MappingProxyType({"x": t}), lambda b: (b["x"],)),
    (lambda t: OrderedDict(x=t), lambda b: (b["x"],)),
    (lambda t: Encoding(x=t, more=[t]), lambda b: (b["x"], b["more"][0])),
    (lambda t: Dictionary({"x": t}), lambda b: (b["x"],)),
    (lambda t: pack_sequence([t, t[:1]]), lambda b: (b.data,)),
    (lambda t: t.to_sparse(), lambda b: (b,)),
], ids=[
    "named tuple", "deque", "set", "frozen set", "namespace", "registered", "proxy", "ordered", "encoding",
    "dictionary", "packed", "sparse",
])  # fmt: skip
def test_a_batch_of_any_nesting_is_placed(make: Any, read: Any):
    """In a copy of its own kind."""
    batch = make(torch.ones(3))
    placed = place(batch, META)
    assert type(placed) is type(batch)
    assert {tensor.device.type for tensor in read(placed)} == {"meta"}
    assert {tensor.device.type for tensor in read(batch)} == {"cpu"}


def test_what_hugging_face_gives_is_placed():
    """Tokens, and the named outputs of a model."""
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": torch.ones(2, 3), "kept": [torch.ones(2)], "name": "a"})
    outputs = pytest.importorskip("transformers.modeling_outputs").SequenceClassifierOutput(logits=torch.ones(2, 3))
    tokens, output = place((encoding, outputs), META)
    assert (type(tokens), type(output)) == (type(encoding), type(outputs))
    assert {tokens["input_ids"].device, tokens["kept"][0].device, output.logits.device, output[0].device} == {META}
    assert (encoding["input_ids"].device.type, outputs.logits.device.type) == ("cpu", "cpu")
    assert tokens["name"] == "a"


@pytest.mark.parametrize("value", ["a", b"a", 1, 0.5, True, None, 1j, np.ones(2), Path("a"), slice(2), range(3), len])
def test_what_holds_no_tensors_stays_as_it_is(value: Any):
    assert place({"x": [value]}, META)["x"][0] is value or isinstance(value, range)


class Odd:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class Stuck:
    def to(self, device: torch.device) -> Any:
        raise RuntimeError("no such device")


@pytest.mark.parametrize(
    "held", [{"data": torch.ones(2)}, {"data": [torch.ones(2)]}, {"data": {"x": torch.ones(2)}}], ids=str
)
def test_an_object_whose_tensors_would_stay_is_named(held: dict[str, Any]):
    """Where it lies, and what would help."""
    says = (
        r"batch\['graphs'\]\[1\] \(an Odd\) cannot be moved to meta: it holds tensors \(data\), .* method to\(device\)"
    )
    with pytest.raises(DataError, match=says):
        place({"graphs": [1, Odd(**held)]}, META)
    assert place([Odd(name="a")], META)[0].name == "a"


def test_a_part_that_fails_to_move_is_named_and_its_error_kept():
    """So that one which is about memory is still known as that."""
    with pytest.raises(RuntimeError, match="no such device") as caught:
        place(Pair({"x": torch.ones(2)}, [Stuck()]), META)
    assert caught.value.__notes__ == ["heptad: while batch[1][0] (a Stuck) was moved to meta"]


def test_an_object_is_asked_not_to_wait_if_it_can():
    """One that takes only a device is given that."""
    asked: list[dict[str, Any]] = []

    class Any_:
        def to(self, device: Any, **options: Any) -> Any_:
            asked.append(options)
            return self

    place(Any_(), META)
    assert asked == [{"non_blocking": True}]
    assert place(Moves(torch.ones(1)), META) == "moved to meta"
    assert place(Moves, META) is Moves


def test_what_need_not_be_moved_is_left_alone():
    """An object that hides its tensors, where they are on the device already."""
    hidden = SimpleHolder(torch.ones(2))
    assert Placement(torch.device("cpu"))([hidden])[0] is hidden


class SimpleHolder:
    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
