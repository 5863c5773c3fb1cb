"""Parts of a plugin's state as a checkpoint gives them back: of another kind they would fail turns later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heptad import EngineError


def stored(state: Mapping[str, Any], key: str, *kinds: type, default: Any = None) -> Any:
    """Return a part of a state if it is of one of these kinds; True is no number.

    Args:
        state: The state.
        key: The name of the part.
        kinds: What it may be.
        default: What it is where it is missing, as in a checkpoint of an older version.

    Raises:
        EngineError: If it is something else.
    """
    value = state.get(key, default)
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise EngineError(f"the state holds {value!r:.60} for {key!r}, expected {names}")
    return value
