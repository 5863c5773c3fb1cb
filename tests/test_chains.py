"""Killed at random times, while starting, loading, writing and rotating: a sample; `make chains` has some hundred."""

from __future__ import annotations

from typing import Any

import pytest

from chains import CONFIGURATIONS, chain, lived


@pytest.mark.parametrize("configuration", ["plain", "stream", "odd"])
def test_a_chain_of_kills_at_random_times(configuration: str):
    """What ends at last is the run that nobody killed."""
    options: dict[str, Any] = CONFIGURATIONS[configuration]
    found, hit = chain(f"{configuration} sample", lived(options), options, kills=5)
    assert found == []
    assert hit.total() >= 1
