"""Tables at a terminal: they fit it, cut no number and no unit, and say which columns they leave out.

Each width is tried in a pseudo-terminal of its own, in a process that has nothing else for standard output.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from builders import batches, small_engine
from heptad import Run
from heptad.cli import grid
from heptad.cli.grid import Column, Grid, cell_width, wrapped
from heptad.cli.main import main
from heptad_plugins import Journal

ASKED = ("stats", "show", "show --values", "show --notes", "show --columns seq,from,to,guards,notes")

MARK = "\x1dnext\x1d"

PROGRAM = f"""
import json, sys
from heptad.cli.main import main
for words in json.loads(sys.argv[1]):
    main(words)
    print({MARK!r}, flush=True)
"""

NUMBER = re.compile(r"(?<![\w.:#+-])\d[\d,]*\.\d+(?: ?(?:ns|µs|ms|s|%))?(?![\w.])")


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with long names, traced handlers, numbers of many digits, and notes."""
    path = tmp_path_factory.mktemp("terminal") / "run.journal"
    engine = small_engine(batches(9), [Journal(path)], accumulation=2, epochs=2, trace_handlers=True)

    @engine.on_exit("optimizer_update")
    def a_handler_with_a_name_that_is_longer_than_a_column(run: Run) -> None:
        run.record("gradient_norm/of_the_whole_network/before_clipping", -1.23456789e-13 * run.update)

    engine.on_exit("after_step", every=4)(lambda run: run.note("took 1.234 s of 5.678 s, 12.345 % of it, and 漢字 too"))
    engine.run()
    return path


