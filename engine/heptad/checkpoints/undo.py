"""`Remembered`: what a plugin was before it was restored, to be put back if the run cannot be resumed."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from copy import deepcopy
from typing import Any

from heptad.plugin.contract import Plugin

_CONTAINERS = (dict, list, set, deque, OrderedDict, Counter, defaultdict)
_MANY = 10_000
"""Containers with more than this hold samples, which are not a plugin's state."""


class Remembered:
    """The attributes of a plugin, what its containers hold, and its own state.

    Args:
        plugin: The plugin.
        state: What its `state_dict` returned; `None` where it has none to give.
    """

    def __init__(self, plugin: Plugin, state: dict[str, Any] | None) -> None:
        self._plugin = plugin
        self._attributes = dict(getattr(plugin, "__dict__", {}))
        held = (value for value in self._attributes.values() if type(value) in _CONTAINERS)
        self._contents = [(value, value.copy()) for value in held if len(value) <= _MANY]
        self._state = state
        if state is not None:
            with suppress(Exception):  # what cannot be copied is put back as it is
                self._state = deepcopy(state)

    def put_back(self) -> None:
        """Put everything back; what the plugin's own `load_state_dict` raises on the way is passed over."""
        self._refill()
        if self._state is not None:
            try:
                self._plugin.load_state_dict(self._state)
            except Exception:
                self._refill()

    def _refill(self) -> None:
        attributes: dict[str, Any] | None = getattr(self._plugin, "__dict__", None)
        if attributes is not None:
            attributes.clear()
            attributes.update(self._attributes)
        for container, kept in self._contents:
            container.clear()
            if isinstance(container, list | deque):
                container.extend(kept)
            else:
                container.update(kept)
