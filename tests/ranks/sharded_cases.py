"""What goes on beside the plain loop where ranks hold a part of each parameter: what each case has left.

`learn` runs on ranks with k steps a window, and in the test's own process with k times their number.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rank_program import Case, Rank
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from builders import CLASSES, FEATURES
from heptad import (
    CheckpointError,
    Components,
    ConfigError,
    Engine,
    EngineError,
    LossOutput,
    Plugin,
    PluginError,
    Run,
    RunConfig,
)
from heptad_plugins import (
    EMA,
    SAM,
    SWA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Evaluate,
    GradientClipping,
    LRSchedule,
    ModelSummary,
    NonFiniteGuard,
    OptimizerMonitor,
    Profiler,
    Progress,
    TensorBoardLogger,
    Throughput,
    TrainingMetrics,
)

Given = dict[str, Any]
WORDS = 11
"""In the embedding of `Tied`, which the ranks cannot share out evenly."""


class Net(nn.Module):
    """Blocks, a scalar, and a part that nothing uses; no size of it divides by the number of ranks."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.inp = nn.Linear(FEATURES, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
        self.norm = nn.BatchNorm1d(7) if norm else nn.Identity()
        self.left, self.right = nn.Linear(7, CLASSES), nn.Linear(7, CLASSES)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def body(self, data: Tensor) -> Tensor:
        data = self.inp(data)
        for block in self.blocks:
            data = data + block(data)
        return self.norm(data)

    def forward(self, data: Tensor) -> Tensor:
        return self.left(self.body(data)) * self.scale


def normed() -> Net:
    return Net(norm=True)


class Tied(nn.Module):
    """An embedding whose weight the head has too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(6, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, data: Tensor) -> Tensor:
        data = self.words((data[:, 0].abs() * 100).long() % WORDS)
        for block in self.blocks:
            data = data + block(data)
        return self.head(data)[:, :CLASSES].clone()


class TiedBlocks(Net):
    """Blocks that have a weight in common, so that each rank holds it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1][0].weight = self.blocks[0][0].weight


class Mixed(Net):
    """Parameters of two dtypes, of which one block has both."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(7, dtype=torch.float32))

    def forward(self, data: Tensor) -> Tensor:
        return self.left(self.body(data) * self.gain.to(data.dtype)) * self.scale


def double(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for name, one in module.named_parameters(recurse=False):
            if name != "gain":
                one.data = one.data.double()
        for name, one in module.named_buffers(recurse=False):
            if one.is_floating_point():
                setattr(module, name, one.double())
    return network


def tensors(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    data = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return data, torch.randint(0, CLASSES, (count,), generator=generator)


# -- losses


def plain(network: nn.Module, batch: Any) -> LossOutput:
    output = network(batch[0])
    loss = nn.functional.cross_entropy(output, batch[1])
    return LossOutput(loss, weight=len(batch[0]), output=output, logs={"own": loss.detach() * 2})


def unweighed(network: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def in_parts(network: Any, batch: Any) -> LossOutput:
    """Call parts of the network, of which a batch has one or the other, and the network twice."""
    end = network.left if float(batch[0].sum()) > 0 else network.right
    first = nn.functional.cross_entropy(end(network.body(batch[0])), batch[1])
    return LossOutput(first + nn.functional.mse_loss(network(batch[0]), network(-batch[0])), weight=len(batch[0]))


def branching(network: Any, batch: Any) -> LossOutput:
    """Use one end for most batches, and the other for a few."""
    end = network.right if float(batch[0].sum()) > 2 else network.left
    return LossOutput(nn.functional.cross_entropy(end(network.body(batch[0])), batch[1]), weight=len(batch[0]))


def in_parts_alone(network: Any, batch: Any) -> LossOutput:
    """Call no module that is sharded by itself."""
    output = network.left(torch.tanh(network.inp(batch[0])))
    return LossOutput(nn.functional.cross_entropy(output, batch[1]), weight=len(batch[0]))


def some_are_nothing(network: nn.Module, batch: Any) -> LossOutput:
    """NaN at weight 0, as the mean over no tokens is."""
    given = plain(network, batch)
    nothing = float(batch[0].sum()) < 0
    value = given.value * math.nan if nothing else given.value
    return LossOutput(value, weight=0 if nothing else len(batch[0]))


class WithTemperature(nn.Module):
    """A criterion with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output / self.temperature, target)


