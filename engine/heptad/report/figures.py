"""Bokeh figures: curves, bands of times, the timeline. The only module that imports Bokeh, an extra.

It owns how things are drawn, and no numbers. `page` embeds what is returned here; `Run.plot` shows the curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh import models as bokeh_models
from bokeh import plotting as bokeh_plotting
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.resources import Resources

from heptad.report.look import COLOURS, DASHES, HATCHES, MARKERS, pick, places_of_states
from heptad.report.series import SEQ, STEP, UPDATE, Curve, Floats
from heptad.report.walk import Walk
from heptad.report.words import harmless

models: Any = bokeh_models
plotting: Any = bokeh_plotting
# Bokeh's stubs are stricter than its classes: they refuse a number for a coordinate, a tuple for a range.

FIGURES = 8
"""Figures of curves at most: values of further names are in the table of values."""

AXES = ("update", "epoch", "samples", "time")
"""What curves can be drawn over; `time` is in seconds that the run was driven."""

FEW = 60
"""Points of a curve that are marked one by one."""

SPIKES = 900
"""Buckets of the figure that is brushed: a pixel or two each."""

_STATES = 5
"""States whose times are drawn: those with the most."""

_SMALL: dict[str, Any] = {"sizing_mode": "stretch_width", "toolbar_location": "above", "output_backend": "canvas"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """The curves of one run, with what turns their places into axes.

    Attributes:
        label: What the run is called in the page.
        curves: Its curves.
        walk: Its turns.
        samples: Samples in a step over all ranks; 0 where that is not known.
        marks: Events and checkpoints: places (seq, epoch, step, update), and what they are.
    """

    label: str
    curves: Sequence[Curve]
    walk: Walk
    samples: int
    marks: Sequence[tuple[tuple[int, int, int, int], str, str]] = ()

    def columns(self, place: Floats) -> dict[str, Floats]:
        """Return the columns of points: what they can be drawn over, and their turns."""
        seq = place[:, SEQ]
        return {
            "seq": seq,
            "update": place[:, UPDATE],
            "epoch": self.walk.epochs_at(seq.astype(np.int64)),
            "samples": place[:, STEP] * self.samples,
            "time": self.walk.driven_until(seq.astype(np.int64)),
        }


def scripts() -> list[str]:
    """Return Bokeh's own scripts: its core, no widgets, no tables."""
    return [script for script in Resources(mode="inline", components=["bokeh"]).js_raw if len(script) > 100]


