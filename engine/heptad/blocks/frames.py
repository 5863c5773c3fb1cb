"""Functions whose code torch compiles: it keeps what it has compiled by the code of a function, at most 8 for each."""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

_CODES: WeakKeyDictionary[type, dict[CodeType, CodeType]] = WeakKeyDictionary()


def give_own_code(function: Any, cls: type) -> None:
    """Give a function code that it shares only with those of the same class of modules.

    So blocks of one class share what was compiled, and those of another do not use up their limit.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__
    codes = _CODES.setdefault(cls, {})
    if code not in codes:
        codes[code] = code.replace()  # another object, by which torch tells codes apart
    function.__code__ = codes[code]
