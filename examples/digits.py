"""Trains a small network on scikit-learn's handwritten digits, then asks the run what it did.

1,797 real images of 8 x 8 pixels; every fifth is held out. Takes a few seconds.
"""

import itertools
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, RunConfig
from heptad_plugins import Progress

torch.set_num_threads(1)  # a network this small gains nothing from more


def load() -> tuple[TensorDataset, TensorDataset]:
    """Returns the images to train on and those held out: shape (n, 1, 8, 8), from 0 to 1, and their digits."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])


def build_network() -> nn.Module:
    """Returns a convolutional network of 20,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * 4 * 4, 10),
    )


def accuracy(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns for each sample whether it was recognised."""
    return output.argmax(dim=1) == batch[1]


def main() -> None:
    """Trains and reports."""
    train, held_out = load()
    torch.manual_seed(0)
    network = build_network()
    engine = Engine(
        Components(
            network=network,
            dataset=train,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
        ),
        RunConfig(epochs=15, batch_size=16, accumulation=4, seed=0),
        plugins=[Progress()],
    )
    run = engine.run()

    means = engine.evaluate(held_out, {"accuracy": accuracy})
    print(f"\nheld-out accuracy {means['accuracy']:.4f} on {len(held_out)} images, loss {means['loss']:.4f}")

    print(f"\nThe states of this run, as a Mermaid diagram:\n\n{engine.diagram()}")

    print(f"\n{'state':18}{'entered':>9}{'median':>13}{'in all':>12}")
    durations = run.log.durations()
    for state, entered in run.log.counts().items():
        if state in durations:
            spent = durations[state]
            print(f"{state:18}{entered:>9,}{spent.median_ns / 1e3:>10,.1f} µs{spent.total_ns / 1e9:>10.3f} s")

    print("\nThe last ten transitions:\n")
    print(*run.log.tail(10), sep="\n")

    notes = itertools.islice(run.log.notes(), 2)
    print("\nNotes:", *notes, sep="\n")
    path = run.log.to_jsonl(Path("runs") / "digits.jsonl")
    print(f"\nAll {len(run.log):,} transitions are in {path}, one JSON object a line.")


if __name__ == "__main__":
    main()
