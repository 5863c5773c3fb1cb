"""The page: gathers what its sections say, and writes one file that works from disk, without a network.

`write_report` is what the command, the plugin and users call; `gathered` and `rendered` are for `server`, which shows
the same page of a run that goes on. Needs Bokeh and Jinja2, the extra `report`.
"""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

import numpy as np

from heptad.errors import LogError
from heptad.history.comparison import short_names
from heptad.history.export.output import Target, replacing
from heptad.history.journal.reader import FileSource
from heptad.history.query import TransitionLog
from heptad.record.checkpoint_events import Resume
from heptad.record.events import Pause
from heptad.report import sections
from heptad.report.gathered import MARKS, Gathered, gathered
from heptad.report.look import COLOURS, MARKERS, pick, places_of_states
from heptad.report.turns import WHOLE, deflated, remarkable, rules, stretch_of_turns
from heptad.report.words import harmless

MISSING = "a report needs Bokeh and Jinja2; install them with: pip install 'heptad[report]'"

EXPLAINED = 60
"""Turns that a page without a server explains in the words of `TransitionLog.explain`."""


def write_report(logs: TransitionLog | Sequence[TransitionLog], target: Target, labels: Sequence[str] = ()) -> None:
    """Write the report of one run, or of several that are compared, as one HTML file that needs no network.

    Args:
        logs: The log of a run, or those of several; `run.log` will do, and what `TransitionLog.load` returned.
        target: The path of the file, which is replaced when the new one is complete; or a binary stream.
        labels: What the runs are called in it; by default the paths of their journals, as far as they differ.

    Raises:
        LogError: If Bokeh or Jinja2 is not installed, if there is no log, if one is damaged, or if the
            path is that of a journal.
        OSError: If the file cannot be written.
    """
    several = [logs] if isinstance(logs, TransitionLog) else list(logs)
    with replacing(target) as file:  # before all that takes time: it may be refused
        runs = [gathered(log, label) for log, label in zip(several, named(several, labels), strict=True)]
        file.write(rendered(runs))


def plotted(log: TransitionLog) -> Any:
    """Return the curves of a log as Bokeh figures below each other.

    Raises:
        LogError: If Bokeh is not installed.
    """
    try:
        from heptad.report import figures as drawn  # noqa: PLC0415 - an extra is imported where it is used
    except ImportError as error:
        raise LogError(f"{MISSING} ({error})") from error
    run = gathered(log, "run")
    return drawn.curves_of([drawn.Drawn(run.label, run.curves, run.walk, run.samples, run.marks)], scales=("linear",))


def named(logs: Sequence[TransitionLog], labels: Sequence[str] = ()) -> list[str]:
    """Return what runs are called in a page: no two alike.

    Raises:
        LogError: If there is no log, or another number of labels.
    """
    if not logs:
        raise LogError("a report is of one run at least, got none")
    if labels and len(labels) != len(logs):
        raise LogError(f"a report of {len(logs)} runs takes as many labels, got {len(labels)}")
    if labels:
        return [harmless(label, 60) for label in labels]
    names = [str(log.source.path) if isinstance(log.source, FileSource) else "" for log in logs]
    short = short_names(names) if len(logs) > 1 else [name or "run" for name in names]
    return [harmless(name, 60) for name in short]


