"""`CSVLogger` observes the run: every recorded value in a CSV file, a row for each position."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from typing import Any, Literal, cast

from heptad import Plugin, PluginError, Run
from heptad_plugins._options import path_of, whole

PLACE = ("step", "update", "epoch")
"""The first columns: how many were complete when the values of the row were recorded."""


Place = tuple[int, int, int]


class CSVLogger(Plugin):
    """Writes all recorded values, and the training loss, to a CSV file.

    A row holds the values of one position, in columns that are named for them; a value that was recorded twice there
    opens a second row. Numbers have full precision. Rows are written on exit of `optimizer_update`, `evaluate` and
    `after_epoch` and when `run()` returns, each with one write to the operating system: a program that is killed
    leaves every row that was written. For a name that comes later the file is rewritten, whole, beside itself.

    A file that holds values is left alone, unless the run goes on: then rows are added to it. Where it goes on from a
    checkpoint, the rows that a killed run had written after that are dropped first, so the file reads as one run's.
    Where `resume="auto"` finds no checkpoint yet, what an attempt before has left is renamed, with `.before` behind it.
    A file that does not begin with the columns `step`, `update`, `epoch` is left alone always.

    Costs 20 to 40 µs an update, and once more the reading of the file for each column that comes late. Reading the loss
    and values that are on a device waits for it: every `every` updates, and where there are such values.

    Args:
        path: The file; its folders are made. A value named like one of the columns `step`, `update`, `epoch` has
            `(recorded)` behind its name.
        every: Updates between two rows that hold the loss of the newest step, as `loss`. Where somebody recorded values
            under that name since the update before, these stand alone.
        overwrite: Lets go of the values in the file when a run begins.
        on_error: `"detach"` lets it fail without ending the run.

    Raises:
        PluginError: If `every` is not a whole number from 1 on, or `path` is no path; when the run is opened, for a
            file that cannot be written to, or may not, because it holds another run's values or is no file of this
            plugin's.
        OSError: In the run, if the file cannot be written any more.
    """

    observes = True

    runs_after = ("Evaluate", "Throughput", "GradientClipping", "LRSchedule", "EMA", "NonFiniteGuard", "EarlyStopping")

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: int = 1,
        overwrite: bool = False,
        *,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        self.on_error = on_error
        self._path = path_of("CSVLogger", "path", path)
        self._every = whole("CSVLogger", "every", every)
        self._overwrite = overwrite
        self._file: io.FileIO | None = None
        self._run: str | None = None  # the id of the run that it was last opened for
        self._begin()

    def _begin(self) -> None:
        """Forgets the run before."""
        self._columns: dict[str, None] = {}  # in order; none until the file is this run's
        self._seen = 0  # recorded values that were taken
        self._written = 0  # rows of the file before the newest
        self._restored = False
        self._names: set[str] = set()  # of the values that were taken since the update before
        self._rows: list[tuple[Place, dict[str, str]]] = []  # the newest row of the file, and those still to be written
        self._end = 0  # where the first of them begins
        self._fresh = False  # they hold something that the file does not

    def open(self, run: Run) -> None:
        """Opens the file.

        Raises:
            PluginError: If the file cannot or may not be written to.
        """
        if run.state == "idle" and run.id != self._run:
            self._begin()
        try:
            if not self._columns:
                self._adopt(run)
            self._file = io.FileIO(self._path, "r+")
        except OSError as error:
            raise PluginError(f"CSVLogger: {self._path} cannot be written: {error}; name another file") from error
        self._run = run.id

    def close(self, run: Run) -> None:
        """Writes what is left and closes the file."""
        if self._file is not None:
            try:
                self.on_exit_after_epoch(run)
            finally:
                self._file.close()
                self._file = None

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Writes the values since the last time, and the loss."""
        self._take(run)
        due = run.update % self._every == 0 and not run.update_skipped and "loss" not in self._names
        if due and (loss := run.loss) is not None:
            self._put((run.step, run.update, run.epoch), "loss", loss.item())
        self._names.clear()
        self._write()

    def on_exit_after_epoch(self, run: Run) -> None:
        """Writes the values since the last time."""
        self._take(run)
        self._write()

    on_exit_evaluate = on_exit_after_epoch

    def state_dict(self) -> dict[str, Any]:
        """Returns how many values were taken, how many rows are written for good, and the newest, which may grow."""
        newest = [[list(place), dict(row)] for place, row in self._rows[-1:]]
        return {"seen": self._seen, "rows": self._written, "newest": newest, "names": sorted(self._names)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._begin()
        self._restored, self._seen, self._written = True, state["seen"], state["rows"]
        self._names = set(state["names"])
        self._rows = [(cast("Place", tuple(place)), dict(row)) for place, row in state["newest"]]

    def _adopt(self, run: Run) -> None:
        """Makes the file this run's: begins it, or reads the header of the one that the run goes on with."""
        if self._path.is_dir():
            raise PluginError(f"CSVLogger: {self._path} is a directory; name a file in it, such as values.csv")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.is_file():  # such as /dev/null, which would be replaced by a file
            raise PluginError(f"CSVLogger: {self._path} is no regular file; name one that is, or a new one")
        held = self._path.read_bytes() if self._path.exists() else b""
        columns = _header(held)
        if held and tuple(columns[: len(PLACE)]) != PLACE:
            raise PluginError(
                f"CSVLogger: {self._path} does not begin with the columns {', '.join(PLACE)}: it is no file of "
                "CSVLogger's, and is left alone, overwrite=True or not; name another file"
            )
        if not run.step and not self._restored:
            # a header alone is what a run leaves that failed before it had a value; that may be begun again
            if held not in (b"", _line(PLACE)) and run.afresh:
                self._path.replace(self._path.with_name(f"{self._path.name}.before"))
            elif held not in (b"", _line(PLACE)) and not self._overwrite:
                raise PluginError(
                    f"CSVLogger: {self._path} holds the values of another run; name another file, remove this one, or "
                    "say overwrite=True"
                )
            held = b""
        columns = columns if held else list(PLACE)
        held = held[: held.rfind(b"\n") + 1]  # a line that was torn by a kill is dropped
        if self._restored:
            # rows have no line ends in them: names with some are in the header alone
            head = len(_line(columns))
            rows = held[head:].splitlines(keepends=True)
            held = held[:head] + b"".join(rows[: self._written])
        if not held:
            held = _line(columns)
            self._seen = self._written = 0
            self._rows = []
        self._columns, self._end = dict.fromkeys(columns), len(held)
        self._fresh = bool(self._rows)
        self._replace(held)

    def _take(self, run: Run) -> None:
        """Takes the values since the last time."""
        values = run.records(self._seen)
        for value in values:
            name = f"{value.name} (recorded)" if value.name in PLACE else value.name
            self._put((value.step, value.update, value.epoch), name, value.value)
        self._seen += len(values)
        self._names |= {value.name for value in values}

    def _put(self, place: Place, name: str, value: float) -> None:
        if not self._rows or self._rows[-1][0] != place or name in self._rows[-1][1]:
            self._rows.append((place, {}))
        self._rows[-1][1][name] = repr(value)
        self._fresh = True

    def _write(self) -> None:
        """Writes the rows. The newest stays at hand, and is written over, longer, if more comes at its position."""
        if self._file is None or not self._fresh:
            return
        late = dict.fromkeys(name for _, row in self._rows for name in row if name not in self._columns)
        self._columns |= late
        named = list(self._columns)[len(PLACE) :]
        # numbers need no quotes
        lines = [
            f"{','.join([*map(str, place), *(row.get(name, '') for name in named)])}\n".encode()
            for place, row in self._rows
        ]
        if late:
            before = io.StringIO(self._path.read_bytes()[: self._end].decode(), newline="")
            held = [row + [""] * (len(self._columns) - len(row)) for row in list(csv.reader(before))[1:]]
            kept = b"".join(map(_line, [self._columns, *held]))
            self._file.close()
            self._replace(kept + b"".join(lines))
            self._file = io.FileIO(self._path, "r+")
            self._end = len(kept)
        else:
            self._file.seek(self._end)
            left = b"".join(lines)
            while left:  # all at once, but where the disk is full or a signal comes
                left = left[self._file.write(left) :]
        self._end += sum(map(len, lines[:-1]))
        self._written += len(lines) - 1
        del self._rows[:-1]
        self._fresh = False

    def _replace(self, content: bytes) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_bytes(content)
        beside.replace(self._path)


def _header(held: bytes) -> list[str]:
    """Returns the columns that a file begins with; none where it is empty or no CSV."""
    try:
        for columns in csv.reader(io.StringIO(held.decode(errors="replace"), newline="")):
            return columns
    except csv.Error:  # such as a field that never ends
        pass
    return []


def _line(cells: Iterable[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # with its own line end it quotes both characters of that
    return (line.getvalue().removesuffix("\r\n") + "\n").encode()
