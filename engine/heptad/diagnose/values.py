"""Advice on recorded values."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unrecorded(name: str, recorded: Iterable[str], interval: str) -> str:
    """Return what records a value that a plugin monitors, or which recorded name is meant.

    Args:
        name: The monitored name.
        recorded: The names that were recorded.
        interval: `"update"` or `"epoch"`: when the plugin asks for the value.
    """
    if name in ("loss", "train/loss", "train/epoch_loss"):
        return (
            "the training loss is recorded as 'train/loss', once an update, and as 'train/epoch_loss', once an epoch, "
            "where Progress, a logger or TrainingMetrics() is among the plugins"
        )
    if close := get_close_matches(name, [other for other in recorded if _of_one_kind(name, other)], n=1):
        return f"did you mean '{close[0]}'?"
    if interval == "update":
        return (
            "interval='update' looks for it after each update; a value that is recorded once an epoch, as "
            "Evaluate(data) records 'valid/loss', needs interval='epoch'"
        )
    return "Evaluate(data) records 'valid/loss', run.record(name, value) any other"


def _of_one_kind(name: str, other: str) -> bool:
    """Return whether one name may be meant by the other: `val/loss` by `valid/loss`, but none by `train/loss`."""
    (kind, *rest), (known, *others) = name.split("/"), other.split("/")
    return not (rest and others) or bool(get_close_matches(kind, [known]))


def unrecordable(name: str) -> str:
    """Return what to do with something that is no number, such as an image."""
    return (
        f"of several numbers record one that sums them up, such as their mean, or each under its name, '{name}/0', "
        f"'{name}/1', …; an image or an array goes to a writer of its own, such as TensorBoardLogger's: "
        f"logger.writer.add_image('{name}', image, run.update)"
    )
