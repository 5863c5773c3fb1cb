"""What became of each recorded value: its last, lowest and highest number, and where they were recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from heptad.history.collected import Collected, collected
from heptad.history.decode import holding
from heptad.history.source import Source
from heptad.record.chunk import View
from heptad.record.values import Recorded

Better = Literal["lower", "higher", ""]

_LOWER = re.compile(
    "loss(es)?|err(ors?)?|perplexity|ppl|nll|r?mse|mae|mape|wer|cer|fid|divergence|kl|brier|ece", re.IGNORECASE
)
_HIGHER = re.compile(
    "acc(uracy)?|f1|fbeta|auc|auroc|auprc|precision|recall|score|bleu|rouge|m?iou|dice|r2|psnr|ssim|map|mcc|kappa|"
    "correct|top1|top5|reward",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*")
_AFTER_EPOCH = ("after_epoch", "after_loop", "finished")
"""The states, and the detours that follow them, in which the epoch has been counted."""


@dataclass(frozen=True, slots=True)
class Point:
    """A recorded value and its place.

    Attributes:
        value: The value.
        epoch: The epoch that it was recorded in, counted from 1 as people do; at the end of the fifth epoch it is 5.
        step: Complete steps at that moment.
        update: Complete updates.
        seq: The transition in whose turn it was recorded.
    """

    value: float
    epoch: int
    step: int
    update: int
    seq: int


@dataclass(frozen=True, slots=True)
class Figure:
    """All that was recorded under a name, in short.

    Attributes:
        name: The name.
        count: How many values.
        last: The last of them.
        lowest: The lowest that is finite; the first of equal ones. `None` where none is finite.
        highest: The highest likewise.
        better: Whether lower or higher values are better, as far as the name says so: a loss and an error are to be
            low, an accuracy is to be high; empty for a name that says neither.
        not_finite: How many are NaN or infinite.
        first_not_finite: The first of those.
    """

    name: str
    count: int
    last: Point
    lowest: Point | None
    highest: Point | None
    better: Better
    not_finite: int
    first_not_finite: Point | None

    @property
    def best(self) -> Point | None:
        """The lowest or the highest, whichever is better; `None` where the name does not say which."""
        return {"lower": self.lowest, "higher": self.highest, "": None}[self.better]


def better_of(name: str) -> Better:
    """Return whether lower or higher values of a name are better; empty where it says neither."""
    for part in reversed(name.split("/")):  # `valid/loss` by its last word, `accuracy/cat` by its first
        words = *part.split("_"), *_WORDS.findall(part)
        if any(map(_LOWER.fullmatch, words)):
            return "lower"
        if any(map(_HIGHER.fullmatch, words)):
            return "higher"
    return ""


def figures(source: Source, found: Iterable[Collected] | None = None) -> dict[str, Figure]:
    """Return a figure for each name of a recorded value, in the order in which they were first recorded.

    Args:
        source: The log.
        found: What `collected` returns of it, if somebody has read its values already.
    """
    epochs = _Epochs(source, source.view())
    return {one.name: epochs.figure(one) for one in (collected(source) if found is None else found)}


class _Epochs:
    """Says in which epoch values were recorded: until the body of `after_epoch` counts it, an epoch is under way."""

    def __init__(self, source: Source, view: View) -> None:
        self._source, self._view = source, view

    def figure(self, one: Collected) -> Figure:
        """Return what was collected, each value with its place."""
        assert one.last is not None
        rows = one.lowest, one.highest, one.first_not_finite
        lowest, highest, first = (None if row is None else self._point(row) for row in rows)
        better = better_of(one.name)
        return Figure(one.name, one.count, self._point(one.last), lowest, highest, better, one.not_finite, first)

    def _point(self, row: Recorded) -> Point:
        epoch = row.epoch if self._is_after_epoch(row.seq) else row.epoch + 1
        return Point(row.value, epoch, row.step, row.update, row.seq)

    def _is_after_epoch(self, seq: int) -> bool:
        """Return whether the epoch was counted already in the body of the state that this transition left."""
        view = self._view
        if not view.chunks or seq < view.first:
            return False
        states, effects = self._source.table.states, self._source.effects
        if seq < view.end:
            chunk = holding(view, seq)
            node = states[int(effects.sources[chunk.arcs()[seq - chunk.seq]])]
        else:  # of the turn under way: in the state that was entered last
            node = states[int(effects.dests[view.chunks[-1].arcs()[-1]])]
        return (node.after or node.name) in _AFTER_EPOCH