def in_terminal(width: int, commands: list[list[str]]) -> list[str]:
    """Return what each command shows in a pseudo-terminal of that width."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment["PYTHONPATH"] = str(Path(grid.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # all other ends are closed
            break
    os.close(ours)
    assert process.wait() == 0
    *parts, last = shown.decode().replace("\r\n", "\n").split(f"{MARK}\n")
    assert last == ""
    return parts


def headings(shown: str) -> list[str]:
    """Return the headings of the first table."""
    head = next(line for line in shown.splitlines() if re.match(" *(seq|state) ", line))
    return re.split(" {2,}", head.strip())


def shown_in_a_pipe(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_table_fits_the_terminal_and_cuts_no_number_and_no_unit(
    width: int, journal: Path, capsys: pytest.CaptureFixture[str]
):
    """What a terminal shows is a part of what a pipe gets, where nothing is dropped."""
    commands = [[asked.split()[0], str(journal), *asked.split()[1:]] for asked in ASKED]
    for words, shown in zip(commands, in_terminal(width, commands), strict=True):
        whole = shown_in_a_pipe(capsys, *words)
        assert "no room" not in whole
        assert max(map(cell_width, shown.splitlines())) <= width
        numbers = NUMBER.findall(shown)
        assert set(numbers) <= set(NUMBER.findall(whole))
        titles, every = headings(shown), headings(whole)
        kept = [title for title in every if title in titles]
        assert titles == kept
        above = re.split("\n *(?:seq|state) ", shown)[0]  # what is said of the first table
        said = re.search(r"no room for ([^:]*):", above.replace("\n", " "))
        dropped = said[1].split(", ") if said else []
        below = [title for title in every if title not in (*titles, *dropped)]
        assert below == [] or (words[0] == "show" and set(below) <= {"guards", "notes", "text"})
        assert dropped == [title for title in every if title not in (*titles, *below)]  # from the right


def test_each_time_in_stats_has_its_unit(journal: Path):
    """In every cell, at every width."""
    (shown,) = in_terminal(80, [["stats", str(journal)]])
    rows = [line for line in shown.splitlines() if re.search(r"\d\.\d", line)]
    assert rows
    for row in rows:
        assert re.findall(r"\d[\d,]*\.\d+(?!\d)(?! ?(?:s|ms|µs|%)(?: |$|,))", row) == []


def test_guards_and_events_stand_below_the_row_where_it_is_narrow(journal: Path):
    """A line each, indented; they are columns where there is room."""
    narrow, wide = (in_terminal(width, [["show", str(journal), "--all"]])[0] for width in (80, 200))
    assert re.search(r"\n +\d+  after_step +optimizer_update .*\n    update_due=yes\n", narrow)
    assert re.search(r"\n    note: took 1.234 s of 5.678 s, 12.345 % of it, and 漢字 too\n", narrow)
    assert re.search(r"\n +\d+  after_step +optimizer_update .* update_due=yes", wide)
    head = next(line for line in narrow.splitlines() if line.split()[:1] == ["seq"])
    assert head.split()[:5] == ["seq", "from", "to", "step", "update"]


def test_columns_are_chosen_by_their_headings(journal: Path, capsys: pytest.CaptureFixture[str]):
    """In the order in which they are named."""
    lines = shown_in_a_pipe(capsys, "show", journal, "--columns", "update, seq,guards", "--tail", 3).splitlines()
    assert lines[0].split() == ["update", "seq", "guards"]
    assert len(lines) == 6
    lines = shown_in_a_pipe(capsys, "stats", journal, "--columns", "state,p99").splitlines()
    assert lines[2].split() == ["state", "p99"]
    handlers = next(line for line in lines if line.startswith("handler"))
    assert handlers.split() == ["handler", "p99"]


def test_a_column_that_is_not_there_is_named_with_those_that_are(journal: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["show", str(journal), "--columns", "seq,gards"]) == 2
    message = capsys.readouterr().err
    assert "there is no column 'gards'; did you mean 'guards'?" in message
    assert "seq, from, to, step, update, took, epoch, batch, time, guards, notes" in message


def test_a_terminal_that_does_not_say_how_wide_it_is_has_80_columns(journal: Path):
    (shown,) = in_terminal(0, [["stats", str(journal)]])
    assert 60 < max(map(cell_width, shown.splitlines())) <= 80


def printed(capsys: pytest.CaptureFixture[str], columns: Any, rows: Any, width: int | None) -> list[str]:
    capsys.readouterr()
    Grid(columns, width=width).print(rows)
    return capsys.readouterr().out.splitlines()


def test_wide_characters_take_two_places(capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys, [Column("name"), Column("value", right=True)], [["漢字", "1.5"], ["ab", "20.25"]], 40)
    assert lines == ["name  value", "───────────", "漢字    1.5", "ab    20.25"]


def test_a_later_page_with_longer_numbers_is_whole(capsys: pytest.CaptureFixture[str]):
    """Its rows may stand out; the first page has decided on the columns."""
    table = Grid([Column("a", right=True), Column("b", right=True)], width=20)
    capsys.readouterr()
    table.print([["1", "2"]])
    table.print([["1234567", "2"]])
    assert capsys.readouterr().out.splitlines() == ["a  b", "────", "1  2", "1234567  2"]


def test_the_first_column_is_never_dropped(capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys, [Column("seq"), Column("b")], [["1" * 30, "2"]], 20)
    assert lines[-1] == "1" * 30
    assert " ".join(lines[:3]).startswith("no room for b: use a wider terminal, --columns, or --json"[:20])


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("rank 1 0.250 s, rank 2 0.125 s", 12, ["rank 1", "0.250 s,", "rank 2", "0.125 s"]),
        ("checkpoint-00000004.of_the_run", 14, ["checkpoint-", "00000004.of_", "the_run"]),
        ("x" * 10, 4, ["xxxx", "xxxx", "xx"]),
        ("1234567890.5", 4, ["1234567890.5"]),
        ("", 4, [""]),
        ("a\n\nb", 4, ["a", "", "b"]),
    ],
)
def test_lines_are_broken_between_words_and_never_within_a_number(text: str, width: int, lines: list[str]):
    hard = re.sub(r"(?<=\d) (?=s\b)", "\u00a0", text)
    assert [line.replace("\u00a0", " ") for line in wrapped(hard, width)] == lines


@pytest.mark.parametrize("width", [20, 33])
def test_a_long_line_of_text_keeps_its_letters_where_it_is_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A name that takes several lines can be put together again; lines after the first stand further in."""
    monkeypatch.setattr(grid, "terminal_width", lambda: width)
    name = f"a/very/long/name/{'x' * 50}/of_a_value"
    grid.print_text(f"  value {name} 1.5 here")
    first, *more = capsys.readouterr().out.splitlines()
    assert all(line.startswith(" " * 6) for line in more)
    assert max(map(len, [first, *more])) <= width
    assert name in "".join(line.strip() for line in (first.replace("value", ""), *more))
