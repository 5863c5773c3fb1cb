"""The examples run and show what they promise."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_digits_learns_and_explains_itself(tmp_path):
    """Accuracy of at least 0.97, the diagram, entries and durations, ten transitions, and where the log is."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "digits.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    accuracy = re.search(r"held-out accuracy (\d\.\d+)", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.97
    assert "stateDiagram-v2" in done.stdout
    assert re.search(r"^optimizer_update +345 .* µs .* s$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^#\d+ \w+ -> \w+ ", done.stdout, re.MULTILINE)) == 10
    written = re.search(r"All ([\d,]+) transitions are in (\S+),", done.stdout)
    assert written is not None
    lines = (tmp_path / written[2]).read_text().splitlines()
    assert len(lines) == int(written[1].replace(",", ""))
    assert done.stderr.count("epoch ") == 15
