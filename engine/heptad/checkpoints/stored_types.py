"""What the fields of a checkpoint may hold: numbers that fit, plain data, scalars, columns.

The digests of a file from a stranger may be right, so no field is used before its value has been looked at. A check
here raises a ValueError and nothing else.
"""

from __future__ import annotations

import math
import reprlib
from typing import Annotated, Any, cast

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from heptad.errors import a_kind
from heptad.record.event_codec import from_plain

MOST = 1 << 62
"""No counter of a run, and no number of a transition, is larger: what follows must fit into 64 bits too."""

_MOST_BITS = 128
"""Bits of an integer in plain data: more digits than these could not even be shown in a message."""

Count = Annotated[int, Field(ge=0, le=MOST)]
Size = Annotated[int, Field(ge=1, le=MOST)]
Key = Annotated[list[int], Field(min_length=3, max_length=3)]


def shown(value: Any) -> str:
    """Return a value for a message: of any length and of any kind, it takes a line at most."""
    try:
        return reprlib.repr(value) if not isinstance(value, Tensor) else _tensor_text(value)
    except Exception:  # an integer of too many digits
        return a_kind(value)


def _tensor_text(tensor: Tensor) -> str:
    return f"a tensor, {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_plain(value: Any) -> Any:
    """Check that a value is compared with `==` without surprise: no tensor, no array, no number without end."""
    match value:
        case None | bool() | float() | str() | bytes() | torch.dtype() | torch.device():
            pass
        case int():
            if value.bit_length() > _MOST_BITS:
                raise ValueError("an integer is too large")
        case list() | tuple():
            for part in cast("list[Any]", value):
                _check_plain(part)
        case dict():
            for name, part in cast("dict[Any, Any]", value).items():
                _check_plain(name)
                _check_plain(part)
        case _:
            raise ValueError(f"plain data are expected, not {a_kind(value)}")
    return cast("Any", value)


Plain = Annotated[Any, AfterValidator(_check_plain)]
"""Plain data: what Python compares as a whole."""


def _check_truth(value: Any) -> Any:
    """Check that it can be asked whether a state is empty."""
    try:
        bool(value)
    except Exception as error:
        raise ValueError(f"{a_kind(value)} is no state") from error
    return value


State = Annotated[Any, AfterValidator(_check_truth)]
"""What a `state_dict` returned."""


def _check_scalar(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.numel() != 1 or not tensor.is_floating_point():
        raise ValueError("a tensor of one floating-point number is expected")
    return tensor


Scalar = Annotated[Tensor, AfterValidator(_check_scalar)]
"""A loss."""


def _check_number(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _check_scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or _is_too_large(value):
        raise ValueError("a number, or a tensor of one, is expected")
    return value


def _is_too_large(value: float) -> bool:
    return isinstance(value, int) and value.bit_length() > 64


Number = Annotated[Any, AfterValidator(_check_number)]
"""A number on the host, or a scalar on a device."""


def _check_weight(value: Any) -> Any:
    if value is not None and not isinstance(_check_number(value), Tensor) and not 0 <= value < math.inf:
        raise ValueError("a weight is a number from 0 on")
    return value


Weighed = Annotated[Any, AfterValidator(_check_weight)]
"""What a step weighs, or a sum of that; `None` where steps have no weight."""


def _check_losses(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, list):
        raise ValueError("a list of losses is expected")
    for pair in cast("list[Any]", value):
        match pair:
            case (Tensor() as loss, weight):
                _check_scalar(loss)
                if weight is None or _check_weight(weight) is None:
                    raise ValueError("the weight of a loss is a number")
            case _:
                raise ValueError("a loss and its weight are expected")
    return cast("list[Any]", value)


Losses = Annotated[Any, AfterValidator(_check_losses)]
"""What a mean loss is taken over."""


def _check_filter(row: list[Any]) -> list[Any]:
    *marked, count, done = row
    kinds = [str, str, str, int, bool, int][: len(marked)]
    if [*map(type, marked)] != kinds or type(count) is not int or not 0 <= count <= MOST or type(done) is not bool:
        raise ValueError("a filter is named by three texts, its numbers and a bool, and has a count and a bool")
    return row


FilterRow = Annotated[list[Any], Field(min_length=7, max_length=8), AfterValidator(_check_filter)]
"""How far a filter has counted."""


def _check_row_of_format_1(row: list[Any]) -> list[Any]:
    """Check a row that stands for an event: its transition, kind, words and time."""
    if list(map(type, row)) != [int, str, str, int] or not all(0 <= number <= MOST for number in (row[0], row[3])):
        raise ValueError("an event of format 1 has a number, two texts and a number")
    return row


RowOfFormat1 = Annotated[list[Any], AfterValidator(_check_row_of_format_1)]


def _check_event(row: dict[str, Any]) -> dict[str, Any]:
    """Check the plain data of an event."""
    try:
        _check_plain(row)
        event = from_plain(row)
        numbers = (event.seq, event.time_ns)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"this is no event: {error}") from error
    if not all(type(number) is int and 0 <= number <= MOST for number in numbers):
        raise ValueError("the numbers of an event are out of range")
    return row


EventRow = Annotated[dict[str, Any], AfterValidator(_check_event)]


def _check_arc(row: list[str | None]) -> list[str | None]:
    if None in row[:2]:
        raise ValueError("an arc leads from a state to a state")
    return row


ArcRow = Annotated[list[str | None], Field(min_length=3, max_length=3), AfterValidator(_check_arc)]


def check_column(tensor: Tensor, dtype: torch.dtype, what: str) -> None:
    """Check that a tensor is a column of recorded values.

    Raises:
        ValueError: If it has another dtype or shape.
    """
    if tensor.layout is not torch.strided or tensor.dtype is not dtype or tensor.dim() != 1:
        raise ValueError(f"the column of {what} is {_tensor_text(tensor)}, expected one dimension of {dtype}")


def _check_random(states: dict[str, Any]) -> dict[str, Any]:
    """Check the states of accelerators, which are not tried out: each is a list of bytes."""
    for kind, each in states.items():
        if kind in ("torch", "python", "numpy"):
            continue
        rows = cast("list[Any]", each) if isinstance(each, list) else [each]
        for row in rows:
            if not isinstance(row, Tensor) or row.dtype is not torch.uint8 or row.dim() != 1:
                raise ValueError(f"the states of {kind} generators are tensors of bytes")
        if not isinstance(each, list):
            raise ValueError(f"the states of {kind} generators are a list")
    return states


RandomStates = Annotated[dict[str, Any], AfterValidator(_check_random)]
