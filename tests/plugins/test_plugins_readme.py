"""The catalogue's page: a section for each plugin, with its moments and an example that runs."""

import re
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import heptad_plugins
from heptad import Components, Engine, RunConfig
from heptad.plugin.subscription import subscriptions_of

PAGE = Path(__file__).parents[2] / "plugins" / "README.md"
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def test_there_is_a_section_for_each_plugin():
    """In the order of the alphabet."""
    assert list(SECTIONS) == sorted(heptad_plugins.__all__, key=str.lower)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_says_moments_and_whether_it_observes_or_changes(name):
    """What the section says of observing is what the plugin's file says."""
    file = next(p for p in PAGE.parent.glob("heptad_plugins/*.py") if p.stem.replace("_", "") == name.lower())
    verb = re.match(r'"""`\w+` (observes|changes) the run', file.read_text(encoding="utf-8"))
    assert verb is not None
    assert re.search(rf"^{verb[1].capitalize()} the run", SECTIONS[name], re.MULTILINE)
    assert re.search(r"^Moments: ", SECTIONS[name], re.MULTILINE)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_moments_are_those_of_the_code(name):
    """Every state of the table on whose moments the plugin is called is named; else "none" stands there."""
    plugin = object.__new__(getattr(heptad_plugins, name))
    called = {found.mark.state for found in subscriptions_of(plugin)}
    (moments,) = re.findall(r"^Moments: (.*?)\n\n", SECTIONS[name], re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([a-z_]+)`", moments))
    assert named == called if called else moments.startswith("none;")


@pytest.mark.parametrize("name", SECTIONS)
def test_its_example_runs(name, tmp_path, monkeypatch):
    """With a linear network on handwritten digits, as the page's head says."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert name in block
    digits = load_digits()
    data, target = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    session = {
        "torch": torch,
        "nn": nn,
        "Components": Components,
        "Engine": Engine,
        "RunConfig": RunConfig,
        "network": nn.Linear(64, 10),
        "train_set": TensorDataset(data[:1500], target[:1500]),
        "valid_set": TensorDataset(data[1500:], target[1500:]),
    }
    exec(compile(block, f"plugins/README.md, {name}", "exec"), session)
