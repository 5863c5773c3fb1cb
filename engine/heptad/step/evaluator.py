"""`Evaluator`: evaluations asked for by a run, over data whose worker processes are kept from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from heptad.config import Components, RunConfig
from heptad.data.feed import Feed
from heptad.errors import ConfigError
from heptad.step.evaluation import Metric, build_reading_feed, evaluate_feed, metrics_mistake, reading_config


class Evaluator:
    """Evaluates a network, and keeps the feed of each data object until it is closed."""

    def __init__(self, components: Components, config: RunConfig, device: torch.device) -> None:
        self._components = components
        self._config = config
        self._device = device
        self._feeds: dict[int, tuple[Any, Feed]] = {}  # by id; the object is held so that its id stays its own

    def prepare(self, data: Any, name: str) -> Feed:
        """Return the feed of a data object, built when it is first asked for. See `Run.prepare_evaluation`."""
        if id(data) not in self._feeds:
            feed = build_reading_feed(data, self._components, reading_config(self._config), name)
            self._feeds[id(data)] = data, feed
        return self._feeds[id(data)][1]

    def evaluate(self, data: Any, metrics: Mapping[str, Metric], ended: Callable[[], bool]) -> dict[str, float]:
        """Return the mean loss and metrics over data. See `Run.evaluate`."""
        if mistake := metrics_mistake(metrics):
            raise ConfigError(mistake)
        feed = self.prepare(data, "run.evaluate(data)")
        return evaluate_feed(self._components, self._config, self._device, feed, metrics, interrupted=ended)

    def close(self) -> None:
        """Close all feeds, and end their worker processes."""
        while self._feeds:
            _, (_, feed) = self._feeds.popitem()
            feed.close()
