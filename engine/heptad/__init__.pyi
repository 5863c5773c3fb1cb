from heptad.checkpoints.weights import load_weights as load_weights
from heptad.config import Components as Components
from heptad.config import LossOutput as LossOutput
from heptad.config import RunConfig as RunConfig
from heptad.engine import Engine as Engine
from heptad.errors import CheckpointError as CheckpointError
from heptad.errors import ConfigError as ConfigError
from heptad.errors import DataError as DataError
from heptad.errors import EngineError as EngineError
from heptad.errors import LogError as LogError
from heptad.errors import PluginError as PluginError
from heptad.errors import RankFailed as RankFailed
from heptad.errors import TableError as TableError
from heptad.history.query import TransitionLog as TransitionLog
from heptad.history.transition import Transition as Transition
from heptad.plugin.contract import Plugin as Plugin
from heptad.plugin.detour import Detour as Detour
from heptad.plugin.marks import on_enter as on_enter
from heptad.plugin.marks import on_exit as on_exit
from heptad.run.run import Run as Run
from heptad.smoke.rate_search import RateSearch as RateSearch
from heptad.smoke.rates import find_learning_rate as find_learning_rate
from heptad.table import Arc as Arc
from heptad.table import State as State

__version__: str
__all__: list[str]
