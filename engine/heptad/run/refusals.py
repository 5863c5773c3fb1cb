"""What a run refuses and why: names that are the engine's own, requests that nobody declares, texts that are none.

Called by `Run` and its kinds, so that the verbs themselves read as what they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from heptad.errors import EngineError


def refuse_private(name: str) -> None:
    """Raise an `AttributeError` for what a handler may look for in a run, and which is the engine's."""
    if name in ("position", "runtime", "buffer", "capture"):
        raise AttributeError(
            f"run.{name} is the engine's own: a handler reads the run's properties (state, step, update, optimizer, "
            "log) and acts through its verbs (stop, pause, skip_update, skip_batch, set_accumulation, record, note)"
        )


def refuse_undeclared(request: str, declared: Sequence[str]) -> None:
    """Refuse a request that no plugin of the run declares: the ranks would never agree on it.

    Raises:
        EngineError: Naming those that are declared, and the nearest of them.
    """
    if request in declared:
        return
    near = get_close_matches(str(request), declared, n=1)
    raise EngineError(
        f"'{request}' is no request that a plugin of this run declares{f'; did you mean {near[0]!r}?' if near else ''} "
        f"(declared: {', '.join(declared) or 'none'}). A plugin with requests = ('save',) asks by "
        "run.ask(f'{self.name}.save')"
    )


def in_words(verb: str, text: str) -> str:
    """Return the text that a verb was given.

    Raises:
        EngineError: If it is no text: the log could not hold it, and nobody could read it.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        raise EngineError(f"run.{verb}(…) takes a text, got {text!r}; values go to run.record(name, value)")
    return text
