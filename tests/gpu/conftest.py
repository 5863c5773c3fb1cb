"""Tests that need an accelerator: skipped where there is none, else what they show is written to docs/verified.md.

    @pytest.mark.gpu("a claim in words", covers=("prefetch",))

A claim holds if all tests that are marked with it pass. `covers` names what it lets a run do without a note in its log:
values of `RunConfig` as `heptad.run.verified` calls them, or `"training"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gpu_claims import Found, write

FOUND = Found()


@pytest.fixture
def device() -> torch.device:
    """The accelerator."""
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The accelerator, where it is one of CUDA."""
    if device.type != "cuda":
        pytest.skip(f"this needs CUDA, and the accelerator is {device.type}")
    return device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.accelerator.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no accelerator here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    mark = item.get_closest_marker("gpu")
    if mark is not None and mark.args:
        FOUND.add(mark.args[0], mark.kwargs.get("covers", ()), f"{report.when} {report.outcome}")
    return report


def pytest_sessionfinish() -> None:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is not None and (FOUND.held() or FOUND.failed()):
        write(FOUND, device)
