"""What several ranks must share with one process that has windows as long as all of theirs.

`learn` runs in both: on ranks with k steps a window, in the test's own process with k times their number.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from rank_program import Case, Rank
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from builders import CLASSES, FEATURES
from heptad import Components, ConfigError, Engine, LossOutput, Run, RunConfig
from heptad_plugins import Evaluate

SIZES = (1, 3, 4)
"""Steps of each rank in a window."""

REMAINDERS = ("extend", "flush", "drop", "carry")
SAMPLES = 19
"""In batches of 2: 10 batches, the last of one sample; a multiple of the shortest window on 2 ranks alone."""

EPOCHS = 2
Given = dict[str, Any]


def samples(count: int) -> TensorDataset:
    """Return float64 data, targets, how many tokens each counts as, and its number."""
    generator = torch.Generator().manual_seed(count)
    data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (count,), generator=generator)
    tokens = torch.randint(0, 6, (count,), generator=generator)
    return TensorDataset(data, target, tokens, torch.arange(count))


def by_batches(network: nn.Module, batch: Any) -> LossOutput:
    """The mean over the batch; each batch weighs the same, whatever its size."""
    output = network(batch[0])
    return LossOutput(nn.functional.cross_entropy(output, batch[1]), output=output)


def by_samples(network: nn.Module, batch: Any) -> LossOutput:
    """The mean over the batch, which weighs as many as it has samples: ragged windows."""
    return replace(by_batches(network, batch), weight=len(batch[0]))


def by_tokens(network: nn.Module, batch: Any) -> LossOutput:
    """A mean over tokens, of which some batches have none."""
    output = network(batch[0])
    each = nn.functional.cross_entropy(output, batch[1], reduction="none")
    count = batch[2].sum()
    return LossOutput((each * batch[2]).sum() / count.clamp(min=1), weight=int(count), output=output)


def by_those_not_ignored(network: nn.Module, batch: Any) -> LossOutput:
    """The mean that `ignore_index` takes, by a weight that is a tensor; NaN where all of a batch are ignored."""
    output = network(batch[0])
    target = torch.where(batch[2] < 3, -100, batch[1])
    loss = nn.functional.cross_entropy(output, target, ignore_index=-100)
    return LossOutput(loss, weight=(target != -100).sum(), output=output)


LOSSES = {"batches": by_batches, "samples": by_samples, "tokens": by_tokens, "ignored": by_those_not_ignored}


def right(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return (output.argmax(dim=1) == batch[1]).double()


def small_learner() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def learner(kind: str, *, evaluate: bool = True, **config: Any) -> tuple[Engine, Given]:
    """Return an engine, and what it will have noted: samples by epoch, digests by update."""
    network = small_learner()
    noted: Given = {"samples": {}, "digests": []}
    engine = Engine(
        Components(
            network=network,
            dataset=samples(config.pop("samples", SAMPLES)),
            compute_loss=LOSSES[kind],
            optimizer=lambda network: torch.optim.AdamW(network.parameters(), lr=0.05),
        ),
        RunConfig(**{"epochs": EPOCHS, "batch_size": 2, "drop_last": False, "device": "cpu", **config}),
        plugins=[Evaluate(samples(7), {"right": right})] if evaluate else [],
    )

    @engine.on_exit("process_batch")
    def note_samples(run: Run) -> None:
        noted["samples"].setdefault(str(run.epoch), []).extend(run.batch[3].tolist())

    @engine.on_exit("optimizer_update")
    def note_weights(run: Run) -> None:
        noted["digests"].append(digest_of(network))

    return engine, noted


def digest_of(network: nn.Module) -> str:
    held = b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters())
    return hashlib.sha256(held).hexdigest()


def learn(kind: str, **config: Any) -> Given:
    """Train; return what came of it: weights, counters, values, and what was noted on the way."""
    engine, noted = learner(kind, **config)
    run = engine.run()
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in run.network.parameters()])
    counters = {"update": run.update, "epoch": run.epoch}
    return {**noted, "weights": flat.tolist(), "counters": counters, "metrics": dict(run.metrics)}


Key = tuple[str, str, int]


def name_of(key: Key) -> str:
    return " ".join(map(str, key))


KEYS: list[Key] = [("batches", "flush", 3), *product(("samples", "tokens", "ignored"), REMAINDERS, SIZES)]
FEW = ("flush", "extend", "carry")
"""What a remainder does with fewer batches than ranks: one sample, and three."""


def trained(rank: Rank, kind: str, remainder: str, size: int) -> Given:
    return learn(kind, remainder=remainder, accumulation=size)


def of_few(rank: Rank, remainder: str, count: int) -> Given:
    return learn("samples", remainder=remainder, accumulation=2, samples=count)


def window_over_all(rank: Rank) -> Given:
    return learn("tokens", window=6)


def window_that_does_not_divide(rank: Rank) -> str:
    try:
        learn("tokens", window=rank.world * 2 + 1)
    except ConfigError as error:
        return str(error)
    return "nothing was raised"


def counted(rank: Rank) -> Given:
    """Return how often a run of one epoch, and of three, reduces and exchanges something."""
    return {str(epochs): exchanges_of(epochs) for epochs in (1, 3)}


def exchanges_of(epochs: int) -> Given:
    found = {"reductions": 0, "control": 0}
    gather, wrap = dist.all_gather, DistributedDataParallel.__init__

    def counting_gather(*args: Any, **named: Any) -> Any:
        found["control"] += 1
        return gather(*args, **named)

    def counting_hook(state, bucket):  # torch refuses annotations that are strings
        found["reductions"] += 1
        return allreduce_hook(dist.group.WORLD, bucket)

    def wrap_and_count(self: DistributedDataParallel, *args: Any, **named: Any) -> None:
        wrap(self, *args, **named)
        self.register_comm_hook(None, counting_hook)

    with (
        patch.object(dist, "all_gather", counting_gather),
        patch.object(DistributedDataParallel, "__init__", wrap_and_count),
    ):
        engine, _ = learner("tokens", epochs=epochs, accumulation=2, evaluate=False)
        run = engine.run()
    return {**found, "updates": run.update}


CASES: dict[str, Case] = {
    **{name_of(key): partial(trained, kind=key[0], remainder=key[1], size=key[2]) for key in KEYS},
    **{f"{how} {count}": partial(of_few, remainder=how, count=count) for how in FEW for count in (1, 3)},
    **{case.__name__: case for case in (window_over_all, window_that_does_not_divide, counted)},
}
