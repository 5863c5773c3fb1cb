"""`Report` observes the run: it writes the page of `heptad report` when the run ends."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from heptad import LogError, Plugin, PluginError, Run, TransitionLog
from heptad.plugin import Placing, write_report
from heptad_plugins._options import path_of
from heptad_plugins._output_path import output_of


class Report(Plugin):
    """Write the report of the run when it has ended, failed or not: one HTML file for a browser, without a network.

    The file is replaced when the new one is complete. Costs nothing while the run is driven, and a second or more at
    its end. Of a run that is paused, or whose process was killed, `heptad report` makes one from its journal.

    The log in memory has the newest `RunConfig.log_capacity` transitions, and of a resumed run those since. With a
    `Journal` give its path: the report is then of all that the file holds, sessions and what was made again included.
    Needs the extra `report`.

    Args:
        path: The file; missing folders are made. Or a `RunFolder`, for `report.html` in it.
        journal: The journal of this run, or the `RunFolder` that it is in, to report on in place of the log in memory.
        on_error: With `"detach"` the run's result stands even where the report cannot be written.

    Raises:
        PluginError: When built, if Bokeh or Jinja2 is not installed, or for what is no path; on close, if the file
            cannot be written or the journal cannot be read.
    """

    observes = True
    ranks = "first"  # the journal of the first names those of the others

    runs_before = ("Journal",)  # plugins are closed in reverse order: the journal is complete when it is read

    def __init__(
        self,
        path: str | os.PathLike[str] | Placing = "report.html",
        journal: str | os.PathLike[str] | Placing | None = None,
        *,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        lacking = [name for name in ("bokeh", "jinja2") if find_spec(name) is None]
        if lacking:
            raise PluginError(f"Report needs {' and '.join(lacking)}: pip install 'heptad[report]'")
        self.on_error = on_error
        self._output = output_of("Report", "path", path, "report.html", path_of)
        self._journal = None if journal is None else output_of("Report", "journal", journal, "log.journal", path_of)

    def close(self, run: Run) -> None:
        """Write the page, if the run has ended.

        Raises:
            PluginError: If the file cannot be written, or the journal cannot be read.
        """
        if not run.ended:
            return
        try:
            log = run.log if self._journal is None else TransitionLog.load(self._journal.path)
            write_report(log, self._output.path)
        except (LogError, OSError) as error:
            raise PluginError(f"Report: {self._output.path} was not written: {error}") from error