# -- optimizers


def adamw(network: nn.Module) -> Any:
    return torch.optim.AdamW(network.parameters(), lr=0.05)


def in_lists(network: nn.Module) -> Any:
    return torch.optim.AdamW(network.parameters(), lr=0.05, foreach=True)


def several(network: Any) -> Any:
    groups = [{"params": [*network.inp.parameters()]}, {"params": [*network.blocks.parameters()], "lr": 0.01}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def ends(network: Any) -> Any:
    return torch.optim.AdamW([*network.left.parameters(), network.scale], lr=0.02)


# -- plugins of the cases


class Freezes(Plugin):
    """Freezes a block for an epoch, and what comes before it for good."""

    def on_enter_before_epoch(self, run: Run) -> None:
        network: Any = run.network
        network.blocks[0].requires_grad_(run.epoch != 1)
        network.inp.requires_grad_(run.epoch == 0)


class Steps(Plugin):
    """Steps a side optimizer by the gradients that all have reduced."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        run.side_optimizers["ends"].step()
        run.side_optimizers["ends"].zero_grad()


class Breaks(Plugin):
    """Writes a number to one element of a gradient, which one rank has in its part."""

    runs_before = (NonFiniteGuard, GradientClipping)

    def __init__(self, value: float, at: int, row: int = 0) -> None:
        self._value, self._at, self._row = value, at, row

    def on_enter_optimizer_update(self, run: Run) -> None:
        if run.windows == self._at:
            weight = run.network.get_parameter("inp.weight")
            gradient: Any = weight.grad
            held = run._runtime.shards.part(gradient)
            local, start = (gradient, 0) if held is None else (held.local, held.offset[0])
            if 0 <= self._row - start < len(local):
                local[self._row - start] = self._value


def right(output: Tensor, batch: Any) -> Tensor:
    return (output.argmax(dim=1) == batch[1]).double()


def whole(tensor: Any) -> Any:
    """Return the numbers of a tensor that ranks may share; all of them call this."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).tolist()


def averages_of(ema: EMA | SWA) -> Given:
    return {name: whole(one) for name, one in ema.state_dict()["tensors"].items()}


def state_of(network: nn.Module) -> Given:
    return {name: whole(one) for name, one in network.named_parameters()}


# -- runs


@dataclass(frozen=True)
class Beside:
    """A run; `size` is k."""

    network: Callable[[], nn.Module] = Net
    loss: Any = plain
    optimizer: Any = adamw
    plugins: Callable[[], list[Plugin]] = list
    size: int = 2
    count: int = 19
    config: Given = field(default_factory=dict[str, Any])
    given: Given = field(default_factory=dict[str, Any])
    evaluates: bool = False


def init_weights(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            nn.init.uniform_(module.bias)


RUNS: dict[str, Beside] = {
    "plain": Beside(),
    "foreach": Beside(optimizer=in_lists),
    "clip norm": Beside(plugins=lambda: [GradientClipping(max_norm=0.05)]),
    "clip value": Beside(plugins=lambda: [GradientClipping(max_value=0.01)]),
    "ema": Beside(plugins=lambda: [EMA(0.8, start=1)], evaluates=True),
    "ema in another dtype": Beside(plugins=lambda: [EMA(0.8, dtype=torch.float32)], evaluates=True),
    "swa": Beside(plugins=lambda: [SWA(0)], network=normed, evaluates=True, count=18),
    "nan": Beside(plugins=lambda: [Breaks(math.nan, 1, row=6), NonFiniteGuard("skip")]),
    "inf": Beside(plugins=lambda: [Breaks(math.inf, 1, row=0), NonFiniteGuard("stop")]),
    "large": Beside(plugins=lambda: [Breaks(1e300, 1, row=0), NonFiniteGuard("stop"), GradientClipping(max_value=0.1)]),
    "schedule": Beside(
        plugins=lambda: [
            LRSchedule(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)),
            EarlyStopping("train/epoch_loss", patience=1, min_delta=0.05),
        ],
        config={"epochs": 4},
    ),
    "groups": Beside(optimizer=[several, ends], plugins=lambda: [GradientClipping(max_norm=0.05)]),
    "monitor": Beside(
        optimizer=[several, ends],
        plugins=lambda: [GradientClipping(max_norm=0.05), OptimizerMonitor(ratio=True, patterns=["blocks.*"])],
    ),
    "side": Beside(optimizer=several, given={"side_optimizers": {"ends": ends}}, plugins=lambda: [Steps()]),
    "freezes": Beside(plugins=lambda: [Freezes(), NonFiniteGuard("raise")], config={"epochs": 3}),
    "branching": Beside(loss=branching),
    "in parts": Beside(loss=in_parts),
    "in parts of no blocks": Beside(
        loss=in_parts_alone,
        config={"remainder": "carry", "epochs": 3},
        size=4,
        count=1,
        given={"blocks": lambda network: [network]},
    ),
    "criterion": Beside(loss=WithTemperature, config={"remainder": "drop"}),
    "tied": Beside(
        network=Tied,
        plugins=lambda: [NonFiniteGuard("raise"), GradientClipping(max_norm=0.05), EMA(0.8)],
        evaluates=True,
    ),
    "tied blocks": Beside(
        network=TiedBlocks, plugins=lambda: [NonFiniteGuard("raise"), GradientClipping(max_norm=0.05), EMA(0.8)]
    ),
    "mixed": Beside(network=Mixed, plugins=lambda: [NonFiniteGuard("raise"), EMA(0.8)]),
    "recompute": Beside(config={"recompute": True}),
    "init": Beside(given={"init_weights": init_weights}, config={"seed": 5}),
    "nothing": Beside(loss=some_are_nothing),
    "nothing, flushed": Beside(loss=some_are_nothing, config={"remainder": "flush"}, size=3),
    "few": Beside(config={"remainder": "flush"}, count=3),
    "carried": Beside(config={"remainder": "carry", "epochs": 3}, size=3),
    "SAM": Beside(plugins=lambda: [SAM(0.05), NonFiniteGuard("raise")]),
    "adaptive SAM": Beside(plugins=lambda: [SAM(0.5, adaptive=True)]),
}


def learn(case: Beside, strategy: str = "none", times: int = 1) -> Given:
    torch.manual_seed(3)
    network = double(case.network())
    given = dict(case.given)
    loss = {"compute_loss": case.loss}
    optimizer = case.optimizer
    if case.loss is WithTemperature:
        criterion = WithTemperature()
        loss = {"criterion": criterion}

        def optimizer(network: nn.Module) -> Any:
            return torch.optim.AdamW([*network.parameters(), *criterion.parameters()], lr=0.05)

    plugins = case.plugins()
    if case.evaluates:
        plugins.append(Evaluate(TensorDataset(*tensors(12)), {"right": right}))
    config = {"epochs": 2, "batch_size": 2, "drop_last": False, "device": "cpu", "remainder": "extend", **case.config}
    engine = Engine(
        Components(network=network, dataset=TensorDataset(*tensors(case.count)), optimizer=optimizer, **loss, **given),
        RunConfig(**config, accumulation=case.size * times, strategy=strategy),
        plugins=plugins,
    )
    means: list[float] = []

    @engine.on_exit("optimizer_update")
    def note(run: Run) -> None:
        means.append(math.nan if run.mean_loss is None else float(run.mean_loss))

    run = engine.run()
    found: Given = {
        "weights": state_of(network),
        "counters": [run.update, run.epoch, run.windows],
        "reason": run.reason,
        "means": means,
        "norms": [float(one) for one in run.history("gradient_norm")],
        "metrics": {name: value for name, value in run.metrics.items() if name != "own"},
    }
    if case.loss is WithTemperature:
        found["criterion"] = state_of(criterion)
    for plugin in plugins:
        if isinstance(plugin, EMA | SWA):
            found["averages"] = averages_of(plugin)
    return found


def trained(rank: Rank, case: Beside) -> Given:
    return learn(case, "fsdp")


# -- what is refused


def engine_of(network: nn.Module, plugins: Any = (), **given: Any) -> Engine:
    """Return an engine over eight samples, with fields of components and of the configuration in any order."""
    fields: Given = {"optimizer": adamw, "dataset": TensorDataset(*tensors(8))}
    if "compute_loss" not in given:
        fields["criterion"] = nn.CrossEntropyLoss()
    config: Given = {"epochs": 1, "batch_size": 2, "device": "cpu", "strategy": "fsdp"}
    own = {name: given.pop(name) for name in [*given] if name in RunConfig.model_fields}
    return Engine(Components(network=network, **{**fields, **given}), RunConfig(**{**config, **own}), plugins)


def network(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(3)
    return double(Net()) if dtype is torch.float64 else Net()


def built(optimizer: Any, **given: Any) -> Engine:
    """Return an engine of a network, and of what is made of that before it is sharded."""
    own = network()
    return engine_of(own, **{name: part(own) for name, part in {"optimizer": optimizer, **given}.items()})


def closed_over(network: nn.Module) -> Any:
    before = list(network.parameters())
    return lambda sharded: torch.optim.SGD([*sharded.parameters(), *before[:3]], lr=0.1)


def lbfgs(network: nn.Module) -> Any:
    return torch.optim.LBFGS(network.parameters())


def twice() -> Engine:
    """Return an engine of a network that an earlier one has sharded."""
    own = network()
    engine_of(own, init_weights=init_weights).run()
    return engine_of(own, init_weights=init_weights)


REFUSED: dict[str, tuple[Callable[[], Engine], str]] = {
    "ready-made": (lambda: built(adamw), "Components.optimizer: this AdamW was built before strategy='fsdp' shards"),
    "one of a list": (lambda: built(lambda network: [several, adamw(network)]), "this AdamW was built before"),
    "side": (
        lambda: built(lambda network: several, side_optimizers=lambda network: {"ends": ends(network)}),
        "Components.side_optimizers['ends']: this AdamW was built before",
    ),
    "closed over": (lambda: built(closed_over), "2 of the 13 parameters of this SGD are those that the network had"),
    "side closed over": (
        lambda: built(lambda network: several, side_optimizers=lambda network: {"ends": closed_over(network)}),
        "Components.side_optimizers['ends']: 2 of the 13 parameters of this SGD",
    ),
    "closure": (lambda: built(lambda network: lbfgs), "the step of LBFGS needs a closure"),
    "no step": (
        lambda: built(lambda network: lambda network: torch.optim.Adafactor(network.parameters())),
        "the step of Adafactor has operations that torch does not have",
    ),
    "lists": (
        lambda: engine_of(double(TiedBlocks()), optimizer=in_lists),
        "foreach=True is for parameters of one kind",
    ),
    "lazy": (
        lambda: engine_of(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))),
        "cannot shard '0': its parameter weight has no shape before the first batch",
    ),
    "compiled": (
        lambda: engine_of(cast("Any", torch.compile(network(), backend="eager"))),
        "cannot shard Components.network: it is what torch.compile returned",
    ),
    "scripted": (
        lambda: engine_of(torch.jit.trace(nn.Linear(FEATURES, CLASSES), torch.zeros(1, FEATURES))),
        "is compiled by TorchScript",
    ),
    "sparse": (
        lambda: engine_of(nn.Sequential(nn.Embedding(3, 3, sparse=True))),
        "cannot shard '0': an Embedding with sparse=True",
    ),
    "in a window": (
        lambda: engine_of(network(), [Checkpoint("refused", "after_step")], accumulation=2),
        "Checkpoint(at='after_step') and strategy='fsdp': a window may be open there",
    ),
    "in a carried window": (
        lambda: engine_of(network(), [Checkpoint("refused")], accumulation=2, remainder="carry"),
        "Checkpoint(at='after_epoch') with remainder='carry' and strategy='fsdp'",
    ),
    "whole in half": (
        lambda: engine_of(TiedBlocks(), precision="bf16-mixed"),
        "each holds whole: blocks.0.0.weight; a parameter is shared where",
    ),
    "redo": (lambda: engine_of(network(), redo=("non_finite",)), "RunConfig.redo is ('non_finite',)"),
    "drawn twice": (twice, "Components.init_weights: the network is sharded already"),
}
"""What raises as an engine is built or begins to be driven, and words of what it says."""


