"""A step never waits for the device: the engine reads no tensor in it.

On the CPU nothing waits, so what would wait elsewhere is counted: calls that read a tensor, made by a frame of the
engine itself. Those of torch's optimizers and of the user's own code are theirs.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR
from torch.overrides import TorchFunctionMode
from torch.utils.data import TensorDataset

import heptad
from builders import CLASSES, FEATURES, batches, small_components, small_network
from heptad import Components, Engine, LossOutput, Run, RunConfig
from heptad.record.host import host_number
from heptad_plugins import EMA, Evaluate, GradientClipping, LRSchedule
from scenario import Noisy, held_out

ENGINE = str(Path(heptad.__file__).parent)
READING = {"item", "cpu", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__"}


class Reads(TorchFunctionMode):
    """Counts the calls that read a tensor by the place in the engine that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        caller = sys._getframe(1).f_code
        if func.__name__ in READING and caller.co_filename.startswith(ENGINE):
            self.found[f"{func.__name__} in {Path(caller.co_filename).name}"] += 1
        return func(*args, **(kwargs or {}))


def reads(components: Components, plugins: Any = (), **config: Any) -> tuple[Run, Counter[str]]:
    """Return a run and what the engine read in it."""
    with Reads() as counted:
        run = Engine(components, RunConfig(**{"epochs": 2, **config}), plugins).run()
    return run, counted.found


def ignoring(count: int) -> list[Any]:
    """Return batches of whose targets some are ignored; of every third all."""
    rows = batches(count, 4)
    for number, (_, target) in enumerate(rows):
        target[: 4 if number % 3 == 0 else 1] = -100
    return rows


def tokens(weigh: Any) -> Any:
    def loss_of(network: nn.Module, batch: Any) -> LossOutput:
        data, target = batch
        loss = nn.functional.cross_entropy(network(data), target)
        return LossOutput(loss, weight=weigh(target), logs={"seen": loss.detach()})

    return loss_of


DATA: dict[str, dict[str, Any]] = {
    "loader": {"loader": batches(6)},
    "ignored targets": {"loader": ignoring(6)},
    "many targets": {"loader": [(torch.randn(300, FEATURES), torch.randint(0, CLASSES, (300,))) for _ in range(3)]},
    "samples": {"dataset": Noisy()},
    "rows": {"dataset": TensorDataset(torch.randn(12, FEATURES), torch.randint(0, CLASSES, (12,)))},
    "class weights": {"loader": ignoring(6), "criterion": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))},
    "weights": {"loader": batches(6), "compute_loss": tokens(len)},
    "tensors as weights": {"loader": ignoring(6), "compute_loss": tokens(lambda target: (target >= 0).sum())},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("data", DATA)
def test_no_step_reads_a_tensor(data, k, precision):
    given = DATA[data]
    own = {"batch_size": 2} if "dataset" in given else {}
    _, found = reads(small_components(**given), accumulation=k, remainder="flush", precision=precision, **own)
    assert found == {}


def test_fp16_asks_once_a_window_whether_its_gradients_are_finite(monkeypatch):
    """Through torch's scaler, whether or not it finds them so; its own frames read nothing else."""
    asked: list[str] = []
    read = torch.amp.GradScaler.get_scale
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda scaler: asked.append("") or read(scaler))
    loud = small_components(criterion=..., compute_loss=lambda net, batch: net(batch[0]).square().sum())
    run, found = reads(loud, epochs=4, precision="fp16-mixed")
    assert found == {}
    assert 0 < run.update < run.windows
    assert len(asked) == 1 + run.windows, "and once before the first"


def test_nor_does_one_with_plugins_that_write_no_log():
    plugins = [
        EMA(decay=0.9),
        GradientClipping(max_norm=1.0),
        LRSchedule(partial(ConstantLR, factor=0.5)),
    ]
    _, found = reads(small_components(loader=ignoring(6)), plugins, accumulation=2)
    assert found == {}


def test_an_evaluation_reads_only_what_it_measured():
    """Two means when it is over, in a trial and in two epochs: so the count sees what the engine does read."""
    _, found = reads(small_components(), [Evaluate(held_out(), {"one": lambda output, batch: output.mean()})])
    assert found == {"__float__ in metrics.py": 6}


def test_workers_are_given_indices_without_a_read():
    _, found = reads(small_components(dataset=Noisy()), batch_size=2, num_workers=1)
    assert found == {}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
)
def test_a_number_on_the_host_is_read_from_its_memory(dtype):
    for tensor in (
        torch.tensor(3, dtype=dtype),
        torch.arange(9, dtype=dtype)[5],
        nn.Buffer(torch.ones((), dtype=dtype)),
    ):
        assert host_number(tensor) == tensor.item()


def test_a_number_that_is_negated_when_it_is_read_is_read_so():
    imaginary = torch.tensor(2.0 + 3.0j).conj().imag
    assert imaginary.is_neg()
    assert host_number(imaginary) == -3.0


def test_not_a_number_is_read_as_such():
    assert host_number(torch.tensor(float("nan"))) != host_number(torch.tensor(float("nan")))


def test_a_window_of_ignored_targets_is_a_skipped_update_still():
    rows = ignoring(6)
    run, _ = reads(small_components(small_network(), loader=rows), epochs=1)
    assert (run.windows, run.update) == (6, 4)
