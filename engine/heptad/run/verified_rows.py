"""What the tests marked `gpu` have seen to work, written by `make test-gpu` and by nobody; see `run/verified.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
"""A claim that was seen to hold: `claim`, `covers`, `device`, `card`, `torch`, `heptad`, `commit`, `date`."""

ROWS: list[Row] = []
