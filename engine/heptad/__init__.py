"""Heptad: a training engine for PyTorch in which a training run is a finite state machine.

A public name is loaded when it is first asked for, so that reading a log at a terminal need not load torch.
`__init__.pyi` gives type checkers the same names.
"""

from importlib import import_module

_HOMES = {
    "Arc": "table",
    "CheckpointError": "errors",
    "Components": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "Detour": "plugin.detour",
    "Engine": "engine",
    "EngineError": "errors",
    "LogError": "errors",
    "LossOutput": "config",
    "Plugin": "plugin.contract",
    "PluginError": "errors",
    "RankFailed": "errors",
    "RateSearch": "smoke.rate_search",
    "Run": "run.run",
    "RunConfig": "config",
    "State": "table",
    "TableError": "errors",
    "Transition": "history.transition",
    "TransitionLog": "history.query",
    "find_learning_rate": "smoke.rates",
    "load_weights": "checkpoints.weights",
    "on_enter": "plugin.marks",
    "on_exit": "plugin.marks",
}
"""Each public name with the module that defines it."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names are in the stub


def __getattr__(name: str) -> object:
    """Load a public name, or read `__version__` from what is installed."""
    if name == "__version__":
        return import_module("heptad.history.journal.versions").installed("heptad")
    if name not in _HOMES:
        raise AttributeError(f"module 'heptad' has no attribute '{name}'", name=name, obj=import_module("heptad"))
    value = globals()[name] = getattr(import_module(f"heptad.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
