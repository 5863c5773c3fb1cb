"""What shows itself in a notebook: as small tables in which nothing that was given is taken for HTML."""

from __future__ import annotations

from typing import Any

import pytest

from builders import batches, small_engine
from heptad import Engine

HOSTILE = "<script>alert(1)</script>"


class Hostile:
    """A handler that is named so."""

    def __call__(self, run: Any) -> None:
        run.record(HOSTILE, run.step)
        run.note(HOSTILE)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine whose run has finished."""

    def act(run: Any) -> None:
        run.record(HOSTILE, run.step)
        run.note(HOSTILE)

    act.__qualname__ = HOSTILE
    made = small_engine(batches(5), accumulation=2, trace_handlers=True)
    made.on_exit("after_step")(act)
    made.run()
    return made


def shown(engine: Engine) -> dict[str, Any]:
    """Return all that shows itself."""
    log = engine.current.log
    return {
        "run": engine.current,
        "log": log,
        "transition": log[3],
        "engine": engine,
        "subscriptions": engine.subscriptions(),
        "plan": small_engine(batches(5)).plan(),
        "explain": log.explain(log.where(source="after_step")[0].seq),
        "diff": log.diff(small_engine(batches(5), accumulation=3).run().log),
        "durations": log.durations(),
        "call durations": log.call_durations(),
    }


@pytest.mark.parametrize(
    "name",
    [
        *["run", "log", "transition", "engine", "subscriptions", "plan", "explain", "diff", "durations"],
        "call durations",
    ],
)
def test_it_is_a_table_that_does_no_harm(engine: Engine, name: str):
    html = shown(engine)[name]._repr_html_()
    assert html.startswith("<table>")
    assert html.endswith("</table>")
    assert "<script>" not in html
    assert len(html) < 10_000


def test_an_explanation_shows_guards_values_and_notes(engine: Engine):
    html = shown(engine)["explain"]._repr_html_()
    assert "update_due" in html
    assert html.count("&lt;script&gt;") >= 3


def test_a_plan_that_was_shown_still_has_all_its_turns():
    plan, same = small_engine(batches(5)).plan(), small_engine(batches(5)).plan()
    assert plan._repr_html_().count("<tr>") == 1 + 20
    assert list(plan) == list(same)


def test_a_diagram_is_text_and_mermaid(engine: Engine):
    diagram = engine.diagram()
    assert isinstance(diagram, str)
    found = diagram._repr_mimebundle_()
    assert found == {"text/plain": str(diagram), "text/vnd.mermaid": str(diagram)}
    assert found["text/vnd.mermaid"].startswith("stateDiagram-v2")


def test_durations_are_a_dict_of_durations(engine: Engine):
    durations = engine.current.log.durations()
    assert isinstance(durations, dict)
    assert durations["process_batch"].count == 6  # five batches, extended to six
    assert "process_batch" in durations._repr_html_()


def test_a_run_plots_its_curves(engine: Engine):
    figures = engine.current.plot()
    assert [figure.yaxis[0].axis_label.text for figure in figures.children] == ["script>"]
    assert all(figure.visible for figure in figures.children)
