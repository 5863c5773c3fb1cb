"""Plugins that ship with Heptad, one a file. Each says in its first line whether it observes or changes the run."""

from heptad_plugins.checkpoint import Checkpoint
from heptad_plugins.csv_logger import CSVLogger
from heptad_plugins.early_stopping import EarlyStopping
from heptad_plugins.ema import EMA
from heptad_plugins.evaluate import Evaluate
from heptad_plugins.graceful_stop import GracefulStop
from heptad_plugins.gradient_clipping import GradientClipping
from heptad_plugins.journal import Journal
from heptad_plugins.lr_schedule import LRSchedule
from heptad_plugins.non_finite_guard import NonFiniteGuard
from heptad_plugins.progress import Progress
from heptad_plugins.tensorboard_logger import TensorBoardLogger
from heptad_plugins.throughput import Throughput
from heptad_plugins.time_limit import TimeLimit

__all__ = [
    "EMA",
    "CSVLogger",
    "Checkpoint",
    "EarlyStopping",
    "Evaluate",
    "GracefulStop",
    "GradientClipping",
    "Journal",
    "LRSchedule",
    "NonFiniteGuard",
    "Progress",
    "TensorBoardLogger",
    "Throughput",
    "TimeLimit",
]
