"""Checkpoints: the store that plugins write to, and loading weights. Capture and restore are the engine's.

A name is loaded when it is first asked for; `__init__.pyi` gives type checkers the same names.
"""

from importlib import import_module

_HOMES = {
    "Entry": "checkpoints.entry",
    "Files": "checkpoints.files",
    "Snapshot": "run.snapshot",
    "Store": "checkpoints.store",
    "is_checkpoint": "checkpoints.layout",
    "load_weights": "checkpoints.weights",
}
"""Each public name with the module that defines it."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names are in the stub


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'heptad.checkpoints' has no attribute '{name}'", name=name)
    value = globals()[name] = getattr(import_module(f"heptad.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
