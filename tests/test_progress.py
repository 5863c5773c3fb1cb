"""`Progress`: a bar in a terminal, a line an epoch elsewhere, and no trace in the weights."""

import io
import re
import sys
import threading
import time
import types

import pytest
from rich.console import Console

from builders import batches, equal, small_engine, weights
from heptad import Detour, Plugin, PluginError
from heptad_plugins import Evaluate, Progress, Throughput, _time_left
from heptad_plugins._epoch_line import packed
from heptad_plugins._time_left import Made, TimeLeft


class Rests(Plugin):
    """Adds a detour at the end of each epoch that takes some time."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def detours(self):
        """Return it."""
        ends = ("after_step", "optimizer_update")
        return [Detour("rest", ends, self.is_over, lambda run: time.sleep(self.seconds))]

    def is_over(self, run):
        """Return whether the epoch is."""
        return not run.update_due and not run.batches_remain


def lines_of(loader=3, act=None, plugins=(), show=None, **config):
    """Return the lines that were written of a run."""
    out = io.StringIO()
    engine = small_engine(loader, [*plugins, Progress(file=out, show=show)], **config)
    if act is not None:
        act(engine)
    engine.run()
    return out.getvalue().splitlines()


def at_a_terminal(monkeypatch, width=120, redraw=0.0):
    """Return a plugin that writes to a terminal, and a function that returns what it has drawn there."""
    out = io.StringIO()
    plugin = Progress(file=out)
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(plugin, "_console", console)
    monkeypatch.setattr("heptad_plugins.progress.REDRAW", redraw)
    return plugin, lambda: re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").split("\n")


def test_writes_a_line_an_epoch_where_there_is_no_terminal():
    """Each line has the epoch, the loss, the rate and the time that the epoch took."""
    out = io.StringIO()
    small_engine(3, [Progress(file=out)], epochs=2).run()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {number}/2  loss \d+\.\d{{4}}  +[\d,]+ steps/s  +\d+\.\d s", line)


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
    assert plugin._screen is None


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


def test_columns_stand_below_each_other():
    """However many digits a value has, and whether it was recorded in this epoch or not."""

    def act(engine):
        engine.on_exit("optimizer_update")(lambda run: run.record("norm", 10.0 ** (4 - run.epoch) / 3))
        engine.on_exit("after_step", every=6)(lambda run: run.record("second", 1.0))

    lines = lines_of(3, act, epochs=11)
    starts = [{name: line.index(f"  {name} ") for name in ("loss", "norm", "second") if name in line} for line in lines]
    assert all(start == {k: v for k, v in starts[-1].items() if k in start} for start in starts)
    assert {line.index(" steps/s") for line in lines} == {lines[0].index(" steps/s")}
    assert lines[0].startswith("epoch  1/11  ")
    assert lines[10].startswith("epoch 11/11  ")
    assert lines[2].endswith("  second -")
    assert lines[3].endswith("  second 1")


def test_a_value_that_was_recorded_several_times_is_shown_as_its_mean():
    """Over the epoch; of a learning rate the newest."""

    def act(engine):
        engine.on_exit("after_step")(lambda run: run.record("a", run.step))
        engine.on_exit("optimizer_update")(lambda run: run.record("lr", run.update))

    first, second = lines_of(4, act, epochs=2)
    assert re.search(r"  a 2\.5 +lr 4$", first)
    assert re.search(r"  a 6\.5 +lr 8$", second)


def test_a_line_has_one_speed():
    """Its own; that of Throughput is shown where it is asked for."""
    (line,) = lines_of(3, plugins=[Throughput()])
    assert line.count("steps/s") == 1
    assert "per_second" not in line
    assert "data_wait_share" in line
    (line,) = lines_of(3, plugins=[Throughput()], show=["updates_*"])
    assert re.search(r"  updates_per_second [\d.e+]+$", line)


def test_patterns_choose_what_is_shown_and_in_which_order():
    def act(engine):
        for name in ("b/x", "a/x", "a/y", "train/own"):
            engine.on_exit("after_step")(lambda run, name=name: run.record(name, 1.0))

    (line,) = lines_of(3, act, show=["a/*", "b/?"])
    assert re.search(r" s  a/x 1 +a/y 1 +b/x 1$", line)


@pytest.mark.parametrize(("show", "message"), [("valid/*", "takes a list of patterns"), (["a", 3], "got 3 among them")])
def test_what_is_no_list_of_patterns_is_refused(show, message):
    with pytest.raises(PluginError, match=message):
        Progress(show=show)


def test_lines_are_broken_between_columns(monkeypatch):
    """In a terminal that is too narrow for one line; nothing is cut."""
    plugin, shown = at_a_terminal(monkeypatch, width=60)
    engine = small_engine(3, [plugin], epochs=2)
    for name in ("a_long_name_of_a_value", "another_long_name_of_a_value", "c"):
        engine.on_exit("after_step")(lambda run, name=name: run.record(name, 0.25))
    engine.run()
    assert max(map(len, shown())) < 60
    assert "    another_long_name_of_a_value 0.25       c 0.25" in shown()


def test_a_cell_that_is_wider_than_the_terminal_has_a_line_of_its_own():
    assert packed(["a", "b" * 10, "c"], 8) == ["a", f"    {'b' * 10}", "    c"]
    assert packed(["a", "b"], None) == ["a  b"]


def test_a_detour_has_a_second_bar_while_it_works(monkeypatch):
    """The first time it only moves; then it is as long as the detour took before."""
    monkeypatch.setattr(_time_left, "LOOK_EVERY", 0.0)
    plugin, shown = at_a_terminal(monkeypatch, redraw=0.01)
    small_engine(batches(3), [Rests(0.3), plugin], epochs=2).run()
    bars = [line for line in shown() if line.startswith("  rest  ")]
    assert re.fullmatch(r"  rest  [·━]{30}  0\.[0-3] s", bars[0])
    assert re.fullmatch(r"  rest  [·━]{30}  0\.\d s of about 0\.\d s", bars[-1])
    assert bars[-1].count("━") > 15
    assert all(thread.name != "heptad progress" for thread in threading.enumerate())


def test_the_time_left_knows_the_detours_so_far():
    """In the second of ten epochs of 3 steps: 9 detours are ahead, one of each epoch that is not over."""
    now = [100.0]
    found = []
    engine = small_engine(batches(3), [Rests()], epochs=10)

    @engine.on_exit("after_step")
    def measure(run):
        if run.step == 1:
            found.append(TimeLeft(run, 100.0))
        now[0] += 1.0
        left = found[0]
        left.look(run, now[0])
        if run.step == 5:
            (made,) = left.made.values()
            assert (made.count, made.before) == (1, 1)
            left.made["rest"] = Made(1, 4.0, 1)
            now[0] = 100.0 + 4 * 2.0 + 4.0  # 4 steps of 2 s since the first, and a rest of 4 s
            # 25 steps of 2 s and 9 rests of 4 s; the fifth step's update is not made yet
            assert left.seconds(run, now[0]) == pytest.approx(25 * 2.0 + 9 * 4.0)
            run.stop("seen")

    engine.run()


def test_in_a_notebook_it_is_one_display_without_widgets(monkeypatch):
    """The text of one output is replaced: lines that stay, and the bar below them while the run is driven."""
    bundles, handles = [], []

    class Handle:
        def update(self, bundle, raw):
            assert raw
            bundles.append(bundle)

    def display(bundle, raw, display_id):
        assert (raw, display_id) == (True, True)
        handles.append(bundle)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell, display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr("heptad_plugins.progress.REDRAW", 0.0)
    engine = small_engine(3, [Progress()], epochs=2)
    engine.on_exit("after_step")(lambda run: run.record("<b>", 1.0))
    engine.run()
    assert len(handles) == 1
    lines = bundles[-1]["text/plain"].splitlines()
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "&lt;b&gt; 1" in bundles[-1]["text/html"]
    assert any("━" in bundle["text/plain"] for bundle in bundles)
    assert bundles[-1]["text/html"].startswith("<pre>")


def test_an_evaluation_is_a_detour_that_is_seen(monkeypatch):
    plugin, shown = at_a_terminal(monkeypatch, redraw=0.001)
    data = batches(3)
    engine = small_engine(3, [Evaluate([(x, y) for x, y in data]), plugin], epochs=2)
    engine.run()
    assert any("valid/loss" in line or "Evaluate/loss" in line for line in shown())


def test_signs_that_a_terminal_lacks_are_replaced(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    plugin = Progress(file=out)
    monkeypatch.setattr(plugin, "_console", Console(file=out, force_terminal=True, width=100))
    monkeypatch.setattr("heptad_plugins.progress.REDRAW", 0.0)
    small_engine(3, [plugin], epochs=2).run()
    out.flush()
    assert "##" in out.buffer.getvalue().decode()
