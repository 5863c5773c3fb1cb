"""Run the notebooks of `docs/notebooks` and keep what they show: `make notebooks`.

The outputs are in git, so that code hosts and the site show them. A test runs each notebook and compares what it shows
with what is kept, but for numbers.
"""

from __future__ import annotations

import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"


def run(path: Path, folder: str) -> None:
    """Run a notebook in a folder, and write it back with its outputs and without times of execution."""
    notebook = nbformat.read(path, as_version=4)
    metadata = deepcopy(notebook.metadata)  # which the kernel adds the version of Python to
    NotebookClient(notebook, timeout=120, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = metadata
    nbformat.write(notebook, path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(NOTEBOOKS.glob("*.ipynb")):
            run(path, folder)
            sys.stdout.write(f"{path.name}\n")