def refused(rank: Rank) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, (build, _) in REFUSED.items():
        try:
            build().run()
            found[name] = "nothing was raised"
        except (ConfigError, PluginError) as error:
            found[name] = str(error)
    return found


def smoked(rank: Rank) -> str:
    try:
        engine_of(network()).smoke()
    except EngineError as error:
        return str(error)
    return "nothing was raised"


def damaged(rank: Rank) -> Given:
    """Return what a checkpoint with a flipped bit of the last rank leaves of the network that was to resume from it."""
    store, part = rank.folder / "damaged", f"checkpoint-00000001/network-{rank.world - 1:05}.safetensors"
    with engine_of(network(), [Checkpoint(store, at="optimizer_update")], epochs=2) as engine:
        engine.run(until=lambda run: run.update == 1 and run.state == "before_step")
        peers = engine.current._runtime.peers
        peers.gather(b"stored")
        if not rank.number:
            content = bytearray((store / part).read_bytes())
            content[-1] ^= 1
            (store / part).write_bytes(content)
        peers.gather(b"damaged")
    own = network()
    before = {name: one.detach().clone() for name, one in own.state_dict().items()}
    generator, text = torch.get_rng_state(), "nothing was raised"
    try:
        engine_of(own, [Checkpoint(store)], epochs=2).run(resume=store / "checkpoint-00000001")
    except CheckpointError as error:
        text = str(error)
    after = own.state_dict()
    same = all(type(one) is Tensor and torch.equal(one, before[name]) for name, one in after.items())
    return {"text": text, "untouched": same and torch.equal(generator, torch.get_rng_state()), "part": part}


