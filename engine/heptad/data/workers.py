"""Worker processes that Ctrl-C or a SIGTERM to all does not end: they get it too, and the main process decides."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_start_method, resource_tracker
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader

from heptad.data.fetch import ignore_interrupts, is_a


def begin_iterating(data: Any) -> Iterator[Any]:
    """Return `iter(data)`; the workers that a `DataLoader` starts for it ignore Ctrl-C, from their first instant on.

    They inherit that it is blocked, and soon ignore it. In this process one that comes meanwhile is only late.
    Persistent workers that were started earlier still end with Ctrl-C; a warning says so.
    """
    if not is_a(data, DataLoader) or not data.num_workers:
        return iter(data)
    loader: Any = data
    _warn_of_others(loader)
    own: Callable[[int], object] | None = loader.worker_init_fn
    if _method_of(loader) != "fork":
        resource_tracker.ensure_running()  # before: starting it ends with Ctrl-C no longer blocked
    with _ctrl_c_blocked():
        loader.worker_init_fn = partial(_begin_worker, own)
        try:
            iterator = iter(loader)
            _BEGUN.add(iterator)
            return iterator
        finally:
            loader.worker_init_fn = own


_BEGUN: WeakSet[Any] = WeakSet()
"""The iterators whose workers were started here, or of whose workers a warning was given."""


def _warn_of_others(loader: Any) -> None:
    """Warn of persistent workers that `iter(loader)` started earlier: the pass is theirs, and they obey Ctrl-C."""
    kept = getattr(loader, "_iterator", None)  # torch keeps it for persistent workers, and shows it nowhere
    if loader.persistent_workers and kept is not None and kept not in _BEGUN:
        _BEGUN.add(kept)
        warnings.warn(
            "the workers of this DataLoader (persistent_workers=True) were started before the engine iterated it, so "
            "Ctrl-C at a terminal ends them too, and the run fails where it would pause; give the engine a DataLoader "
            "that nothing has iterated yet",
            stacklevel=2,
        )


@contextmanager
def _ctrl_c_blocked() -> Generator[None]:
    """Block Ctrl-C in this thread, and in the processes that it starts, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(own: Callable[[int], object] | None, worker: int) -> None:
    ignore_interrupts(worker)
    if own is not None:
        own(worker)


def _method_of(loader: Any) -> str:
    """Return how a loader starts processes."""
    context = loader.multiprocessing_context
    return (get_start_method() if context is None else context.get_start_method()) or ""
