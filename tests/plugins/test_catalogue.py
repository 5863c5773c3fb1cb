"""What holds for every shipped plugin: the contract, the declared order, and that observers change nothing."""

from __future__ import annotations

import ast
import io
import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import heptad_plugins
from builders import CLASSES, FEATURES, batches
from heptad import Components, Engine, Plugin, RunConfig
from heptad.roster import ordered
from heptad.testing import check_plugin
from heptad_plugins import (
    EMA,
    CSVLogger,
    EarlyStopping,
    Evaluate,
    GracefulStop,
    GradientClipping,
    Journal,
    LRSchedule,
    NonFiniteGuard,
    Progress,
    TensorBoardLogger,
    Throughput,
    TimeLimit,
)

FOLDER = Path(heptad_plugins.__file__).parent
TIMES = {"steps_per_second", "samples_per_second", "updates_per_second", "data_wait_share", "seconds"}
"""What measures time, among the recorded values and the state of shipped plugins."""


def makers(folder: Path) -> dict[str, Any]:
    """Returns what builds each shipped plugin, with the options of every form that it has."""
    held_out = batches(2)
    files = itertools.count()

    def csv_logger() -> Plugin:
        return CSVLogger(folder / f"{next(files)}.csv", overwrite=True)

    def journal() -> Plugin:
        return Journal(folder / f"{next(files)}.journal")

    return {
        "CSVLogger": csv_logger,
        "EMA": lambda: EMA(decay=0.5),
        "EarlyStopping": lambda: EarlyStopping("valid/loss", patience=1),
        "EarlyStopping max": lambda: EarlyStopping("valid/accuracy", mode="max", patience=2),
        "Evaluate": lambda: Evaluate(held_out, {"mean": lambda output, batch: output.mean()}),
        "Evaluate often": lambda: Evaluate(held_out, at="optimizer_update", every=2, name="often"),
        "Evaluate steps": lambda: Evaluate(held_out, at="after_step", name="steps"),
        "GracefulStop": GracefulStop,
        "GradientClipping": lambda: GradientClipping(max_norm=0.1),
        "GradientClipping value": lambda: GradientClipping(max_value=0.01),
        "Journal": journal,
        "LRSchedule": lambda: LRSchedule(lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.5)),
        "LRSchedule epoch": lambda: LRSchedule(lambda optimizer: StepLR(optimizer, step_size=1), interval="epoch"),
        "NonFiniteGuard": lambda: NonFiniteGuard("skip", every=2),
        "Progress": lambda: Progress(file=io.StringIO()),
        "TensorBoardLogger": lambda: TensorBoardLogger(folder / f"events {next(files)}"),
        "Throughput": Throughput,
        "TimeLimit": lambda: TimeLimit(1e6),
    }


