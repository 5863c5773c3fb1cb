"""`rehearse`: make two updates, an evaluation and a checkpoint of a run in `idle`, and put everything back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, Protocol

from heptad.checkpoints.store import Store
from heptad.plugin.contract import Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.manager import PluginManager, plugin_state
from heptad.plugin.marks import Handler, Predicate
from heptad.plugin.placing import places_written_by
from heptad.plugin.subscription import Subscription
from heptad.run.run import Run
from heptad.smoke.putting_back import put_back

UPDATES = 2
"""Updates of a smoke run."""

WINDOWS = 8
"""Windows after which it ends though its updates are skipped."""


class SmokeEngine(Protocol):
    """An engine, as far as a smoke run needs one."""

    current: Run

    def run(self, until: Callable[[Run], bool] | None = None) -> Run:
        """Drive the run to its end, or to where a predicate of it holds."""
        ...

    def on_enter(
        self, state: str, *, every: int, once: bool, when: Predicate | None, first: int | None
    ) -> Callable[[Handler], object]:
        """Subscribe a function to entering a state."""
        ...

    def on_exit(
        self, state: str, *, every: int, once: bool, when: Predicate | None, first: int | None
    ) -> Callable[[Handler], object]:
        """Subscribe a function to leaving a state."""
        ...

    def close(self) -> None:
        """Close plugins and end worker processes."""
        ...


def rehearse(
    run: Run,
    manager: PluginManager,
    subscriptions: Iterable[Subscription],
    build: Callable[[Sequence[Plugin]], SmokeEngine],
) -> Run:
    """Make the smoke run of a run that has not begun.

    Args:
        run: The run in `idle`, which is left alone.
        manager: Its plugins.
        subscriptions: Its handlers; those that are functions take part.
        build: Builds another engine over the same components and configuration, with the plugins that take part.

    Returns:
        The smoke run, finished.

    Raises:
        EngineError: If the run has begun, or its data or a network that ranks share cannot be put back.
        BaseException: What the smoke run raised. Everything is put back then too.
    """
    evaluations = [(plugin, detour) for plugin, detour in manager.detours_given if detour.state == "evaluate"]
    evaluating = [plugin for plugin, _ in evaluations]
    # a plugin that observes writes files, which a smoke run leaves as they are; one that evaluates writes none
    kept = [plugin for plugin in manager.plugins if not plugin.observes or plugin in evaluating]
    places = [place for plugin in kept for place in places_written_by(plugin)]
    plugins = [plugin for plugin in manager.plugins if plugin in kept or plugin in places]
    functions = [row for row in subscriptions if row.plugin is None]
    also = [*plugins, *(row.handler for row in functions)]
    with put_back(run, "smoke()", "a smoke run", also) as stack:
        for plugin in plugins:
            if state := _copied_state(plugin):
                stack.callback(plugin.load_state_dict, state)
        engine = build(plugins)
        for row in functions:
            subscribe = engine.on_enter if row.mark.moment == "enter" else engine.on_exit
            mark = row.mark
            put = subscribe(mark.state, every=mark.every, once=mark.once, when=mark.when, first=mark.first)
            put(row.handler)
        return _drive(engine, [detour for _, detour in evaluations])


def _copied_state(plugin: Plugin) -> dict[str, Any]:
    """Return a copy of a plugin's state; none where it has none before a run begins."""
    try:
        return deepcopy(plugin_state(plugin))
    except Exception:
        return {}


def _drive(engine: SmokeEngine, evaluations: Sequence[Detour]) -> Run:
    """Make the updates, the evaluation and the checkpoint."""
    run, windows = engine.current, 0
    rare: Sequence[Detour] = ()

    def end(run: Run) -> None:
        nonlocal windows
        windows += 1
        if run.update >= UPDATES or windows >= WINDOWS:
            run.stop("the smoke run is complete")

    engine.on_exit("optimizer_update", every=1, once=False, when=None, first=None)(end)
    try:
        while not run.ended and not run.update:  # again where a plugin pauses it
            engine.run(until=lambda run: run.update > 0)
        if not run.ended:
            rare = [detour for detour in evaluations if (detour.every or 0) > UPDATES]
            _evaluate(run, rare)  # before the epoch ends, where plugins look for values
            _store(run)
        while not run.ended:
            engine.run()
        if not rare and "evaluate" not in run.log.counts():
            _evaluate(run, evaluations)
    finally:
        engine.close()
    return run


def _evaluate(run: Run, evaluations: Sequence[Detour]) -> None:
    """Evaluate now."""
    for detour in evaluations:
        detour.body(run)
    if run._runtime.evaluator is not None:
        run._runtime.evaluator.close()


def _store(run: Run) -> None:
    """Write a checkpoint and read it again."""
    with tempfile.TemporaryDirectory(prefix="heptad-smoke-") as folder:
        store = Store(folder)
        store.load(store.save(run.snapshot()))
