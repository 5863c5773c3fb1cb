"""Runs that some number of ranks store and another continues, under either strategy: what each rank has seen.

All launches of a test share one folder: `store_all` leaves runs with their checkpoints there, of one launch for each
number of ranks; the `CASES` of others continue them. In float64, with sizes that ranks do not divide.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from equality_cases import LOSSES, samples
from rank_program import Case, Rank
from torch import nn

import heptad.ranks.fsdp  # noqa: F401 - imported in the warm parent, once, for all ranks
from builders import FEATURES
from heptad import CheckpointError, Components, ConfigError, Engine, PluginError, Run, RunConfig
from heptad.checkpoints.store import Store
from heptad_plugins import EMA, Checkpoint, GradientClipping, LRSchedule
from scenario import digest

STRATEGIES = ("ddp", "fsdp")
WORLDS = {"1": (1, "none"), **{f"{world} {strategy}": (world, strategy) for world in (2, 3) for strategy in STRATEGIES}}
"""Who stores and who continues: by name, how many ranks and by which strategy."""

SAMPLES = 19
"""In batches of 2: 10 batches a pass, of which windows of 6 make 2 updates an epoch."""

PLACES = ("optimizer_update", "after_epoch")
CLOSED = (2, 3)
"""The checkpoints that are continued: of the end of the first epoch, and in the second."""

PAIRS = [(who, source, CLOSED[(i + j) % 2]) for i, who in enumerate(WORLDS) for j, source in enumerate(WORLDS)]
"""Who continues, of whom, which of them."""


class Scaled(nn.Module):
    """A layer with parameters of every kind: one frozen, one without dimensions; and a buffer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.full((5,), 0.25), requires_grad=False)
        self.register_buffer("offset", torch.tensor([0.5]))

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layer(data) + self.shift.mean() + self.offset


def learner(seed: int = 3) -> nn.Module:
    """Return a network in float64; its last bias has two elements, for three ranks."""
    torch.manual_seed(seed)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(2))
    return nn.Sequential(nn.Linear(FEATURES, 7), Scaled(nn.Sequential(*blocks)), nn.Linear(7, 3)).double()


