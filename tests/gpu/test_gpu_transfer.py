"""On an accelerator with streams: pinned memory, copies beside the step, and no wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from builders import equal, weights
from heptad import Components, Engine, LossOutput, RunConfig
from heptad.data.streams import TorchStreams, streams_of
from heptad.data.transfer import Transfer

LONG = 200_000_000
"""Cycles, about a tenth of a second."""


class Samples(Dataset[Any]):
    def __init__(self, size: int = 4096) -> None:
        self.rows = torch.arange(32 * size, dtype=torch.float32).reshape(32, size) % 97

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.rows[place], place % 4


def engine(dataset: Any, size: int = 4096, **config: Any) -> Engine:
    torch.manual_seed(0)
    parts = Components(
        network=nn.Linear(size, 4),
        dataset=dataset,
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=1e-6),
    )
    return Engine(parts, RunConfig(**{"epochs": 3, "batch_size": 4, **config}))


@pytest.fixture
def streams(cuda: torch.device) -> Any:
    return streams_of(cuda)


@pytest.mark.gpu("a batch is copied on a side stream while the step computes", covers=("prefetch",))
def test_a_copy_is_done_before_the_computation_that_was_queued_before_it(streams: Any):
    transfer = Transfer(streams, 1)
    transfer(transfer_batch())  # memory and stream are there from here on
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    computed = torch.cuda.current_stream().record_event()
    copy = transfer.begin(transfer_batch())
    assert copy is not None
    copy.event.synchronize()
    assert not computed.query()
    transfer.expect(copy)
    assert torch.equal(transfer(copy.batch)[0].cpu(), copy.batch[0])


def transfer_batch() -> list[torch.Tensor]:
    return [torch.arange(1_000_000, dtype=torch.float32), torch.arange(10)]


@pytest.mark.gpu("memory of a copy is not used again before the computation is done with it", covers=("prefetch",))
def test_no_batch_is_overwritten_by_the_one_after_it(streams: Any):
    transfer, sums = Transfer(streams, 1), []
    batches = [[torch.full((1_000_000,), float(number))] for number in range(20)]
    copy = transfer.begin(batches[0])
    for number, batch in enumerate(batches):
        transfer.expect(copy)
        (placed,) = transfer(batch)
        torch.cuda._sleep(LONG // 20)
        sums.append(placed.double().sum())
        del placed
        copy = transfer.begin(batches[number + 1]) if number + 1 < len(batches) else None
    assert [total.item() for total in sums] == [number * 1e6 for number in range(20)]


@pytest.mark.gpu("prefetch changes no bits", covers=("prefetch",))
@pytest.mark.parametrize("config", [{}, {"prefetch": 3, "accumulation": 4}, {"num_workers": 2}], ids=str)
@pytest.mark.parametrize("dataset", [Samples(), TensorDataset(Samples().rows, torch.arange(32) % 4)], ids=["s", "t"])
def test_a_run_is_the_same_with_and_without(cuda: torch.device, dataset: Any, config: dict[str, Any]):
    one, other = engine(dataset, **config), engine(dataset, **{**config, "prefetch": 0})
    assert equal(weights(one.run().network), weights(other.run().network))
    assert one.current.device.type == cuda.type


@pytest.mark.gpu("batches are pinned before they are copied", covers=("prefetch",))
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Samples(), TensorDataset(Samples().rows, torch.arange(32) % 4)], ids=["s", "t"])
def test_batches_are_pinned(cuda: torch.device, dataset: Any, workers: int, monkeypatch: pytest.MonkeyPatch):
    pinned: list[bool] = []
    copy = TorchStreams.copy

    def watched(self: TorchStreams, tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.is_pinned())
        return copy(self, tensor)

    monkeypatch.setattr(TorchStreams, "copy", watched)
    engine(dataset, num_workers=workers, epochs=1).run()
    assert len(pinned) == 16
    assert all(pinned)


@pytest.mark.gpu("a step does not wait for the device", covers=("prefetch", "data_on_device"))
@pytest.mark.parametrize("config", [{}, {"prefetch": 0}, {"data_on_device": True}, {"accumulation": 2}], ids=str)
def test_no_step_waits(cuda: torch.device, config: dict[str, Any]):
    """From the second update to the last but one: at the ends the engine looks at gradients."""
    del cuda

    def loss(network: Any, batch: Any) -> LossOutput:
        return LossOutput(nn.functional.cross_entropy(network(batch[0]), batch[1]))

    dataset = TensorDataset(Samples().rows, torch.arange(32) % 4)
    parts = Components(
        network=nn.Linear(4096, 4),
        dataset=dataset,
        compute_loss=loss,
        optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=1e-6),
    )
    one = Engine(parts, RunConfig(**{"epochs": 1, "batch_size": 2, **config}))
    last = 16 // config.get("accumulation", 1)

    @one.on_exit("optimizer_update")
    def watch(run: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= run.update < last - 1 else "default")

    try:
        assert one.run().state == "finished"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu("a batch that was copied and not taken is not consumed", covers=("prefetch",))
def test_a_run_that_pauses_everywhere_is_the_same(cuda: torch.device):
    straight = engine(Samples()).run()
    one = engine(Samples())
    while not one.current.ended:
        one.advance()
        one.close()
    assert equal(weights(one.current.network), weights(straight.network))
    assert one.current.device.type == cuda.type
