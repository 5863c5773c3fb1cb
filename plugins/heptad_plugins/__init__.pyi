from heptad_plugins.checkpoint import Checkpoint as Checkpoint
from heptad_plugins.csv_logger import CSVLogger as CSVLogger
from heptad_plugins.device_monitor import DeviceMonitor as DeviceMonitor
from heptad_plugins.early_stopping import EarlyStopping as EarlyStopping
from heptad_plugins.ema import EMA as EMA
from heptad_plugins.evaluate import Evaluate as Evaluate
from heptad_plugins.graceful_stop import GracefulStop as GracefulStop
from heptad_plugins.gradient_clipping import GradientClipping as GradientClipping
from heptad_plugins.journal import Journal as Journal
from heptad_plugins.lr_schedule import LRSchedule as LRSchedule
from heptad_plugins.mlflow_logger import MLflowLogger as MLflowLogger
from heptad_plugins.model_summary import ModelSummary as ModelSummary
from heptad_plugins.non_finite_guard import NonFiniteGuard as NonFiniteGuard
from heptad_plugins.profiler import Profiler as Profiler
from heptad_plugins.progress import Progress as Progress
from heptad_plugins.report import Report as Report
from heptad_plugins.sam import SAM as SAM
from heptad_plugins.tensorboard_logger import TensorBoardLogger as TensorBoardLogger
from heptad_plugins.throughput import Throughput as Throughput
from heptad_plugins.time_limit import TimeLimit as TimeLimit
from heptad_plugins.trackio_logger import TrackioLogger as TrackioLogger
from heptad_plugins.training_metrics import TrainingMetrics as TrainingMetrics
from heptad_plugins.wandb_logger import WandbLogger as WandbLogger

__all__: list[str]
