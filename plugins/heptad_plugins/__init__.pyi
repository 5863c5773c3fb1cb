from heptad_plugins.checkpoint import Checkpoint as Checkpoint
from heptad_plugins.csv_logger import CSVLogger as CSVLogger
from heptad_plugins.device_monitor import DeviceMonitor as DeviceMonitor
from heptad_plugins.early_stopping import EarlyStopping as EarlyStopping
from heptad_plugins.ema import EMA as EMA
from heptad_plugins.evaluate import Evaluate as Evaluate
from heptad_plugins.freeze import Freeze as Freeze
from heptad_plugins.graceful_stop import GracefulStop as GracefulStop
from heptad_plugins.gradient_clipping import GradientClipping as GradientClipping
from heptad_plugins.journal import Journal as Journal
from heptad_plugins.lr_schedule import LRSchedule as LRSchedule
from heptad_plugins.model_summary import ModelSummary as ModelSummary
from heptad_plugins.non_finite_guard import NonFiniteGuard as NonFiniteGuard
from heptad_plugins.optimizer_monitor import OptimizerMonitor as OptimizerMonitor
from heptad_plugins.optuna_pruning import OptunaPruning as OptunaPruning
from heptad_plugins.otel_tracing import OTelTracing as OTelTracing
from heptad_plugins.profiler import Profiler as Profiler
from heptad_plugins.progress import Progress as Progress
from heptad_plugins.report import Report as Report
from heptad_plugins.run_folder import RunFolder as RunFolder
from heptad_plugins.sam import SAM as SAM
from heptad_plugins.swa import SWA as SWA
from heptad_plugins.tensorboard_logger import TensorBoardLogger as TensorBoardLogger
from heptad_plugins.throughput import Throughput as Throughput
from heptad_plugins.time_limit import TimeLimit as TimeLimit
from heptad_plugins.training_metrics import TrainingMetrics as TrainingMetrics

__all__: list[str]
