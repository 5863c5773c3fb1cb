"""The pages in `docs/`: their Python runs, their links lead somewhere, and the reference is that of the code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import FunctionType

import pytest

import heptad
import heptad_plugins
from heptad.plugin import SHIPPED_DETOURS
from heptad.states import training_table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TOLD_AS_A_SESSION = ("tutorial.md", "how-to.md", "explanation.md")


def test_the_reference_is_that_of_the_code():
    """It is generated from signatures and docstrings."""
    page = runpy.run_path(str(ROOT / "tools" / "reference.py"))["page"]
    assert isinstance(page, FunctionType)
    same = (DOCS / "reference.md").read_text(encoding="utf-8") == page()
    assert same, "docs/reference.md is not what signatures and docstrings say; `make reference` writes it anew"


def test_the_reference_has_every_public_name_once():
    """Those of `heptad`, of `heptad_plugins`, and the conformance kit."""
    headings = re.findall(r"^### `(\w+)`$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = {*heptad.__all__, *heptad_plugins.__all__, "check_plugin"}
    assert public <= set(headings)
    assert len(headings) == len(set(headings))


def anchors(path: Path) -> set[str]:
    """Returns what the headings of a page can be linked by, as code hosts make it."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings_that_exist(page: Path):
    """`[text](path#heading)`, where the path is relative to the page."""
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


@pytest.mark.parametrize("name", TOLD_AS_A_SESSION)
def test_the_python_on_a_page_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One session a page, in an empty folder; what a page claims it asserts itself."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / name).read_text(encoding="utf-8")
    session: dict[str, object] = {}
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert blocks
    for block in blocks:
        above = "\n" * text.count("\n", 0, block.start(1))  # so that an error names the page's own line
        exec(compile(above + block[1], str(DOCS / name), "exec"), session)


def test_the_edges_that_serve_for_the_hooks_of_others_are_edges():
    """Each state in the tables of `how-to.md` is one whose entry and exit a plugin can hear."""
    text = (DOCS / "how-to.md").read_text(encoding="utf-8")
    _, _, tables = text.partition("## Bring a loop")
    states = set(re.findall(r"`on_(?:enter|exit)_(\w+)`", tables))
    assert states == {*training_table().scopes(), *SHIPPED_DETOURS}


def test_the_figures_are_those_of_the_readme():
    """`explanation.md` has no figure of its own: its table is the README's."""
    pages = ((ROOT / "README.md"), (DOCS / "explanation.md"))
    found = [re.findall(r"\| what \| figure \|\n(?:\|.*\n)+", page.read_text(encoding="utf-8")) for page in pages]
    assert len(found[0]) == 1
    assert found[0] == found[1]


def test_the_index_has_every_page_that_the_folder_holds():
    """A page that nothing leads to is read by nobody."""
    links = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8")))
    assert links == {page.name for page in PAGES} - {"README.md"}
