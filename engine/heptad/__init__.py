"""Heptad: a training engine for PyTorch in which a training run is a finite state machine."""

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
