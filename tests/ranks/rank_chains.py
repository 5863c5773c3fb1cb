"""Kills ranks under torchrun, which starts them again, and compares what they learn with the run that nobody killed.

One rank, drawn by a seed, gets SIGKILL in a turn that is drawn too; torchrun ends the others, and all begin again with
`resume="auto"`. Windows of three steps, dropout, AdamW and a journal; checkpoints in mid-window under ddp. `elastic`
starts another number of ranks after each kill, without dropout.

PYTHONPATH=tests python tests/ranks/rank_chains.py                     # `make chains-ranks`
PYTHONPATH=tests python tests/ranks/rank_chains.py --chains 1 --seed 7 # one chain each, the seventh
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from launching import free_port, rank_environment
from torch import nn
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from builders import CLASSES, FEATURES, STATES
from heptad import Components, Engine, Run, RunConfig, TransitionLog, load_weights
from heptad_plugins import Checkpoint, Journal
from killing import MEMORY, in_child
from scenario import Noisy, outcome, path_of

STRATEGIES = ("ddp", "fsdp")

KILLS = 10
"""Kills of one chain; the ranks that torchrun starts after the last of them live."""

TURNS = 40
"""The most turns that an attempt makes until it is killed; from one checkpoint to the next there are 10 or so."""

MEETINGS = {
    "static": (),
    "c10d": (
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=chain"),
        # A thread of torch's agent says every five seconds that it lives, and looks a host up for that. A rank that is
        # forked meanwhile waits for ever for the lock of the C library that this thread held.
        "--rdzv-conf=keep_alive_interval=3600",
    ),
}
"""How the ranks meet; the second, that of `--standalone`, keeps one store over restarts."""


@dataclass(frozen=True)
class Task:
    """What ranks train.

    Attributes:
        strategy: By which they do.
        elastic: In float64, without dropout, and with the same windows on any number of ranks.
    """

    strategy: str = "ddp"
    elastic: bool = False

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        middle = [nn.Tanh()] if self.elastic else [nn.ReLU(), nn.Dropout(0.25)]
        network = nn.Sequential(nn.Linear(FEATURES, 8), *middle, nn.Linear(8, CLASSES))
        return nn.Sequential(InDouble(), network.double()) if self.elastic else network

    def places(self) -> tuple[str, ...]:
        return ("after_step" if self.strategy == "ddp" else "optimizer_update", "after_epoch")

    def config(self) -> RunConfig:
        window = {"window": 6} if self.elastic else {"accumulation": 3}
        return RunConfig(epochs=10, batch_size=2, seed=9, strategy=self.strategy, **window)


class InDouble(nn.Module):
    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return data.double()


def learn(folder: Path, seed: str, kills: int, task: Task) -> None:
    """Train on one rank, until it is killed or to the end; then leave what it has learnt."""
    torch.set_num_threads(1)
    components = Components(
        network=task.network(),
        dataset=Noisy(26),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda network: torch.optim.AdamW(network.parameters(), lr=0.01),
    )
    plugins = [
        Checkpoint(folder / "checkpoints", at=task.places(), every=2 if task.strategy == "ddp" else 1),
        Journal(folder / "run.journal"),
    ]
    engine = Engine(components, task.config(), plugins)
    rank, world, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    draw = random.Random(f"{seed} {attempt}")
    victim, left = draw.randrange(world), [draw.randint(1, TURNS)]

    def count(run: Run) -> None:
        left[0] -= 1
        if not left[0] and rank == victim and attempt < kills:
            (folder / f"killed.{attempt}").write_text(f"rank {rank} in {run.state}, {run.seq}")
            os.kill(os.getpid(), signal.SIGKILL)

    for state in (*STATES, "checkpoint"):
        engine.on_exit(state)(count)
    engine.on_exit("optimizer_update")(record_loss)
    engine.run(resume="auto")
    losses = engine.current.history("mean loss")
    (folder / f"end.{rank}").write_text(json.dumps({"outcome": outcome(engine), "losses": losses}))


def record_loss(run: Run) -> None:
    assert run.mean_loss is not None
    run.record("mean loss", run.mean_loss)


def launch(world: int, meeting: str, folder: Path, seed: str, kills: int, task: Task, restarts: int) -> None:
    """Do as torchrun does, with its arguments; but fork the ranks from here, where all is imported."""
    config, _, _ = config_from_args(parse_args([*arguments(world, meeting, restarts), "-"]))
    config.start_method = "fork"
    output = folder / "output"
    with output.open("w") as file:
        os.dup2(file.fileno(), 2)
    try:
        elastic_launch(config, learn)(folder, seed, kills, task)
    except Exception as error:
        raise AssertionError(output.read_text()[-6000:]) from error


def launch_program(world: int, meeting: str, folder: Path, seed: str, kills: int, task: Task, restarts: int) -> None:
    """Run torchrun itself."""
    script = [__file__, "--learn", str(folder), "--seed", seed, "--kills", str(kills), "--strategy", task.strategy]
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run"),
        *arguments(world, meeting, restarts),
        *script,
        *(["--elastic"] if task.elastic else []),
    ]
    ended = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]


def arguments(world: int, meeting: str, restarts: int) -> list[str]:
    where = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"] if meeting == "static" else []
    nodes = "--nnodes=1:1" if meeting == "c10d" else "--nnodes=1"
    return [nodes, f"--nproc-per-node={world}", f"--max-restarts={restarts}", *MEETINGS[meeting], *where]


def ending(
    world: int, meeting: str, seed: str, kills: int, task: Task = Task(), *, forked: bool = True
) -> dict[str, Any]:
    """Return what becomes of a chain: what each rank has at its end, the log, and where it was killed."""
    with tempfile.TemporaryDirectory(prefix="chain-", dir=MEMORY) as name:
        folder = Path(name)
        if forked:
            in_child(lambda: launch(world, meeting, folder, seed, kills, task, kills))
        else:
            launch_program(world, meeting, folder, seed, kills, task, kills)
        log = TransitionLog.load(folder / "run.journal")
        return {
            "ends": [json.loads((folder / f"end.{rank}").read_text())["outcome"] for rank in range(world)],
            "path": path_of(log),
            "values": [list(map(str, astuple(value))) for value in log.values()],
            "ranks": list(log.ranks),
            "shared": task.strategy == "fsdp",
            "kills": [path.read_text() for path in sorted(folder.glob("killed.*"))],
        }


def elastic(worlds: Sequence[int], meeting: str, seed: str, strategy: str, *, forked: bool = True) -> dict[str, Any]:
    """Start torchrun with one number of ranks after the other; in all attempts but the last a rank is killed."""
    task = Task(strategy, elastic=True)
    with tempfile.TemporaryDirectory(prefix="elastic-", dir=MEMORY) as name:
        folder = Path(name)
        for attempt, world in enumerate(worlds):
            kills = int(attempt < len(worlds) - 1)
            given = (world, meeting, folder, f"{seed} {attempt}", kills, task, 0)
            try:
                if forked:
                    in_child(lambda given=given: launch(*given))
                else:
                    launch_program(*given)
            except AssertionError:
                if not kills:
                    raise
            else:
                assert not kills, f"no rank was killed in attempt {attempt}, of {world}"
        network = task.network()
        load_weights(folder / "checkpoints", network)
        ends = [json.loads((folder / f"end.{rank}").read_text()) for rank in range(worlds[-1])]
        return {
            "weights": torch.cat([one.detach().reshape(-1) for one in network.parameters()]).tolist(),
            "losses": [one["losses"] for one in ends],
        }


def differences(whole: Mapping[str, Any], chain: Mapping[str, Any]) -> list[str]:
    """Return in what a chain differs from the run that nobody killed."""
    found = [
        f"the {name} of rank {rank}"
        for rank, (one, other) in enumerate(zip(whole["ends"], chain["ends"], strict=True))
        for name in one
        if one[name] != other[name]
    ]
    found += [f"the {name} of the log" for name in ("path", "values", "ranks") if whole[name] != chain[name]]
    if [row[0] for row in chain["path"]] != list(range(len(chain["path"]))):
        found.append("the numbers of the turns")
    if not chain["shared"] and len({rank["weights"] for rank in chain["ends"]}) > 1:
        found.append("the weights from rank to rank")
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Return 0 if no chain ended as another run than the one that nobody killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=5, help="of each world and meeting (5)")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"of each chain ({KILLS})")
    parser.add_argument("--seed", default="0", help="the number of the first chain (0)")
    parser.add_argument("--strategy", choices=STRATEGIES, help="one of them (both)")
    parser.add_argument("--learn", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--elastic", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.learn:
        learn(asked.learn, asked.seed, asked.kills, Task(asked.strategy, asked.elastic))
        return 0
    wrong, kills, began = 0, 0, time.monotonic()
    for strategy, world in product([asked.strategy] if asked.strategy else STRATEGIES, (2, 3)):
        whole = ending(world, "static", "", 0, Task(strategy))
        for meeting in MEETINGS:
            for number in range(int(asked.seed), int(asked.seed) + asked.chains):
                seed = f"{world} {meeting} {number}"
                chain = ending(world, meeting, seed, asked.kills, Task(strategy))
                kills += len(chain["kills"])
                if found := differences(whole, chain):
                    wrong += 1
                    print(f"{strategy}, {world} ranks, {meeting}, {number}: {', '.join(found)} differ", flush=True)
            print(f"{strategy}, {world} ranks, {meeting}: {asked.chains} chains", flush=True)
    print(f"{kills} kills in {time.monotonic() - began:.0f} s; {wrong} chains differ from the run that nobody killed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
