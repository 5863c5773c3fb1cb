"""Placement: objects of fields, such as a dataclass, are moved field by field."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
import torch

from heptad.data.placement import count_samples, place


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
