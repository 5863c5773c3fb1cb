"""`copying.py` and `background.py` where the tensors are on a device: pinned, complete, and the state at the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from builders import small_engine, small_network
from checkpoint.disk import Holder, same
from heptad import Run
from heptad.checkpoints.copying import PINNED, copied
from heptad.checkpoints.packed import pack_snapshot
from heptad.checkpoints.store import Store
from heptad.plugin import Snapshot
from heptad_plugins import Checkpoint


@pytest.mark.gpu("the copy for a background checkpoint is pinned, and complete while the device is at work")
def test_a_copy_is_pinned_and_complete_while_the_device_is_still_at_work(device: torch.device):
    """Each tensor is the end of a queue of products, and is overwritten as soon as the copy is returned."""
    factor = torch.eye(2048, device=device) * 0.5
    whole = torch.ones(2048, 2048, device=device)
    tensors = {"whole": whole, "part": whole.t()[::2], "scalar": whole[0, 0], "half": whole.bfloat16()}
    for _ in range(50):
        whole.copy_(whole @ factor)
    packed = copied(pack_snapshot(Snapshot({}, {"network": {"tensors": tensors}})))
    whole.fill_(7)
    held = packed.tensors["network"]
    assert all(copy.is_pinned() == (device.type in PINNED) and copy.is_contiguous() for copy in held.values())
    for name, expected in (("whole", 0.5**50), ("part", 0.5**50), ("scalar", 0.5**50), ("half", 1.0)):
        assert torch.equal(held[name], torch.full_like(held[name], expected))


@pytest.mark.gpu("a background checkpoint holds what one in the foreground holds")
def test_a_run_on_a_device_writes_in_the_background_what_it_writes_in_the_foreground(
    device: torch.device, tmp_path: Path
):
    """Held for two steps, in which the weights move on."""
    held = Holder()

    def sections(directory: Path) -> list[dict[str, Any]]:
        store = Store(directory)
        return [store.load(entry).sections for entry in store.entries()]

    for background in (False, True):
        directory = tmp_path / str(background)
        checkpoint = Checkpoint(directory, "after_step", every=2, keep_last=9, background=background)
        checkpoint.store = Store(directory, held if background else None)
        engine = small_engine(8, [checkpoint], network=small_network(), device=str(device))

        def let_go(run: Run) -> None:
            if run.step == 3:
                held.gate.set()

        engine.on_exit("process_batch")(let_go)
        engine.run()
    ones, others = sections(tmp_path / "False"), sections(tmp_path / "True")
    assert len(ones) == len(others) == 4
    for one, other in zip(ones, others, strict=True):
        assert all(same(one[name], other[name]) for name in ("network", "optimizers"))
        assert same(one["run"]["random"], other["run"]["random"])