def mistaken(rank: Rank) -> list[str]:
    """Return the notes of the error of a loss that takes a parameter of a block for a plain tensor."""

    def penalized(network: Any, batch: Any) -> Tensor:
        return network(batch[0]).square().mean() + next(network.blocks.parameters()).square().sum()

    try:
        engine_of(network(), compute_loss=penalized).run()
    except RuntimeError as error:
        return error.__notes__
    return []


def raised(rank: Rank) -> str:
    """Return what a guard says on each rank of a NaN in the part of one."""
    try:
        engine_of(network(), [Breaks(math.nan, 1, row=6), NonFiniteGuard("raise")]).run()
    except FloatingPointError as error:
        return str(error)
    return "nothing was raised"


# -- what shows and measures, and what has no equal in one process


def shown(rank: Rank, strategy: str = "fsdp") -> Given:
    """Return what plugins that show and measure have of a run."""
    out = io.StringIO()
    folder = rank.folder / strategy
    summary = ModelSummary(file=out)
    plugins = [
        *(CSVLogger(folder / "a.csv"), TensorBoardLogger(folder / "events"), Progress(file=out), summary, Throughput()),
        *(TrainingMetrics({"right": right}), Profiler(folder / "trace.json", range(1, 2))),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        size = 1 if strategy == "fsdp" else rank.world
        run = engine_of(network(), plugins, epochs=2, compute_loss=plain, strategy=strategy, accumulation=size).run()
    return {
        "parts": [[part.name, part.kind, part.parameters, part.trained, part.flops] for part in summary.parts],
        "measured": [run.metrics["train/epoch_loss"], run.metrics["train/right"]],
        "names": sorted(run.metrics),
        "warnings": [str(one.message) for one in caught if "torch" in str(one.filename)],
    }


def frozen(rank: Rank) -> list[Any]:
    """Return what becomes of a criterion where nothing of the network is trained, and how much of that has moved."""
    criterion, own = WithTemperature(), network().requires_grad_(False)

    def optimizer(network: nn.Module) -> Any:
        return torch.optim.SGD([*network.parameters(), *criterion.parameters()], lr=0.1)

    plugins = [GradientClipping(max_norm=0.1), NonFiniteGuard("raise"), EMA(0.5)]
    engine_of(own, plugins, criterion=criterion, optimizer=optimizer).run()
    moved = state_of(own) != state_of(network())
    return [criterion.temperature.item(), moved]


def normed(rank: Rank) -> list[Any]:
    """Return the running mean of a batch norm, and its average, which are this rank's own."""
    ema = EMA(0.5)
    own: Any = double(Net(norm=True))
    engine_of(own, [ema, NonFiniteGuard("raise")], batch_size=4).run()
    return [own.norm.running_mean.tolist(), ema.state_dict()["tensors"]["norm.running_mean"].tolist()]


def in_half(rank: Rank, precision: str, loss: Any = plain) -> Given:
    """Return losses, weights, and in what the blocks compute."""
    own, found, losses = network(torch.float32), set[str](), list[float]()
    own.blocks[0].register_forward_hook(lambda module, given, output: found.add(str(output.dtype)))
    data, target = tensors(16)
    engine = engine_of(
        own,
        [GradientClipping(max_norm=1.0), EMA(0.5), NonFiniteGuard("raise")],
        dataset=TensorDataset(data.float(), target),
        compute_loss=loss,
        precision=precision,
        epochs=2,
        accumulation=3,  # and windows of 3 and of 1 step, as the others are flushed
        remainder="flush",
    )
    engine.on_exit("optimizer_update")(lambda run: losses.append(float(cast("Tensor", run.mean_loss))))
    engine.run()
    return {"losses": losses, "dtypes": [*found], "weights": state_of(own)}


def halves(rank: Rank) -> list[Given]:
    """In bf16 twice, in fp32; and by parts of the network in bf16, of which steps use one or the other."""
    runs = [in_half(rank, precision) for precision in ("bf16-mixed", "bf16-mixed", "fp32")]
    return [*runs, in_half(rank, "bf16-mixed", branching), in_half(rank, "fp32", branching)]


def overflown(rank: Rank) -> list[Any]:
    """Return, by where rank 1 alone has an infinity, which updates were skipped, and the scales."""
    found: list[Any] = []
    for where in ("inp.weight", "scale"):  # shared; whole, and not averaged yet
        data, target = tensors(16)
        dataset = TensorDataset(data.float(), target)
        engine = engine_of(network(torch.float32), dataset=dataset, precision="fp16-mixed")
        rows: list[Any] = []

        def spoil(run: Run, where: str = where) -> None:
            gradient = run.network.get_parameter(where).grad
            if run.step == 3 and run.rank == 1 and gradient is not None:
                run.local(gradient).view(-1)[:1] = math.inf

        def note(run: Run, rows: list[Any] = rows) -> None:
            scaling: Any = run._runtime.scaling
            rows.append([run.update_skipped, scaling.scale])

        engine.on_exit("after_step")(spoil)
        engine.on_exit("optimizer_update")(note)
        engine.run()
        found.append(rows)
    return found


def in_one_block(rank: Rank) -> bool:
    """Return whether the network as its only block trains as the network by blocks does."""
    one, other = network(), network()
    engine_of(one, blocks=lambda network: [network]).run()
    engine_of(other).run()
    return state_of(one) == state_of(other)


def compiled(rank: Rank) -> list[float]:
    """Return the loss of a network whose blocks are compiled around what FSDP2 does; and of one that is not."""
    found: list[float] = []
    for options in (False, {"backend": "aot_eager"}):
        run = engine_of(network(), compile=options, recompute=bool(options), compute_loss=some_are_nothing).run()
        found.append(float(cast("Tensor", run.mean_loss)))
    return found


WAYS = (("ddp", "fsdp"), ("fsdp", "ddp"), ("fsdp", "fsdp"))


def resumed(rank: Rank) -> list[Given]:
    """Return the averages of runs that are stored with one strategy and resumed with another."""
    found: list[Given] = []
    for first, second in WAYS:

        def engine(strategy: str, ema: EMA, folder: Path = rank.folder / f"{first} {second}") -> Engine:
            checkpoint = Checkpoint(folder, at="optimizer_update")
            return engine_of(network(), [ema, checkpoint], strategy=strategy, epochs=3)

        with engine(first, EMA(0.8)) as one:
            one.run(until=lambda run: run.update == 3)
        ema = EMA(0.8)
        engine(second, ema).run(resume="auto")
        found.append(averages_of(ema))
    return found


ALONE = Beside(plugins=lambda: [EMA(0.8)], size=1, count=8, config={"epochs": 3}, loss=unweighed)
"""What those runs are in one process."""


def resumed_mixed(rank: Rank) -> list[str]:
    """Resume by another strategy where one block has shared and whole parameters, for which torch takes no lists."""
    found: list[str] = []
    for first, second in WAYS:

        def engine(strategy: str, folder: Path = rank.folder / f"mixed {first} {second}") -> Engine:
            checkpoint = Checkpoint(folder, at="optimizer_update")
            return engine_of(double(TiedBlocks()), [checkpoint], strategy=strategy, epochs=3)

        with engine(first) as one:
            one.run(until=lambda run: run.update == 2)
        found.append(engine(second).run(resume="auto").state)
    return found


OTHERS = (
    damaged,
    raised,
    mistaken,
    resumed_mixed,
    refused,
    smoked,
    shown,
    frozen,
    normed,
    halves,
    overflown,
    in_one_block,
    resumed,
)
_CASES: dict[str, Case] = {
    **{name: partial(trained, case=case) for name, case in RUNS.items()},
    **{case.__name__: case for case in OTHERS},
}
CASES: dict[int, dict[str, Case]] = {2: {"compiled": compiled, **_CASES}, 3: _CASES}
