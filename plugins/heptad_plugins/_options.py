"""Checks of a plugin's options, where it is built. Each message says what was found and what was expected."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeVar, cast

from heptad import PluginError
from heptad.plugin import Filter


def whole_number(plugin: str, option: str, value: object, least: int = 1) -> int:
    """Return a whole number from `least` on.

    Raises:
        PluginError: For anything else; True and 1.0 are no whole numbers.
    """
    if type(value) is not int or value < least:
        raise PluginError(f"{plugin}({option}=…) must be a whole number from {least} on, got {value!r}")
    return value


def selection(plugin: str, every: object, first: object = None) -> Filter:
    """Return which numbers the options `every` and `first` select: each n-th, or the first and each n-th from there.

    Raises:
        PluginError: If one of them is not a whole number from 1 on.
    """
    start = None if first is None else whole_number(plugin, "first", first)
    return Filter(whole_number(plugin, "every", every), first=start)


def number(plugin: str, option: str, value: object, *, above: float | None = None, least: float | None = None) -> float:
    """Return a finite number that is above a bound, or at least as large as one.

    Raises:
        PluginError: For anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        enough = (above is None or value > above) and (least is None or value >= least)
        if enough:
            return float(value)
    bound = f" above {above:g}" if above is not None else f" from {least:g} on" if least is not None else ""
    raise PluginError(f"{plugin}({option}=…) must be a number{bound}, got {value!r}")


def one_of(plugin: str, option: str, value: object, choices: Collection[str]) -> str:
    """Return one of several words.

    Raises:
        PluginError: For anything else.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        words = f"{', '.join(others)} or {last}" if others else last
        raise PluginError(f"{plugin}({option}=…) must be {words}, got {value!r}")
    return value


def yes_or_no(plugin: str, option: str, value: object) -> bool:
    """Return True or False.

    Raises:
        PluginError: For anything else, 0 and 1 too.
    """
    if not isinstance(value, bool):
        raise PluginError(f"{plugin}({option}=…) must be True or False, got {value!r}")
    return value


P = TypeVar("P", bound=str)


def places_of(plugin: str, at: P | Sequence[P], choices: Collection[str]) -> tuple[P, ...]:
    """Return the option `at` as a tuple: one place, or several different ones.

    Raises:
        PluginError: For anything else.
    """
    places = cast("tuple[P, ...]", (at,) if isinstance(at, str) else tuple(at))
    for place in places:
        one_of(plugin, "at", place, choices)
    if not places or len(set(places)) != len(places):
        raise PluginError(f"{plugin}(at=…) names one or several of {', '.join(choices)}, each once; got {at!r}")
    return places


def text_of(plugin: str, option: str, value: object, what: str) -> str:
    """Return a text that is not empty.

    Raises:
        PluginError: For anything else; `what` says what it is the text of.
    """
    if not isinstance(value, str) or not value:
        raise PluginError(f"{plugin}({option}=…) must be {what}, got {value!r}")
    return value


def hparams_of(plugin: str, hparams: object) -> dict[str, bool | int | float | str]:
    """Return the option `hparams`: a number, a truth value or a text for each name; empty for `None`.

    Raises:
        PluginError: For anything else.
    """
    if hparams is None:
        return {}
    if not isinstance(hparams, Mapping):
        raise PluginError(f"{plugin}(hparams=…) must map names to values, such as {{'layers': 2}}, got {hparams!r}")
    for name, value in cast("Mapping[object, object]", hparams).items():
        if not isinstance(value, bool | int | float | str):
            raise PluginError(f"{plugin}(hparams=…): {name} must be a number, a truth value or a text, got {value!r}")
    return dict(cast("Mapping[str, bool | int | float | str]", hparams))


def text_file(plugin: str, file: TextIO | None) -> TextIO | None:
    """Return the option `file`: an open text file, or `None`.

    Raises:
        PluginError: For anything else, such as a path or a file that takes bytes.
    """
    binary = isinstance(file, io.RawIOBase | io.BufferedIOBase)
    if file is not None and (binary or not callable(getattr(file, "write", None))):
        raise PluginError(
            f"{plugin}(file=…) must be an open text file, such as sys.stdout or open('{plugin.lower()}.txt', 'w'), "
            f"got {file!r}"
        )
    return file


def path_of(plugin: str, option: str, value: object, what: str = "file") -> Path:
    """Return a path, made absolute: a program that changes its directory later still means the same place.

    Raises:
        PluginError: If it is not a path, is empty, which would be the working directory, or is no name of a file.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - of str or bytes
    if not isinstance(text, str) or not text:
        raise PluginError(f"{plugin}({option}=…) must be the path of a {what}, as a str or a Path, got {value!r}")
    try:
        named = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise PluginError(f"{plugin}({option}=…): no {what} can have the name {text!a}; name another")
    return Path(text).absolute()


def directory_of(plugin: str, option: str, value: object) -> Path:
    """Return the path of a directory, which need not exist yet, made absolute.

    Raises:
        PluginError: If it is not a path, or is the path of a file.
    """
    path = path_of(plugin, option, value, "directory")
    try:
        taken = path.exists() and not path.is_dir()
    except OSError:  # no right to look at it: whoever opens it will say so
        taken = False
    if taken:
        raise PluginError(
            f"{plugin}({option}=…): {path} is a file; name a directory, which is made where it is missing"
        )
    return path
