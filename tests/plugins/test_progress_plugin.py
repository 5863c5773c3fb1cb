"""`Progress`: the rate of its bar, and what it refuses to write to; `tests/test_progress.py` has the rest."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from builders import small_engine
from heptad import Plugin, PluginError, Run
from heptad_plugins import Progress


class Work(Plugin):
    """Moves the clock of `Progress`: a hundred seconds until there is a first batch, a tenth of one in each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("heptad_plugins.progress.monotonic", lambda: self.now)

    def on_exit_before_loop(self, run: Run) -> None:
        self.now += 50.0

    def on_exit_before_step(self, run: Run) -> None:
        self.now += 50.0 if run.step == 0 else 0.0

    def on_exit_process_batch(self, run: Run) -> None:
        self.now += 0.1


def test_the_rate_of_the_bar_is_counted_from_the_first_step_on(monkeypatch):
    """Starting up is in neither rate nor time left, and they are shown from the second step on; also after a pause."""
    out = io.StringIO()
    plugin = Progress(file=out)
    monkeypatch.setattr(plugin, "_console", Console(file=out, force_terminal=True, width=120))
    monkeypatch.setattr("heptad_plugins.progress.REDRAW", 0.0)
    work = Work(monkeypatch)
    engine = small_engine(3, [work, plugin], epochs=3)
    engine.run(until=lambda run: run.epoch == 2)
    work.now += 1000.0
    engine.run()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    shown = re.findall(r"epoch (\d)/3 step (\d)/3 \S+ loss \d\.\d{4} *([^\r\n]*?) *[\r\n]", text)
    assert list(dict.fromkeys(shown)) == [
        ("1", "1", ""),
        ("1", "2", "10 steps/s  0.7 s left"),
        ("1", "3", "10 steps/s  0.6 s left"),
        ("2", "1", "10 steps/s  0.5 s left"),
        ("2", "2", "10 steps/s  0.4 s left"),
        ("2", "3", "10 steps/s  0.3 s left"),
        ("3", "1", ""),
        ("3", "2", "10 steps/s  0.1 s left"),
        ("3", "3", "10 steps/s  0.0 s left"),
    ]


def test_a_name_in_brackets_is_shown_as_it_is():
    """To rich it would be markup: it would vanish, or end the run."""
    out = io.StringIO()
    engine = small_engine(2, [Progress(file=out)])
    names = ("map[small]", "a[/b]", ":smile:")
    engine.on_exit("after_step")(lambda run: [run.record(name, 1.0) for name in names])
    engine.run()
    assert all(f"{name} 1" in out.getvalue() for name in names)


@pytest.mark.parametrize("file", ["out.txt", 3, io.BytesIO(), True], ids=repr)
def test_what_is_no_open_text_file_is_refused_when_it_is_built(file):
    """Neither a path nor a binary file is one: writing to it would fail after the first epoch."""
    with pytest.raises(PluginError, match=r"Progress\(file=…\) must be an open text file, such as sys.stdout or .*got"):
        Progress(file=file)
