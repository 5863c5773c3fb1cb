"""`RateSearch`: what a range test over learning rates has found, as numbers, text and figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from heptad.errors import LogError

SHOWN = 60
"""Columns of the curve in the text."""

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, repr=False)
class RateSearch:
    """What `find_learning_rate` has found.

    Attributes:
        rates: The learning rate of each update that was made, of the group with the highest rate.
        losses: The mean loss of the window of each, before that update.
        smoothed: The losses, averaged exponentially and corrected for their beginning.
        suggestion: The rate at which the smoothed loss falls steepest over the logarithm of the rate, up to the lowest
            smoothed loss; `None` where it does not fall. The first averages, nine with `smoothing=0.9`, are of few
            losses, and are left out here and of `lowest`.
        lowest: The rate of the lowest smoothed loss: too high to train with.
        diverged: Whether the test ended before `high`, because the loss rose or was not finite.
        shares: For each parameter group, over all optimizers, its rate as a share of the highest: it keeps this share
            at every update of the test. `suggestion * share` is its rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    lowest: float
    diverged: bool
    shares: tuple[float, ...] = field(default=(1.0,))

    def __str__(self) -> str:
        how = "ended where the loss diverged" if self.diverged else "ran to the highest rate"
        suggested = "none: the loss does not fall" if self.suggestion is None else f"{self.suggestion:.3g}"
        lowest = self.smoothed[self.rates.index(self.lowest)]
        lines = [
            f"learning rates {self.rates[0]:.3g} to {self.rates[-1]:.3g} in {len(self.rates)} updates, {how}",
            f"suggestion {suggested}; lowest smoothed loss {lowest:.6g} at {self.lowest:.3g}",
            f"smoothed loss {''.join(_bars(self.smoothed))}",
        ]
        if len(set(self.shares)) > 1:
            lines.append("groups: " + ", ".join(f"{share:.3g} of the rate" for share in self.shares))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<RateSearch of {len(self.rates)} updates: suggestion {self.suggestion}>"

    def plot(self) -> Any:
        """Return the losses over the rates as a Bokeh figure; `bokeh.io.show` shows it.

        Raises:
            LogError: If Bokeh is not installed: pip install 'heptad[report]'.
        """
        try:
            from heptad.report.rate_curve import rate_curve  # noqa: PLC0415 - an extra is imported where it is used
        except ImportError as error:
            raise LogError(f"a figure needs Bokeh; install it with: pip install 'heptad[report]' ({error})") from error
        return rate_curve(self.rates, self.losses, self.smoothed, self.suggestion)


def _bars(values: Sequence[float]) -> Iterator[str]:
    low, high = min(values), max(values)
    for column in range(min(SHOWN, len(values))):
        value = values[column * len(values) // min(SHOWN, len(values))]
        yield BARS[0] if high == low else BARS[int((value - low) / (high - low) * (len(BARS) - 1))]
