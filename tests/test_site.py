"""The site that `make docs` builds: without a network or a warning, with every public name and no dead link.

It is built once, which takes some fifteen seconds.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.util.inventory import InventoryFile

from heptad.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PUBLIC = ("heptad", "heptad.plugin", "heptad.testing", "heptad_plugins")
OPTIONS = ["-q", "-W", "--keep-going", "-n", "-c", "docs", "-d"]
WIDTHS = (1280, 390)


class Page(HTMLParser):
    """What a page links to, loads, and can be linked by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found["id"]} if found.get("id") else set()
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if found.get("src"):
            self.loaded.append(str(found["src"]))
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(str(found["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site from nothing; a warning is an error, and one line a warning is what is reported."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", *OPTIONS, str(folder / "doctrees"), ".", str(folder / "site")]
    environment = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"`make docs` says:\n{done.stderr}"
    assert done.stderr == ""
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Return the pages of the site, read."""
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


@pytest.fixture(scope="module")
def entries(site: Path) -> list[str]:
    """Return the full name of each Python object that the site has an entry of."""
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return [name for kind, found in inventory.data.items() if kind.startswith("py:") for name in found]


def text_of(path: Path) -> str:
    """Return the words of a page, without markup and line ends."""
    return " ".join(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")).split())


def test_the_makefile_builds_it_by_the_same_options():
    rule = f"sphinx {' '.join(OPTIONS)} build/doctrees . build/site"
    assert rule in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_one_entry(module: str, entries: list[str]):
    """In the first of the modules that export it."""
    public = {name: of for of in reversed(PUBLIC) for name in import_module(of).__all__}
    counts = Counter(name.rpartition(".")[2] for name in entries if name.rpartition(".")[0] in PUBLIC)
    names = import_module(module).__all__
    assert {name: counts[name] for name in names if counts[name] != 1} == {}, (
        "name it on a page of docs/reference/, or leave it to `:rest:` there"
    )
    assert [name for name in names if f"{public[name]}.{name}" not in entries] == []


def test_types_that_calls_return_have_entries(entries: list[str], monkeypatch: pytest.MonkeyPatch):
    """A type in a signature that has none is a warning, but for the types of the engine's own that `conf.py` names."""
    last = {name.rpartition(".")[2] for name in entries}
    assert {"Call", "Snapshot", "Duration", "Tried", "PluginReport", "MetricObject", "Diff", "Verdict"} <= last
    monkeypatch.setattr(sys, "path", list(sys.path))  # which conf.py adds to
    ignored = runpy.run_path(str(DOCS / "conf.py"))["nitpick_ignore"]
    assert len(ignored) <= 13  # a list that grows hides what a reader looks for


def test_a_signature_has_types_and_defaults(site: Path):
    assert "plugins: Sequence[Plugin] = ()" in text_of(site / "docs/reference/engine.html")
    assert "accumulation: int = 1" in text_of(site / "docs/reference/configuration.html")
    assert "<factory>" not in (site / "docs/reference/configuration.html").read_text(encoding="utf-8")


def test_no_markup_is_left_in_the_text(site: Path):
    """Backticks, and roles that were not recognised."""
    left = {
        path.name: re.findall(r"`[^`]{1,30}`|:py:\w+:", text_of(path))
        for path in site.glob("docs/reference/*.html")
        if path.name != "command-line.html"  # help for a terminal, as it stands
    }
    assert {name: found for name, found in left.items() if found} == {}


def test_a_plugin_is_shown_without_its_handlers(entries: list[str]):
    """They are called by the engine; what a user calls is there."""
    shown = {name for name in entries if name.startswith("heptad_plugins.")}
    assert [name for name in shown if ".on_" in name or name.endswith("state_dict")] == []
    assert "heptad.Plugin.on_begin" in entries


def test_what_plugins_read_of_a_run_has_entries(site: Path, entries: list[str]):
    """`Run` has other attributes, which the rooms of the engine share."""
    public = {name.removeprefix("heptad.Run.") for name in entries if name.startswith("heptad.Run.")}
    described = re.findall(r"<strong>(\w+)</strong>", (site / "docs/reference/engine.html").read_text(encoding="utf-8"))
    assert {"step", "record", "network"} <= public
    read = {
        f"{path.name}: run.{node.attr}"
        for path in (ROOT / "plugins" / "heptad_plugins").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == "run"
        and node.attr not in public | set(described)
    }
    assert read == set()


def test_links_within_the_site_lead_somewhere(pages: dict[Path, Page]):
    """To a file, and to an anchor on the page where one is named."""
    lost = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else {parts.fragment}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                lost.append(f"{path.name}: {link}")
    assert lost == []
    assert sum(len(page.links) for page in pages.values()) > 1_000


def test_names_of_torch_and_python_are_links(pages: dict[Path, Page], site: Path):
    links = set(pages[site / "docs/reference/configuration.html"].links)
    assert "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module" in links
    assert "https://docs.python.org/3/library/functions.html#int" in links


def test_the_inventories_are_those_that_the_tool_writes():
    """Versions aside: `python tools/inventories.py` writes them."""
    tool = runpy.run_path(str(ROOT / "tools" / "inventories.py"))
    for project in tool["PAGES"]:
        kept = InventoryFile.loads((DOCS / "inventories" / f"{project}.inv").read_bytes(), uri="").data
        made = InventoryFile.loads(tool["inventory"](project), uri="").data
        assert {kind: set(names) for kind, names in kept.items()} == {kind: set(names) for kind, names in made.items()}
    assert {path.stem for path in (DOCS / "inventories").iterdir()} == set(tool["PAGES"])


def test_a_page_loads_nothing_from_elsewhere(pages: dict[Path, Page]):
    """It opens from disk."""
    assert {of for page in pages.values() for of in page.loaded if urlsplit(of).scheme not in ("", "data")} == set()


def test_the_navigation_has_the_headings_and_pages_of_the_index(pages: dict[Path, Page], site: Path):
    """Each page of the site is in the toctree, or the build would have warned."""
    text = (site / "docs/README.html").read_text(encoding="utf-8")
    captions = re.findall(r'<p class="caption"[^>]*><span class="caption-text">(.+?)</span>', text)
    headings = re.findall(r"^## (.+)$", (DOCS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert captions == headings
    assert {"../README.html", "../plugins/README.html", "tutorial.html", "notebooks/first-run.html"} <= set(
        pages[site / "docs/README.html"].links
    )


def test_the_front_door_leads_to_the_index(site: Path):
    assert 'url=docs/README.html"' in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("term", ["accumul", "checkpoint", "earlystop", "journal"])
def test_the_search_finds_a_term(site: Path, term: str):
    """The index of the search has the stems of words, and the names of the reference."""
    script = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").removesuffix(")"))
    assert term in index["terms"]
    assert "docs/tutorial" in index["docnames"]


def test_the_pictures_are_there(pages: dict[Path, Page], site: Path):
    """Those of the pages, copied beside them."""
    used = {Path(of).name for page in pages.values() for of in page.loaded if of.endswith((".png", ".svg"))}
    assert used == {path.name for path in (site / "_images").iterdir()}
    assert "report.png" in used


def test_the_command_line_has_every_command(site: Path):
    text = text_of(site / "docs/reference/command-line.html")
    assert [command for command in COMMANDS if f"usage: heptad {command} " not in text] == []


@pytest.mark.parametrize("name", ["first-run", "why-did-it-not-step", "compare-two-runs"])
def test_a_notebook_is_a_page_with_its_outputs(site: Path, name: str):
    text = (site / f"docs/notebooks/{name}.html").read_text(encoding="utf-8")
    assert text.count('<div class="output"><table>') >= 2
    assert "highlight-python" in text


# -- in a browser


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    """The chromium of the system, headless."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


OVERHANGING = """() => [...document.querySelectorAll("article *")].filter(one => {
    if (one.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let box = one; box.tagName != "ARTICLE"; box = box.parentElement)
        if (getComputedStyle(box).overflowX != "visible") return false;
    return true;
}).map(one => one.outerHTML.slice(0, 80))"""
"""What is wider than the window, and in no box that scrolls."""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window(browser: Any, pages: dict[Path, Page], site: Path, width: int):
    """Wide tables and code scroll in boxes of their own."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, java_script_enabled=True)
    wide = {}
    for path in pages:
        if path == site / "index.html":  # which leads on
            continue
        tab.goto(path.as_uri())
        if found := tab.evaluate(OVERHANGING):
            wide[path.name] = found[:3]
    tab.close()
    assert wide == {}
    assert len(pages) > 20


def test_the_search_works_from_disk(browser: Any, site: Path):
    tab = browser.new_page()
    tab.goto(f"{(site / 'search.html').as_uri()}?q=accumulation")
    tab.wait_for_selector("#search-results ul.search li", timeout=10_000)
    assert tab.locator("#search-results ul.search li").count() > 3
    tab.close()
