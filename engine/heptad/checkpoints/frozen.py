"""Which parameters took no gradient when the optimizers of a run were built: a resumed run builds them alike.

A function that builds an optimizer may leave frozen parameters out, and DDP does. What takes a gradient by the time of
the checkpoint is stored with the modules, and restored with them.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager

from heptad.checkpoints.identity import refuse
from heptad.run.run import Run


@contextmanager
def frozen_as_then(run: Run, frozen: Collection[str] | None) -> Generator[None]:
    """Give each parameter the `requires_grad` that it had when the optimizers were built, for the length of the block.

    Afterwards each has its own again, so nothing has changed if the run is not resumed after all.

    Args:
        run: The run, in `idle`; the block may put other parameters of the same names into its network.
        frozen: The names of those that took no gradient; `None` if the checkpoint does not say: nothing is changed.

    Raises:
        CheckpointError: If the network has no parameter of such a name.
    """
    network = run._runtime.network
    before = {name: one.requires_grad for name, one in network.named_parameters()}
    refuse(
        [
            f"network.{name}: took no gradient when the optimizers were built, and is not here"
            for name in sorted(set(frozen or ()) - before.keys())
        ]
    )
    _set_requires_grad(run, before if frozen is None else {name: name not in frozen for name in before})
    try:
        yield
    finally:
        _set_requires_grad(run, before)


def _set_requires_grad(run: Run, takes: dict[str, bool]) -> None:
    for name, one in run._runtime.network.named_parameters():
        if one.requires_grad is not takes[name] and (one.is_floating_point() or one.is_complex()):
            one.requires_grad_(takes[name])
