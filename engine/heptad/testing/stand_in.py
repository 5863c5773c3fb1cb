"""`StandIn`: stands in an engine for a plugin under test, which can be exchanged while the run is paused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from heptad.plugin.contract import Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.marks import on_enter, on_exit
from heptad.plugin.on_ranks import has_on_loss
from heptad.plugin.subscription import subscriptions_of
from heptad.run.run import Run


class StandIn(Plugin):
    """Passes every call on to the plugin that it stands for. Use `stand_in_for`, which subscribes it.

    Attributes:
        plugin: The plugin under test.
        ask_twice: Whether the guards of its detours are asked twice.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.name = plugin.name
        self.runs_after, self.runs_before = plugin.runs_after, plugin.runs_before
        self.keeps_window, self.changes_gradients = plugin.keeps_window, plugin.changes_gradients
        self.needs_epoch_loss = plugin.needs_epoch_loss
        self.observes, self.ranks, self.requests = plugin.observes, plugin.ranks, plugin.requests
        self.ask_twice = False
        self.exchange(plugin)

    def exchange(self, plugin: Plugin) -> None:
        """Put another instance in place of the one that is there."""
        self.plugin = plugin
        self._given = tuple(plugin.detours())

    def on_begin(self, run: Run) -> None:
        """Pass it on."""
        self.plugin.on_begin(run)

    def open(self, run: Run) -> None:
        """Pass it on."""
        self.plugin.open(run)

    def close(self, run: Run) -> None:
        """Pass it on."""
        self.plugin.close(run)

    def on_pause(self, run: Run) -> None:
        """Pass it on."""
        self.plugin.on_pause(run)

    def detours(self) -> Iterable[Detour]:
        """Return detours that ask and run those of whichever plugin is there."""
        for number, detour in enumerate(self._given):
            yield Detour(
                detour.state,
                detour.after,
                lambda run, number=number: self._ask(self._given[number], run),
                lambda run, number=number: self._given[number].body(run),
                detour.every,
                detour.count,
            )

    def _ask(self, detour: Detour, run: Run) -> bool:
        if self.ask_twice:
            detour.when(run)
        return detour.when(run)


def stand_in_for(plugin: Plugin) -> StandIn:
    """Return a stand-in with the plugin's subscriptions, in the same order and with the same filters."""
    methods: dict[str, Any] = {}
    for number, subscription in enumerate(subscriptions_of(plugin)):
        method, mark = subscription.who.removeprefix(f"{plugin.name}."), subscription.mark

        def pass_on(self: StandIn, run: Run, method: str = method) -> None:
            getattr(self.plugin, method)(run)

        marking = on_enter if mark.moment == "enter" else on_exit
        methods[f"call_{number}"] = marking(mark.state, every=mark.every, once=mark.once, when=mark.when)(pass_on)
    if has_on_loss(plugin):
        methods["on_loss"] = _on_loss
    return cast("StandIn", type("StandIn", (StandIn,), methods)(plugin))


def _on_loss(self: StandIn, run: Run) -> None:
    self.plugin.on_loss(run)
