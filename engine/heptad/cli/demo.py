"""`heptad demo`: trains a small network on handwritten digits, then shows what the run can tell of itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from heptad.cli.arguments import Commands, command
from heptad.cli.output import data, duration, line
from heptad.config import Components, RunConfig
from heptad.engine import Engine
from heptad.errors import EngineError
from heptad.history.query import TransitionLog
from heptad.plugin.contract import Plugin, on_exit
from heptad.plugin.detour import Detour
from heptad.run.run import Run

EPOCHS = 8

NEXT = """\
Next, a network and a data set of your own:

    from heptad import Components, Engine, RunConfig

    engine = Engine(
        Components(network=network, dataset=dataset, criterion=criterion, optimizer=optimizer),
        RunConfig(epochs=10, batch_size=64, accumulation=4),
    )
    run = engine.run()
    print(*run.log.tail(), sep="\\n")

Plugins for evaluation, checkpoints, schedules and loggers: from heptad_plugins import …"""


class HeldOut(Plugin):
    """Adds the state `evaluate` at the end of each epoch, and prints a line when the epoch is closed.

    Args:
        data: What to evaluate on.
        quiet: Prints nothing.
    """

    def __init__(self, data: TensorDataset, quiet: bool) -> None:
        self.engine: Engine | None = None
        self._data = data
        self._quiet = quiet

    def detours(self) -> Iterable[Detour]:
        """Returns the state `evaluate`, reached when neither an update nor a batch is left in the epoch."""

        def epoch_is_over(run: Run) -> bool:
            return not run.update_due and not run.batches_remain

        return [Detour("evaluate", ("after_step", "optimizer_update"), epoch_is_over, self.evaluate)]

    def evaluate(self, run: Run) -> None:
        """The body of `evaluate`."""
        assert self.engine is not None
        for name, value in self.engine.evaluate(self._data, {"accuracy": recognised}).items():
            run.record(f"valid/{name}", value)

    @on_exit("after_epoch")
    def report(self, run: Run) -> None:
        """Prints how far it is."""
        if not self._quiet and run.loss is not None:
            accuracy = run.metrics["valid/accuracy"]
            line(
                f"epoch {run.epoch:>2}/{EPOCHS}  update {run.update:>3}  loss {run.loss.item():.3f}  "
                f"held-out accuracy {accuracy:.3f}"
            )


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = command(commands, "demo", run, "train a network on handwritten digits and show what the run tells of it")
    parser.add_argument(
        "--log", metavar="FILE", type=Path, help="write the log as lines of JSON, for the other commands"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    train, held_out = load_digits()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a network this small gains nothing from more
    try:
        engine = build(train, held_out, quiet=arguments.json)
        if not arguments.json:
            line(f"{size(engine):,} parameters; {len(train):,} images to train on, {len(held_out)} held out.\n")
        done = engine.run()
    finally:
        torch.set_num_threads(threads)
    written = None if arguments.log is None else done.log.to_jsonl(arguments.log)
    if arguments.json:
        spent = {name: stay.total_ns for name, stay in done.log.durations().items()}
        data({"reason": done.reason, "metrics": done.metrics, "counts": dict(done.log.counts()), "total_ns": spent})
    else:
        tell(engine, written)
    return 0


def load_digits() -> tuple[TensorDataset, TensorDataset]:
    """Returns the images to train on and those held out, every fifth: shape (n, 1, 8, 8), from 0 to 1, and digits.

    Raises:
        EngineError: If scikit-learn, which brings the images, is not installed.
    """
    try:
        from sklearn import datasets  # noqa: PLC0415 - an extra is imported where it is used
    except ImportError:
        raise EngineError(
            "the demo trains on the digits that come with scikit-learn; install it with: pip install 'heptad[demo]'"
        ) from None
    digits = cast("Any", datasets).load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])


def build(train: TensorDataset, held_out: TensorDataset, quiet: bool) -> Engine:
    """Returns the engine, around a convolutional network with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )
    watcher = HeldOut(held_out, quiet)
    watcher.engine = Engine(
        Components(
            network=network,
            dataset=train,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
        ),
        RunConfig(epochs=EPOCHS, batch_size=16, accumulation=4),
        plugins=[watcher],
    )
    return watcher.engine


def recognised(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Returns for each image whether its digit was recognised."""
    return output.argmax(dim=1) == batch[1]


def size(engine: Engine) -> int:
    """Returns how many parameters a network has."""
    return sum(parameter.numel() for parameter in engine.current.network.parameters())


def tell(engine: Engine, written: Path | None) -> None:
    """Prints what the run tells: its states, where the time went, why an update came, and what to do next."""
    log = engine.current.log
    line(f"\nfinished: {engine.current.reason}\n\nThis run is a state machine; its table, as a Mermaid diagram:\n")
    line(engine.diagram())
    line(f"\nWhere the time went:\n\n{'state':18}{'entered':>8}{'median':>12}{'in all':>12}")
    counts, stays = log.counts(), log.durations()
    for name, stay in sorted(stays.items(), key=lambda item: -item[1].total_ns):
        if name in counts:
            line(f"{name:18}{counts[name]:>8,}{duration(stay.median_ns):>12}{duration(stay.total_ns):>12}")
    line("\nWhy the first step made no update (accumulation=4), and the fourth did:\n")
    for seq in (first(log, "before_step"), first(log, "optimizer_update")):
        line(log.explain(seq))
    if written is not None:
        line(f"\nAll {len(log):,} transitions are in {written}: heptad stats {written}, heptad explain {written} …")
    else:
        line(f"\nAll {len(log):,} transitions can be asked: say --log digits.jsonl, then heptad stats digits.jsonl.")
    line(f"\n{NEXT}")


def first(log: TransitionLog, dest: str) -> int:
    """Returns the number of the first transition from `after_step` to a state."""
    return next(iter(log.where(source="after_step", dest=dest))).seq
