"""Pretrain on the digits 0 to 4, and fine-tune to 5 to 9 with ten images: a part frozen, and thawed later.

The images are bundled with scikit-learn. The pretrained part is loaded into a network with a new head. The head is
trained alone for some epochs, then the last block with it, then all, each at a learning rate of its own. It takes a few
seconds; `fine_tuning.out.txt` shows what it prints.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from heptad import Components, Engine, Run, RunConfig, load_weights
from heptad_plugins import Checkpoint, Evaluate, Freeze, LRSchedule

torch.set_num_threads(1)

CLASSES = 5


class Network(nn.Module):
    """Two blocks of convolutions with BatchNorm, and a head of `CLASSES` outputs; takes images, shape (n, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        second = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        self.backbone = nn.Sequential(first, second, nn.Flatten())
        self.head = nn.Linear(128, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores, shape (n, `CLASSES`)."""
        return self.head(self.backbone(images))


def read_digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images, shape (n, 1, 8, 8), from 0 to 1, and which digit each is."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(digits.target)


def choose(images: Tensor, digits: Tensor, first: int) -> TensorDataset:
    """Return the images of five digits from `first` on; the classes are 0 to 4."""
    chosen = (digits >= first) & (digits < first + CLASSES)
    return TensorDataset(images[chosen], digits[chosen] - first)


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return for each image whether it is recognised."""
    return output.argmax(dim=1) == batch[1]


def build_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer of what is trained now; what is frozen joins it later."""
    return torch.optim.AdamW((one for one in network.parameters() if one.requires_grad), lr=1e-2)


def train(network: Network, train_set: TensorDataset, valid_set: TensorDataset, epochs: int, plugins: list) -> Run:
    """Train a network, with a schedule over the whole run, and measure it after each epoch."""
    engine = Engine(
        Components(network=network, dataset=train_set, criterion=nn.CrossEntropyLoss(), optimizer=build_optimizer),
        RunConfig(epochs=epochs, batch_size=10),
        plugins=[
            LRSchedule(lambda optimizer, total_updates: CosineAnnealingLR(optimizer, T_max=total_updates)),
            Evaluate(valid_set, {"accuracy": accuracy}),
            *plugins,
        ],
    )
    return engine.run()


def main() -> None:
    """Pretrain, fine-tune in three ways, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12, help="of fine-tuning, at least 3 (default 12)")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "fine_tuning")
    options = parser.parse_args()

    images, digits = read_digits()
    few, many = slice(0, 20), slice(100, None)  # ten images of the new digits, and hundreds to measure
    old, old_valid = choose(images[:1500], digits[:1500], 0), choose(images[1500:], digits[1500:], 0)
    new, new_valid = choose(images[few], digits[few], 5), choose(images[many], digits[many], 5)

    torch.manual_seed(0)
    pretrained = Network()
    checkpoints = options.folder / "pretrained"
    run = train(pretrained, old, old_valid, 5, [Checkpoint(checkpoints, overwrite=True)])
    print(f"digits 0 to 4, {len(old)} images: accuracy {run.metrics['valid/accuracy']:.4f}\n")

    third = options.epochs // 3
    ways = {
        "from nothing": [],
        "the head alone": [Freeze("backbone.*")],
        "part after part": [
            Freeze("backbone.1.*", until=third, lr=1e-2),
            Freeze("backbone.0.*", until=2 * third, lr=5e-3),
        ],
    }
    print(f"digits 5 to 9, {len(new)} images, {options.epochs} epochs")
    for way, plugins in ways.items():
        torch.manual_seed(1)
        network = Network()
        if plugins:
            load_weights(checkpoints, pretrained)  # all of it, then the part that is wanted
            network.backbone.load_state_dict(pretrained.backbone.state_dict())
        before = [one.detach().clone() for one in network.backbone.parameters()]
        run = train(network, new, new_valid, options.epochs, plugins)
        same = all(map(torch.equal, before, network.backbone.parameters()))
        moved = "stood still" if same else "was trained"
        print(f"{way:<16} accuracy {run.metrics['valid/accuracy']:.4f}, the backbone {moved}")
    print()
    for note in run.log.notes("note"):
        print(f"epoch {run.log[note.seq].epoch}: {note.text}")
    updates = len(run.history("lr/2"))  # those that all three groups were in
    rates = [run.history(f"lr/{number}")[-updates] for number in range(3)]
    print(f"learning rates when all are trained: {', '.join(f'{rate:.4f}' for rate in rates)}")


if __name__ == "__main__":
    main()
