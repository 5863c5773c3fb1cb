"""Trains a small network on scikit-learn's handwritten digits, kills it half-way, resumes it, and asks what happened.

1,797 real images of 8 x 8 pixels; every fifth is held out. Takes about ten seconds. All files lie under `runs/digits`;
each start begins anew. `heptad demo` runs this file.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, Run, RunConfig, TransitionLog
from heptad.plugin import write_report
from heptad_plugins import Checkpoint, CSVLogger, Evaluate, Journal, Progress


def load() -> tuple[TensorDataset, TensorDataset]:
    """Return the images to train on and those held out: shape (n, 1, 8, 8), from 0 to 1, and their digits."""
    digits = cast("Any", load_digits())
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])


def initialise(network: nn.Module) -> None:
    """Draw the weights. The engine has seeded before, so they are the same in every process."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return for each sample whether it was recognised."""
    return output.argmax(dim=1) == batch[1]


def build_engine(folder: Path, epochs: int) -> Engine:
    """Return an engine that is ready to run, or to resume what was begun in the folder."""
    train, held_out = load()
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * 4 * 4, 10),
    )
    return Engine(
        Components(
            network=network,
            dataset=train,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
            init_weights=initialise,
        ),
        RunConfig(epochs=epochs, batch_size=16, accumulation=4, seed=0),
        plugins=[
            Evaluate(held_out, {"accuracy": accuracy}),
            Checkpoint(folder / "checkpoints", overwrite=True),
            Journal(folder / "log.journal", overwrite=True),
            CSVLogger(folder / "values.csv", overwrite=True),
            Progress(),
        ],
    )


def train_and_die(folder: Path, epochs: int) -> None:
    """Train until SIGKILL ends this process, in the middle of an epoch and of a window."""
    engine = build_engine(folder, epochs)

    @engine.on_exit("process_batch")
    def die(run: Run) -> None:
        if run.epoch == epochs // 2 and run.batch_index == 41:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.run()


def compare(folder: Path, epochs: int) -> Engine:
    """Train once undisturbed and once killed and resumed, print whether the weights are equal, return the first."""
    print("First act: a run that nothing disturbs.", flush=True)
    engine = build_engine(folder / "first", epochs)
    run = engine.run()

    print("\nSecond act: the same in another process, killed half-way, resumed in this one.", flush=True)
    killed = folder / "killed"
    child = [sys.executable, __file__, "--die", f"--epochs={epochs}", f"--folder={killed}"]
    ended = subprocess.run(child, check=False).returncode
    print(f"the process was ended by {signal.Signals(-ended).name}", flush=True)
    resumed = build_engine(killed, epochs).run(resume="auto")
    print(*resumed.log.notes("resume"), sep="\n")
    pairs = zip(run.network.state_dict().items(), resumed.network.state_dict().values(), strict=True)
    print("The weights of the two runs, bit for bit:")
    for (name, one), other in pairs:
        print(f"    {name:10}{'the same' if torch.equal(one, other) else 'DIFFERENT'}")
    return engine


def report(engine: Engine) -> None:
    """Print what a run says of itself: its states, where the time went, the last transitions."""
    run = engine.current
    print(f"\n{run.reason}: accuracy on the held-out images {run.metrics['valid/accuracy']:.4f}")
    print(f"\nThis run is a state machine; its table, as a Mermaid diagram:\n\n{engine.diagram()}")
    print(f"\nWhere the time went:\n\n{'state':18}{'entered':>9}{'median':>13}{'in all':>12}")
    durations = run.log.durations()
    for state, entered in run.log.counts().items():
        if state in durations:
            spent = durations[state]
            print(f"{state:18}{entered:>9,}{spent.median_ns / 1e3:>10,.1f} µs{spent.total_ns / 1e9:>10.3f} s")
    print("\nThe last ten transitions, and the guard that chose each:\n")
    for turn in run.log.tail(10):
        chosen = [guard for guard, answer in turn.guards.items() if answer]
        print(f"#{turn.seq} {turn.source:>16} -> {turn.dest:16} {' '.join(chosen)}".rstrip())


def write_page(folder: Path) -> Path:
    """Write the report of both runs, and return where it is."""
    logs = [TransitionLog.load(folder / name / "log.journal") for name in ("first", "killed")]
    write_report(logs, folder / "report.html")
    return folder / "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example with these arguments; by default those of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "digits")
    parser.add_argument("--die", action="store_true", help="train until killed by SIGKILL half-way")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # a network this small gains nothing from more
    if options.die:
        train_and_die(options.folder, options.epochs)
    engine = compare(options.folder, options.epochs)
    report(engine)
    journal = options.folder / "first" / "log.journal"
    page = write_page(options.folder) if engine.current.rank == 0 else None
    print(
        f"\nAll {len(engine.current.log):,} transitions are in its journal. Ask it how the run went, where the time\n"
        "went, why the first step made no update, and where the two runs part:\n\n"
        f"    heptad {journal}\n"
        f"    heptad stats {journal}\n"
        f"    heptad explain {journal} --source after_step --step 1\n"
        f"    heptad diff {journal} {options.folder / 'killed' / 'log.journal'}"
    )
    if page is not None:
        print(f"\nThe same as a page, of both runs side by side; open it in a browser:\n\n    {page}")


if __name__ == "__main__":
    main()
