"""`Progress`: a bar in a terminal, a line an epoch elsewhere, and no trace in the weights."""

import io
import re
import sys

import pytest
from rich.console import Console

from builders import equal, small_engine, weights
from heptad_plugins import Progress


def test_writes_a_line_an_epoch_where_there_is_no_terminal():
    """Each line has the epoch, the loss, the rate and the time that the epoch took."""
    out = io.StringIO()
    small_engine(3, [Progress(file=out)], epochs=2).run()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {number}/2  loss \d+\.\d{{4}}  [\d,]+ steps/s  \d+\.\d s", line)


def test_a_line_has_the_recorded_values():
    """What handlers record is shown by name."""
    out = io.StringIO()
    engine = small_engine(3, [Progress(file=out)])
    engine.on_exit("after_step")(lambda run: run.record("error", 0.25))
    engine.run()
    assert "  error 0.25" in out.getvalue()


def test_the_loss_stands_once_in_a_line():
    """Also where somebody recorded it, as Journal does."""
    out = io.StringIO()
    engine = small_engine(3, [Progress(file=out)])
    engine.on_exit("after_step")(lambda run: run.record("loss", run.loss))
    engine.run()
    assert out.getvalue().count("loss ") == 1


def test_draws_a_bar_in_a_terminal(monkeypatch):
    """The bar shows epoch and step, loss, rate and time left, and is gone when `run()` returns."""
    out = io.StringIO()
    plugin = Progress(file=out)
    monkeypatch.setattr(plugin, "_console", Console(file=out, force_terminal=True, width=120))
    monkeypatch.setattr("heptad_plugins.progress.REDRAW", 0.0)
    small_engine(3, [plugin], epochs=2).run()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert re.search(r"epoch 2/2 step 1/3 .*loss \d+\.\d{4}  [\d,]+ steps/s  \d+\.\d s left", text)
    assert plugin._bar is None


def test_works_where_the_length_of_the_run_is_unknown():
    """Without a known length there is no time left, and no error."""
    out = io.StringIO()
    engine = small_engine(iter([*small_engine(3)._components.loader]), [Progress(file=out)], max_updates=3)
    engine.run()
    assert out.getvalue().startswith("epoch 1  loss")


def test_writes_to_the_standard_error_stream(capsys):
    """A program's output stays its own."""
    small_engine(3, [Progress()]).run()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("epoch 1/1")


def test_leaves_the_weights_alone():
    """Weights are the same, bit for bit, with and without it."""
    plain, watched = small_engine(3, epochs=2), small_engine(3, [Progress(file=io.StringIO())], epochs=2)
    assert equal(weights(plain.run().network), weights(watched.run().network))


def test_without_rich_the_error_names_the_extra(monkeypatch):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'heptad\[rich\]'"):
        Progress()