def rendered(runs: Sequence[Gathered], live: str = "", made: int = 1) -> bytes:
    """Return the page as HTML.

    Args:
        runs: What it shows.
        live: The address, relative to its own, that a live page asks for more; empty for a file.
        made: How many times a live page was made, this time included; it asks whether there is a newer one.

    Raises:
        LogError: If Bokeh or Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - an extra is imported where it is used
        from markupsafe import Markup  # noqa: PLC0415 - as above

        from heptad.report import figures as drawn  # noqa: PLC0415 - as above
    except ImportError as error:
        raise LogError(f"{MISSING} ({error})") from error
    home = files("heptad.report")
    script = (home / "page.js").read_text(encoding="utf-8")
    scripts = [*drawn.scripts(), script]
    data = {
        "live": live,
        "made": made,
        "runs": [_data(run, most=WHOLE // len(runs)) for run in runs],
        "items": dict(_items(runs)),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((home / "page.html.jinja").read_text(encoding="utf-8"))
    text = template.render(
        title=", ".join(run.label for run in runs),
        policy=_policy(scripts, live),
        style=Markup((home / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(_closed(text)) for text in scripts],
        data=Markup(_in_script(data)),
        runs=[sections.of_run(run, number) for number, run in enumerate(runs)],
        compared=sections.compared(runs) if len(runs) > 1 else None,
    )
    return text.encode("utf-8", "backslashreplace")


def _items(runs: Sequence[Gathered]) -> Iterable[tuple[str, Any]]:
    """Yield the figures, by the ids of the elements that they are put into."""
    from heptad.report import figures as drawn  # noqa: PLC0415 - Bokeh is an extra

    every = [drawn.Drawn(run.label, run.curves, run.walk, run.samples, run.marks) for run in runs]
    if len(runs) > 1:
        yield "figure-curves-all", drawn.as_json(drawn.curves_of(every))
    for number, run in enumerate(runs):
        if any(curve.found.lowest is not None for curve in run.curves):
            yield f"figure-curves-{number}", drawn.as_json(drawn.curves_of([every[number]]))
        if run.walk.end > run.walk.first:
            bands = drawn.bands_of(run.walk)
            if bands is not None:
                yield f"figure-bands-{number}", drawn.as_json(bands)
            yield f"figure-timeline-{number}", drawn.as_json(drawn.timeline_of(run.walk, breaks(run)))


def breaks(run: Gathered) -> list[tuple[int, str]]:
    """Return the turns where a process began to write, or the run was paused, and what happened there."""
    found: list[tuple[int, str]] = []
    for session in run.verdict.sessions[1:]:
        again = f", {session.again.transitions:,} turns made again" if session.again else ""
        found.append((session.first, f"process {session.pid} goes on from {session.resumed_from or 'there'}{again}"))
    found += [(event.seq, f"resumed: {event.text}") for event in run.events if isinstance(event, Resume)]
    found += [(event.seq, f"paused: {event.reason}") for event in run.events if isinstance(event, Pause)]
    kept = [(seq, harmless(said, 200)) for seq, said in found if run.walk.first <= seq <= run.walk.end]
    return sorted(kept)[:MARKS]


def _data(run: Gathered, most: int) -> dict[str, Any]:
    """Return what the page's script knows of a run."""
    source, walked = run.log.source, run.walk
    near = [seq for seq, _ in walked.slowest] + [event.seq for event in run.events] + [seq for seq, _ in breaks(run)]
    turns = [stretch_of_turns(source, run.view, low, high) for low, high in remarkable(run.view, near, most)]
    places = places_of_states(walked.names)
    told = [seq for seq, _ in walked.slowest] + list(range(max(walked.first, walked.end - 20), walked.end))
    told += [event.seq for event in run.events if walked.first <= event.seq < walked.end][-20:]
    explained = {seq: harmless(str(run.log.explain(seq)), 6_000) for seq in list(dict.fromkeys(told))[:EXPLAINED]}
    events: dict[int, list[str]] = {}
    for event in run.events[-2_000:]:
        events.setdefault(event.seq, []).append(f"{event.kind}: {harmless(event.text, 300)}")
    finite = walked.most >= 0
    return {
        "label": run.label,
        "first": walked.first,
        "end": walked.end,
        "rules": rules(source),
        "turns": turns,
        "explained": explained,
        "events": events,
        "marks": {name: [pick(COLOURS, places[name]), pick(MARKERS, places[name])] for name in walked.names},
        "carries": source.effects.carries,
        "samples": run.samples,
        "epochs": len(walked.ends),
        "envelope": {
            "count": len(walked.most),
            "least": deflated((np.where(finite, walked.least, 0) / 1e3).astype(np.float32)),
            "most": deflated((np.where(finite, walked.most, 0) / 1e3).astype(np.float32)),
            "longest": deflated((walked.longest - walked.first).clip(0).astype(np.uint32)),
        },
        "graph": sections.guards_of(run),
    }


def _policy(scripts: Sequence[str], live: str) -> str:
    """Return the content security policy: no source from outside, and no script but those of the page."""
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    asks = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        f"connect-src {asks}; base-uri 'none'; form-action 'none'"
    )


def _closed(text: str) -> str:
    """Return a script of our own, or of Bokeh's, which cannot end its element early.

    Raises:
        LogError: If it could.
    """
    if "</script" in text.lower() or "<!--" in text:
        raise LogError("this version of Bokeh has scripts that cannot stand in a page; install another")
    return text


def _in_script(data: Mapping[str, Any]) -> str:
    """Return data as JSON that may stand in an element `script`; NaN and infinities, which JSON lacks, are null."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in cast("Sequence[Any]", value)]
    if isinstance(value, np.generic):
        return cast("Any", value.item())
    return value
