"""Windows of ranks that share the parameters: optimizers, lengths and weights; reductions; what a run records of parts.

`learn` runs on ranks with k steps a window, and in the test's own process with k times their number.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from rank_program import Case, Rank
from sharded_cases import Beside, Given, adamw, double, engine_of, learn, network
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard import (
    _fsdp_param_group as groups,
)  # private: nothing else counts what FSDP2 reduces

from builders import CLASSES, FEATURES
from heptad import LossOutput, Run
from heptad_plugins import EMA, GradientClipping


def by_tokens(network: nn.Module, batch: Any) -> LossOutput:
    """A mean over tokens, as many of each sample as its target says: some batches have none."""
    output, tokens = network(batch[0]), batch[1]
    each = nn.functional.cross_entropy(output, tokens, reduction="none")
    count = tokens.sum()
    return LossOutput((each * tokens).sum() / count.clamp(min=1), weight=int(count))


def momentum(network: nn.Module) -> Any:
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {"AdamW": adamw, "SGD": momentum}
SIZES = (1, 4)
REMAINDERS = ("extend", "flush")
RUNS = {
    f"{name} {size} {remainder}": Beside(
        loss=by_tokens,
        optimizer=OPTIMIZERS[name],
        plugins=lambda: [GradientClipping(max_norm=0.05), EMA(0.8)],
        size=size,
        config={"remainder": remainder},
    )
    for name, size, remainder in product(OPTIMIZERS, SIZES, REMAINDERS)
}
"""Of 19 samples in batches of 2, which no window divides."""


def trained(rank: Rank, case: Beside) -> Given:
    return learn(case, "fsdp")


def counted(rank: Rank) -> dict[str, list[int]]:
    """Return, by the steps of a window, how often FSDP2 reduced the gradients of some part in each."""
    found: dict[str, list[int]] = {"1": [], "3": []}
    reduce, reductions = groups.foreach_reduce, [0]

    def counting(*given: Any, **named: Any) -> Any:
        reductions[0] += 1
        return reduce(*given, **named)

    def note(run: Run) -> None:
        found[str(run.accumulation)].append(reductions[0])
        reductions[0] = 0

    with patch.object(groups, "foreach_reduce", counting):
        for size in (1, 3):
            reductions[0] = 0
            engine = engine_of(network(), accumulation=size, epochs=2, batch_size=1)
            engine.on_enter("optimizer_update")(note)
            engine.run()
    return found


def exchanged(rank: Rank) -> Given:
    """Return how often something is exchanged on the control plane, if all parameters are used, and if not."""
    used = double(nn.Sequential(nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)))
    return {
        kind: {str(epochs): exchanges_of(deepcopy(one), epochs) for epochs in (1, 3)}
        for kind, one in (("used", used), ("unused", network()))
    }


def exchanges_of(network: nn.Module, epochs: int) -> list[int]:
    """Return that of a run, and its updates."""
    gather, control = torch.distributed.all_gather, [0]

    def counting(*given: Any, **named: Any) -> Any:
        control[0] += 1
        return gather(*given, **named)

    with patch.object(torch.distributed, "all_gather", counting):
        run = engine_of(network, accumulation=2, epochs=epochs).run()
    return [control[0], run.update]


def recorded(rank: Rank) -> Given:
    """Return what a run records of a gradient, and of its norm, and what it is when it is gathered."""
    engine, expected = engine_of(network()), list[Any]()

    def record(run: Run) -> None:
        gradient: Any = run.network.get_parameter("inp.weight").grad
        whole: Tensor = gradient.full_tensor()
        expected.append([float(whole.norm()), whole.tolist()])
        run.record("norm", gradient.norm())
        run.record_array("gradient", gradient)

    engine.on_enter("optimizer_update", once=True)(record)
    run = engine.run()
    return {"found": [run.history("norm")[0], run.log.arrays("gradient")[0].array.tolist()], "expected": expected[0]}


CASES: dict[str, Case] = {
    **{name: partial(trained, case=case) for name, case in RUNS.items()},
    "counted": counted,
    "exchanged": exchanged,
    "recorded": recorded,
}
