"""The pages in `docs/`: their Python runs, and their links lead somewhere; `test_site.py` is about the built site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heptad import Plugin, PluginError
from heptad.checkpoints.identity import FREE_FIELDS
from heptad.diagnose.hooks import HERE
from heptad.plugin.subscription import subscriptions_of
from heptad.plugin.verify import SHIPPED_DETOURS
from heptad.table import training_table
from pages import ROUNDS, Session

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md", "plugins/README.md")
LINKED = (*PAGES, *(ROOT / name for name in AT_THE_ROOT))
WRITTEN_AS_A_SESSION = (
    *("tutorial.md", "how-to.md", "explanation.md", "gpu.md", "cluster.md"),
    *("metrics.md", "debugging.md", "slurm.md", "reproducibility.md", "fine-tuning.md", "loggers.md"),
)


def anchors(path: Path) -> set[str]:
    """Return what the headings of a page can be linked by, as code hosts make it."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings_that_exist(page: Path):
    """`[text](path#heading)`, where the path is relative to the page."""
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


@pytest.mark.parametrize("name", WRITTEN_AS_A_SESSION)
def test_the_python_on_a_page_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One session a page, in an empty folder, and once more in the same; what it claims it prints or asserts."""
    monkeypatch.chdir(tmp_path)
    for _ in range(ROUNDS):
        assert Session(DOCS / name).run_all() > 0


def rows_of_hooks() -> list[tuple[str, str]]:
    """Return a row for each hook in the tables of `how-to.md`: its name, and what serves for it as plain text."""
    text = (DOCS / "how-to.md").read_text(encoding="utf-8")
    tables = text[text.index("### Lightning") : text.index("### The order of the moments")]
    rows = re.findall(r"^\| (`.+?) \| (.+) \|$", tables, re.MULTILINE)
    return [(hook, serves.replace("`", "")) for hooks, serves in rows for hook in re.findall(r"`([^`]+)`", hooks)]


def test_the_moments_that_serve_for_the_hooks_of_others_exist():
    """Each state in the tables of `how-to.md` is one whose entry and exit a plugin can hear."""
    states: set[str] = set()
    for _, serves in rows_of_hooks():
        states |= set(re.findall(r"\bon_(?:enter|exit)_(\w+)", serves))
    assert states == {*training_table().scopes(), *SHIPPED_DETOURS}


def test_the_hooks_that_a_message_knows_are_those_of_the_tables():
    """`hooks.HERE` holds every hook of the tables that a plugin would be refused for, and no other."""
    assert set(HERE) == {hook for hook, _ in rows_of_hooks() if re.fullmatch(r"on_\w+", hook)}


@pytest.mark.parametrize("hook", sorted(HERE))
def test_a_message_says_of_a_hook_what_the_tables_say(hook: str):
    """The message to who brings a callback along is how each table that has the hook begins."""
    with pytest.raises(PluginError) as caught:
        subscriptions_of(type("Brought", (Plugin,), {hook: lambda self, run: None})())
    _, _, text = str(caught.value).partition("; here it would be ")
    assert text
    for serves in (serves for name, serves in rows_of_hooks() if name == hook):
        assert re.match(rf"{re.escape(text)}($|[:;,. ])", serves), serves


def test_the_options_that_a_resumed_run_may_change_are_those_of_the_code():
    """`how-to.md` names each of them, and no other."""
    row = "| `RunConfig` | all fields but those beside | "
    _, _, after = (DOCS / "how-to.md").read_text(encoding="utf-8").partition(row)
    assert set(re.findall(r"`(\w+)`", after.partition(" |")[0])) == FREE_FIELDS


def test_the_figures_are_those_of_the_readme():
    """`explanation.md` has no figure of its own: its table is the README's."""
    pages = ((ROOT / "README.md"), (DOCS / "explanation.md"))
    found = [re.findall(r"\| what \| figure \|\n(?:\|.*\n)+", page.read_text(encoding="utf-8")) for page in pages]
    assert len(found[0]) == 1
    assert found[0] == found[1]


def test_the_index_has_every_page_that_the_folder_holds():
    """A page that nothing leads to is read by nobody, and is not in the navigation of the site, which the index is."""
    links = re.findall(r"\]\(((?:\w[\w-]*\.md)|(?:notebooks/.+?))\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    pages = {page.name for page in PAGES} | {f"notebooks/{path.name}" for path in DOCS.glob("notebooks/*.ipynb")}
    assert sorted(links) == sorted(pages - {"README.md"}), "correct the lists in docs/README.md"
