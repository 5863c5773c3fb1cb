"""`Ddp`: the strategy of several ranks that each have the whole network; torch's DDP averages its gradients."""

from __future__ import annotations

from typing import Any, cast

from torch.nn.parallel import DistributedDataParallel

from heptad.ranks.company import CompanyLossModule, keep_company, through, use_again
from heptad.ranks.grouped import Grouped
from heptad.ranks.window import RanksWindow
from heptad.run.runtime import Runtime


class Ddp(Grouped):
    """Wraps the network in DDP."""

    def __init__(self) -> None:
        super().__init__()
        self._ddp: DistributedDataParallel | None = None
        self._resumed = False
        """Whether DDP has yet to know what the steps of the open window have used."""

    def _wrap(self, runtime: Runtime) -> set[int]:
        network, device = runtime.network.to(runtime.device), runtime.device
        self._resumed = True
        averaged = {id(one) for one in network.parameters() if one.requires_grad}
        if not averaged:
            return averaged
        whole = network if self._compute_loss is None else CompanyLossModule(network, self._compute_loss)
        # Without find_unused_parameters DDP puts gradients into other buckets after its first backward pass, so a run
        # that is resumed adds them in another order: with three ranks other bits. Networks with unused parts need it.
        self._ddp = DistributedDataParallel(
            whole,
            device_ids=None if device.type == "cpu" else [device],
            process_group=self._group.data,
            find_unused_parameters=True,
        )
        if isinstance(whole, CompanyLossModule):
            self._compute_loss = through(self._ddp, whole)
        else:
            runtime.forward = self._ddp
        return averaged

    def window_closes(self, closes: bool) -> None:
        """Let DDP average in the backward pass to come, or only add up."""
        window = cast("RanksWindow", self._run._position.window)
        window.closes = closes
        if self._ddp is not None:
            if self._resumed:
                self._resumed = False
                if window.steps:
                    use_again(self._ddp.parameters())
            if isinstance(self._ddp.module, CompanyLossModule):
                self._ddp.module.idle = self._run._position.idle
            self._ddp.require_backward_grad_sync = closes
            # DDP broadcasts buffers in the first forward pass of a window; one that was resumed has made that already
            self._ddp.require_forward_param_sync = not window.steps

    def keep_company(self, loss: Any, closes: bool) -> None:
        """Make the backward pass of a step that adds nothing, where the others wait for its average."""
        if closes:
            keep_company(loss)
