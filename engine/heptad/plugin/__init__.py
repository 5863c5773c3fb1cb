"""The contract between plugins and the engine: all that a plugin needs beside `heptad` itself.

A name is loaded when it is first asked for; `__init__.pyi` gives type checkers the same names. What a plugin reads of a
run is what is public on `heptad.Run`, and nothing of its `runtime`, `position` or `buffer`.
"""

from importlib import import_module

_HOMES = {
    "BackgroundWriter": "checkpoints.background",
    "Detour": "plugin.detour",
    "EvaluationOptions": "run.evaluating",
    "Filter": "plugin.filter",
    "Follower": "record.buffer",
    "JournalFile": "history.journal.file",
    "JournalRecorder": "history.journal.recorder",
    "Measures": "run.evaluating",
    "Metric": "step.metrics",
    "MetricsInput": "step.metrics",
    **dict.fromkeys(
        (
            "Accumulation",
            "Behind",
            "Compilation",
            "Detach",
            "Drop",
            "Event",
            "Extend",
            "Failed",
            "Halved",
            "NoUpdate",
            "Note",
            "Pause",
            "RecordedArray",
            "Recompilation",
            "Repeated",
            "SharedGenerators",
            "Skip",
            "SkipBatch",
            "Stop",
            "Uncompiled",
            "Untrained",
            "Unverified",
        ),
        "record.events",
    ),
    **dict.fromkeys(
        (
            "MirrorFailed",
            "MirrorRestored",
            "NotMirrored",
            "OptionChange",
            "Remark",
            "Resume",
            "StillDetached",
            "Written",
        ),
        "record.checkpoint_events",
    ),
    "OutputPath": "plugin.placing",
    "PackedChunk": "record.buffer",
    "Placing": "plugin.placing",
    "Plugin": "plugin.contract",
    "Recorded": "record.values",
    "Snapshot": "run.snapshot",
    "Store": "checkpoints.store",
    "Unfinished": "errors",
    "add_over_ranks": "plugin.lookup",
    "apply_metric": "step.metrics",
    "entered": "plugin.times",
    "metric_weight": "plugin.lookup",
    "merge_mistake": "step.metric_states",
    "metrics_mistake": "step.metrics",
    "now_ns": "plugin.times",
    "Watch": "plugin.lookup",
    "monitored": "plugin.lookup",
    "refuse_unrecorded": "plugin.lookup",
    "replacing": "history.export.output",
    "on_enter": "plugin.marks",
    "on_exit": "plugin.marks",
    "options_mistake": "run.evaluating",
    "origin": "history.journal.origin",
    "write_report": "report.page",
}
"""Each public name with the module that defines it."""

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll] - the names are in the stub


def __getattr__(name: str) -> object:
    """Load a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module 'heptad.plugin' has no attribute '{name}'", name=name)
    value = globals()[name] = getattr(import_module(f"heptad.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
