"""A script for ranks: trains, stores and resumes, and writes what each rank has seen into the folder that is named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from heptad import CheckpointError, Components, Engine, Run, RunConfig
from heptad.checkpoints.store import Store
from heptad_plugins import EMA, Checkpoint
from scenario import digest

PLACES = ("after_step", "optimizer_update", "after_epoch")
REMAINDERS = ("extend", "drop", "flush", "carry")
RANK = int(os.environ.get("RANK", "0"))
WORLD = os.environ.get("WORLD_SIZE", "1")


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
        optimizer=torch.optim.Adam(network.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        dataset=TensorDataset(*data),
    )
    given = {name: options.pop(name) for name in ("remainder", "epochs") if name in options}
    config = RunConfig(**{"epochs": 3, "batch_size": 2, "window": window, "seed": 7, "num_workers": 0} | given)
    store = Checkpoint(directory, **({"at": "after_step", "keep_last": 1000} | options))
    return Engine(components, config, [store, EMA(decay=0.9)])


def end_of(run: Run) -> str:
    """Return a digest of what a run has become on this rank."""
    tensors = [*run.network.parameters(), *run.network.buffers()]
    states = [optimizer.state_dict() for optimizer in run._runtime.optimizers]
    drawn = torch.get_rng_state()
    return digest([tensors, states, drawn, run.step, run.update, run.epoch, [str(row) for row in run.records()]])


def weights_of(run: Run) -> list[float]:
    """Return the parameters as numbers."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in run.network.parameters()]).tolist()


def unbroken(folder: Path) -> dict[str, Any]:
    """A run that stores after every step."""
    if RANK == 0:
        shutil.rmtree(folder / "run", ignore_errors=True)
    with engine_of(folder / "run") as engine:
        run = engine.run()
        return {"end": end_of(run), "steps": run.step, "updates": run.update, "samples": run.samples}


def resumed(folder: Path) -> dict[str, Any]:
    """From some of its checkpoints, in mid-window too, and from the last."""
    ends = {}
    for entry in Store(folder / "run").entries()[::-5]:
        with engine_of(folder / "again" / WORLD / entry.path.name, every=1000, seed=2) as engine:
            ends[entry.path.name] = end_of(engine.run(resume=entry.path))
    return ends


def automatic(folder: Path) -> dict[str, Any]:
    """One begins where there is none yet, is left in mid-window, and another continues."""
    with engine_of(folder / "auto", every=2) as engine:
        engine.run(resume="auto", until=lambda run: run.step == 11)
    with engine_of(folder / "auto", every=2, seed=2) as engine:
        run = engine.run(resume="auto")
        return {"end": end_of(run), "from": Path(run.resumed_from or "").name}


def damaged(folder: Path) -> dict[str, Any]:
    """The newest has a file of one rank cut."""
    if RANK == 0:
        newest = Store(folder / "auto").entries()[-1]
        path = newest.path / "rank-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    torch.distributed.barrier()
    with engine_of(folder / "auto", every=2) as engine:
        run = engine.run(resume="auto", until=lambda run: True)
        return {"from": Path(run.resumed_from or "").name, "notes": [str(note) for note in run.log.notes()]}


def refused(folder: Path) -> dict[str, str]:
    """What each rank raises."""
    mistakes: dict[str, Callable[[], Any]] = {
        "not alike": lambda: engine_of(folder / "x").run(resume="auto" if RANK else None),
        "not there": lambda: engine_of(folder / "y").run(resume=folder / "nowhere"),
        "none sound": lambda: engine_of(folder / "y").run(resume=folder),
        "another's": lambda: engine_of(folder / "run").run(),
        "another run": lambda: engine_of(folder / "z", window=12).run(resume=folder / "run"),
        "background": lambda: engine_of(folder / "y", background=True),
        "full": lambda: full(folder / "full"),
    }
    found = {}
    for name, mistake in mistakes.items():
        try:
            mistake()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def full(directory: Path) -> None:
    """Train where the disk of rank 1 is full after a while."""
    engine = engine_of(directory, every=3)
    plugin = next(one for one in engine._manager.plugins if isinstance(one, Checkpoint))
    files = plugin.store._files
    if RANK:
        before = files.create

        def create(path: Path) -> int:
            if "00000003" in str(path):
                raise OSError(28, "No space left on device")
            return before(path)

        files.create = create
    engine.run()


def kept(folder: Path) -> dict[str, Any]:
    """From the checkpoint of two ranks that was kept as files, and without a break."""
    found = {}
    for name, source in (("resumed", Path(__file__).parent / "ranks_of_format_2"), ("unbroken", None)):
        with engine_of(folder / f"kept-{name}", every=1000) as engine:
            found[name] = weights_of(engine.run(resume=source))
    return found


def plain(folder: Path) -> list[float]:
    """A run without masks, for other numbers of ranks to resume from; what its weights become."""
    with engine_of(folder / "plain", masks=False, at=PLACES) as engine:
        return weights_of(engine.run())


def elastic(folder: Path) -> dict[str, Any]:
    """What another number of ranks makes of it, from each of its checkpoints in an epoch and at its end."""
    found: dict[str, Any] = {"weights": {}, "refused": {}, "notes": [], "counts": []}
    for entry in Store(folder / "plain").entries()[8:20]:
        directory = folder / "other" / WORLD / entry.path.name
        with engine_of(directory, masks=False, at=PLACES, every=1000, seed=2) as engine:
            try:
                run = engine.run(resume=entry.path)
            except CheckpointError as error:
                found["refused"][entry.path.name] = str(error)
                continue
        found["weights"][entry.path.name] = weights_of(run)
        found["notes"] += [str(note) for note in run.log.notes()]
        found["counts"].append([run.step, run.update, run.epoch, run.samples])
    return found


def odd_engine(directory: Path, remainder: str, **options: Any) -> Engine:
    """25 batches in a pass, which neither windows nor ranks divide."""
    given = {"masks": False, "samples": 51, "epochs": 2, "at": PLACES[1:], "remainder": remainder}
    return engine_of(directory, **given, **options)


def odd_plain(folder: Path) -> dict[str, Any]:
    """Runs of each remainder, for other numbers of ranks to resume from."""
    found = {}
    for remainder in REMAINDERS:
        with odd_engine(folder / remainder, remainder) as engine:
            run = engine.run()
            found[remainder] = [run.update, run.samples, weights_of(run)]
    return found


def odd(folder: Path) -> dict[str, Any]:
    """What another number of ranks makes of them, from every third checkpoint; where that carries a window, nothing."""
    found: dict[str, Any] = {remainder: [] for remainder in REMAINDERS}
    for remainder in REMAINDERS:
        for entry in Store(folder / remainder).entries()[::3]:
            directory = folder / "odd" / WORLD / remainder / entry.path.name
            with odd_engine(directory, remainder, every=1000, seed=2) as engine:
                run = engine.run(resume=entry.path)
                found[remainder].append([run.step, run.update, run.samples, weights_of(run)])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    answers = {}
    for name in names:
        answers[name] = globals()[name](folder)
    (folder / f"answers-{WORLD}-{RANK}.json").write_text(json.dumps(answers))
