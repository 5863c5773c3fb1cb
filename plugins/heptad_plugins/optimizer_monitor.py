"""`OptimizerMonitor` observes the run: norms of gradients and weights by parameter group, and histograms of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from heptad import EngineError, Plugin, PluginError, Run
from heptad_plugins._options import selection, yes_or_no
from heptad_plugins._patterns import matching_parameters
from heptad_plugins._shared import norm_of, whole_numbers
from heptad_plugins._stored import mapping, scalars_in


class HasWriter(Protocol):
    """What histograms are given to: a `TensorBoardLogger`."""

    @property
    def writer(self) -> Any:
        """The open `SummaryWriter`."""
        ...


_END_OF_BINS = 1e20
"""Where the last bin of TensorBoard's histograms ends; one without a number in its bins is an error there."""

Held = dict[str, list[nn.Parameter]]
"""Parameters by what their norms are recorded as."""


class OptimizerMonitor(Plugin):
    """Record the norms of gradients and weights every `every` updates, by parameter group.

    `grad_norm` is the 2-norm of the gradients as they are applied, on entry to `optimizer_update` behind the plugins
    that change them (`torch.nn.utils.get_total_norm`); `weight_norm` that of the weights after the update;
    `update_ratio` that of the change over that of the weights. They are the names of a single group; of several groups,
    over all optimizers, they are followed by the group's own `name` if it has one, else by its number, as in
    `grad_norm/0`, and so are those of the patterns, as in `grad_norm/head.*`. A group without a gradient has no
    `grad_norm`. Nothing is recorded for an update that is skipped. A norm that is not finite is recorded as it is.
    Side optimizers, which other plugins step, are left out. An optimizer that needs a closure computes further
    gradients in its step, which are not seen.

    The norms are 0-dim tensors and stay on their device (no device sync). The cost is one pass over the gradients and
    one over the weights at such an update, with `ratio` a copy of the weights and one pass more. With `strategy="fsdp"`
    norms are those of the whole, by one exchange each for gradients, weights and changes.

    With `histograms` a histogram of each parameter's gradient and value is written, tags `gradients/<parameter>` and
    `weights/<parameter>`; numbers that are not finite, or beyond 1e20, where its bins end, are left out. They are
    copied to the host (a device sync), and with `strategy="fsdp"` each is gathered whole in turn.

    Args:
        every: Updates from one to the next that is looked at.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        patterns: Names of parameters, such as `"encoder.*"`, whose norms are recorded besides.
        ratio: Whether `update_ratio` is recorded.
        histograms: The run's `TensorBoardLogger`, for histograms; it is given to the engine too.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: For an option that does not fit; on exit of `before_loop`, if a pattern matches no parameter, or
            the logger is not among the plugins of the run.
    """

    observes = True
    ranks = "all"  # norms of what ranks share are exchanged

    runs_after = ("NonFiniteGuard", "GradientClipping", "SAM")
    runs_before = ("EarlyStopping", "Journal", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint")

    def __init__(
        self,
        every: int = 1,
        *,
        first: int | None = None,
        patterns: Sequence[str] = (),
        ratio: bool = False,
        histograms: HasWriter | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self._numbers = selection("OptimizerMonitor", every, first)
        if isinstance(patterns, str) or not all(isinstance(one, str) and one for one in patterns):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(
                f"OptimizerMonitor(patterns=…) must be a list of names such as ['encoder.*'], got {patterns!r}"
            )
        self._patterns = tuple(patterns)
        self._ratio = yes_or_no("OptimizerMonitor", "ratio", ratio)
        if histograms is not None and not hasattr(type(histograms), "writer"):
            raise PluginError(
                f"OptimizerMonitor(histograms=…) must be the TensorBoardLogger of the run, got {histograms!r}"
            )
        self._histograms = histograms
        self.on_error = on_error
        self._forget()

    def _forget(self) -> None:
        self._gradient_norms: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._before: list[Tensor] = []

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def on_exit_before_loop(self, run: Run) -> None:
        """Refuse a pattern that matches nothing, and a logger that takes no part in the run.

        Raises:
            PluginError: If there is one.
        """
        matching_parameters("OptimizerMonitor", run.network, self._patterns)
        if self._histograms is not None and run.rank == 0:
            _writer_of(self._histograms)

    @torch.no_grad()
    def on_enter_optimizer_update(self, run: Run) -> None:
        """Take the norms of the gradients that are about to be applied."""
        self._forget()
        if run.update_skipped or not self._numbers.selects(run.update + 1):
            return
        held = self._held(run)
        gradients = {name: [one.grad for one in some if one.grad is not None] for name, some in held.items()}
        self._gradient_norms = _norms(run, {name: some for name, some in gradients.items() if some})
        if self._ratio:
            self._before = [one.detach().clone() for one in _distinct(held)]
        if self._histograms is not None:
            self._gradients = _on_host(run, [(name, one.grad) for name, one in run.network.named_parameters()])

    @torch.no_grad()
    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record them, and the norms of the new weights; write the histograms."""
        if run.update_skipped or not self._numbers.selects(run.update):
            self._forget()
            return
        held = {name: some for name, some in self._held(run).items() if some}
        norms = _norms(run, {name: [one.detach() for one in some] for name, some in held.items()})
        for name, norm in self._gradient_norms.items():
            run.record(f"grad_norm{name}", norm)
        for name, norm in norms.items():
            run.record(f"weight_norm{name}", norm)
        if self._before and len(self._before) == len(_distinct(held)):  # no group was added in between
            before = dict(zip(map(id, _distinct(held)), self._before, strict=True))
            changes = {name: [one.detach() - before[id(one)] for one in some] for name, some in held.items()}
            for name, change in _norms(run, changes).items():
                run.record(f"update_ratio{name}", change / norms[name])
        if self._histograms is not None:
            self._write(run, self._histograms)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what the entry to an update leaves for its exit; between updates there is nothing."""
        return {"norms": dict(self._gradient_norms), "before": list(self._before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: If it is no state of this class.
        """
        norms, before = scalars_in(mapping(state), "norms"), state.get("before")
        if not isinstance(before, list) or not all(isinstance(one, Tensor) for one in cast("list[Any]", before)):
            raise ValueError(f"before is {before!r:.60}, expected a list of tensors")
        self._gradient_norms, self._before = norms, cast("list[Tensor]", before)

    def _write(self, run: Run, logger: HasWriter) -> None:
        weights = _on_host(run, [(name, one.detach()) for name, one in run.network.named_parameters()])
        if run.rank:
            return
        writer = _writer_of(logger)
        for what, found in (("gradients", self._gradients), ("weights", weights)):
            for name, values in found.items():
                writer.add_histogram(f"{what}/{name}", values, run.update)

    def _held(self, run: Run) -> Held:
        """Return the parameters of each group and pattern, by what follows in the names of their norms."""
        groups = run.parameter_groups()
        names = Counter(group.get("name") for group in groups)
        found: Held = {}
        for number, group in enumerate(groups):
            own = group.get("name")
            named = isinstance(own, str) and own and names[own] == 1
            found[f"/{own}" if named else f"/{number}" if len(groups) > 1 else ""] = [*group["params"]]
        for pattern in self._patterns:
            found[f"/{pattern}"] = [*matching_parameters("OptimizerMonitor", run.network, [pattern]).values()]
        return found


def _writer_of(logger: HasWriter) -> Any:
    try:
        return logger.writer
    except EngineError as error:
        raise PluginError(
            "OptimizerMonitor(histograms=…): this logger takes no part in the run; put it into the list of plugins as "
            "well: plugins=[logger, OptimizerMonitor(histograms=logger), …]"
        ) from error


def _distinct(held: Held) -> list[nn.Parameter]:
    return list({id(one): one for some in held.values() for one in some}.values())


def _norms(run: Run, tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the 2-norm of all tensors of each name (no device sync); those that ranks share in one exchange."""
    if not run.shares:
        return {name: get_total_norm([_dense_values(one) for one in some]) for name, some in tensors.items()}
    every = [one for some in tensors.values() for one in some]
    norms = iter(whole_numbers(run, every, [norm_of(_dense_values(one)) for one in every]))
    found = {name: [next(norms) for _ in some] for name, some in tensors.items()}
    return {name: norm_of(torch.stack([one.to(some[0].device) for one in some])) for name, some in found.items()}


def _dense_values(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor: of a sparse one those that it holds, added up where it holds several for one."""
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor


def _on_host(run: Run, tensors: Sequence[tuple[str, Tensor | None]]) -> dict[str, Tensor]:
    """Return the numbers of each tensor that a histogram has bins for, on the host (a device sync), on rank 0."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if tensor is None:
            continue
        values = run.whole(_dense_values(tensor))  # on all ranks
        if run.rank == 0:
            values = values.detach().reshape(-1).to("cpu", torch.float32)
            if (shown := values[values.abs() < _END_OF_BINS]).numel():
                found[name] = shown
    return found
