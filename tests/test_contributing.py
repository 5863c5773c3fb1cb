"""The page for those who contribute: what it names is there, its table is that of the house, its plugin works."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import heptad_plugins
from heptad import __all__ as exported

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


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


def test_the_table_of_the_house_names_every_module():
    """All modules and folders of the engine, each once."""
    rows = re.findall(
        r"^\| (`.+?) \|", PAGE[PAGE.index("## How the house") : PAGE.index("## How to add")], re.MULTILINE
    )
    named = [name.removesuffix("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    there = {
        path.name
        for path in (ROOT / "engine" / "heptad").iterdir()
        if (path.suffix == ".py" and not path.name.startswith("__")) or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(there)


def test_the_plugin_keeps_the_contract(capsys):
    """The blocks of the page run, in their order: the kit is the last of them."""
    scope: dict[str, object] = {}
    for block in re.findall(r"^ *```python\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(dedent(block), "CONTRIBUTING.md", "exec"), scope)
    assert "LossSpike" in capsys.readouterr().out


def test_the_changelog_names_what_there_is():
    """Every shipped plugin, every exported function, and the version of the package."""
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## [{version[1]}]" in CHANGES
    assert [name for name in heptad_plugins.__all__ if f"`{name}`" not in CHANGES] == []
    assert "load_weights" in exported
    assert "`load_weights`" in CHANGES
