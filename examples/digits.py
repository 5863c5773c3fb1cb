"""Trains a small network on scikit-learn's handwritten digits, kills it half-way, resumes it, and asks what happened.

1,797 real images of 8 x 8 pixels; every fifth is held out. Takes well under a minute; `digits.out.txt` shows what it
prints. All files lie under `runs/digits`, and each time that it is run it begins anew.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, Run, RunConfig
from heptad_plugins import Checkpoint, CSVLogger, Evaluate, Journal, Progress

torch.set_num_threads(1)  # a network this small gains nothing from more


def load() -> tuple[TensorDataset, TensorDataset]:
    """Returns the images to train on and those held out: shape (n, 1, 8, 8), from 0 to 1, and their digits."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])


def initialise(network: nn.Module) -> None:
    """Draws the weights: called after the engine has seeded, so that they are the same in every process."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Returns for each sample whether it was recognised."""
    return output.argmax(dim=1) == batch[1]


def build(folder: Path, epochs: int) -> Engine:
    """Returns an engine that is ready to run, or to resume what was begun in the folder."""
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
    """Trains until SIGKILL ends this process, in the middle of an epoch and of a window."""
    engine = build(folder, epochs)

    @engine.on_exit("process_batch")
    def die(run: Run) -> None:
        if run.epoch == epochs // 2 and run.batch_index == 41:
            os.kill(os.getpid(), signal.SIGKILL)

    engine.run()


def main() -> None:
    """Trains once undisturbed and once killed and resumed, compares, and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "digits")
    parser.add_argument("--die", action="store_true", help="train until killed by SIGKILL half-way")
    options = parser.parse_args()
    folder, epochs = options.folder, options.epochs
    if options.die:
        train_and_die(folder, epochs)

    print("First act: a run that nothing disturbs.", flush=True)
    engine = build(folder / "undisturbed", epochs)
    run = engine.run()

    print("\nSecond act: the same in another process, killed half-way, and resumed in this one.", flush=True)
    killed = folder / "killed"
    child = subprocess.run([sys.executable, __file__, "--die", f"--epochs={epochs}", f"--folder={killed}"], check=False)
    print(f"the process was ended by {signal.Signals(-child.returncode).name}", flush=True)
    resumed = build(killed, epochs).run(resume="auto")
    print(*resumed.log.notes("resume"), sep="\n")
    pairs = zip(run.network.state_dict().items(), resumed.network.state_dict().values(), strict=True)
    print("The weights of the two runs, bit for bit:")
    for (name, one), other in pairs:
        print(f"    {name:10}{'the same' if torch.equal(one, other) else 'DIFFERENT'}")

    metrics = run.metrics
    print(f"\nheld-out accuracy {metrics['valid/accuracy']:.4f}, loss {metrics['valid/loss']:.4f}")
    print(f"\nThe states of this run, as a Mermaid diagram:\n\n{engine.diagram()}")
    print(f"\n{'state':18}{'entered':>9}{'median':>13}{'in all':>12}")
    durations = run.log.durations()
    for state, entered in run.log.counts().items():
        if state in durations:
            spent = durations[state]
            print(f"{state:18}{entered:>9,}{spent.median_ns / 1e3:>10,.1f} µs{spent.total_ns / 1e9:>10.3f} s")
    print("\nThe last ten transitions:\n")
    print(*run.log.tail(10), sep="\n")
    journal = folder / "undisturbed" / "log.journal"
    print(f"\nAll {len(run.log):,} transitions are in {journal}; ask them with")
    print(f"    python -m heptad stats {journal}")


if __name__ == "__main__":
    main()
