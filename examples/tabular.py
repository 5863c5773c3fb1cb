"""Train on a pandas frame with early stopping, and predict with the best checkpoint.

The data are bundled with scikit-learn: 569 tumours, malignant or benign, each described by 30 measurements. It takes a
few seconds; `tabular.out.txt` shows what it prints.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, RunConfig, load_weights
from heptad_plugins import Checkpoint, EarlyStopping, Evaluate

torch.set_num_threads(1)

TARGET = "target"  # 0 is malignant, 1 benign


def build_network() -> nn.Module:
    """Return a network with 30 inputs and 2 outputs."""
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))


def to_dataset(frame: pd.DataFrame) -> TensorDataset:
    """Return the rows of a frame: measurements, shape (n, 30), and classes, shape (n,)."""
    measurements = torch.tensor(frame.drop(columns=TARGET).to_numpy(), dtype=torch.float32)
    return TensorDataset(measurements, torch.tensor(frame[TARGET].to_numpy()))


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return for each row whether it is classified correctly."""
    return output.argmax(dim=1) == batch[1]


def main() -> None:
    """Train until the loss on the validation rows stops improving, and predict with the best weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=200, help="at most (default 200)")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "tabular")
    options = parser.parse_args()

    frame = load_breast_cancer(as_frame=True).frame.sample(frac=1.0, random_state=0)
    train, valid, test = frame[:300], frame[300:430], frame[430:]
    columns = frame.columns.drop(TARGET)
    mean, deviation = train[columns].mean(), train[columns].std()  # of the training rows only
    train, valid, test = (
        part.assign(**(part[columns] - mean).div(deviation)).astype({TARGET: "int64"}) for part in (train, valid, test)
    )

    torch.manual_seed(0)
    network = build_network()
    checkpoints = options.folder / "checkpoints"
    engine = Engine(
        Components(
            network=network,
            dataset=to_dataset(train),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01),
        ),
        RunConfig(epochs=options.epochs, batch_size=32),
        plugins=[
            Evaluate(to_dataset(valid), {"accuracy": accuracy}),
            EarlyStopping("valid/loss", patience=10),
            Checkpoint(checkpoints, keep_last=1, keep_best=1, monitor="valid/loss", overwrite=True),
        ],
    )
    run = engine.run()
    losses = run.history("valid/loss")
    print(f"{run.epoch} epochs: {run.reason}")
    print(f"loss on validation rows: at last {losses[-1]:.4f}, at best {min(losses):.4f}")

    best = build_network()  # needs only the files, not the run
    loaded = load_weights(checkpoints, best, which="best")
    print(f"weights from {loaded.name}")
    with torch.inference_mode():
        scores = best.eval()(to_dataset(test).tensors[0])
    predicted = pd.DataFrame(
        {"P(malignant)": scores.softmax(dim=1)[:, 0].numpy(), "malignant": test[TARGET].to_numpy() == 0}, test.index
    )
    right = (predicted["P(malignant)"] > 0.5) == predicted["malignant"]
    print(f"accuracy on {len(test)} rows seen by nobody: {right.mean():.4f}\n")
    print(predicted.head(5).round(3))


if __name__ == "__main__":
    main()
