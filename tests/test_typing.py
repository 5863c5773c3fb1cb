"""What a type checker reports to a user: nothing where the public names are used right, something for each mistake."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import heptad
import heptad_plugins

FOLDER = Path(__file__).parent / "typing"


@pytest.fixture(scope="module")
def found() -> dict[str, set[int]]:
    """Run pyright, strict, and return the lines with errors of each file."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "-p", str(FOLDER)],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    lines: dict[str, set[int]] = {"usage.py": set(), "wrong.py": set()}
    for fault in json.loads(done.stdout)["generalDiagnostics"]:
        if fault["severity"] == "error":
            lines[Path(fault["file"]).name].add(fault["range"]["start"]["line"] + 1)
    return lines


def test_right_usage_has_no_errors(found):
    """The file uses the names as the documentation does."""
    assert found["usage.py"] == set()


def test_every_mistake_is_found_and_nothing_else(found):
    """The lines that are marked are the lines with errors."""
    text = (FOLDER / "wrong.py").read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(text, 1) if line.endswith("# wrong")}
    assert len(marked) > 25
    assert found["wrong.py"] == marked


def test_every_public_name_is_used():
    """None is left out of the file of right usage."""
    tree = ast.parse((FOLDER / "usage.py").read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(heptad.__all__) | set(heptad_plugins.__all__) | {"check_plugin"} <= names
    assert re.search(r"check_plugin\(Own", (FOLDER / "usage.py").read_text(encoding="utf-8"))
