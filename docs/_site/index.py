"""The navigation of the site is the index that code hosts show: the headings and links of `docs/README.md`."""

from __future__ import annotations

import posixpath
import re

from sphinx.application import Sphinx


def sections(text: str) -> dict[str, list[str]]:
    """Return the pages that each heading of the second level leads to, in their order."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        found[title] = re.findall(r"^- \[[^\]]+\]\(([^)#]+)\)", body, re.MULTILINE)
    return found


def outside(text: str) -> list[str]:
    """Return the pages of the index that are not in `docs/`, from the root of the repository."""
    links = [page for pages in sections(text).values() for page in pages]
    return [link.removeprefix("../") for link in links if link.startswith("../")]


def add_toctrees(app: Sphinx, docname: str, content: list[str]) -> None:
    """Append a hidden toctree for each heading of the index."""
    if docname != app.config.root_doc:
        return
    for title, pages in sections(content[0]).items():
        names = [posixpath.splitext(posixpath.normpath(f"docs/{page}"))[0] for page in pages]
        tree = "\n".join(f"/{name}" for name in names)
        content[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n:titlesonly:\n\n{tree}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the step to Sphinx."""
    app.connect("source-read", add_toctrees)
    return {"parallel_read_safe": True}