def engine_of(
    directory: Path, strategy: str, *, seed: int = 3, every: int = 1, at: Any = PLACES, **config: Any
) -> tuple[Engine, dict[str, list[int]]]:
    """Return an engine, and the samples that this rank will have taken by window."""
    taken: dict[str, list[int]] = {}
    components = Components(
        network=learner(seed),
        dataset=samples(SAMPLES),
        compute_loss=LOSSES["tokens"],
        optimizer=lambda network: torch.optim.AdamW(
            [one for one in network.parameters() if one.requires_grad], lr=0.05
        ),
    )
    plugins = [
        Checkpoint(directory, at=at, every=every, keep_last=1000),
        EMA(decay=0.8),
        GradientClipping(max_norm=0.5),
        LRSchedule(lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)),
    ]
    given: dict[str, Any] = {"epochs": 3, "batch_size": 2, "drop_last": False, "seed": 7, "strategy": strategy}
    given |= config if "accumulation" in config else {"window": 6, **config}
    engine = Engine(components, RunConfig(**given), plugins)

    @engine.on_exit("process_batch")
    def note_samples(run: Run) -> None:
        taken.setdefault(str(run.update), []).extend(run.batch[3].tolist())

    @engine.on_exit("optimizer_update")
    def record_loss(run: Run) -> None:
        assert run.mean_loss is not None
        run.record("mean loss", run.mean_loss)

    return engine, taken


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as all ranks together have it: what ranks share is gathered, on all of them."""
    return tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor


def end_of(engine: Engine, taken: dict[str, list[int]]) -> dict[str, Any]:
    """Return what a run has become: values, counters, and digests of what this rank has, to the bit."""
    run = engine.current
    average = next(plugin for plugin in engine._manager.plugins if isinstance(plugin, EMA))
    averages = average.state_dict()["tensors"]
    averaged = [averages.get(name, one) for name, one in run.network.state_dict().items()]
    optimizers = [optimizer.state_dict() for optimizer in run.optimizers]
    moments = [state[name] for state in optimizers[0]["state"].values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "weights": numbers_of(run.network.state_dict().values()),
        "average": numbers_of(averaged),
        "moments": numbers_of(moments),
        "losses": run.history("mean loss"),
        "rates": [group["lr"] for group in optimizers[0]["param_groups"]],
        "counters": [run.update, run.epoch, run.state],
        "taken": taken,
        "bits": digest([*run.network.state_dict().values(), *averaged, optimizers, torch.get_rng_state()]),
    }


def numbers_of(tensors: Any) -> list[float]:
    return torch.cat([whole(one).detach().reshape(-1) for one in tensors]).tolist()


def stored_by(folder: Path, who: str) -> Path:
    """Return where a run stores, in the folder of all launches."""
    return folder / "stored" / who


def store(folder: Path, who: str) -> dict[str, Any]:
    """Train to the end, and store wherever a window is closed."""
    directory = stored_by(folder, who)
    engine, taken = engine_of(directory, WORLDS[who][1])
    with engine:
        engine.run()
        return end_of(engine, taken)


def store_all(rank: Rank) -> dict[str, Any]:
    """Store by all strategies of so many ranks; and in mid-window, and with windows that others cannot share."""
    folder = rank.folder.parent
    found = {who: store(folder, who) for who, (world, _) in WORLDS.items() if world == rank.world}
    strategy = "ddp" if rank.world > 1 else "none"
    for who, config in {"mid-window": MID_WINDOW, "short": {"window": 2 * rank.world}}.items():
        engine, _ = engine_of(stored_by(folder, f"{rank.world} {who}"), strategy, **config)
        with engine:
            engine.run(until=lambda run: run.state == "before_step" and run.step == run.config.accumulation + 1)
    return found


def goes_on(rank: Rank, who: str, source: str, number: int) -> dict[str, Any]:
    """Continue a checkpoint of a run by other ranks, or the same."""
    folder = rank.folder.parent
    entry = Store(stored_by(folder, source)).entries()[number]
    engine, taken = engine_of(folder / "continued" / f"{who} {source} {number}", WORLDS[who][1], seed=4, every=1000)
    with engine:
        run = engine.run(resume=entry.path)
        return {**end_of(engine, taken), "notes": [str(note) for note in run.log.notes()]}


def refused(rank: Rank, source: str, strategy: str, **config: Any) -> str:
    """Return what is said where a checkpoint cannot be continued; the newest of those in mid-window."""
    folder = rank.folder.parent
    entry = Store(stored_by(folder, source)).entries()[-1]
    try:
        engine, _ = engine_of(folder / "refused" / f"{rank.world} {source} {strategy}", strategy, **config)
        with engine:
            engine.run(resume=entry.path)
    except (CheckpointError, ConfigError, PluginError) as error:
        return str(error)
    return "nothing was raised"


def before_the_update(rank: Rank) -> dict[str, Any]:
    """Resume under fsdp, and under ddp, where a window is complete and its update is not made; once more unbroken."""
    given: dict[str, Any] = {"at": "after_step", "accumulation": 1, "epochs": 2}
    ends: list[dict[str, Any]] = []
    with engine_of(rank.folder / "due", "fsdp", **given)[0] as engine:
        engine.run()
        ends.append(end_of(engine, {}))
    entry = Store(rank.folder / "due").entries()[2]
    for strategy in ("fsdp", "ddp"):
        with engine_of(rank.folder / f"due {strategy}", strategy, seed=4, **given)[0] as engine:
            try:
                engine.run(resume=entry.path)
            except CheckpointError as error:
                return {"bits": [one["bits"] for one in ends], "told": str(error)}
            ends.append(end_of(engine, {}))
    return {"bits": [one["bits"] for one in ends], "told": "nothing was raised"}


def waits(rank: Rank) -> list[Any]:
    """Ask for a pause at the end of an epoch that carries an open window, on the last rank; then continue."""
    given: dict[str, Any] = {"at": "optimizer_update", "every": 1000, "remainder": "carry", "window": 3 * rank.world}
    with engine_of(rank.folder / "carried", "fsdp", **given)[0] as engine:
        engine.run()
        end = end_of(engine, {})
    engine, _ = engine_of(rank.folder / "paused", "fsdp", **given)

    @engine.on_enter("after_epoch", once=True)
    def pause(run: Run) -> None:
        if run.rank == run.world - 1:
            run.pause("asked")

    with engine:
        run = engine.run()
        place = [run.paused, run.state, run.epoch, run.update]
    again, _ = engine_of(rank.folder / "paused", "fsdp", seed=4, **given)
    again.on_enter("after_epoch", once=True)(pause)
    with again:
        again.run(resume="auto")
        return [place, end_of(again, {})["bits"] == end["bits"]]


def name_of(who: str, source: str, number: int) -> str:
    return f"{who} from {source}, {number}"


MID_WINDOW, SHORT, GROWN = {"at": "after_step"}, {"window": 4}, {"accumulation": 2}
REFUSALS: list[tuple[int, str, str, dict[str, Any]]] = [
    *(
        (world, source, "mid-window", MID_WINDOW)
        for world, source in ((3, "2"), (1, "2"), (2, "3"), (2, "1"), (3, "1"))
    ),
    *((3, "2", what, config) for what, config in (("short", SHORT), ("grown", GROWN))),
]
"""How many ranks cannot continue what, and how those are built."""


def cases_of(world: int) -> dict[str, Case]:
    """Return the cases of so many ranks."""
    found: dict[str, Case] = {
        name_of(*one): partial(goes_on, who=one[0], source=one[1], number=one[2])
        for one in PAIRS
        if WORLDS[one[0]][0] == world
    }
    for number, source, what, config in REFUSALS:
        for strategy in (STRATEGIES if world > 1 else ("none",)) if number == world else ():
            name = f"{source} {'mid-window' if what == 'mid-window' else 'short'}"
            found[f"{strategy} refuses {source} {what}"] = partial(refused, source=name, strategy=strategy, **config)
    return found if world == 1 else {**found, "before the update": before_the_update, "waits": waits}


CASES = {world: cases_of(world) for world in (1, 2, 3)}
