"""Recorded values: what `Run.record` was given, by name, on its device until somebody reads it."""

from __future__ import annotations

from array import array
from typing import Any, cast

import numpy as np
import torch

from heptad.errors import EngineError

_PENDING = 4096
"""Device tensors that one name keeps before they are fetched together; the oldest of them is long computed by then."""


class Values:
    """All values recorded under each name: 8 bytes a value once they are read."""

    def __init__(self) -> None:
        self._read: dict[str, array[float]] = {}
        self._pending: dict[str, list[torch.Tensor]] = {}

    def record(self, name: str, value: Any) -> None:
        """Adds a value.

        Raises:
            EngineError: If the name is empty or the value is neither a number nor a 0-dim tensor.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance] - for untyped callers
            raise EngineError(f"a value is recorded under a name that is a non-empty str, got {name!r}")
        if isinstance(value, torch.Tensor):
            if value.dim():
                raise EngineError(
                    f"record('{name}', …) takes a number or a 0-dim tensor, got shape {tuple(value.shape)}"
                )
            value = value.detach()
            if value.device.type != "cpu":
                pending = self._pending.setdefault(name, [])
                pending.append(value.clone())  # the caller may go on to write into it
                if len(pending) >= _PENDING:
                    self._fetch(name)
                return
            value = value.item()
        if isinstance(value, np.generic):
            value = cast("Any", value.item())
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EngineError(f"record('{name}', …) takes a number or a 0-dim tensor, got {value!r}")
        self._fetch(name)
        self._read.setdefault(name, array("d")).append(float(value))

    def history(self, name: str) -> list[float]:
        """Returns all values of a name, oldest first; none for a name that was never recorded."""
        self._fetch(name)
        return list(self._read.get(name, ()))

    def newest(self) -> dict[str, float]:
        """Returns the newest value of every name."""
        for name in list(self._pending):
            self._fetch(name)
        return {name: values[-1] for name, values in self._read.items()}

    def _fetch(self, name: str) -> None:
        """Moves a name's values off their device, which waits for it."""
        if pending := self._pending.pop(name, None):
            self._read.setdefault(name, array("d")).extend(cast("list[float]", torch.stack(pending).double().tolist()))
