"""Measure the report of a long run: how large its file is, how long it takes, and how much memory.

A journal of steps with an update each, two recorded values an update, and durations like those of training, made by the
writer that `Journal` uses. The report is written by a process of its own. Bounds, at 10 million transitions: 3 MB
beside Bokeh's own resources, 15 s, 500 MB.

The journal takes about 800 MB in the folder for temporary files, or in `--folder`, and a minute or two to write:

    python benchmarks/report.py
    python benchmarks/report.py --transitions 1000000

"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

import numpy as np

from heptad.history.journal.writer import FileWriter
from heptad.history.query import TransitionLog
from heptad.record.buffer import CHUNK, PackedChunk
from heptad.record.counters import Counters
from heptad.record.values import Columns
from heptad.report.figures import scripts
from heptad.report.page import write_report
from heptad.table import training_table

STEP = (
    ("before_step", "process_batch"),
    ("process_batch", "after_step"),
    ("after_step", "optimizer_update"),
    ("optimizer_update", "before_step"),
)
"""The transitions of a step that makes an update."""

VALUES = ("train/loss", "lr")


def write_long(path: Path, transitions: int, spike: int | None = None) -> None:
    """Write a journal of that many transitions, a multiple of 1,024.

    Args:
        path: The file.
        transitions: How many.
        spike: The update whose loss is a million, and whose turns take a minute each.
    """
    table = training_table()
    numbers = {(arc.source, arc.dest): number for number, arc in enumerate(table.arcs)}
    arcs = array("H", [numbers[ends] for ends in STEP] * (CHUNK // len(STEP)))
    random = np.random.default_rng(0)
    writer = FileWriter(path, table, "long")
    writer.begin(0, None)
    clock, each = 10**12, CHUNK // len(STEP)
    for number in range(transitions // CHUNK):
        spent = random.lognormal(11, 1.5, CHUNK).astype(np.int64)
        steps = number * each
        updates = np.arange(steps, steps + each)
        loss = 1 / (1 + updates / 10_000) + random.normal(0, 0.05, each)
        if spike is not None and steps <= spike < steps + each:
            loss[spike - steps] = 1e6
            spent[4 * (spike - steps)] = 60 * 10**9
        times = clock + np.cumsum(spent)
        at = Counters(0, steps, steps, steps, 0)
        chunk = PackedChunk(number * CHUNK, clock, 1_700_000_000 * 10**9, at, (), (), arcs, array("q", times.tolist()))
        writer.transitions([chunk])
        value = np.column_stack((loss, np.full(each, 1e-3))).ravel()
        seqs = number * CHUNK + 4 * np.repeat(np.arange(each), 2) + 3
        counts = np.repeat(updates, 2)
        place = np.column_stack((seqs, np.zeros_like(seqs), counts + 1, counts + 1)).ravel()
        names = array("I", [0, 1] * each)
        writer.record(Columns(list(VALUES), names, array("d", value.tolist()), array("q", place.tolist())))
        clock = int(times[-1])
        if number % 8 == 7:
            writer.commit()
    writer.commit()
    writer.close(finished=True)


def report_on(journal: str, page: str) -> None:
    """Write the report, in a process of its own, and print the measurements as JSON."""
    began, busy = time.perf_counter(), time.process_time()
    log = TransitionLog.load(journal)
    write_report([log], page)
    took, busy = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"count": len(log), "took": took, "busy": busy, "peak": peak}))


def own_bytes(page: Path) -> int:
    """Return the size of a page beside Bokeh's own resources."""
    return page.stat().st_size - sum(len(script.encode()) for script in scripts())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=10_000_000, help="of the journal (default 10 million)")
    parser.add_argument("--folder", type=Path, help="folder of the files (default: that for temporary files)")
    parser.add_argument("--report", metavar="FILE", nargs=2, help="only write the report of a journal (internal)")
    asked = parser.parse_args()
    if asked.report:
        report_on(*asked.report)
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        journal, page = Path(folder) / "long.journal", Path(folder) / "report.html"
        write_long(journal, asked.transitions, spike=asked.transitions // 7)
        command = [sys.executable, __file__, "--report", str(journal), str(page)]
        done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{done['count']:,} transitions, journal of {journal.stat().st_size / 1e6:,.0f} MB")
        print(f"  {done['took']:.1f} s (bound 15), {done['busy']:.1f} s of processor time")
        print(f"  {own_bytes(page) / 1e6:.2f} MB beside Bokeh's own (bound 3), peak memory {done['peak']:.0f} MB (500)")


if __name__ == "__main__":
    main()
