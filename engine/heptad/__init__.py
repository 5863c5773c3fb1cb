"""Heptad: a training engine for PyTorch in which a training run is a finite state machine."""

import sys
import typing

from heptad.checkpoint.weights import load_weights
from heptad.config import Components, LossOutput, RunConfig
from heptad.engine import Engine
from heptad.errors import CheckpointError, ConfigError, DataError, EngineError, PluginError, TableError
from heptad.log import Transition, TransitionLog
from heptad.plugin import Plugin, on_enter, on_exit
from heptad.run import Run
from heptad.states import Arc, Detour, State

__all__ = [
    "Arc",
    "CheckpointError",
    "Components",
    "ConfigError",
    "DataError",
    "Detour",
    "Engine",
    "EngineError",
    "LossOutput",
    "Plugin",
    "PluginError",
    "Run",
    "RunConfig",
    "State",
    "TableError",
    "Transition",
    "TransitionLog",
    "load_weights",
    "on_enter",
    "on_exit",
]

if typing.TYPE_CHECKING:
    __version__: str
else:  # a checker that saw this function would let any name pass

    def __getattr__(name: str) -> str:
        """Returns `__version__`, read from what is installed when somebody asks for it."""
        if name != "__version__":
            raise AttributeError(f"module 'heptad' has no attribute '{name}'", name=name, obj=sys.modules[__name__])
        from heptad.log.writer import installed  # noqa: PLC0415 - at the top it would be a public name of the package

        return installed("heptad")