NAMES = tuple(makers(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_plugin_keeps_the_contract(name, tmp_path):
    """The conformance kit finds no fault."""
    assert "no fault found" in str(check_plugin(makers(tmp_path)[name], volatile=TIMES))


def test_every_shipped_plugin_is_in_the_list():
    """What `heptad_plugins` exports is what is checked here, and what lies in its folder."""
    shipped = set(heptad_plugins.__all__)
    assert {name.split()[0] for name in NAMES} == shipped
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")}
    assert {name.replace("_", "") for name in files} == {name.lower() for name in shipped}


@pytest.mark.parametrize("path", [path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_")])
def test_the_first_line_says_whether_it_observes_or_changes_the_run(path):
    """And no plugin imports another."""
    tree = ast.parse(path.read_text())
    assert re.match(r"`\w+` (observes|changes) the run: .*\.$", (ast.get_docstring(tree) or "").splitlines()[0])
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    plugins = {module for module in imported if module.startswith("heptad_plugins.")}
    assert all(module.removeprefix("heptad_plugins.").startswith("_") for module in plugins)


def shipped(folder: Path) -> dict[str, Plugin]:
    """Returns one of each, by class name, and one that stands for the checkpoint."""
    made = {name: make() for name, make in makers(folder).items() if " " not in name}

    class Checkpoint(Plugin):
        pass

    return {**made, "Checkpoint": Checkpoint()}


def declared(folder: Path) -> list[tuple[str, str]]:
    """Returns every pair (first, second) that a shipped plugin asks for."""
    plugins = shipped(folder)
    pairs = [(str(other), name) for name, plugin in plugins.items() for other in plugin.runs_after]
    pairs += [(name, str(other)) for name, plugin in plugins.items() for other in plugin.runs_before]
    return sorted(set(pairs))


PAIRS = declared(Path())


def test_what_matters_is_declared():
    """The guard before clipping, the average before evaluation and checkpoint, metrics before loggers and judges."""
    needed = {
        ("NonFiniteGuard", "GradientClipping"),
        ("EMA", "Evaluate"),
        ("EMA", "Checkpoint"),
        ("Evaluate", "CSVLogger"),
        ("Evaluate", "TensorBoardLogger"),
        ("Evaluate", "Progress"),
        ("Evaluate", "EarlyStopping"),
        ("Throughput", "CSVLogger"),
        ("Throughput", "TensorBoardLogger"),
        ("LRSchedule", "CSVLogger"),
        ("LRSchedule", "Journal"),
        ("Evaluate", "Journal"),
        ("Journal", "Checkpoint"),
        ("Journal", "CSVLogger"),
        ("GradientClipping", "CSVLogger"),
    }
    assert needed <= set(PAIRS)
    assert {name for pair in PAIRS for name in pair} <= set(shipped(Path()))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_each_declared_pair_holds_in_all_orders_of_five(first, second, tmp_path):
    """With three others drawn beside the pair, whatever the order of the list."""
    plugins = shipped(tmp_path)
    others = sorted(set(plugins) - {first, second})
    for drawn in range(3):
        five = [first, second, *random.Random(f"{first} {second} {drawn}").sample(others, 3)]
        for order in itertools.permutations(five):
            found = [plugin.name for plugin in ordered([plugins[name] for name in order])]
            assert found.index(plugins[first].name) < found.index(plugins[second].name)


def test_clipping_sees_the_gradients_that_the_engine_has_divided(tmp_path):
    """The engine's own division comes before every plugin, in all orders of the plugins on that edge."""
    norms = []
    for order in itertools.permutations(range(3)):
        plugins = [GradientClipping(max_norm=1e9), NonFiniteGuard(), EMA(decay=0.9)]
        engine = build([plugins[place] for place in order], accumulation=3, uneven=True)
        norms.append(engine.run().history("gradient_norm"))
    assert all(norm == norms[0] for norm in norms)
    plain = build([], accumulation=3, uneven=True)
    seen: list[float] = []
    plain.on_enter("optimizer_update")(
        lambda run: seen.append(
            torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in run.network.parameters()])).item()
        )
    )
    plain.run()
    assert norms[0] == pytest.approx(seen, rel=1e-6)


class Noisy(torch.utils.data.Dataset):
    """Samples with noise from all three generators."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return torch.randn(FEATURES) + random.random(), place % CLASSES


def build(plugins: list[Plugin], *, accumulation: int = 1, uneven: bool = False) -> Engine:
    """Returns an engine over a network with dropout and batch norm."""
    torch.manual_seed(1)
    layers = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)
    network = nn.Sequential(*layers)
    return Engine(
        Components(
            network=network,
            dataset=Noisy(),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(network.parameters(), lr=0.01),
        ),
        RunConfig(epochs=3, batch_size=4, accumulation=accumulation, drop_last=not uneven, seed=2),
        plugins=plugins,
    )


OBSERVERS = (
    "CSVLogger",
    "Evaluate",
    "Evaluate often",
    "Evaluate steps",
    "Journal",
    "Progress",
    "TensorBoardLogger",
    "Throughput",
)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", [*OBSERVERS, "Evaluate every update"])
def test_observers_are_neutral(name, accumulation, tmp_path):
    """Weights, buffers and optimizer are the same, bit for bit, with and without each."""
    every_update = {"Evaluate every update": lambda: Evaluate(Noisy(), at="optimizer_update")}
    observer = {**makers(tmp_path), **every_update}[name]()
    with_it = build([observer], accumulation=accumulation).run()
    without = build([], accumulation=accumulation).run()
    assert with_it.update == without.update > 0
    for mine, other in zip(with_it.network.state_dict().values(), without.network.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    states = [list(run.optimizer.state_dict()["state"].values()) for run in (with_it, without)]
    assert repr(states[0]) == repr(states[1])


def test_every_file_that_says_observes_is_checked_to_be_neutral():
    """The list above is the list of what says so of itself."""
    said = {
        re.match(r'"""`(\w+)` observes', path.read_text())[1]  # type: ignore[index] - the pattern was matched above
        for path in FOLDER.glob("*.py")
        if re.match(r'"""`\w+` observes', path.read_text())
    }
    assert said == {name.split()[0] for name in OBSERVERS}


def test_loggers_see_the_metrics_of_the_epoch(tmp_path):
    """In any order of the list, at `after_epoch`: Evaluate, Throughput, then the loggers."""
    for number, order in enumerate(itertools.permutations(range(4))):
        path = tmp_path / f"{number}.csv"
        out = io.StringIO()
        plugins = [CSVLogger(path), Evaluate(batches(2)), Throughput(), Progress(file=out)]
        build([plugins[place] for place in order]).run()
        text = path.read_text()
        assert "valid/loss" in text
        assert "steps_per_second" in text
        assert all("valid/loss" in line and "steps_per_second" in line for line in out.getvalue().splitlines())
