"""`docs/log.md`: its Python runs, and its commands answer."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from heptad.cli.main import main
from pages import ROUNDS, Session

PAGE = Path(__file__).parent.parent / "docs" / "log.md"


def test_python_and_commands_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each command prints something and ends with 0, but for `diff`, which finds what is planted; and so once more."""
    monkeypatch.chdir(tmp_path)
    for _ in range(ROUNDS):
        run_the_page(capsys)


def run_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Run all blocks of both languages."""
    session = Session(PAGE)
    commands: set[str] = set()
    printed: list[str] = []
    for block in session.blocks("python|console"):
        if block[1] == "python":
            session.run(block)
            continue
        for line in block[2].splitlines():
            dollar, name, command, *rest = shlex.split(line)
            assert (dollar, name) == ("$", "heptad")
            capsys.readouterr()
            assert main([command, *rest]) == (command == "diff" and "--summary" not in rest), line
            printed.append(capsys.readouterr().out)
            commands.add(command)
    assert all(printed)
    assert commands == {"explain", "show", "stats", "diff", "export", "diagram", "watch", "report", "runs/first.db"}
    assert printed[0].startswith("ended    finished: epochs=2 complete; ")
    assert "update_due: no (steps in the window 1, accumulation 4" in printed[2]
    assert "the update was skipped, the weights and `update` did not change: only to show" in printed[3]
