"""The conformance kit: `check_plugin` drives a plugin through short runs and names what is wrong with it."""

from importlib import import_module

_HOMES = {"PluginReport": "report", "check_plugin": "check"}
"""Each public name with the module that defines it."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names are in the stub


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'heptad.testing' has no attribute '{name}'", name=name)
    value = globals()[name] = getattr(import_module(f"heptad.testing.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
