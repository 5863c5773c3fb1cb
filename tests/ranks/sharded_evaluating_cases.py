"""Evaluations and predictions under `strategy="fsdp"`: what each rank has found, by case. One process runs them too."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torchmetrics
from rank_program import Case, Rank
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from builders import CLASSES, FEATURES
from heptad import Components, Engine, LossOutput, Plugin, Run, RunConfig
from heptad_plugins import Checkpoint, Evaluate


class Net(nn.Module):
    """Blocks with something around them; counts its forward passes in a buffer, and may draw in each."""

    def __init__(self, *, draws: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.last = nn.Linear(7, CLASSES)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("passes", torch.zeros(()))
        self._draws = draws

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if self._draws:
            torch.rand(1)
        data = self.first(data)
        for block in self.blocks:
            data = data + block(data)
        return self.last(data) * self.scale


def samples(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(100 * count + seed)
    data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(data, torch.randint(0, CLASSES, (count,), generator=generator))


VALID = samples(13)  # 4 batches of 4 at most, the last of one sample


class Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self._samples = samples(count)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._samples)


def right(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return (output.argmax(1) == batch[1]).double()


def parts(network: Any, batch: Any) -> LossOutput:
    """A `compute_loss` that calls parts of the network, and never the whole."""
    output = network.last(network.blocks[0](network.first(batch[0])))
    return LossOutput(cross_entropy(output, batch[1]), output=output, weight=len(batch[1]))


def on_rank_1(output: torch.Tensor, batch: Any) -> float:
    if os.environ.get("RANK") == "1":
        raise ValueError("on rank 1 only")
    return 0.0


def network(**options: Any) -> Net:
    torch.manual_seed(1)
    return Net(**options).double()


def build(*plugins: Any, on: nn.Module | None = None, compute_loss: Any = None, **options: Any) -> Engine:
    loss = {"criterion": nn.CrossEntropyLoss()} if compute_loss is None else {"compute_loss": compute_loss}
    components = Components(
        network=network() if on is None else on,
        optimizer=lambda network: torch.optim.AdamW(network.parameters(), lr=0.02),
        dataset=samples(24, 1),
        **loss,
    )
    strategy = "fsdp" if "RANK" in os.environ else "none"
    given = {"epochs": 2, "batch_size": 2, "window": 6, "strategy": strategy, "patience": 20.0, **options}
    return Engine(components, RunConfig(**given), plugins)


def weights(engine: Engine) -> list[Any]:
    """Return the whole weights, and fail where one is not in parts that should be."""
    named = dict(engine.current.network.named_parameters())
    if "RANK" in os.environ and engine.current.update:
        whole = [name for name, one in named.items() if not hasattr(one, "full_tensor")]
        assert whole == ["scale"], whole
    return [getattr(one, "full_tensor", lambda one=one: one)().tolist() for one in named.values()]


def by_update(run: Any) -> dict[str, Any]:
    """Return recorded values by name and update: ranks make fewer steps than one process in the same updates."""
    return {f"{one.name} {one.update}": one.value for one in run.records()}


def of_classes(name: str, **options: Any) -> Any:
    return getattr(torchmetrics, name)("multiclass", num_classes=CLASSES, **options)


def evaluated(compute_loss: Any) -> Any:
    """Train with evaluations of all kinds at all places, and evaluate and predict beside it."""
    metrics = {"right": right, "f1": of_classes("F1Score", average="macro")}
    collection = torchmetrics.MetricCollection({"auroc": of_classes("AUROC"), "recall": of_classes("Recall")})
    shuffled = DataLoader(VALID, batch_size=5, shuffle=True)
    batches = [tuple(batch) for batch in DataLoader(samples(5), batch_size=2)]
    plugins = [
        Evaluate(VALID, metrics, at=("before_loop", "after_step", "optimizer_update", "after_epoch")),
        Evaluate(shuffled, collection, name="shuffled", inference_mode=True, at=("before_loop", "after_step")),
        Evaluate(Stream(11), {"right": right}, name="stream"),
        Evaluate(Stream(3), name="short"),
        Evaluate(samples(1), {"right": right}, name="one"),
        Evaluate(batches, {"right": right}, name="listed", limit=2),
        Evaluate(VALID, {"right": right}, name="limited", limit=5),
        Evaluate(VALID, {"right": right}, name="parts", at=("before_loop", "after_epoch"), compute_loss=parts),
    ]
    engine = build(*plugins, compute_loss=compute_loss)
    found: dict[str, Any] = {"before": dict(engine.evaluate(VALID, {"right": right}))["loss"]}
    within: list[float] = []
    engine.on_exit("after_epoch")(lambda run: within.append(run.evaluate(VALID)["loss"]))
    engine.on_enter("optimizer_update")(lambda run: within.append(engine.evaluate(Stream(3))["loss"]))
    run = engine.run()
    found |= by_update(run)
    found["after"] = dict(engine.evaluate(VALID, {"right": right}, compute_loss=parts))["right"]
    found["weights"], found["within"] = weights(engine), within
    return found


def criterion(rank: Rank) -> Any:
    return evaluated(None)


def computed(rank: Rank) -> Any:
    return evaluated(parts)


def alone(network: Any, batch: Any) -> Any:
    """A `compute_loss` that calls the network as a whole."""
    output = network(batch[0])
    return LossOutput(cross_entropy(output, batch[1]), output=output, weight=len(batch[1]))


def predicted(rank: Rank) -> Any:
    """Before and after training, of fewer batches than ranks too, and of a stream."""
    engine = build(epochs=1)
    found = {}
    for when in ("before", "after"):
        for name, data in {"valid": VALID, "stream": Stream(5), "one": samples(1)}.items():
            found[f"{when} {name}"] = {int(at): one.tolist() for at, one in engine.predict(data, numbered=True)}
        outputs = engine.predict(VALID, compute_loss=parts, inference_mode=True, numbered=True)
        found[f"{when} parts"] = {int(at): one.tolist() for at, one in outputs}
        early = engine.predict(VALID, numbered=True)
        next(early)
        early.close()  # on all ranks after equally many
        engine.current.ended or engine.run()
    found["weights"] = {rank.number: weights(engine)}
    return found


def spared(rank: Rank) -> Any:
    """What a rank that repeats a batch leaves alone: buffers, generators, its count of samples."""
    engine = build(on=network(draws=True), epochs=1)
    engine.run()
    passes = engine.current.network.passes
    before = passes.clone()
    torch.manual_seed(5)
    loss = engine.evaluate(samples(5), preserve_rng=False)["loss"]
    own = len(range(rank.number, 3, rank.world))
    made = (passes - before).item() - own
    state = torch.get_rng_state()
    torch.manual_seed(5)
    for _ in range(own):
        torch.rand(1)
    return [loss, made, torch.equal(state, torch.get_rng_state())]


def failed(rank: Rank) -> Any:
    """A metric, a sample or the criterion fails on one rank, the network on all; they hear of it, and go on."""

    class Bad(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            if index == 5:
                raise OSError("sample 5 cannot be read")
            return super().__getitem__(index)

    class BadStream(Stream):
        def __iter__(self) -> Iterator[Any]:
            yield from list(super().__iter__())[:5]
            raise OSError("cut off")

    odd = samples(13)
    odd.tensors[1][4] = CLASSES  # no such class: in batch 2
    engine = build(epochs=1)
    engine.run()
    found = []
    bad = Bad(*VALID.tensors)
    wide = [(torch.randn(2, FEATURES + 1, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))] * 3
    for data, metrics in (
        (VALID, {"m": on_rank_1}),
        (Stream(13), {"m": on_rank_1}),
        (bad, {}),
        (odd, {}),
        (BadStream(9), {}),
        (wide, {}),
    ):
        try:
            engine.evaluate(data, metrics)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}".partition("\n")[0])
        found.append(engine.evaluate(VALID)["loss"])
    weights(engine)
    return found


def detached(rank: Rank) -> Any:
    """Evaluations fail in the middle of windows, on one rank and on all; the run trains on."""

    def never(network: Any, batch: Any) -> Any:
        network.blocks[0](network.first(batch[0]))
        raise ValueError("after half a pass")

    engine = build(
        Evaluate(VALID, {"m": on_rank_1}, name="m", at="after_step", trial=False, on_error="detach"),
        Evaluate(VALID, name="never", at="after_step", compute_loss=never, trial=False, on_error="detach"),
        Evaluate(VALID, name="valid"),
    )
    run = engine.run()
    return [run.update, run.history("valid/loss"), weights(engine)]


def again(rank: Rank) -> Any:
    """Engines one after another on one network, which is in parts from the first on; and one on another network."""
    one, found = network(), []
    for compute_loss in (None, parts, alone, None):
        engine = build(Evaluate(VALID, {"right": right}), on=one, compute_loss=compute_loss, epochs=1)
        found.append(engine.evaluate(VALID)["loss"])
        run = engine.run()
        found += run.history("valid/loss") + run.history("valid/right") + weights(engine)
    return [*found, build(epochs=1).evaluate(VALID)["loss"]]


def by_handler(rank: Rank) -> Any:
    """Handlers run the network on all ranks, with and without gradients, before weights change."""
    engine = build(epochs=1)
    data = VALID.tensors[0]
    found: list[Any] = []

    @engine.on_enter("optimizer_update")
    def call(run: Any) -> None:
        with torch.no_grad():
            found.append(run.network(data).sum().item())
        run.network(data)
        found.append(weights(engine))

    engine.on_exit("optimizer_update")(lambda run: found.append(run.evaluate(VALID)["loss"]))
    engine.on_exit("before_loop")(lambda run: run.network(data))
    engine.run()
    return [*found, weights(engine)]


def teacher(rank: Rank) -> Any:
    """A `compute_loss` runs the network without gradients, then as a whole and in parts."""

    def distilled(network: Any, batch: Any) -> Any:
        with torch.no_grad():
            before = network(batch[0])
        part = network.last(network.first(batch[0]))
        return cross_entropy(network(batch[0]), batch[1]) + (part - before).pow(2).mean()

    engine = build(Evaluate(VALID, at="after_step", inference_mode=True), compute_loss=distilled)
    return [by_update(engine.run()), weights(engine)]


class OnLoss(Plugin):
    """Evaluates between forward and backward pass."""

    observes = True

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def on_loss(self, run: Run) -> None:
        self.found[str(run.update)] = run.evaluate(VALID)["loss"]


def within_step(rank: Rank) -> Any:
    plugin = OnLoss()
    engine = build(plugin)
    engine.run()
    return [plugin.found, weights(engine)]


def resumed(rank: Rank) -> Any:
    """On a network that is in parts already, where metrics are tried, and on a fresh one; after a pause."""
    folder, one = rank.folder / "checkpoints", network()
    found: list[Any] = []
    for on, resume in ((one, None), (one, folder), (network(), folder)):
        evaluate = Evaluate(VALID, {"right": right}, at=("after_step", "after_epoch"))
        engine = build(evaluate, Checkpoint(folder), on=on)
        engine.run(resume=resume, until=None if resume else lambda run: run.update == 5)
        found += [engine.evaluate(VALID)["loss"], weights(engine)]
        engine.close()
    return found


def unequal(rank: Rank) -> Any:
    """Data of which the ranks have unequally many batches by their own doing."""
    if rank.world == 1:
        return None
    engine = build(epochs=1)
    engine.run()

    class Own(DistributedSampler):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4 + 4 * self.rank))

        def __len__(self) -> int:
            return 4 + 4 * self.rank

    sampler = Own(samples(4 * rank.world), num_replicas=rank.world, rank=rank.number)
    try:
        engine.evaluate(DataLoader(samples(12), batch_size=4, sampler=sampler))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def broken(rank: Rank) -> Any:
    """The network fails on one rank only, in the middle of a pass; last, for it ends what the ranks have in common."""

    def on_rank_1_alone(network: Any, batch: Any) -> Any:
        data = network.blocks[0](network.first(batch[0]))
        if rank.number == 1:
            raise ValueError("after half a pass")
        return cross_entropy(network.last(network.blocks[1](data)), batch[1])

    engine = build(Evaluate(VALID, at="after_step", compute_loss=on_rank_1_alone, trial=False, on_error="detach"))
    began = time.monotonic()
    try:
        engine.run()
    except Exception as error:
        return [f"{type(error).__name__}: {error}", time.monotonic() - began]
    return None


ALL = (
    *(criterion, computed, predicted, spared, failed, detached, again, by_handler),
    *(teacher, within_step, resumed, unequal, broken),
)
CASES: dict[str, Case] = {case.__name__: case for case in ALL}
