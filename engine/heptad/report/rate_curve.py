"""`rate_curve`: the losses of a range test over its learning rates, as a Bokeh figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh import models as bokeh_models
from bokeh import plotting as bokeh_plotting

from heptad.report.look import COLOURS

models: Any = bokeh_models
plotting: Any = bokeh_plotting


def rate_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> Any:
    """Return the figure: each loss as a point, the smoothed loss as a line, the suggestion as a vertical line."""
    figure = plotting.figure(
        x_axis_type="log", x_axis_label="learning rate", y_axis_label="loss", height=320, sizing_mode="stretch_width"
    )
    figure.scatter([*rates], [*losses], size=4, alpha=0.5, color=COLOURS[0], legend_label="loss")
    figure.line([*rates], [*smoothed], line_width=2, color=COLOURS[0], legend_label="smoothed")
    if suggestion is not None:
        span = models.Span(location=suggestion, dimension="height", line_dash="dashed", line_color=COLOURS[1])
        figure.add_layout(span)
        figure.title.text = f"suggestion {suggestion:.3g}"
    figure.legend.location = "top_left"
    return figure
