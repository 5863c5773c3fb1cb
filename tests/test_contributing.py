"""CONTRIBUTING.md, ARCHITECTURE.md and CHANGELOG.md: what they name exists, and the plugin they show works."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

import heptad_plugins
from heptad import __all__ as exported

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "engine" / "heptad"
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOUSE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
READING_PATH = dict(re.findall(r"`([\w/]+\.py)` \((\d+)", HOUSE))


def test_each_command_is_one_of_the_makefile():
    """`make …` in the page is a target."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = set(re.findall(r"`make ([\w-]+)`", PAGE))
    assert asked - targets == set()
    assert {"test", "oldest", "kill-matrix", "benchmarks"} <= asked


def test_each_file_that_is_named_is_there():
    """Paths from the root that stand in backticks."""
    named = re.findall(r"`((?:engine|plugins|tests|benchmarks)/[\w./]+)`", PAGE)
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert len(named) > 5


def test_the_architecture_fits_on_one_page():
    assert len(HOUSE.splitlines()) <= 60


def test_the_architecture_names_every_room_once():
    """Its table has the modules and folders of the engine, and `plugins/heptad_plugins`, which is no room."""
    rows = re.findall(r"^\| (`.+?) \|", HOUSE[HOUSE.index("## The house") :], re.MULTILINE)
    named = [name.removesuffix("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    rooms = {
        path.name
        for path in ENGINE.iterdir()
        if (path.suffix == ".py" and not path.name.startswith("__")) or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(rooms)


def test_every_file_that_the_architecture_names_exists():
    """A path with a folder is one of the engine or the root; a bare name is a file somewhere in the engine."""
    names = set(re.findall(r"`((?:\w+/)*\w+\.py)`", HOUSE))
    lost = [name for name in names if not ((ROOT / name).exists() or list(ENGINE.rglob(name)))]
    assert lost == []
    assert len(names) > len(READING_PATH)


def lines_of(name: str) -> int:
    """Return how many lines a file of the engine has."""
    return len((ENGINE / name).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", READING_PATH)
def test_the_reading_path_gives_the_lines_of_each_file(name: str):
    """To ten lines, so that a comment more does not change the page."""
    assert lines_of(name) == pytest.approx(int(READING_PATH[name]), abs=10)


def test_the_core_is_read_in_at_most_1800_lines():
    assert len(READING_PATH) >= 5
    assert sum(map(lines_of, READING_PATH)) <= 1_800


def test_the_plugin_keeps_the_contract(capsys: pytest.CaptureFixture[str]):
    """The blocks of the page run, in their order: the kit is the last of them."""
    scope: dict[str, object] = {}
    for block in re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(dedent(block), "CONTRIBUTING.md", "exec"), scope)
    assert "LossSpike" in capsys.readouterr().out


def test_the_changelog_has_the_version_of_the_package():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in CHANGES


def test_the_changelog_names_every_shipped_plugin():
    assert [name for name in heptad_plugins.__all__ if f"`{name}`" not in CHANGES] == []


def test_the_changelog_names_load_weights():
    assert "load_weights" in exported
    assert "`load_weights`" in CHANGES
