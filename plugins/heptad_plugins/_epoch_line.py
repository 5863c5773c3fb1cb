"""`EpochLine`: the values of an epoch as columns that stand below each other from line to line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from heptad.plugin import Recorded
from heptad_plugins._losses import EPOCH, UPDATE, is_per_update

MOST_METRICS = 64
"""Values that the line of an epoch shows; how many more there are stands behind them."""

SPEEDS = "*_per_second"
"""Values that are not shown unless they are asked for: the line has a speed already."""

_LEAST = 9
"""Characters of a value, at least: those of `3.333e-05`."""


class EpochLine:
    """Makes columns of the values that were recorded in an epoch.

    A value that was recorded several times in the epoch is shown as its mean, a learning rate as its newest.

    Args:
        show: Patterns of the names that are wanted, in the order in which they are wanted; `None` for all.
    """

    def __init__(self, show: Sequence[str] | None) -> None:
        self._show = show
        self._widths: dict[str, int] = {}  # by name, in the order of the columns

    def cells(self, values: Iterable[Recorded]) -> list[str]:
        """Return a cell for each column, as wide as those before; a value that is not new is a dash."""
        sums: dict[str, tuple[float, int]] = {}
        for value in values:
            total, count = sums.get(value.name, (0.0, 0))
            sums[value.name] = (value.value, 1) if is_rate(value.name) else (total + value.value, count + 1)
        for name in self._ordered(sums):
            self._widths.setdefault(name, _LEAST)
        shown = list(self._widths)[:MOST_METRICS]
        cells: list[str] = []
        for name in shown:
            total, count = sums.get(name, (0.0, 0))
            text = f"{total / count:.4g}" if count else "-"
            self._widths[name] = max(self._widths[name], len(text))
            cells.append(f"{name} {text:<{self._widths[name]}}")
        left_out = len(self._widths) - len(shown)
        return [*cells[:-1], cells[-1].rstrip(), f"and {left_out} more"] if left_out else cells

    def _ordered(self, names: Iterable[str]) -> list[str]:
        if self._show is None:
            # the mean loss stands in each line already
            return [name for name in names if name not in ("loss", UPDATE, EPOCH) and not fnmatchcase(name, SPEEDS)]
        known = list(names)
        return list(dict.fromkeys(name for one in self._show for name in known if fnmatchcase(name, one)))


def is_rate(name: str) -> bool:
    """Return whether a value is a learning rate."""
    return is_per_update(name) and name != UPDATE


def packed(cells: Sequence[str], width: int | None, gap: str = "  ", indent: str = "    ") -> list[str]:
    """Return cells in as many lines as they need; a line is broken between two cells and never within one."""
    lines: list[str] = []
    for cell in cells:
        if lines and (width is None or len(lines[-1]) + len(gap) + len(cell.rstrip()) <= width):
            lines[-1] += gap + cell
        else:
            lines.append(indent + cell if lines else cell)
    return [line.rstrip() for line in lines]
