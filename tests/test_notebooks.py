"""The notebooks in `docs/notebooks`: nbmake runs them, and what they show is what is kept in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def run_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the notebooks as nbmake leaves them, outputs and all."""
    folder = tmp_path_factory.mktemp("notebooks")
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    options = ["-c", "/dev/null", "--rootdir", str(folder), "-p", "no:cacheprovider", "-q", "--nbmake", "--overwrite"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(NOTEBOOKS)} passed" in done.stdout
    return folder


def words_shown(path: Path) -> list[list[str]]:
    """Return for each cell of code the words that it shows, in the order of the alphabet.

    Numbers and units of time differ from machine to machine, and so does the order of a table of durations.
    """
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [sorted(re.findall(r"[^\W\d]{3,}", " ".join(map(text_of, cell.outputs)))) for cell in cells]


def text_of(output: Any) -> str:
    """Return what an output shows, without its markup."""
    if output.output_type == "stream":
        return output.text
    return re.sub(r"<[^>]+>", " ", output.data.get("text/html", output.data["text/plain"]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_kept_in_it(path: Path, run_again: Path):
    kept, now = words_shown(path), words_shown(run_again / path.name)
    assert kept == now, "`make notebooks` keeps what the notebooks show now"
    assert sum(map(bool, kept)) > len(kept) / 2


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compare-two-runs", "first-run", "why-did-it-not-step"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_nothing_of_the_machine_that_ran_it(path: Path):
    """No path, no time of execution, no error."""
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "execution"}
    assert [cell.metadata for cell in notebook.cells if cell.metadata] == []
    assert "/home/" not in path.read_text(encoding="utf-8")
    assert "/work" not in path.read_text(encoding="utf-8")
    assert [
        cell for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    ] == []
