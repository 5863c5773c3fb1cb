"""Notebooks as pages: their text is Markdown already, their code and its outputs become blocks. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import nbformat
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


def markdown_of(notebook: Any) -> str:
    """Return a notebook as MyST Markdown."""
    return "\n\n".join(block for cell in notebook.cells for block in blocks_of(cell)) + "\n"


def blocks_of(cell: Any) -> Iterator[str]:
    """Yield the source of a cell and its outputs."""
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for output in cell.outputs:
        yield output_of(output)


def output_of(output: Any) -> str:
    """Return an output in the richest form that a page can show."""
    if output.output_type == "stream":
        return fenced("text", output.text)
    if output.output_type == "error":
        return fenced("text", f"{output.ename}: {output.evalue}")
    if "text/html" in output.data:
        return fenced("{raw} html", f'<div class="output">{output.data["text/html"]}</div>')
    return fenced("text", output.data["text/plain"])


def fenced(kind: str, text: str) -> str:
    """Return a block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{kind}\n{text.rstrip()}\n{fence}"


class NotebookParser(MystParser):
    """A page from a notebook."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse the notebook as the Markdown that it holds."""
        super().parse(markdown_of(nbformat.reads(inputstring, as_version=4)), document)


def setup(app: Sphinx) -> dict[str, bool]:
    """Make `.ipynb` a suffix of pages."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True}
