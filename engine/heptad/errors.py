"""The exceptions of Heptad: one base, one class for each kind of mistake.

What user code raises (a network, a dataset, a handler) is never wrapped in these: it is raised again unchanged, with a
note that says where in the run it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Any, cast


class EngineError(Exception):
    """Base of all errors raised by Heptad, and the error for a call that is not legal now."""


class ConfigError(EngineError):
    """`RunConfig` or `Components` do not describe a run. The message names every mistake, one a line."""


class DataError(EngineError):
    """The data cannot give what the run needs: too few batches, no batch, or a batch of another kind."""


class PluginError(EngineError):
    """A plugin or a handler does not fit the machine. Raised when the engine is built, not in mid-run."""


class CheckpointError(EngineError):
    """A checkpoint cannot be written, or what is on disk is not a readable one. The message names file and cause."""


class TableError(EngineError):
    """A transition table is not sound. The message names the state, the arc or the guard."""


class LogError(EngineError):
    """The file of a log cannot be read or written: the message says what was found, and what to do."""


class RankFailed(EngineError):
    """Another rank of the run failed, is gone, or took another path. The message says which one, where and why."""


_OF_FSDP = "torch.distributed.fsdp"


def kind(value: object) -> str:
    """Return the name of a value's type, for messages; of a module that FSDP2 has sharded that of its own class."""
    # FSDP2 gives a module a class of its own, made of FSDPModule and the one that it had
    return next(one.__name__ for one in type(value).__mro__ if not one.__module__.startswith(_OF_FSDP))


def a_kind(value: object) -> str:
    """Return the same with its article: `a list`, `an int`, `an SGD`."""
    return with_article(kind(value))


def with_article(name: str) -> str:
    """Return the name of a class with its article."""
    first = name.lstrip("_")[:2]
    if first.isupper() or first == "nd":  # then what is heard first is the name of a letter: an SGD, a UNet
        vowel = first[0] in "AEFHILMNORSXn"
    else:
        vowel = first[:1] in tuple("AEIOaeio") or first == "Un"  # but a UserDict
    return f"{'an' if vowel else 'a'} {name}"


def counted(number: int, noun: str) -> str:
    """Return a number, with its thousands apart, and its noun: `1 batch`, `2,427 batches`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('h') else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``"; did you mean 'after_step'?"``, or all that is known where nothing is near."""
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6) or [one for one in names if one.lower() == name.lower()]
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}"


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C pressed again before the run reached a place where it may pause: raised at once."""


class Unfinished(Exception):
    """Raised by a detour's body that saw `Run.pause_requested` and ended early: no turn is made, nothing has failed.

    The run pauses in the detour's state; when it continues, the body is run again from its start. Raise it only for a
    request that came after the body began: an older one pauses the run after this turn in any case.
    """


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception that is raised again; one that takes no notes stays as it is."""
    try:
        error.add_note(f"heptad: {text}")
    except Exception:  # frozen, or with notes of its own making: what was raised counts more than what is said of it
        return


def in_a_line(error: BaseException) -> str:
    """Return an exception's class and message, for the log; the class alone if its message cannot be read."""
    try:
        message = str(error)
    except Exception:  # its own `__str__` failed, which must not hide it
        message = ""
    return f"{kind(error)}: {message}" if message else kind(error)


@lru_cache(maxsize=64)  # asked for each value that is recorded: an answer that is known costs no Python call
def is_tensor_class(cls: type) -> bool:
    """Return whether a class is torch's Tensor or derived from it, without importing torch."""
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in cls.__mro__)


DEPTH = 3
WIDTH = 4


def summarize(value: Any, depth: int = DEPTH) -> str:
    """Return a value in words, such as `a list of 2: float32 of shape (4, 8), int64 of shape (4,)`.

    Nothing is read from a device. What cannot be looked at is named by its type.
    """
    try:
        return _summary(value, depth)
    except Exception:  # a container of the user's own may raise anything, which must not hide the error at hand
        return a_kind(value)


def _summary(value: Any, depth: int) -> str:
    if is_tensor_class(cast("Any", type(value))):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}{device}"
    name = a_kind(value)
    if isinstance(value, Mapping):
        held = cast("Mapping[Any, Any]", value)
        return _container(name, len(held), (f"{key!r}: {_summary(held[key], depth - 1)}" for key in held), depth)
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        if items and not any(
            is_tensor_class(cast("Any", type(item))) or isinstance(item, Mapping | list | tuple) for item in items
        ):
            return f"{name} of {len(items)} {' or '.join(dict.fromkeys(map(kind, items)))}"
        return _container(name, len(items), (_summary(item, depth - 1) for item in items), depth)
    return name


def _container(name: str, size: int, parts: Iterable[str], depth: int) -> str:
    name = f"{name} of {size}"
    if depth <= 0 or not size:
        return name
    shown = [part for part, _ in zip(parts, range(WIDTH), strict=False)]
    return f"{name}: {', '.join(shown)}{', …' if size > WIDTH else ''}"


def diagnose(topic: str, *facts: Any) -> str:
    """Return what is likely wrong and what to do about it, in words.

    The room `diagnose` stands above all that may fail. It is loaded by name, here and only here, when something has
    failed.

    Args:
        topic: A function of `heptad.diagnose`, such as `"backward"`.
        facts: What was found.
    """
    return getattr(import_module("heptad.diagnose.topics"), topic)(*facts)
