"""`Averaging`: what `EMA` and `SWA` share: whether evaluations see their average, and its way into a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from heptad import Plugin, PluginError, Run
from heptad_plugins._average import Average, check_state, own_parts, refuse_second
from heptad_plugins._options import text_of, yes_or_no


class Averaging(Plugin):
    """A plugin that keeps an average of the weights, which the network holds in the state `evaluate`.

    Args:
        owner: The class, as messages name it.
        dtype: The dtype of all averages; `None` for that of the weights, or float32 where that has fewer bits.
        evaluate: Whether evaluations see the average.
        name: The plugin's name; `None` for that of the class.

    Raises:
        PluginError: For an option that does not fit.
    """

    runs_before = ("Evaluate", "Checkpoint")

    def __init__(self, owner: str, dtype: torch.dtype | None, evaluate: bool, name: str | None) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"{owner}(dtype=…) must be a floating dtype such as torch.float32, got {dtype!r}")
        if name is not None:
            self.name = text_of(owner, "name", name, "a word such as 'slow'")
        self._evaluate = yes_or_no(owner, "evaluate", evaluate)
        self._dtype = dtype
        self._begun: nn.Module | None = None  # of a run that has begun and was not opened: one that is being resumed
        self._network: nn.Module | None = None  # that of the run
        self._forget()

    def _forget(self) -> None:
        self._average: Average | None = None
        self._restored: dict[str, Any] | None = None

    def on_build(self, run: Run) -> None:
        """Refuse a second average that evaluations would see.

        Raises:
            PluginError: If there is one.
        """
        if self._evaluate:
            refuse_second(run, self.name)

    def on_begin(self, run: Run) -> None:
        """Forget the average of an earlier run; a caller that holds its network keeps it."""
        self._forget()
        self._begun = self._network = run.network

    def on_pause(self, run: Run) -> None:
        """Swap the average out, so that a checkpoint taken now holds the weights that are trained."""
        self._swap_out()

    def close(self, run: Run) -> None:
        """Swap it out, whatever happened."""
        self._swap_out()

    def on_exit_evaluate(self, run: Run) -> None:
        """Swap it out."""
        self._swap_out()

    def _stored(self) -> dict[str, Any]:
        """Return the state of the average, or the state that was restored if there is no average yet."""
        state = (self._restored or {}) if self._average is None else self._average.state()
        self.own_state = own_parts(self._network, state.get("tensors", {}))
        return state

    def _keep(self, state: dict[str, Any]) -> None:
        """Check what `_stored` has returned, and keep it until there is an average.

        Raises:
            ValueError: If it is something else, or, where a run is resumed, the state of another network.
        """
        if state:
            check_state(state, self._begun)
        self._restored = state or None

    def _swap_out(self) -> None:
        if self._average is not None:
            self._average.swap_out()