def as_json(model: Any) -> Any:
    """Return a figure or a layout as plain data for the page."""
    return json_item(model)


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Return which curves are drawn together: those of one quantity; losses first, learning rates last."""
    found: dict[str, list[str]] = {}
    for name in names:
        first, _, last = name.rpartition("/")
        rate = first == "lr" or last == "lr"
        quantity = "lr" if rate else last.removeprefix("epoch_")
        found.setdefault(quantity, []).append(name)
    rank = {"loss": 0, "lr": 2}
    return dict(sorted(found.items(), key=lambda row: rank.get(row[0], 1)))


def curves_of(runs: Sequence[Drawn], scales: Sequence[str] = ("linear", "log")) -> Any:
    """Return the figures of all curves below each other, with one cursor: linear, and hidden behind it logarithmic.

    Args:
        runs: What is drawn.
        scales: The scales of values; figures of others than the first are hidden.
    """
    names = list(dict.fromkeys(curve.name for run in runs for curve in run.curves if curve.found.lowest is not None))
    groups = grouped(names)
    few = dict(list(groups.items())[: FIGURES - 1])
    if "lr" in groups:
        few["lr"] = groups["lr"]
    else:
        few = dict(list(groups.items())[:FIGURES])
    range_x = models.Range1d(0, 1, tags=["curves"])
    cursor = models.CrosshairTool(overlay=models.Span(dimension="height", line_dash="dotted", line_width=1))
    figures: list[Any] = []
    sources: dict[tuple[int, str], tuple[Any, Any | None]] = {}
    for quantity, members in few.items():
        for kind in scales:
            plot = plotting.figure(
                height=170 if quantity == "lr" else 260,
                x_range=range_x,
                y_axis_type=kind,
                tools=[
                    models.PanTool(dimensions="width"),
                    models.BoxZoomTool(),
                    models.WheelZoomTool(dimensions="width"),
                    models.ResetTool(),
                ],
                tags=["figure", kind],
                visible=kind == scales[0],
                name=quantity,
                **_SMALL,
            )
            plot.add_tools(cursor)
            plot.yaxis.axis_label = models.PlainText(text=harmless(quantity, 60))  # a name may look like TeX
            plot.toolbar.logo = None
            plot.y_range.default_span = _equal_span(runs, members)
            plot.add_layout(_legend(), "above")
            _draw_curves(plot, runs, members, sources)
            figures.append(plot)
    _fit(range_x, sources)
    for plot in figures:
        plot.xaxis.axis_label = "update"
    return column(figures, sizing_mode="stretch_width", tags=["curves"])


def _equal_span(runs: Sequence[Drawn], members: Sequence[str]) -> float:
    """Return how wide the range of values is drawn where all of them are equal."""
    lowest = [curve.found.lowest for run in runs for curve in run.curves if curve.name in members]
    return 0.4 * max((abs(row.value) for row in lowest if row is not None), default=0.0) or 2.0


def _fit(range_x: Any, sources: Mapping[Any, tuple[Any, Any | None]]) -> None:
    every = [source.data["x"] for source, _ in sources.values() if len(source.data["x"])]
    low, high = (min(map(min, every)), max(map(max, every))) if every else (0, 1)
    margin = (high - low) / 50 or 0.5
    range_x.start = range_x.reset_start = low - margin
    range_x.end = range_x.reset_end = high + margin


def _draw_curves(plot: Any, runs: Sequence[Drawn], members: Sequence[str], sources: dict[Any, Any]) -> None:
    for place, run in enumerate(runs):
        for curve in (curve for curve in run.curves if curve.name in members and len(curve.value)):
            number = members.index(curve.name)
            sign = number * len(runs) + place  # of dashes and markers: each curve has its own, as far as they go
            # of several runs the colour is the run's
            colour, dash = pick(COLOURS, number if len(runs) == 1 else place), pick(DASHES, sign)
            label = curve.name if len(runs) == 1 else f"{run.label}: {curve.name}"
            if (place, curve.name) not in sources:
                sources[place, curve.name] = _curve_sources(run, curve)
            raw, smooth = sources[place, curve.name]
            faint = smooth is not None
            line = plot.line("x", "y", source=raw, color=colour, line_dash=dash, line_width=1 if faint else 2)
            line.glyph.line_alpha = 0.35 if faint else 1
            line.nonselection_glyph = None
            told = [line]
            if smooth is not None:
                bold = plot.line("x", "y", source=smooth, color=colour, line_dash=dash, line_width=2.4)
                told.append(bold)
            if len(curve.value) <= FEW:
                told.append(plot.scatter("x", "y", source=raw, color=colour, marker=pick(MARKERS, sign), size=6))
            plot.legend[0].items.append(models.LegendItem(label=harmless(label, 60), renderers=told))
            plot.add_tools(_hover(told[-1] if len(curve.value) <= FEW else line, label))
            if curve.odd:
                _draw_odd(plot, run, curve, colour)
    for run in runs:
        if run.marks and len(runs) == 1:
            _draw_marks(plot, run, sources)


def _legend() -> Any:
    return models.Legend(
        orientation="horizontal",
        click_policy="hide",
        border_line_alpha=0,
        padding=2,
        margin=2,
        spacing=10,
        glyph_width=16,
        glyph_height=16,
        label_text_font_size="12px",
        label_height=16,
    )


def _curve_sources(run: Drawn, curve: Curve) -> tuple[Any, Any | None]:
    columns = run.columns(curve.place)
    raw = models.ColumnDataSource({**columns, "x": columns["update"], "y": curve.value}, tags=["curve"])
    if len(curve.value) <= FEW:
        return raw, None
    if curve.name == "lr" or curve.name.startswith("lr/"):
        return raw, None  # nothing of a schedule is noise
    columns = run.columns(curve.smooth_place)
    return raw, models.ColumnDataSource({**columns, "x": columns["update"], "y": curve.smooth}, tags=["curve"])


def _hover(renderer: Any, label: str) -> Any:
    # A name may hold what looks like a field of Bokeh's templates: it is in the legend, not in the template.
    del label
    rows = [("value", "@y{0.000000}"), ("update", "@update{0,0}"), ("epoch", "@epoch{0.00}"), ("turn", "#@seq{0}")]
    return models.HoverTool(renderers=[renderer], tooltips=rows, mode="mouse", point_policy="snap_to_data")


def _draw_odd(plot: Any, run: Drawn, curve: Curve, colour: str) -> None:
    """Mark values that are not finite at the foot of the figure."""
    place = np.array([(row.seq, row.epoch, row.step, row.update) for row in curve.odd], dtype=np.float64)
    columns = run.columns(place)
    words = [str(row.value) for row in curve.odd]
    finite = curve.value[np.isfinite(curve.value)]
    low = float(finite.min()) if len(finite) else 1.0
    source = models.ColumnDataSource(
        {**columns, "x": columns["update"], "y": [low] * len(words), "said": words}, tags=["curve"]
    )
    drawn = plot.scatter("x", "y", source=source, marker="x", size=11, line_width=2.5, color=colour)
    plot.add_tools(models.HoverTool(renderers=[drawn], tooltips=[("not finite", "@said"), ("turn", "#@seq{0}")]))


def _draw_marks(plot: Any, run: Drawn, sources: dict[Any, Any]) -> None:
    for kind, dash in (("checkpoint", "dotted"), ("event", "dashed")):
        some = [mark for mark in run.marks if mark[1] == kind]
        if not some:
            continue
        if (kind, "marks") not in sources:
            columns = run.columns(np.array([place for place, _, _ in some], dtype=np.float64))
            words = [said[:120] for _, _, said in some]
            made = models.ColumnDataSource({**columns, "x": columns["update"], "said": words}, tags=["curve"])
            sources[kind, "marks"] = made, None
        source = sources[kind, "marks"][0]
        drawn = plot.vspan(x="x", source=source, line_dash=dash, line_color="#888888", line_alpha=0.8)
        plot.add_tools(models.HoverTool(renderers=[drawn], tooltips=[(kind, "@said"), ("turn", "#@seq{0}")]))


def bands_of(walk: Walk) -> Any | None:
    """Return median and 99th percentile of the stays in the states with the most time, by stretch of the run."""
    if len(walk.bands) < 2:
        return None
    places = places_of_states(walk.names)
    times = walk.shares.sum(axis=0)
    order = sorted(range(len(walk.names)), key=lambda number: -float(times[number]))
    most = [walk.names[number] for number in order[:_STATES] if times[number]]
    plot = plotting.figure(
        height=300,
        y_axis_type="log",
        x_range=models.Range1d(0.5, len(walk.bands) + 0.5),
        tools=[models.PanTool(dimensions="width"), models.WheelZoomTool(dimensions="width"), models.ResetTool()],
        tags=["figure"],
        **_SMALL,
    )
    plot.toolbar.logo = None
    plot.xaxis.axis_label = "epoch" if len(walk.ends) >= 2 else "stretch of the run"
    plot.yaxis.axis_label = "stay in milliseconds"
    plot.add_layout(_legend(), "above")
    for name in most:
        there = [(number, band) for number, band in enumerate(walk.bands, 1) if name in band.median_ns]
        colour, marker = pick(COLOURS, places[name]), pick(MARKERS, places[name])
        source = models.ColumnDataSource(
            {
                "x": [number for number, _ in there],
                "median": [band.median_ns[name] / 1e6 for _, band in there],
                "p99": [band.p99_ns[name] / 1e6 for _, band in there],
                "label": [band.label for _, band in there],
            }
        )
        area = plot.varea("x", "median", "p99", source=source, fill_color=colour, fill_alpha=0.13)
        line = plot.line("x", "median", source=source, color=colour, line_width=2)
        high = plot.line("x", "p99", source=source, color=colour, line_dash="dashed")
        dots = plot.scatter("x", "median", source=source, color=colour, marker=marker, size=7)
        plot.legend[0].items.append(models.LegendItem(label=harmless(name, 60), renderers=[area, line, high, dots]))
        rows = [("", "@label"), ("median", "@median{0.0000} ms"), ("p99", "@p99{0.0000} ms")]
        plot.add_tools(models.HoverTool(renderers=[dots], tooltips=rows))
    return column([plot], sizing_mode="stretch_width", tags=["bands"])


def timeline_of(walk: Walk, sessions: Sequence[tuple[int, str]]) -> Any:
    """Return the strip of the whole run by state, the range of each bucket's stays, and room for single turns.

    Args:
        walk: The turns.
        sessions: Turns at which a process began to write, or the run was paused, and what happened.
    """
    whole = models.Range1d(
        walk.first, max(walk.end, walk.first + 1), bounds=(walk.first, max(walk.end, walk.first + 1))
    )
    detail = models.Range1d(whole.start, whole.end, bounds=whole.bounds, min_interval=5, tags=["detail"])
    strip = _strip(walk, whole)
    spikes = _spikes(walk, whole)
    near = plotting.figure(
        height=280,
        x_range=detail,
        y_axis_type="log",
        tools=[models.PanTool(dimensions="width"), models.WheelZoomTool(dimensions="width"), models.ResetTool()],
        tags=["figure", "near"],
        **_SMALL,
    )
    turns = models.ColumnDataSource(
        {name: [] for name in ("x", "y", "colour", "marker", "state", "said")}, tags=["turns"], name="turns"
    )
    ranges = models.ColumnDataSource({name: [] for name in ("x", "y0", "y1", "said")}, tags=["ranges"], name="ranges")
    bars = near.segment("x", "y0", "x", "y1", source=ranges, line_width=1.5, line_color="#1f83c6")
    tops = near.scatter("x", "y1", source=ranges, size=4, marker="triangle", color="#d55e00")
    dots = near.scatter("x", "y", source=turns, color="colour", marker="marker", size=6)
    near.add_tools(
        models.TapTool(renderers=[dots, tops]),
        models.HoverTool(renderers=[dots], tooltips=[("turn", "#@x{0}"), ("left", "@state"), ("stayed", "@said")]),
        models.HoverTool(renderers=[tops, bars], tooltips=[("longest", "#@x{0}"), ("stays", "@said")]),
    )
    near.xaxis.axis_label = "turn"
    strip.yaxis.axis_label = "share of time"
    for plot in (spikes, near):
        plot.yaxis.axis_label = "stay in ms"
    for plot in (strip, spikes, near):
        plot.toolbar.logo = None
        plot.xaxis.formatter = models.NumeralTickFormatter(format="0,0")
        if sessions:
            _draw_sessions(plot, sessions)
    chosen = models.BoxAnnotation(
        left=detail.start, right=detail.end, fill_color="#888888", fill_alpha=0.2, line_color="#888888", tags=["chosen"]
    )
    spikes.add_layout(chosen)
    spikes.add_tools(models.BoxSelectTool(dimensions="width", renderers=[]))
    return column([strip, spikes, near], sizing_mode="stretch_width", tags=["timeline"])


def _draw_sessions(plot: Any, sessions: Sequence[tuple[int, str]]) -> None:
    source = models.ColumnDataSource({"x": [seq for seq, _ in sessions], "said": [said[:120] for _, said in sessions]})
    line = plot.vspan(x="x", source=source, line_color="#d55e00", line_dash="dashdot", line_width=2)
    plot.add_tools(models.HoverTool(renderers=[line], tooltips=[("turn", "#@x{0}"), ("", "@said")]))


def _strip(walk: Walk, whole: Any) -> Any:
    """Return the shares of the states, stacked, a bar for each bucket."""
    plot = plotting.figure(height=190, x_range=whole, y_range=(0, 1), tools=[], tags=["figure"], **_SMALL)
    rows = len(walk.shares)
    edges = walk.first + (walk.end - walk.first) * np.arange(rows + 1) / rows
    places = places_of_states(walk.names)
    total = walk.shares.sum(axis=1)
    total[total == 0] = 1
    bottom = np.zeros(rows)
    plot.add_layout(_legend(), "above")
    plot.legend[0].click_policy = "none"
    order = sorted(range(len(walk.names)), key=lambda number: places[walk.names[number]])
    for number in order:
        share = walk.shares[:, number] / total
        if not share.any():
            continue
        name = walk.names[number]
        top = bottom + share
        seen = np.flatnonzero(share > 0)
        source = models.ColumnDataSource(
            {
                "left": edges[seen].astype(np.float32),
                "right": edges[seen + 1].astype(np.float32),
                "bottom": bottom[seen].astype(np.float32),
                "top": top[seen].astype(np.float32),
            }
        )
        bars = plot.quad(
            "left",
            "right",
            "top",
            "bottom",
            source=source,
            fill_color=pick(COLOURS, places[name]),
            line_color=None,
            hatch_pattern=pick(HATCHES, places[name]),
            hatch_color="#ffffff",
            hatch_alpha=0.4,
            hatch_scale=7,
        )
        plot.legend[0].items.append(models.LegendItem(label=harmless(name, 40), renderers=[bars]))
        bottom = top
    return plot


def _spikes(walk: Walk, whole: Any) -> Any:
    """Return the shortest and the longest stay of each bucket of the strip: brushed to look into."""
    plot = plotting.figure(height=170, x_range=whole, y_axis_type="log", tools=[], tags=["figure", "spikes"], **_SMALL)
    rows = min(SPIKES, len(walk.most))
    starts = np.unique(np.arange(rows) * len(walk.most) // rows)
    most = np.maximum.reduceat(walk.most, starts)
    least = np.minimum.reduceat(walk.least, starts)
    seen = most >= 0
    middle = walk.first + (walk.end - walk.first) * (np.arange(len(starts)) + 0.5) / len(starts)
    source = models.ColumnDataSource(
        {
            "x": middle[seen],
            "low": np.maximum(least[seen], 1) / 1e6,
            "high": np.maximum(most[seen], 1) / 1e6,
        },
        name="spikes",
    )
    plot.segment("x", "low", "x", "high", source=source, line_color="#1f83c6", line_width=1.5)
    plot.scatter("x", "high", source=source, marker="triangle", size=4, color="#d55e00")
    return plot
