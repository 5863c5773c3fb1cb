"""Runs of ranks that are stored and resumed: what each rank has seen, by case.

All launches of a test share one folder: ranks of another number, and a process alone, resume what two have stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rank_program import Case, Rank
from torch import nn
from torch.utils.data import TensorDataset

from builders import records
from heptad import CheckpointError, Components, Detour, Engine, Plugin, Run, RunConfig, TransitionLog
from heptad.checkpoints.store import Store
from heptad.record.checkpoint_events import StillDetached
from heptad.record.events import Detach
from heptad_plugins import (
    EMA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Evaluate,
    Journal,
    LRSchedule,
    Progress,
    Throughput,
    TrainingMetrics,
)
from scenario import digest

HERE = Path(__file__).parent
PLACES = ("after_step", "optimizer_update", "after_epoch")
REMAINDERS = ("extend", "drop", "flush", "carry")
STORED = 16
"""Steps of two ranks, in each of which a run stores what other numbers of ranks resume."""

STOP_AT = 11
"""Steps of the run that is left in mid-window."""


def engine_of(
    directory: Path, *, window: int = 6, masks: bool = True, seed: int = 1, samples: int = 48, **options: Any
) -> Engine:
    """Return an engine of 3 epochs; with masks each rank draws its own, and has buffers of its own."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8), nn.Dropout(0.3)] if masks else [nn.Tanh()]
    network = nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 2)).double()
    drawn = torch.Generator().manual_seed(0)
    data = (
        torch.randn(samples, 4, dtype=torch.float64, generator=drawn),
        torch.randint(0, 2, (samples,), generator=drawn),
    )
    components = Components(
        network=network,
        optimizer=lambda network: torch.optim.Adam(network.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        dataset=TensorDataset(*data),
    )
    given = {name: options.pop(name) for name in ("remainder", "epochs", "agree_every", "strategy") if name in options}
    config = RunConfig(**{"epochs": 3, "batch_size": 2, "window": window, "seed": 7, "num_workers": 0} | given)
    plugins = options.pop("plugins", [])
    store = Checkpoint(directory, **({"at": "after_step", "keep_last": 1000} | options))
    return Engine(components, config, [store, EMA(decay=0.9), *plugins])


def right(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return (output.argmax(dim=1) == batch[1]).double()


def rich_engine(directory: Path, journal: Path, **options: Any) -> Engine:
    """Return an engine with what remembers something from step to step; some of it records on the first rank alone."""
    drawn = torch.Generator().manual_seed(3)
    valid = TensorDataset(torch.randn(9, 4, dtype=torch.float64, generator=drawn), torch.arange(9) % 2)
    plugins = [
        LRSchedule(lambda optimizer, updates: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, updates)),
        *(Evaluate(valid, {"right": right}), TrainingMetrics({"right": right}), Throughput()),
        *(EarlyStopping("train/loss", patience=7), Progress(file=io.StringIO())),
        *(CSVLogger(journal.with_suffix(".csv")), Journal(journal)),
    ]
    engine = engine_of(directory, plugins=plugins, **options)

    @engine.on_exit("after_step")
    def note_means(run: Run) -> None:  # of the newest window and epoch, also in the middle of one
        run.record("seen/samples", run.samples)
        for name, mean in (("window", run.mean_loss), ("epoch", run.epoch_loss)):
            if mean is not None:
                run.record(f"seen/{name}", mean)

    return engine


def end_of(engine: Engine) -> dict[str, Any]:
    """Return what a run has become on this rank: digests, by what it is."""
    run = engine.current
    average = next(plugin for plugin in engine._manager.plugins if isinstance(plugin, EMA))
    return {
        "weights": digest([*run.network.parameters()]),
        "buffers": digest([*run.network.buffers()]),
        "average": digest(average.state_dict()),
        "optimizers": digest([optimizer.state_dict() for optimizer in run._runtime.optimizers]),
        "drawn": digest(torch.get_rng_state()),
        "means": [str(run.mean_loss), str(run.epoch_loss)],
        "counts": [run.step, run.update, run.epoch, run.samples, run.reason],
        "records": [[row.name, row.value, row.step] for row in run.log.values() if not is_of_clocks(row.name)],
    }


def is_of_clocks(name: str) -> bool:
    return name.endswith(("per_second", "wait_share"))


def rows_of(journal: Path, rank: int) -> dict[str, Any]:
    """Return what the journal of a rank holds: the path, and the values."""
    log = TransitionLog.load(journal).of_rank(rank)
    values = [[row.seq, row.name, row.value] for row in log.values() if not is_of_clocks(row.name)]
    path = [turn for turn in records(log) if "checkpoint" not in turn[1:3]]
    return {"path": [digest([turn[1:] for turn in path]), len(path)], "values": digest([row[1:] for row in values])}


def weights_of(run: Run) -> list[float]:
    """Return the parameters as numbers."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in run.network.parameters()]).tolist()


def shared(rank: Rank) -> Path:
    """Return the folder of all launches."""
    return rank.folder.parent


def own(rank: Rank) -> Path:
    """Return a folder of the launches with so many ranks, which no other writes to."""
    return rank.folder / "runs"


def unbroken(rank: Rank) -> Any:
    """A run that stores in the middle of windows and between them."""
    directory = own(rank) / "run"
    with rich_engine(directory, directory.with_suffix(".journal"), every=5) as engine:
        engine.run()
        return {"end": end_of(engine), "journal": rows_of(directory.with_suffix(".journal"), rank.number)}


def resumed(rank: Rank) -> Any:
    """From its checkpoints, and to their journal no more."""
    ends = {}
    for entry in Store(own(rank) / "run").entries()[::2]:
        again = own(rank) / "again" / entry.path.name
        with rich_engine(again, again.with_suffix(".journal"), every=1000, seed=2) as engine:
            engine.run(resume=entry.path)
            ends[entry.path.name] = end_of(engine)
    return ends


def automatic(rank: Rank) -> Any:
    """One begins where there is none yet, is left in mid-window, and another continues."""
    directory = own(rank) / "auto"
    with rich_engine(directory, directory.with_suffix(".journal"), every=2) as engine:
        engine.run(resume="auto", until=lambda run: run.step == STOP_AT)
    with rich_engine(directory, directory.with_suffix(".journal"), every=2, seed=2) as engine:
        run = engine.run(resume="auto")
        name = Path(run.resumed_from or "").name
    return {"end": end_of(engine), "from": name, "journal": rows_of(directory.with_suffix(".journal"), rank.number)}


def damaged(rank: Rank) -> Any:
    """The newest has a file of one rank cut."""
    directory = own(rank) / "auto"
    if rank.number == 0:
        newest = Store(directory).entries()[-1]
        path = newest.path / "rank-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    torch.distributed.barrier()
    with rich_engine(directory, directory.with_suffix(".journal"), every=2) as engine:
        run = engine.run(resume="auto", until=lambda run: True)
        return {"from": Path(run.resumed_from or "").name, "notes": [str(note) for note in run.log.notes()]}


class Looks(Plugin):
    """Asks for a detour on rank 1, in mid-window."""

    requests = ("look",)

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def detours(self) -> list[Detour]:
        return [Detour("look", "optimizer_update", lambda run: run.agreed("Looks.look"), self.look)]

    def on_exit_after_step(self, run: Run) -> None:
        if run.step == 3 and self.rank.number == 1:
            run.ask("Looks.look")

    def look(self, run: Run) -> None:
        run.record("looked", run.step)
        run.ask("Looks.look", wanted=False)


def agreed_seldom(rank: Rank) -> Any:
    """A stop that is asked for in mid-window waits for the agreement of every third window, also when resumed."""
    ends = []
    for name, until in (("whole", None), ("asked", 4), ("stopped", 7), ("later", 9)):
        directory = own(rank) / f"seldom {name}"
        for resume in (None, "auto") if until else (None,):

            def leave(run: Run, at: int | None = None if resume else until) -> bool:
                return run.step == at

            given = {"agree_every": 3, "every": 2, "first": 1, "plugins": [Looks(rank)]}
            with engine_of(directory, window=2 * rank.world, seed=1 + bool(resume), **given) as engine:
                engine.on_exit("after_step")(lambda run: stop_once(run, rank))
                engine.run(resume=resume, until=leave)
        ends.append(end_of(engine))
    return ends


def stop_once(run: Run, rank: Rank) -> None:
    if run.step == 7 and rank.number == 1:
        run.stop("enough")


def refused(rank: Rank) -> dict[str, str]:
    """What each rank raises."""
    folder = own(rank)
    mistakes: dict[str, Callable[[], Any]] = {
        "not alike": lambda: engine_of(folder / "x").run(resume="auto" if rank.number else None),
        "not there": lambda: engine_of(folder / "y").run(resume=folder / "nowhere"),
        "none sound": lambda: engine_of(folder / "y").run(resume=folder),
        "another's": lambda: engine_of(folder / "run").run(),
        "another run": lambda: engine_of(folder / "z", window=12).run(resume=folder / "run"),
        "full": lambda: full(folder / "full", rank),
    }
    found = {}
    for name, mistake in mistakes.items():
        try:
            mistake()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def full(directory: Path, rank: Rank) -> None:
    """Train where the disk of rank 1 is full after a while."""
    engine = engine_of(directory, every=3)
    plugin = next(one for one in engine._manager.plugins if isinstance(one, Checkpoint))
    files = plugin.store._files
    if rank.number:
        before = files.create

        def create(path: Path) -> int:
            if "00000003" in str(path):
                raise OSError(28, "No space left on device")
            return before(path)

        files.create = create
    engine.run()


class Forgetful(Plugin):
    """Cannot give its state on rank 1."""

    observes = True

    def __init__(self, rank: Rank, on_error: Any) -> None:
        self.rank, self.on_error = rank, on_error

    def state_dict(self) -> dict[str, Any]:
        if self.rank.number:
            raise ValueError("forgotten")
        return {"known": True}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {"known": True}


def forgotten(rank: Rank) -> Any:
    """A state that one rank cannot give: the checkpoint fails, or is detached, on all; or the plugin is, on that."""
    found: dict[str, Any] = {}
    for name, of_checkpoint, of_plugin in (
        ("raised", "raise", "raise"),
        ("no checkpoint", "detach", "raise"),
        ("no plugin", "raise", "detach"),
    ):
        for resume in (None, "auto") if name == "no plugin" else (None,):
            plugins = [Forgetful(rank, of_plugin)]
            given = {"at": "optimizer_update", "plugins": plugins, "on_error": of_checkpoint, "epochs": 1}
            with engine_of(own(rank) / "forgotten" / name, **given) as engine:
                try:
                    run = engine.run(resume=resume)
                    gone = [note.plugin for note in run.log.notes() if isinstance(note, Detach | StillDetached)]
                    found[name] = [run.state, gone]
                except CheckpointError as error:
                    found[name] = str(error)
    return found


def grown(rank: Rank) -> Any:
    """A run that ranks of another number continue, with its journal: what that holds then."""
    journal = shared(rank) / "grown.journal"
    with engine_of(shared(rank) / "grown", masks=False, at="optimizer_update", plugins=[Journal(journal)]) as engine:
        engine.run(resume="auto", until=lambda run: run.update == {2: 4, 3: 7, 1: 9}[rank.world])
    if rank.world > 1:
        torch.distributed.barrier()
    log = TransitionLog.load(journal)
    found: dict[str, Any] = {"ranks": list(log.ranks), "missing": log.missing, "parted": len(log.diff_ranks())}
    for number in log.ranks:
        of_rank = log.of_rank(number)
        turns, values = [turn.seq for turn in of_rank], [(row.name, row.seq) for row in of_rank.values()]
        assert turns == list(range(turns[0], turns[-1] + 1))
        assert len(values) == len(set(values))
        found[str(number)] = [turns[0] > 0, of_rank[-1].update, len(of_rank.values("train/loss"))]
    return found


def there_and_back(rank: Rank) -> Any:
    """One process stores, ranks continue, and one process continues that."""
    folder = own(rank) / "there"
    found = []
    for name, source, alone in (("one", None, True), ("many", "one", False), ("again", "many", True)):
        torch.distributed.barrier()
        if alone and rank.number:
            continue
        given = {"strategy": "none"} if alone else {}
        with measuring(folder / name, at="optimizer_update", seed=1 + len(found), **given) as engine:
            entry = source and Store(folder / source).entries()[2].path
            found.append(values_of(engine.run(resume=entry)))
    return found


def kept(rank: Rank) -> dict[str, Any]:
    """From the checkpoint of two ranks that was kept as files, and without a break."""
    found = {}
    for name, source in (("resumed", HERE.parent / "checkpoint" / "ranks_of_format_2"), ("unbroken", None)):
        with engine_of(own(rank) / f"kept-{name}", every=1000) as engine:
            found[name] = weights_of(engine.run(resume=source))
    return found


def measuring(directory: Path, **options: Any) -> Engine:
    """Return an engine without masks, that sums over the steps of an epoch what each rank has measured."""
    return engine_of(directory, masks=False, plugins=[TrainingMetrics({"right": right})], **options)


def values_of(run: Run) -> list[float]:
    """Return the parameters and the means of the epochs as numbers."""
    means = [*run.history("train/epoch_loss"), *run.history("train/right")]
    assert len(means) == 2 * run.epoch
    return [*means, *weights_of(run)]


def plain(rank: Rank) -> list[float]:
    """A run for other numbers of ranks to resume from; what becomes of it."""
    with measuring(shared(rank) / "plain", at=PLACES) as engine:
        engine.run(until=lambda run: run.step == STORED)
    with measuring(own(rank) / "plain", every=1000) as engine:
        return values_of(engine.run())


def elastic(rank: Rank) -> dict[str, Any]:
    """What another number of ranks makes of it, from each of its checkpoints in an epoch and at its end."""
    found: dict[str, Any] = {"values": {}, "refused": {}, "notes": [], "counts": []}
    for entry in Store(shared(rank) / "plain").entries()[8:20]:
        directory = own(rank) / "other" / entry.path.name
        with measuring(directory, at=PLACES, every=1000, seed=2) as engine:
            try:
                run = engine.run(resume=entry.path)
            except CheckpointError as error:
                found["refused"][entry.path.name] = str(error)
                continue
        found["values"][entry.path.name] = values_of(run)
        found["notes"] += [str(note) for note in run.log.notes()]
        found["counts"].append([run.step, run.update, run.epoch, run.samples])
    return found


def odd_engine(directory: Path, remainder: str, **options: Any) -> Engine:
    """25 batches in a pass, which neither windows nor ranks divide."""
    given = {"samples": 51, "epochs": 2, "at": PLACES[1:], "remainder": remainder}
    return measuring(directory, **given, **options)


def odd_plain(rank: Rank) -> dict[str, Any]:
    """Runs of each remainder, for other numbers of ranks to resume from."""
    found = {}
    for remainder in REMAINDERS:
        with odd_engine(shared(rank) / remainder, remainder) as engine:
            run = engine.run()
            found[remainder] = [run.update, run.samples, values_of(run)]
    return found


def odd(rank: Rank) -> dict[str, Any]:
    """What another number of ranks makes of them, from every third checkpoint; where that carries a window, nothing."""
    found: dict[str, Any] = {remainder: [] for remainder in REMAINDERS}
    for remainder in REMAINDERS:
        for entry in Store(shared(rank) / remainder).entries()[::3]:
            directory = own(rank) / "odd" / remainder / entry.path.name
            with odd_engine(directory, remainder, every=1000, seed=2) as engine:
                run = engine.run(resume=entry.path)
                found[remainder].append([run.step, run.update, run.samples, values_of(run)])
    return found


CASES_OF_2 = (
    *(unbroken, resumed, automatic, damaged, agreed_seldom, refused, forgotten),
    *(kept, plain, odd_plain, there_and_back, grown),
)
CASES_OF_3 = (elastic, odd, unbroken, resumed, automatic, agreed_seldom, grown)
CASES: dict[int, dict[str, Case]] = {
    world: {case.__name__: case for case in cases} for world, cases in ((2, CASES_OF_2), (3, CASES_OF_3))
}
