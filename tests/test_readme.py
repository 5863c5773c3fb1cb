"""The README: its code runs, its table is the code's."""

import re
from pathlib import Path

import pytest

from heptad.states import training_table

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_runs(tmp_path, monkeypatch, capsys):
    """The Python blocks run in the order in which they stand, in one session."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    session: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README block {number}", "exec"), session)
    assert "epochs=5 complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "expected"),
    [("table", training_table().markdown()), ("bodies", training_table().markdown_of_bodies())],
)
def test_the_state_table_is_that_of_the_code(part, expected):
    """What the README prints between its marks is what the table says of itself."""
    found = re.search(rf"<!-- {part}: [^\n]*-->\n(.*?)<!-- end of {part} -->", README.read_text(), re.DOTALL)
    assert found is not None
    assert found[1].strip() == expected


@pytest.mark.parametrize("target", re.findall(r"^\$ make (\w+)", README.read_text(), re.MULTILINE))
def test_its_commands_are_targets_of_the_makefile(target):
    """Every `make` command that the README prints exists."""
    makefile = (README.parent / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
