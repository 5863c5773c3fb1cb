"""Values of a stored state, looked at before a plugin takes any of them: a checkpoint may come from a stranger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

MOST = 1 << 62
"""No count is larger."""


def mapping(state: object, what: str = "the state") -> Mapping[str, Any]:
    """Return a state that is a dict.

    Raises:
        ValueError: If it is something else; so do the functions below.
    """
    if not isinstance(state, Mapping):
        raise _wrong(what, state, "a dict")
    return cast("Mapping[str, Any]", state)


def count_in(state: Mapping[str, Any], name: str, *default: int | None) -> Any:
    """Return a count, from 0 on; the default, if there is one, may stand in its place."""
    value = _value(state, name, default)
    if value in default if value is None else type(value) is int and 0 <= value <= MOST:
        return value
    raise _wrong(name, value, "a number from 0 on")


def real_in(state: Mapping[str, Any], name: str, *default: float | None) -> Any:
    """Return a number; the default, if there is one, may stand in its place."""
    value = _value(state, name, default)
    if value in default if value is None else _is_real(value):
        return value
    raise _wrong(name, value, "a number")


def flag_in(state: Mapping[str, Any], name: str, *default: bool) -> bool:
    """Return a bool."""
    value = _value(state, name, default)
    if type(value) is not bool:
        raise _wrong(name, value, "True or False")
    return value


def scalars_in(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return numbers by name, or tensors of one number."""
    found = mapping(_value(state, name, ()), name)
    for key, value in cast("Mapping[Any, Any]", found).items():
        one = isinstance(value, Tensor) and value.numel() == 1 and not value.is_sparse
        if not isinstance(key, str) or not (one or _is_real(value)):
            raise _wrong(f"{name}[{key!r:.40}]", value, "a number")
    return dict(found)


def refuse_other_form(stored: object, fresh: object, where: str = "") -> None:
    """Compare the state of a schedule with that of one which was just built: names, kinds of values, lengths.

    At the top, and in schedules within a schedule, names may be missing: other versions of torch have fewer.

    Raises:
        ValueError: With the first place at which they differ.
    """
    match fresh:
        case Counter():
            _refuse_other_counts(mapping(stored, where), where)
        case dict():
            _refuse_other_names(mapping(stored, where or "the schedule"), cast("dict[Any, Any]", fresh), where)
        case list() | tuple():
            _refuse_other_rows(stored, cast("Sequence[Any]", fresh), where)
        case bool() | str():
            # what stands deep within names an attribute of the schedule, which there may be none of
            if type(stored) is not type(cast("object", fresh)) or ("[" in where and stored != fresh):
                raise _wrong(where, stored, f"something like {fresh!r}")
        case int() | float() | Tensor():
            if not _is_real(stored) and not _is_scalar(stored):
                raise _wrong(where, stored, "a number")
        case _:
            pass


def _refuse_other_names(stored: Mapping[str, Any], fresh: Mapping[Any, Any], where: str) -> None:
    for key, value in fresh.items():
        if key in stored:
            refuse_other_form(stored[key], value, f"{where}.{key}" if where else str(key))
        elif where and "_schedulers" not in where:
            raise ValueError(f"{where}.{key} is missing")


def _refuse_other_counts(stored: Mapping[Any, Any], where: str) -> None:
    for key, value in stored.items():
        if type(key) is not int or type(value) is not int:
            raise _wrong(f"{where}[{key!r:.40}]", value, "a count of steps")


def _refuse_other_rows(stored: object, fresh: Sequence[Any], where: str) -> None:
    rows = cast("Sequence[Any]", stored) if isinstance(stored, list | tuple) else ()
    if len(rows) < len(fresh):
        raise _wrong(where, cast("object", stored), f"{len(fresh)} values")
    for number, (row, value) in enumerate(zip(rows, fresh, strict=False)):
        refuse_other_form(row, value, f"{where}[{number}]")


def _value(state: Mapping[str, Any], name: str, default: tuple[Any, ...]) -> Any:
    if name in state:
        return state[name]
    if default:
        return default[0]
    raise ValueError(f"{name} is missing")


def _is_real(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() <= 64
    return isinstance(value, float)


def _is_scalar(value: object) -> bool:
    """Return whether a tensor is one number of a kind that torch compares and adds."""
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_sparse:
        return False
    return value.is_floating_point() or value.dtype in (torch.int64, torch.int32)


def _wrong(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{name} is {_value_text(value)}, expected {expected}")


def _value_text(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except Exception:  # an integer of too many digits, or an object of the user's
        return f"a {type(value).__name__}"
