"""The README: its code runs, its table is the code's."""

import re
import tomllib
from pathlib import Path

import pytest

from heptad.cli.main import COMMANDS
from heptad.history.drawing import markdown, markdown_of_bodies
from heptad.table import training_table
from pages import ROUNDS, Session, has_figures

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_runs(tmp_path, monkeypatch, capsys):
    """In the order in which they stand, in one session, twice in one folder; they print what stands beside them."""
    monkeypatch.chdir(tmp_path)
    assert has_figures(README)
    for _ in range(ROUNDS):
        assert Session(README).run_all() >= 6
        assert "epochs=5 complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "expected"),
    [("table", markdown(training_table())), ("bodies", markdown_of_bodies(training_table()))],
)
def test_the_state_table_is_that_of_the_code(part, expected):
    """What the README prints between its marks is what the table says of itself."""
    found = re.search(
        rf"<!-- {part}: [^\n]*-->\n(.*?)<!-- end of {part} -->", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    assert found[1].strip() == expected


@pytest.mark.parametrize("target", re.findall(r"^\$ make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE))
def test_its_commands_are_targets_of_the_makefile(target):
    """Every `make` command that the README prints exists."""
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_what_it_says_is_installed_is_what_the_package_offers():
    """The extras in its commands and in the sentence below them, and what `all` brings, are those of the package."""
    text = README.read_text(encoding="utf-8")
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered = project["optional-dependencies"]
    commands = re.findall(r"^\$ pip install '\.\[(.+)\]'$", text, re.MULTILINE)
    assert commands
    assert {extra for command in commands for extra in command.split(",")} <= set(offered)
    sentence = re.search(r"The extra `rich` is for .*?`all`\s+is these\s+fourteen", text, re.DOTALL)
    assert sentence is not None
    fourteen = set(re.findall(r"`(\w+)`", sentence[0])) & set(offered) - {"all"}
    brought = [extra for group in offered["all"] for extra in re.findall(r"\w+", group.removeprefix("heptad"))]
    assert brought == [extra for extra in offered if extra in fourteen]
    assert len(fourteen) == 14


def test_pictures_come_first_and_limits_beside_the_first_example():
    """The report and the terminal, sixty seconds, the first Python, what it does not do, and then all else."""
    text = README.read_text(encoding="utf-8")
    order = ("docs/pictures/report.png", "docs/pictures/terminal.png", "## Sixty seconds", "```python")
    places = [text.index(part) for part in (*order, "**What it does not do.**", "**What it does.**", "## The states")]
    assert places == sorted(places)
    assert text.count("```python", 0, places[4]) == 1
    assert all((README.parent / path).exists() for path in re.findall(r"!\[.*?\]\((.*?)\)", text))


def test_the_commands_that_it_shows_are_commands():
    """`heptad …` in a block for a terminal, `demo` in the first of them."""
    shown = re.findall(r"^\$ heptad (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown[0] == "demo"
    assert set(shown) <= set(COMMANDS)
