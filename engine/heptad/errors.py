"""The exceptions of Heptad: one base, one class for each kind of mistake.

What user code raises (a network, a dataset, a handler) is never wrapped in these: it is raised again unchanged, with a
note that says where in the run it came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EngineError(Exception):
    """Base of all errors raised by Heptad, and the error for a call that is not legal now."""


class ConfigError(EngineError):
    """`RunConfig` or `Components` do not describe a run. The message names every mistake, one a line."""


class DataError(EngineError):
    """The data cannot give what the run needs: too few batches, none at all, or other than was announced."""


class PluginError(EngineError):
    """A plugin or a handler does not fit the machine. Raised when the engine is built, not in mid-run."""


class CheckpointError(EngineError):
    """A checkpoint cannot be written, or what is on disk is none that can be read. The message names file and cause."""


class TableError(EngineError):
    """A transition table is not sound: the message names the state, the arc or the guard."""


class LogError(EngineError):
    """The file of a log cannot be read or written: the message says what was found, and what to do."""


def kind(value: object) -> str:
    """Returns the name of a value's type, for messages."""
    return type(value).__name__


def a_kind(value: object) -> str:
    """Returns the same with its article: `a list`, `an int`, `an SGD`."""
    name = kind(value)
    first = name.lstrip("_")[:2]
    if first.isupper() or first == "nd":  # then what is heard first is the name of a letter: an SGD, a UNet
        vowel = first[0] in "AEFHILMNORSXn"
    else:
        vowel = first[:1] in tuple("AEIOaeio") or first == "Un"  # but a UserDict
    return f"{'an' if vowel else 'a'} {name}"


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: `1 batch`, `2 batches`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('h') else 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as ``"; did you mean 'after_step'?"``, or all that is known where nothing is near."""
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(names)}"


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C pressed again while the run was still on its way to a place where it parks: raised at once."""


class Unfinished(Exception):
    """Raised by a detour's body that saw `Run.interrupted` and ended early: no turn is made and nothing has failed.

    The run parks in the detour's state; when it goes on, the body is run again from its start. Raise it only for an
    interrupt that came after the body began: one that is older parks the run after this turn in any case.
    """


def add_note(error: BaseException, text: str) -> None:
    """Adds a note to an exception that is raised again; one that takes none is raised as it is."""
    try:
        error.add_note(f"heptad: {text}")
    except Exception:  # frozen, or with notes of its own making: what was raised counts more than what is said of it
        return


def in_a_line(error: BaseException) -> str:
    """Returns an exception's class and message, for the log; the class alone where the message cannot be told."""
    try:
        message = str(error)
    except Exception:  # its own `__str__` failed, which must not hide it
        message = ""
    return f"{kind(error)}: {message}" if message else kind(error)
