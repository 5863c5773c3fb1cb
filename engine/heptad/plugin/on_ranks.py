"""What several ranks ask of a plugin: `Plugin.ranks` and `Plugin.requests`, checked when an engine is built.

It owns the rules of both, and what stands in place of a first-only plugin's handlers. `PluginManager` calls it, for a
run of one process too: a script is to fail on a laptop and not on the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

from heptad.errors import PluginError
from heptad.plugin.contract import Plugin
from heptad.plugin.detour import Detour
from heptad.plugin.marks import Handler
from heptad.run.run import Run

MOST_REQUESTS = 48
"""Requests of all plugins of a run together: each is a bit of what the ranks exchange when they agree."""

FIRST_ONLY = "only the first rank calls it"
"""Why a handler is idle on another rank."""


def verify_ranks(plugin: Plugin, detours: Sequence[Detour]) -> None:
    """Check what a plugin says of ranks.

    Args:
        plugin: The plugin.
        detours: What it adds to the table.

    Raises:
        PluginError: If `ranks` is another word, `requests` holds something else than identifiers, or a first-only
            plugin takes part in the run.
    """
    if plugin.ranks not in ("all", "first"):
        raise PluginError(f"{plugin.name}.ranks must be 'all' or 'first', got {plugin.ranks!r}")
    _verify_requests(plugin)
    if plugin.ranks == "first" and (parts := _parts_in_the_run(plugin, detours)):
        raise PluginError(
            f"{plugin.name} says ranks = 'first' and {', '.join(parts)}: on the other ranks of a run nothing of it is "
            "called, so it must observe and may not steer; say ranks = 'all', or leave that out"
        )


def _verify_requests(plugin: Plugin) -> None:
    requests = plugin.requests
    listed = isinstance(requests, list | tuple)
    if not listed or not all(isinstance(one, str) and one.isidentifier() for one in requests):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        raise PluginError(f"{plugin.name}.requests must be a tuple of identifiers such as ('save',), got {requests!r}")
    if len(set(requests)) != len(requests):
        raise PluginError(f"{plugin.name}.requests names one of them twice: {requests!r}")


def _parts_in_the_run(plugin: Plugin, detours: Sequence[Detour]) -> list[str]:
    """Return in what a plugin takes part in the run, in words."""
    found = [] if plugin.observes else ["has not observes = True"]
    found += [f"adds the state '{detour.state}'" for detour in detours[:1]]
    found += ["declares requests"] if plugin.requests else []
    found += [f"has {name} = True" for name in ("keeps_window", "changes_gradients") if getattr(plugin, name)]
    return found + (["defines on_loss"] if has_on_loss(plugin) else [])


def has_on_loss(plugin: Plugin) -> bool:
    """Return whether a plugin defines `on_loss`. One that needs it at times only may set that of `Plugin` on itself."""
    return getattr(plugin.on_loss, "__func__", None) is not Plugin.on_loss


def requests_of(plugins: Sequence[Plugin]) -> tuple[str, ...]:
    """Return the requests of all plugins, in their order, as `Run.ask` takes them: each behind its plugin's name.

    Raises:
        PluginError: If there are too many.
    """
    found = tuple(f"{plugin.name}.{name}" for plugin in plugins for name in plugin.requests)
    if len(found) > MOST_REQUESTS:
        raise PluginError(
            f"the plugins declare {len(found)} requests ({found[0]}, …), expected at most {MOST_REQUESTS}; leave some "
            "plugins out, or let them share one"
        )
    return found


def nothing(run: Run) -> None:
    """Do nothing: what is called on other ranks in place of a first-only plugin's handler."""
    del run


def refusing_to_steer(who: str, call: Handler) -> Handler:
    """Return a handler of a first-only plugin, for the first of several ranks, that may not change the path.

    A stop, a pause and a request are left out: the ranks agree on these, and a signal that arrives in the handler may
    be what asks for them. The conformance kit finds a stop and a pause too.
    """

    def observing(run: Run) -> None:
        before = _what_steers(run)
        call(run)
        if _what_steers(run) != before:
            raise PluginError(
                f"{who} has skipped an update or changed the accumulation; a plugin with ranks = 'first' is called on "
                "one rank only and may not steer, say ranks = 'all'"
            )

    return observing


def _what_steers(run: Run) -> tuple[str | None, int]:
    return run._position.skip, run._position.window.next_size
