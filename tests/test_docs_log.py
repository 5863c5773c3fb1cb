"""`docs/log.md`: its Python runs, and its commands answer."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from heptad.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "log.md"


def test_python_and_commands_run_in_the_order_in_which_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each command ends with 0, but for `diff`, which finds what the page has planted; each prints something."""
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    commands: set[str] = set()
    printed: list[str] = []
    for language, block in re.findall(r"```(python|console)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if language == "python":
            exec(compile(block, "a block of log.md", "exec"), session)
            continue
        for line in block.splitlines():
            dollar, name, command, *rest = shlex.split(line)
            assert (dollar, name) == ("$", "heptad")
            capsys.readouterr()
            assert main([command, *rest]) == (command == "diff"), line
            printed.append(capsys.readouterr().out)
            commands.add(command)
    assert all(printed)
    assert commands == {"explain", "show", "stats", "diff", "export", "diagram"}
    assert "update_due: no (steps in the window 1, accumulation 4" in printed[0]
    assert "the update was skipped, the weights and `update` stood still: only to show" in printed[1]
