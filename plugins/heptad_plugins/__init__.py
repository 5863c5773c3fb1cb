"""Plugins that ship with Heptad, one a file. Each says in its first line whether it observes or changes the run.

A plugin is loaded when it is first asked for; `__init__.pyi` gives type checkers the same names.
"""

from importlib import import_module

_HOMES = {
    "CSVLogger": "csv_logger",
    "Checkpoint": "checkpoint",
    "DeviceMonitor": "device_monitor",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "Evaluate": "evaluate",
    "Freeze": "freeze",
    "GracefulStop": "graceful_stop",
    "GradientClipping": "gradient_clipping",
    "Journal": "journal",
    "LRSchedule": "lr_schedule",
    "MLflowLogger": "mlflow_logger",
    "ModelSummary": "model_summary",
    "NonFiniteGuard": "non_finite_guard",
    "OTelTracing": "otel_tracing",
    "OptunaPruning": "optuna_pruning",
    "OptimizerMonitor": "optimizer_monitor",
    "Profiler": "profiler",
    "Progress": "progress",
    "Report": "report",
    "RunFolder": "run_folder",
    "SAM": "sam",
    "SWA": "swa",
    "TensorBoardLogger": "tensorboard_logger",
    "Throughput": "throughput",
    "TimeLimit": "time_limit",
    "TrackioLogger": "trackio_logger",
    "TrainingMetrics": "training_metrics",
    "WandbLogger": "wandb_logger",
}
"""Each plugin with the module that defines it."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names are in the stub


def __getattr__(name: str) -> object:
    """Load a plugin."""
    if name not in _HOMES:
        raise AttributeError(f"module 'heptad_plugins' has no attribute '{name}'", name=name)
    value = globals()[name] = getattr(import_module(f"heptad_plugins.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
