"""`EMA` changes the run: evaluations see an average of the weights; the weights that are trained stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from heptad import EngineError, PluginError, Run
from heptad_plugins._average import Average
from heptad_plugins._averaging import Averaging
from heptad_plugins._options import number, selection, whole_number


class EMA(Averaging):
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
        super().__init__("EMA", dtype, evaluate, name)
        self._blend: Any = get_ema_multi_avg_fn(decay)
        self._numbers = selection("EMA", every, first)
        self._start = whole_number("EMA", "start", start, least=0)

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

    def open(self, run: Run) -> None:
        """Swap the average in, if the run continues in an evaluation."""
        self._begun = None
        if run.state == "evaluate" and self._evaluate:
            self._ready(run).swap_in()

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

    def on_exit_after_loop(self, run: Run) -> None:
        """Make sure that there is a `network` to read, also if the run was resumed at its very end."""
        self._ready(run)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged parameters and buffers by name (not copied), and how many updates are in them.

        Buffers, and so their averages, are other ones on each rank.
        """
        return self._stored()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until there is an average.

        Raises:
            ValueError: If it is no state of this class, or, where a run is resumed, that of another network.
        """
        self._keep(state)

    def _ready(self, run: Run) -> Average:
        """Return the average: copied from the weights when first asked for, and filled from a checkpoint."""
        if self._average is None:
            self._average = Average(run, self._dtype)
        if self._restored is not None:
            self._average.restore(self._restored)
            self._restored = None
        return self._average
