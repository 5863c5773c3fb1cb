"""`EMA` changes the run: evaluations see an average of the weights; the weights that are trained stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from heptad import EngineError, Plugin, PluginError, Run
from heptad_plugins._average import Average, check_state, own_parts, refuse_second
from heptad_plugins._options import number, selection, text_of, whole_number


class EMA(Plugin):
    """Keep an exponential moving average of parameters and buffers, by the formula of torch's `AveragedModel`.

    After each update the average becomes `decay * average + (1 - decay) * weights`; the first update sets it to the
    weights. A skipped update leaves it alone. Buffers of whole numbers or truth values (counts, indices, masks) have no
    average: they are those of the network. Weights of fewer than 32 bits (bfloat16, float16) are averaged in float32:
    in their own dtype a step of `1 - decay` would be rounded away.

    In the state `evaluate` the network holds the average, in its own dtypes: the values are swapped on entry and
    swapped back on exit, also if the evaluation fails or the run pauses in it. `Engine.evaluate` called from elsewhere
    sees the weights that are trained. The cost is a second copy of the weights in memory, one pass over them an update
    and three a swap (no device sync). With `strategy="fsdp"` each rank averages its part of the weights, so both costs
    are shared out, and nothing is exchanged.

    Args:
        decay: The share that the average keeps at each update, from 0 on and below 1; such as 0.999.
        every: Move the average at each update whose number is a multiple of this; the first of these sets it.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        start: Up to and including this update the average is a copy of the weights; `every` counts from 1 all the same.
        dtype: The dtype of all averages; by default that of the weights, or float32 where that has fewer bits.
        evaluate: Whether evaluations see the average. Of several EMA only one can be seen.
        name: The plugin's name; a second EMA needs one.

    Raises:
        PluginError: For an option that does not fit; when the engine is built, if evaluations would see two averages.
    """

    ranks = "all"  # each averages the weights, or the part of them, that it has
    runs_before = ("Evaluate", "Checkpoint")

    def __init__(
        self,
        decay: float,
        *,
        every: int = 1,
        first: int | None = None,
        start: int = 0,
        dtype: torch.dtype | None = None,
        evaluate: bool = True,
        name: str | None = None,
    ) -> None:
        if number("EMA", "decay", decay, least=0.0) >= 1.0:
            raise PluginError(f"EMA(decay=…) must be below 1, or the average would never move; got {decay!r}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"EMA(dtype=…) must be a floating dtype such as torch.float32, got {dtype!r}")
        self._blend: Any = get_ema_multi_avg_fn(decay)
        self._numbers = selection("EMA", every, first)
        self._start = whole_number("EMA", "start", start, least=0)
        if not isinstance(evaluate, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"EMA(evaluate=…) must be True or False, got {evaluate!r}")
        if name is not None:
            self.name = text_of("EMA", "name", name, "a word such as 'slow'")
        self._evaluate = evaluate
        self._dtype = dtype
        self._average: Average | None = None
        self._restored: dict[str, Any] | None = None
        self._begun: nn.Module | None = None  # of a run that has begun and was not opened: one that is being resumed
        self._network: nn.Module | None = None  # that of the run

    @property
    def network(self) -> nn.Module:
        """A copy of the network, in evaluation mode, that holds the average; it exists from the exit of `before_loop`.

        It follows the average. Weights that are averaged in another dtype it holds as they were when it was last asked
        for. In the state `evaluate` it holds the weights that are trained, while the run's own network holds the
        average.

        Raises:
            EngineError: Before the exit of `before_loop`; if the network cannot be copied; with `strategy="fsdp"`, with
                which no rank has all of it.
        """
        if self._average is None:
            raise EngineError("EMA.network exists from the exit of before_loop on")
        return self._average.module()

    def on_build(self, run: Run) -> None:
        """Refuse a second average that evaluations would see.

        Raises:
            PluginError: If there is one.
        """
        if self._evaluate:
            refuse_second(run, self.name)

    def on_begin(self, run: Run) -> None:
        """Forget the average of an earlier run; a caller that holds its network keeps it."""
        self._average = self._restored = None
        self._begun = self._network = run.network

    def open(self, run: Run) -> None:
        """Swap the average in, if the run continues in an evaluation."""
        self._begun = None
        if run.state == "evaluate" and self._evaluate:
            self._ready(run).swap_in()

    def on_pause(self, run: Run) -> None:
        """Swap it out, so that a checkpoint taken now holds the weights that are trained."""
        self._swap_out()

    def close(self, run: Run) -> None:
        """Swap it out, whatever happened."""
        self._swap_out()

    def on_exit_before_loop(self, run: Run) -> None:
        """Copy the weights."""
        self._ready(run)

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Move the average towards the new weights, if it is due."""
        copies = run.update <= self._start
        if not run.update_skipped and (copies or self._numbers.selects(run.update)):
            self._ready(run).follow(self._blend, copies=copies)

    def on_enter_evaluate(self, run: Run) -> None:
        """Swap the average in."""
        if self._evaluate:
            self._ready(run).swap_in()

    def on_exit_evaluate(self, run: Run) -> None:
        """Swap it out."""
        self._swap_out()

    def on_exit_after_loop(self, run: Run) -> None:
        """Make sure that there is a `network` to read, also if the run was resumed at its very end."""
        self._ready(run)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged parameters and buffers by name (not copied), and how many updates are in them.

        Buffers, and so their averages, are other ones on each rank.
        """
        state = (self._restored or {}) if self._average is None else self._average.state()
        self.own_state = own_parts(self._network, state.get("tensors", {}))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until there is an average.

        Raises:
            ValueError: If it is no state of this class, or, where a run is resumed, that of another network.
        """
        if state:
            check_state(state, self._begun)
        self._restored = state or None

    def _ready(self, run: Run) -> Average:
        """Return the average: copied from the weights when first asked for, and filled from a checkpoint."""
        if self._average is None:
            self._average = Average(run, self._dtype)
        if self._restored is not None:
            self._average.restore(self._restored)
            self._restored = None
        return self._average

    def _swap_out(self) -> None:
        if self._average is not None:
            self._average.swap_out()
