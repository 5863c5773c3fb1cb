"""Search for a learning rate and an accumulation with Optuna, which stops the runs that are not worth their time.

The data are the 1,797 handwritten digits that scikit-learn brings. Each trial is a run with a journal of its own, and
what is printed last compares the best of them. The study is an SQLite file: started again, the script adds trials. It
takes some ten seconds; `search.out.txt` shows what it prints.
"""

import argparse
from pathlib import Path

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from heptad import Components, Engine, RunConfig
from heptad_plugins import Evaluate, Journal, OptunaPruning

torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train_set, valid_set = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])


def journal(folder: Path, number: int) -> Path:
    """Return the file that the log of a trial is written to."""
    return folder / f"trial-{number}.journal"


def train(trial: optuna.Trial, folder: Path, epochs: int) -> float:
    """Train with what the trial suggests; return the loss on the held-out images.

    Raises:
        optuna.TrialPruned: If the trial was pruned; `Engine.run` raises it when the run has ended.
    """
    rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    accumulation = trial.suggest_categorical("accumulation", [1, 2, 4, 8])
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    engine = Engine(
        Components(
            network=network,
            dataset=train_set,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9),
        ),
        RunConfig(epochs=epochs, batch_size=16, accumulation=accumulation),
        plugins=[
            Evaluate(valid_set, {"accuracy": lambda output, batch: output.argmax(1) == batch[1]}),
            OptunaPruning(trial, "valid/loss"),  # by epoch: all accumulations have seen the same images then
            Journal(journal(folder, trial.number), overwrite=True),
        ],
    )
    return engine.run().metrics["valid/loss"]


def main() -> None:
    """Make the trials, and print the best and how to compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8, help="at most, in each trial (default 8)")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "search")
    options = parser.parse_args()

    options.folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="digits",
        storage=f"sqlite:///{options.folder / 'study.db'}",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
    )
    study.optimize(lambda trial: train(trial, options.folder, options.epochs), n_trials=options.trials)

    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED))
    trials.sort(key=lambda trial: (trial.state.name, trial.value or 0.0))
    for trial in trials:
        print(
            f"trial {trial.number:2}: lr {trial.params['lr']:.4f}, accumulation {trial.params['accumulation']}: loss "
            f"{trial.value:.4f} after {len(trial.intermediate_values)} epochs, {trial.state.name.lower()}"
        )
    print(f"\nThe best is trial {study.best_trial.number}. Compare it with the next two:")
    three = " ".join(str(journal(options.folder, trial.number)) for trial in trials[:3])
    print(f"    heptad diff --summary {three}")
    print(f"    heptad report {three} -o {options.folder / 'report.html'}")


if __name__ == "__main__":
    main()
