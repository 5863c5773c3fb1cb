"""`OTelTracing` observes the run: OpenTelemetry spans, one for each state, with the log's times and events."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from contextvars import Token
from importlib.metadata import version
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from heptad import Plugin, PluginError, Run, Transition, on_enter
from heptad.plugin import Event, PackedChunk, entered, now_ns
from heptad_plugins._options import selection
from heptad_plugins._stored import mapping

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

IN_WINDOW = ("before_step", "process_batch", "redo_window", "after_step", "optimizer_update")
"""The states that `every` thins out."""

_ABSENT = ("evaluate", "checkpoint", "redo_window")
"""States that a run may lack and `states` may name all the same."""


class OTelTracing(Plugin):
    """Trace each `Engine.run()` call as a span named `run`, and within it each state as a span of the state's name.

    A span of a state begins and ends with the transitions of the log, to the nanosecond, and has the attributes
    `heptad.seq`, the number of the transition that left the state, and `heptad.epoch`, `heptad.batch_index`,
    `heptad.step` and `heptad.update`, the counters after it. Detours are states too. `run` has `heptad.run_id`,
    `heptad.rank` and `heptad.world`, and of its end `heptad.state`, `heptad.paused` and `heptad.reason`. Events of the
    log (stops, skips, notes, …) are events of the span of their state, named by their kind; an exception is one as
    well, and gives its state and `run` the status ERROR.

    The span of a state is current from its entry to that of the next: spans that handlers, the data or the network
    open lie within it, if this plugin comes first, which it asks for. In a detour that is neither `evaluate` nor
    `checkpoint` the state that it leaves from is current; its span is made afterwards. `run` is a child of the span
    that is current where `Engine.run()` is called.

    A pause ends the spans. The run that continues, in this process or from a checkpoint, has a span `run` of its own,
    with a link to the one before. Driven by `advance()`, the pauses between turns lie within the spans.

    Where spans are sent is the provider's matter, such as an OTLP exporter behind a `BatchSpanProcessor`. It is yours:
    it is neither flushed nor shut down. The SDK draws identities from Python's global random generator; those of these
    spans come from another, so that the run computes the same bits. Where you open spans of your own while it is
    driven, give the provider an `id_generator` of its own. Each rank has a trace of its own, unless a span was made
    current from outside.

    A state costs some 90 µs where its span is recorded and handed to a `BatchSpanProcessor`, and 7 µs where it is left
    out: `every` and `states` are for short steps (no device sync).

    Args:
        tracer_provider: Makes the spans; by default the global one when the run is opened, which records nothing until
            one was set.
        every: Only the windows of each n-th update have spans for their steps and the update; all other states do.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        states: Only these states have spans, by default all. Events of the others are events of `run`.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: For an option that does not fit; when the engine is built, for a state that is not in its table.
        ImportError: If opentelemetry is not installed; it names the extra.
    """

    observes = True
    ranks = "all"  # each has times of its own
    own_state = True

    runs_before = (Plugin,)  # all others: what they do on entry to a state belongs to it

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        every: int = 1,
        *,
        first: int | None = None,
        states: Collection[str] | None = None,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            from opentelemetry import context, trace
        except ImportError as error:
            raise ImportError("OTelTracing needs opentelemetry: pip install 'heptad[otel]'") from error
        self._api, self._context = trace, context
        if tracer_provider is not None and not callable(getattr(tracer_provider, "get_tracer", None)):
            raise PluginError(f"OTelTracing(tracer_provider=…) must be a TracerProvider, got {tracer_provider!r}")
        self._provider = tracer_provider
        self._numbers = selection("OTelTracing", every, first)
        if isinstance(states, str) or not all(isinstance(state, str) for state in states or ()):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise PluginError(f"OTelTracing(states=…) must be a list of names of states, got {states!r}")
        self._states = None if states is None else tuple(states)
        self.on_error = on_error
        self._forget()

    def _forget(self) -> None:
        self._events = _Events()
        self._earlier: tuple[int, int] | None = None
        self._around: BaseException | None = None
        self._root: Span | None = None
        self._span: Span | None = None
        self._tokens: list[Token[Context]] = []
        self._at = -1

    def on_build(self, run: Run) -> None:
        """Look the states up."""
        known = run.table.scopes()
        for state in self._states or ():
            if state not in (*known, *_ABSENT):
                raise PluginError(f"OTelTracing(states=…): there is no state '{state}', but {', '.join(known)}")

    def on_begin(self, run: Run) -> None:
        """Forget an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Begin the span `run`, and that of the state in which a run continues."""
        provider = self._provider or self._api.get_tracer_provider()
        self._tracer = provider.get_tracer("heptad", version("heptad"))
        if type(getattr(self._tracer, "id_generator", None)).__name__ == "RandomIdGenerator":
            self._tracer.id_generator = _Identities()  # pyright: ignore[reportAttributeAccessIssue] - of the SDK
        self._around = sys.exception()
        now = now_ns(run)
        place = {"heptad.run_id": run.id, "heptad.rank": run.rank, "heptad.world": run.world}
        self._root = self._tracer.start_span("run", attributes=place, links=self._links(), start_time=now)
        self._base = self._api.set_span_in_context(self._root)
        self._tokens.append(self._context.attach(self._base))
        self._at = entered(run)[0]
        run.follow(self._events)
        if run.state != "idle":
            self._begin(run, run.state, now)

    def close(self, run: Run) -> None:
        """End the spans; a failure is the exception that is being raised."""
        root = self._root
        if root is None:
            return
        run.unfollow(self._events)
        error = None if run.paused or run.state == "finished" else sys.exception()
        if error is self._around:  # `run()` was called where that one is handled
            error = None
        last, time = entered(run)
        heard = self._at == last
        self._leave(run, last, time, error)
        if not heard and not run.ended:  # paused in a detour of another plugin
            self._begin(run, run.state, time)
        now = now_ns(run)
        self._end(run, now)  # the state in which the run is paused
        if error is not None:
            self._fail(root, error, None)
        why = run.paused or run.reason or ""
        root.set_attributes({"heptad.state": run.state, "heptad.paused": bool(run.paused), "heptad.reason": why})
        self._earlier = self._ids()
        root.end(now)
        self._root = None
        self._context.detach(self._tokens.pop())

    @on_enter("before_loop")
    @on_enter("before_epoch")
    @on_enter("before_step")
    @on_enter("process_batch")
    @on_enter("redo_window")
    @on_enter("after_step")
    @on_enter("optimizer_update")
    @on_enter("evaluate")
    @on_enter("checkpoint")
    @on_enter("after_epoch")
    @on_enter("after_loop")
    def change_state(self, run: Run) -> None:
        """End the span of the state before, and begin this one's."""
        last, time = entered(run)
        self._leave(run, last, time)
        self._begin(run, run.state, time)

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of the span `run`, which that of a resumed run is linked to."""
        ids = self._ids()
        return {} if ids is None else {"trace_id": f"{ids[0]:032x}", "span_id": f"{ids[1]:016x}"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        ids = [mapping(state).get(name) for name in ("trace_id", "span_id")]
        if any(ids) and not all(isinstance(one, str) and re.fullmatch(r"[0-9a-f]{16,32}", one) for one in ids):
            raise ValueError(f"trace_id and span_id are {ids!r:.80}, expected hexadecimal digits")
        self._earlier = (int(ids[0], 16), int(ids[1], 16)) if ids[0] and ids[1] else None

    def _ids(self) -> tuple[int, int] | None:
        """Return the identity of the span `run`, or of the one before it."""
        if self._root is None:
            return self._earlier
        found = self._root.get_span_context()
        return (found.trace_id, found.span_id) if found.is_valid else self._earlier

    def _links(self) -> list[Any]:
        if self._earlier is None:
            return []
        return [self._api.Link(self._api.SpanContext(*self._earlier, is_remote=True))]

    # -- states

    def _leave(self, run: Run, last: int, time: int, error: BaseException | None = None) -> None:
        """End the span of the state before, up to a transition.

        Args:
            run: The run.
            last: The number of the transition.
            time: When it was made.
            error: What the last state has failed with.
        """
        count, self._at = last - self._at, last
        if count == 1:
            self._end(run, time, last, error)
        elif count:  # states whose entry was not heard: the detours of other plugins
            for turn in run.log[-count:]:
                self._end(turn, turn.time_ns, turn.seq, error if turn.seq == last else None)
                if turn.seq < last:
                    self._begin(run, turn.dest, turn.time_ns)

    def _begin(self, run: Run, state: str, start: int) -> None:
        if self._root is None or (self._states is not None and state not in self._states):
            return
        if state in IN_WINDOW and not self._numbers.selects(run.windows + 1):
            return
        self._span = self._tracer.start_span(state, self._base, start_time=start)
        self._tokens.append(self._context.attach(self._api.set_span_in_context(self._span, self._base)))

    def _end(self, at: Run | Transition, end: int, seq: int | None = None, error: BaseException | None = None) -> None:
        """End the span of a state, if it has one, with the events up to then."""
        span, self._span = self._span, None
        for event in self._events.until(end):
            target = span or self._root
            if target is not None:
                target.add_event(event.kind, {"heptad.seq": event.seq, "heptad.text": event.text}, event.time_ns)
        if span is None:
            return
        self._context.detach(self._tokens.pop())
        if error is not None:
            self._fail(span, error, end)
        counters = {"epoch": at.epoch, "batch_index": at.batch_index, "step": at.step, "update": at.update}
        span.set_attributes({f"heptad.{name}": value for name, value in counters.items()})
        if seq is not None:
            span.set_attribute("heptad.seq", seq)
        span.end(end)

    def _fail(self, span: Span, error: BaseException, end: int | None) -> None:
        if end is not None:
            span.record_exception(error, timestamp=end)
        span.set_status(self._api.StatusCode.ERROR, f"{type(error).__name__}: {error}")


class _Identities:
    """Draws identities of spans as the SDK does, but not from Python's global generator, which is the run's."""

    def __init__(self) -> None:
        self._random = Random()

    def generate_span_id(self) -> int:
        """Return 64 bits that are not all 0."""
        return self._random.randrange(1, 1 << 64)

    def generate_trace_id(self) -> int:
        """Return 128 bits that are not all 0."""
        return self._random.randrange(1, 1 << 128)

    def is_trace_id_random(self) -> bool:
        """Return that all bits are random."""
        return True


class _Events:
    """Keeps the events of the log until the span that they belong to ends; a signal may bring one at any time."""

    limit = 1024  # as many turns as a chunk of the log has: nothing is due sooner

    def __init__(self) -> None:
        self._waiting: list[Event] = []

    def packed(self, chunk: PackedChunk) -> None:
        """Leave the chunk alone."""

    def noted(self, event: Event) -> None:
        """Keep the event."""
        self._waiting.append(event)

    def settled(self) -> None:
        """Do nothing."""

    def until(self, end: int) -> list[Event]:
        """Return those up to a time, and keep them no longer."""
        if not self._waiting:
            return []
        due = [event for event in self._waiting if event.time_ns <= end]
        self._waiting = self._waiting[len(due) :]
        return due
