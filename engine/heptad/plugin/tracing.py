"""Tracing: keep in the log when a handler was called and how long it took. For runs that ask for it."""

from __future__ import annotations

from time import monotonic_ns

from heptad.plugin.marks import Handler
from heptad.plugin.subscription import Subscription
from heptad.run.run import Run


def trace(subscription: Subscription, run: Run) -> None:
    """Wrap a handler so that the log of a run holds each call; events that its filter holds back are no calls."""
    mark, calls = subscription.mark, run._buffer.traced
    number = calls.handler(subscription.who, mark.moment, mark.state)

    def around(call: Handler) -> Handler:
        def timed(run: Run) -> None:
            seq, began = run.seq, monotonic_ns()
            try:
                call(run)
            finally:
                calls.add(seq, number, began, monotonic_ns() - began)

        return timed

    subscription.wrap(around)
