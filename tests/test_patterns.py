"""`docs/patterns.md`: each loop shape runs as it stands, and leaves the weights of its plain loop, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders import equal, weights
from pages import Session

PAGE = Path(__file__).resolve().parent.parent / "docs" / "patterns.md"

Names = dict[str, Any]


def oppose(names: Names) -> tuple[nn.Module, nn.Module]:
    """Generative adversarial networks: one update of each in turn."""
    rivals = names["build_rivals"]()
    torch.manual_seed(7)
    adam = {name: torch.optim.Adam(part.parameters(), lr=0.005, betas=(0.5, 0.99)) for name, part in rivals.items()}
    for _ in range(5):
        for real in names["batches"]:
            adam["discriminator"].zero_grad()
            names["discriminator_loss"](rivals, real).backward()
            adam["discriminator"].step()
            adam["generator"].zero_grad()
            names["generator_loss"](rivals).backward()
            adam["generator"].step()
    return rivals, names["rivals"]


def play(names: Names) -> tuple[nn.Module, nn.Module]:
    """Policy gradient: an episode, a step, an episode, a step."""
    policy = names["build_policy"]()
    optimizer, corridor = torch.optim.Adam(policy.parameters(), lr=0.02), names["Corridor"](policy)
    for _ in range(200):
        optimizer.zero_grad()
        names["policy_loss"](policy, corridor.play()).value.backward()
        optimizer.step()
    return policy, names["policy"]


def unroll(names: Names) -> tuple[nn.Module, nn.Module]:
    """Truncated backpropagation: the state is handed on, detached."""
    reader = names["build_reader"]()
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.01)
    for _ in range(3):
        state = None
        for piece in names["pieces"]:
            optimizer.zero_grad()
            guesses, state = reader(piece[:-1], state)
            state = state.detach()
            nn.functional.cross_entropy(guesses.flatten(0, 1), piece[1:].flatten()).backward()
            optimizer.step()
    return reader, names["reader"]


def distill(names: Names) -> tuple[nn.Module, nn.Module]:
    """Distillation: a second network is asked, without gradients."""
    student, teacher = names["build_student"](), names["build_teacher"]()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(4):
        for batch in names["batches"]:
            optimizer.zero_grad()
            names["distillation_loss"](student, batch, teacher).value.backward()
            optimizer.step()
    return student, names["student"]


def contrast(names: Names) -> tuple[nn.Module, nn.Module]:
    """Momentum contrast: the slow encoder follows after each step."""
    network = names["build_contrast"]()
    optimizer = torch.optim.SGD(network.query.parameters(), lr=0.1)
    for _ in range(3):
        for one, other in names["views"]:
            scores = network(one, other)
            loss = nn.functional.cross_entropy(scores, torch.zeros(len(one), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.follow()
    return network, names["contrast"]


def denoise(names: Names) -> tuple[nn.Module, nn.Module]:
    """Diffusion: noise from the global generator, an average after each step."""
    network, average = names["build_denoiser"](), names["build_denoiser"]()
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    updates = 0
    for _ in range(5):
        for points in names["batches"]:
            optimizer.zero_grad()
            names["noise_loss"](network, points).backward()
            optimizer.step()
            updates += 1
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                    slow.copy_(fast if updates == 1 else torch.lerp(slow, fast, 1 - 0.99))
    return average, names["denoiser"]


def learn_to_learn(names: Names) -> tuple[nn.Module, nn.Module]:
    """Meta-learning: two batches of tasks make an update."""
    learner = names["build_learner"]()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    for _ in range(2):
        for number, tasks in enumerate(names["batches"]):
            (names["meta_loss"](learner, tasks).value / 2).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    return learner, names["learner"]


PLAIN: dict[str, Callable[[Names], tuple[nn.Module, nn.Module]]] = {
    "Generative adversarial networks": oppose,
    "Policy gradient": play,
    "Truncated backpropagation through time": unroll,
    "Distillation": distill,
    "Momentum contrast": contrast,
    "Diffusion": denoise,
    "Meta-learning": learn_to_learn,
}


def test_each_section_has_a_plain_loop():
    assert re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == list(PLAIN)


@pytest.mark.parametrize("heading", PLAIN)
def test_the_weights_are_those_of_the_plain_loop(heading: str):
    """The section runs alone; its functions serve both, its loop is written out here."""
    session = Session(PAGE)
    begins = session.text.index(f"\n## {heading}\n")
    (block,) = (block for block in session.blocks() if session.text.rfind("\n## ", 0, block.start()) == begins)
    names = session.run(block)
    plain, trained = PLAIN[heading](names)
    assert equal(weights(plain), weights(trained))
