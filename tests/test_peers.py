"""The comparison with peers: the same work leads to the same weights, the probe counts rightly, pins and page agree."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import peer_probe
import peers
from peer_adapters import ADAPTERS, PACKAGES
from peer_imports import needs

ROOT = Path(__file__).resolve().parent.parent
HERE = ("plain", "heptad", "heptad + journal", "accelerate", "transformers")
"""Those that the development environment has."""

PINS = [
    line.partition("#")[0].strip()
    for line in (ROOT / "benchmarks" / "peers.txt").read_text(encoding="utf-8").splitlines()
    if line.partition("#")[0].strip()
]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(peers, "STEPS", 24)
    monkeypatch.setattr(peers, "WARM", 2)


@pytest.mark.parametrize("part", ["mlp", "accumulation"])
@pytest.mark.parametrize("name", HERE[1:])
def test_an_adapter_ends_with_the_weights_of_the_plain_loop(name, part):
    expected = peers.train("plain", part).weights
    torch.testing.assert_close(peers.train(name, part).weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["plain", "heptad", "transformers"])
def test_ten_subscribers_are_called_once_a_step(name):
    """`train` itself compares the number of calls; a run of which none is called raises."""
    assert peers.train(name, "subscribers").took > 0


def test_an_adapter_that_leaves_steps_out_is_refused(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "idle", lambda work: lambda: None)
    with pytest.raises(AssertionError, match="idle fetched 0 batches of 24"):
        peers.train("idle", "mlp")


def test_the_probe_says_that_a_plain_loop_loses_the_last_window():
    assert len(peer_probe.coefficients("plain", [4] * 10, 4)) == 2
    assert peer_probe.third_update("plain").tolist() == [0.25] * 4 + [0.0] * 6


def test_the_probe_says_that_a_flushed_window_is_the_mean_of_what_is_there():
    last = peer_probe.coefficients('heptad, remainder="flush"', [4] * 10, 4)[2]
    torch.testing.assert_close(last, torch.tensor([0.0] * 8 + [0.5] * 2))


@pytest.mark.parametrize(
    ("name", "expected"), [("plain", [1 / 4] * 4), ("heptad", [1 / 3, 1 / 3, 1 / 6, 1 / 6])], ids=["plain", "heptad"]
)
def test_the_probe_gives_the_coefficients_of_unequal_micro_batches(name, expected):
    (update,) = peer_probe.coefficients(name, [4, 4, 2, 2], 4)
    torch.testing.assert_close(update, torch.tensor(expected))
    assert peer_probe.as_large_batch(update, [4, 4, 2, 2]) is (name == "heptad")


def test_requirements_are_walked_to_their_ends():
    assert {"torch", "sympy", "mpmath"} <= needs("torch")


def test_every_peer_is_pinned():
    pinned = {re.fullmatch(r"([\w-]+)==[\w.]+", pin)[1] for pin in PINS}
    assert {package for package, _ in PACKAGES.values()} - {"heptad"} <= pinned


def test_the_feature_table_names_every_peer_with_its_pinned_version():
    features = PAGE.partition("## Features")[2]
    wanted = {package for package, _ in PACKAGES.values()} - {"heptad"}
    for name, version in (pin.split("==") for pin in PINS):
        if name in wanted:
            assert f"{name} {version}" in features
