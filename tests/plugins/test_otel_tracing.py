"""`OTelTracing`: the spans that the real SDK exports are the transitions of the log."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from as_rank import as_rank
from builders import Planned, Side, batches, small_engine
from heptad import Detour, Engine, Plugin, PluginError, Run
from heptad.plugin import entered, now_ns
from heptad.testing import check_plugin
from heptad_plugins import Checkpoint, Evaluate, OTelTracing, Profiler
from programs import environment

IDS = ("trace_id", "span_id")


class Traced:
    """A provider that exports to memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def plugin(self, **options: Any) -> OTelTracing:
        return OTelTracing(self.provider, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(
            self.exporter.get_finished_spans(), key=lambda span: (span.start_time or 0, -(span.end_time or 0))
        )

    @property
    def states(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name != "run"]

    @property
    def roots(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == "run"]


@pytest.fixture
def traced() -> Traced:
    return Traced()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Any:
    """The SDK logs what it is used wrongly for, such as a span that is ended twice."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(f"heptad.{name}")


def rows(spans: list[ReadableSpan]) -> list[tuple[Any, ...]]:
    """Return name, number, end, and counters of each."""
    names = ("seq", "epoch", "batch_index", "step", "update")
    return [(span.name, span.end_time, *(attribute(span, name) for name in names)) for span in spans]


def rows_of_the_log(run: Run) -> list[tuple[Any, ...]]:
    return [
        (t.source, t.time_ns, t.seq, t.epoch, t.batch_index, t.step, t.update) for t in run.log if t.source != "idle"
    ]


class TestSpans:
    """The tree and its times."""

    @pytest.mark.parametrize("config", [{"epochs": 2}, {"epochs": 2, "accumulation": 2, "log_capacity": 1}])
    def test_each_transition_is_the_end_of_a_span(self, config: Any, traced: Traced, tmp_path: Path):
        """Of detours too; names, counters and times to the nanosecond, whatever the log keeps."""
        kept: list[tuple[Any, ...]] = []
        engine = small_engine(3, [traced.plugin(), Evaluate(batches(2)), Checkpoint(tmp_path)], **config)
        while not engine.current.ended:
            engine.advance()
            kept += rows_of_the_log(engine.current)[-1:]
        assert rows(traced.states) == kept
        assert {"evaluate", "checkpoint"} <= {span.name for span in traced.states}

    def test_each_begins_where_the_one_before_ends(self, traced: Traced):
        run = small_engine(3, [traced.plugin()], epochs=2).run()
        spans = traced.states
        assert [span.start_time for span in spans] == [t.time_ns for t in run.log][: len(spans)]
        assert [span.start_time for span in spans[1:]] == [span.end_time for span in spans[:-1]]

    def test_the_length_of_a_span_is_the_time_in_the_state(self, traced: Traced):
        run = small_engine(3, [traced.plugin()], epochs=2).run()
        lengths = [(span.end_time or 0) - (span.start_time or 0) for span in traced.states]
        assert lengths == [t.duration_ns for t in run.log][1:]

    def test_all_lie_within_one_span_of_the_run(self, traced: Traced):
        run = small_engine(3, [traced.plugin()], epochs=1).run()
        (root,) = traced.roots
        assert root.parent is None
        assert {span.parent and span.parent.span_id for span in traced.states} == {root.context.span_id}
        for span in traced.states:
            assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator] - they have ended
        assert [attribute(root, name) for name in ("run_id", "rank", "world", "state", "paused", "reason")] == [
            *(run.id, 0, 1, "finished", False, "epochs=1 complete"),
        ]

    def test_a_detour_of_another_plugin_has_its_span_too(self, traced: Traced):
        """Though its name cannot be known; two that follow each other are two."""
        sides = [
            Side(Detour(name, ("optimizer_update", "after_epoch"), lambda run: True, lambda run: None), name=name)
            for name in ("sample", "probe")
        ]
        run = small_engine(2, [traced.plugin(), *sides], epochs=2).run()
        assert rows(traced.states) == rows_of_the_log(run)
        assert [span.name for span in traced.states].count("probe") == 2 * 3

    def test_a_span_that_is_current_outside_is_the_parent(self, traced: Traced):
        with traced.provider.get_tracer("user").start_as_current_span("job") as job:
            small_engine(2, [traced.plugin()]).run()
            assert trace.get_current_span() is job
        assert traced.roots[0].parent == job.get_span_context()

    def test_spans_of_handlers_lie_within_that_of_the_state(self, traced: Traced):
        """Of a plugin that stands before it in the list, too."""
        tracer = traced.provider.get_tracer("user")

        class Own(Plugin):
            def on_enter_process_batch(self, run: Run) -> None:
                tracer.start_span("entering").end()

            def on_exit_process_batch(self, run: Run) -> None:
                tracer.start_span("leaving").end()

        small_engine(1, [Own(), traced.plugin()]).run()
        (state,) = [span for span in traced.spans if span.name == "process_batch"]
        for name in ("entering", "leaving"):
            (own,) = [span for span in traced.spans if span.name == name]
            assert own.parent == state.context
            assert state.start_time <= own.start_time <= own.end_time <= state.end_time  # type: ignore[operator] - they have ended

    def test_nothing_is_current_behind_it(self, traced: Traced):
        before = trace.get_current_span()
        small_engine(2, [traced.plugin()]).run()
        assert trace.get_current_span() is before

    def test_it_and_the_profiler_both_come_first(self, traced: Traced, tmp_path: Path):
        plugins = [Side(), traced.plugin(), Profiler(tmp_path / "trace.json", range(1))]
        names = [plugin.name for plugin in small_engine(2, plugins)._manager.plugins]
        assert names == ["OTelTracing", "Profiler", "Side"]


class TestEvents:
    """Events of the log, and errors."""

    def test_they_are_events_of_the_span_of_their_state(self, traced: Traced):
        def act(run: Run) -> None:
            run.note("seen")
            run.stop("enough")

        engine = small_engine(3, [traced.plugin()], epochs=2)
        engine.on_exit("optimizer_update")(act)
        run = engine.run()
        (state,) = [span for span in traced.states if span.name == "optimizer_update"]
        found = [(event.name, event.timestamp, dict(event.attributes or {})) for event in state.events]
        assert found == [
            (note.kind, note.time_ns, {"heptad.seq": note.seq, "heptad.text": note.text})
            for note in run.log.notes()
            if note.kind in ("note", "stop")
        ]
        assert len(found) == 2

    def test_those_on_entry_belong_to_the_state_that_is_entered(self, traced: Traced):
        engine = small_engine(3, [traced.plugin()])
        engine.on_enter("optimizer_update")(lambda run: run.skip_update("not this one"))
        engine.run()
        kinds = {span.name: [event.name for event in span.events] for span in traced.states}
        assert kinds["optimizer_update"] == ["skip"]
        assert kinds["after_step"] == []

    def test_those_of_a_detour_that_is_not_heard_are_its_own(self, traced: Traced):
        side = Side(Detour("sample", "after_epoch", lambda run: True, lambda run: run.note("drawn")))
        small_engine(1, [traced.plugin(), side]).run()
        assert [span.name for span in traced.states if "note" in [event.name for event in span.events]] == ["sample"]

    def test_those_of_a_state_without_a_span_belong_to_the_run(self, traced: Traced):
        engine = small_engine(2, [traced.plugin(states=["after_epoch"])])
        engine.on_exit("optimizer_update", once=True)(lambda run: run.note("seen"))
        engine.run()
        assert [event.name for event in traced.roots[0].events if event.name == "note"] == ["note"]

    @pytest.mark.parametrize("place", ["body", "enter", "exit", "sample"])
    def test_an_exception_marks_state_and_run(self, place: str, traced: Traced):
        def fail(run: Run) -> None:
            raise Planned("on purpose")

        side = Side(Detour("sample", "after_epoch", lambda run: place == "sample", fail))
        engine = small_engine(2, [traced.plugin(), side])
        if place == "body":
            engine.on_enter("process_batch")(lambda run: setattr(run, "batch", None))
        elif place != "sample":
            getattr(engine, f"on_{place}")("process_batch")(fail)
        with pytest.raises(Exception) as raised:
            engine.run()
        failed = [span for span in traced.states if span.status.status_code is StatusCode.ERROR]
        assert [span.name for span in failed] == ["sample" if place == "sample" else "process_batch"]
        assert traced.states[-1] is failed[0]
        assert failed[0].end_time == engine.current.log[-1].time_ns
        assert [event.name for event in failed[0].events][-1:] == ["exception"]
        said = dict(failed[0].events[-1].attributes or {})
        assert said["exception.message"] == str(raised.value)
        root = traced.roots[0]
        assert root.status.status_code is StatusCode.ERROR
        assert root.status.description == f"{type(raised.value).__name__}: {raised.value}"
        assert attribute(root, "state") == "failed"

    def test_a_run_that_ends_has_no_error(self, traced: Traced):
        small_engine(2, [traced.plugin()]).run()
        assert {span.status.status_code for span in traced.spans} == {StatusCode.UNSET}

    def test_it_is_no_error_of_the_run_that_another_one_is_handled_around_it(self, traced: Traced):
        try:
            raise Planned
        except Planned:
            small_engine(2, [traced.plugin()]).run()
        assert traced.roots[0].status.status_code is StatusCode.UNSET


class TestPauses:
    """Ended spans, and links to them."""

    @pytest.mark.parametrize("state", ["after_step", "sample", "after_loop"])
    def test_the_run_that_continues_is_linked_to_the_part_before(self, state: str, traced: Traced):
        side = Side(Detour("sample", "after_epoch", lambda run: True, lambda run: None))
        engine = small_engine(2, [traced.plugin(), side])
        engine.run(until=state)
        first = traced.states
        assert first[-1].name == state
        assert attribute(first[-1], "seq") is None
        engine.run()
        one, two = traced.roots
        assert [link.context.span_id for link in two.links] == [one.context.span_id]
        assert (attribute(one, "paused"), attribute(two, "paused")) == (True, False)
        assert one.end_time <= two.start_time  # type: ignore[operator] - they have ended
        whole = [row for row in rows(traced.states) if row[2] is not None]
        assert whole == rows_of_the_log(engine.current)
        second = traced.states[len(first) :]
        assert {span.parent and span.parent.span_id for span in second} == {two.context.span_id}
        assert second[0].name == state

    def test_the_pause_is_an_event_of_the_state_that_it_is_in(self, traced: Traced):
        engine = small_engine(2, [traced.plugin()])
        engine.on_exit("after_step")(lambda run: run.pause("for a while"))
        engine.run()
        assert [event.name for event in traced.states[-1].events] == ["pause"]
        assert attribute(traced.roots[0], "reason") == "for a while"

    def test_a_run_that_is_resumed_from_a_checkpoint_is_linked_to_the_one_that_took_it(self, tmp_path: Path):
        first, second = Traced(), Traced()
        engine = small_engine(2, [first.plugin(), Checkpoint(tmp_path)], epochs=2)
        engine.run(until="checkpoint")
        engine.run(until="before_epoch")  # the checkpoint was taken in this part
        small_engine(2, [second.plugin(), Checkpoint(tmp_path)], epochs=2).run(resume="auto")
        (link,) = second.roots[0].links
        assert link.context.span_id == first.roots[1].context.span_id
        assert link.context.trace_id == first.roots[1].context.trace_id

    def test_a_state_of_a_stranger_is_refused(self, traced: Traced):
        for state in ({"trace_id": "no", "span_id": "1"}, {"trace_id": 3, "span_id": 4}):
            with pytest.raises(ValueError, match="expected hexadecimal digits"):
                traced.plugin().load_state_dict(state)


class TestOptions:
    """Which states have spans, and whose provider it is."""

    def test_every_thins_out_windows_and_nothing_else(self, traced: Traced):
        run = small_engine(4, [traced.plugin(every=2), Evaluate(batches(1), at="optimizer_update")], epochs=2).run()
        within = ("before_step", "process_batch", "after_step", "optimizer_update")
        kept = [
            row
            for row, t in zip(rows_of_the_log(run), list(run.log)[1:], strict=True)
            if t.source not in within or (t.update + (t.source != "optimizer_update")) % 2 == 0
        ]
        assert rows(traced.states) == kept

    def test_states_chooses(self, traced: Traced):
        run = small_engine(4, [traced.plugin(states=["after_epoch", "evaluate"])], epochs=2).run()
        assert rows(traced.states) == [row for row in rows_of_the_log(run) if row[0] == "after_epoch"]

    def test_a_plugin_that_fails_to_open_is_an_error_and_one_that_is_handled_outside_is_none(self, traced: Traced):
        class Unopened(Plugin):
            def open(self, run: Run) -> None:
                raise ValueError("no such file")

        with pytest.raises(ValueError, match="no such file"):
            small_engine(2, [traced.plugin(), Unopened()]).run()
        try:
            raise KeyError("handled")
        except KeyError:
            small_engine(2, [traced.plugin()]).run(until="after_epoch")
        codes = [root.status.status_code for root in traced.roots]
        assert codes == [StatusCode.ERROR, StatusCode.UNSET]

    def test_the_provider_is_not_shut_down(self, traced: Traced):
        small_engine(2, [traced.plugin()]).run()
        before = len(traced.spans)
        traced.provider.get_tracer("user").start_span("later").end()
        assert len(traced.spans) == before + 1

    def test_the_global_provider_is_asked_for_when_the_run_is_opened(self):
        """In a process of its own, as it can be set once."""
        code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from builders import small_engine
from heptad_plugins import OTelTracing
small_engine(1, [OTelTracing()]).run()
engine, exporter, provider = small_engine(1, [OTelTracing()]), InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
engine.run()
print(*(span.name for span in exporter.get_finished_spans()))
"""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
        names = (
            "before_loop before_epoch before_step process_batch after_step optimizer_update after_epoch after_loop run"
        )
        assert done.stdout.split() == names.split()

    def test_each_rank_says_which_it_is(self, traced: Traced):
        small_engine(2, [traced.plugin()], engine_class=as_rank(1)).run()
        assert (attribute(traced.roots[0], "rank"), attribute(traced.roots[0], "world")) == (1, 2)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"tracer_provider": 3}, r"OTelTracing\(tracer_provider=…\) must be a TracerProvider, got 3"),
            ({"states": "after_step"}, r"OTelTracing\(states=…\) must be a list of names of states, got 'after_step'"),
            ({"every": 0}, r"OTelTracing\(every=…\)"),
        ],
    )
    def test_bad_options_are_refused_when_it_is_built(self, options: Any, said: str):
        with pytest.raises(PluginError, match=said):
            OTelTracing(**options)

    def test_a_state_that_is_not_there_is_refused_when_the_engine_is_built(self):
        with pytest.raises(PluginError, match=r"no state 'evaluat', but before_loop, .*after_loop"):
            small_engine(plugins=[OTelTracing(states=["evaluat"])])

    def test_passes_the_conformance_kit(self, traced: Traced):
        check_plugin(traced.plugin, volatile=IDS)


class TestClock:
    """What the contract gives to plugins that measure."""

    def test_entered_is_number_and_time_of_the_newest_transition(self):
        found: list[tuple[int, int]] = []
        engine = small_engine(400, [])
        for state in ("before_step", "optimizer_update"):
            engine.on_enter(state)(lambda run: found.append(entered(run)))
        run = engine.run()
        assert found == [(t.seq, t.time_ns) for t in run.log if t.dest in ("before_step", "optimizer_update")]
        assert entered(run) == (run.log[-1].seq, run.log[-1].time_ns)

    def test_now_ns_comes_behind_it(self):
        engine: Engine = small_engine(1)
        before = now_ns(engine.current)
        engine.advance()
        assert before <= entered(engine.current)[1] <= now_ns(engine.current)
