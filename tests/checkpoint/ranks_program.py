"""A script for ranks: trains, stores and resumes, and writes what each rank has seen into the folder that is named."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from heptad import CheckpointError, Components, Engine, EngineError, Run, RunConfig
from heptad.checkpoints.store import Store
from heptad_plugins import EMA, Checkpoint
from scenario import digest

RANK = int(os.environ.get("RANK", "0"))


def engine_of(directory: Path, *, window: int = 6, masks: bool = True, seed: int = 1, **options: Any) -> Engine:
    """Return an engine of 3 epochs; with masks each rank draws its own, and has buffers of its own."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8), nn.Dropout(0.3)] if masks else [nn.Tanh()]
    network = nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 2)).double()
    drawn = torch.Generator().manual_seed(0)
    data = torch.randn(48, 4, dtype=torch.float64, generator=drawn), torch.randint(0, 2, (48,), generator=drawn)
    components = Components(
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        dataset=TensorDataset(*data),
    )
    config = RunConfig(epochs=3, batch_size=2, window=window, seed=7, num_workers=0)
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
    with engine_of(folder / "run") as engine:
        run = engine.run()
        return {"end": end_of(run), "steps": run.step, "updates": run.update, "samples": run.samples}


def resumed(folder: Path) -> dict[str, Any]:
    """From every third of its checkpoints, in mid-window too."""
    ends = {}
    for entry in Store(folder / "run").entries()[1::3]:
        with engine_of(folder / "again" / entry.path.name, every=1000, seed=2) as engine:
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
        except (CheckpointError, EngineError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def full(directory: Path) -> None:
    """Train where the disk of rank 1 is full after a while."""
    engine = engine_of(directory, every=3)
    plugin = engine._manager.plugins[0]
    files = plugin.store._files
    if RANK:
        before = files.create

        def create(path: Path) -> int:
            if "00000003" in str(path):
                raise OSError(28, "No space left on device")
            return before(path)

        files.create = create
    engine.run()


def elastic(folder: Path) -> dict[str, Any]:
    """What another number of ranks makes of it; without masks and mean over a batch it is the same run."""
    source = folder / "plain"
    if not source.exists():
        with engine_of(source, masks=False) as engine:
            return {"weights": weights_of(engine.run())}
    found: dict[str, Any] = {"weights": {}, "refused": {}, "notes": []}
    for entry in Store(source).entries()[2::4]:
        with engine_of(folder / "other" / os.environ["WORLD_SIZE"] / entry.path.name, masks=False, every=1000) as engine:
            try:
                run = engine.run(resume=entry.path)
                found["weights"][entry.path.name] = weights_of(run)
                found["notes"] += [str(note) for note in run.log.notes()]
            except CheckpointError as error:
                found["refused"][entry.path.name] = str(error)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    answers = {}
    for name in names:
        answers[name] = globals()[name](folder)
    world = os.environ.get("WORLD_SIZE", "1")
    (folder / f"answers-{world}-{RANK}.json").write_text(json.dumps(answers))
