"""`OptimizerMonitor`: norms of gradients, weights and changes by group, as they are applied, and histograms."""

import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.utils import get_total_norm

from builders import Planned, batches, small_components, small_engine, small_network
from heptad import Components, Engine, Plugin, PluginError, RunConfig
from heptad.testing import check_plugin
from heptad_plugins import CSVLogger, GradientClipping, OptimizerMonitor, TensorBoardLogger

torch.set_num_threads(1)


def two_groups(**names):
    """Return an engine builder over a network whose two parameters are two groups."""

    def build(plugins, **config):
        network = small_network()
        groups = [
            {"params": [network.weight], **names.get("first", {})},
            {"params": [network.bias], "lr": 0.01, **names.get("second", {})},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return Engine(
            small_components(network, optimizer=optimizer, loader=batches(6)), RunConfig(epochs=1, **config), plugins
        )

    return build


def written_by_hand(engine):
    """Return lists that are filled with the norms of gradients, weights and changes at each update."""
    grads, weights, ratios, held = [], [], [], []

    @engine.on_enter("optimizer_update")
    def before(run):
        parameters = list(run.network.parameters())
        grads.append(get_total_norm([one.grad for one in parameters]).item())
        held[:] = [one.detach().clone() for one in parameters]

    @engine.on_exit("optimizer_update")
    def after(run):
        parameters = list(run.network.parameters())
        weights.append(get_total_norm([one.detach() for one in parameters]).item())
        change = get_total_norm([one.detach() - old for one, old in zip(parameters, held, strict=True)])
        ratios.append((change / get_total_norm([one.detach() for one in parameters])).item())

    return grads, weights, ratios


@pytest.mark.parametrize("accumulation", [1, 2])
def test_norms_of_one_group_are_torchs(accumulation):
    """Of the window's gradients, of the new weights, and of the change; bit for bit."""
    engine = small_engine(6, [OptimizerMonitor(ratio=True)], accumulation=accumulation)
    expected = written_by_hand(engine)
    run = engine.run()
    found = [run.history(name) for name in ("grad_norm", "weight_norm", "update_ratio")]
    assert found == list(expected)
    assert len(found[0]) == 6 // accumulation


@pytest.mark.parametrize("order", [1, -1])
def test_gradients_are_those_that_are_applied(order):
    """Behind clipping, whatever the order of the list."""
    plugins = [OptimizerMonitor(), GradientClipping(max_norm=0.01)][::order]
    run = small_engine(4, plugins).run()
    assert run.history("grad_norm") == pytest.approx([0.01] * 4, rel=1e-3)


def test_every_and_first_select_the_updates():
    """By the number of the update."""
    run = small_engine(7, [OptimizerMonitor(3, first=2)]).run()
    assert [value.update for value in run.records() if value.name == "grad_norm"] == [2, 5]


def test_groups_are_numbered_over_all_optimizers():
    """As learning rates are."""
    network = small_network()
    optimizers = [torch.optim.SGD([network.weight], lr=0.1), torch.optim.Adam([network.bias], lr=0.1)]
    run = Engine(small_components(network, optimizer=optimizers), RunConfig(epochs=1), [OptimizerMonitor()]).run()
    assert {name for name in run.metrics if "norm" in name} == {
        *("grad_norm/0", "grad_norm/1", "weight_norm/0", "weight_norm/1")
    }
    assert run.history("weight_norm/1")[-1] == network.bias.detach().norm().item()


def test_a_group_with_a_name_is_called_by_it():
    """If no other has the same."""
    named = two_groups(first={"name": "body"}, second={"name": "head"})([OptimizerMonitor()]).run()
    assert {"grad_norm/body", "weight_norm/head"} <= named.metrics.keys()
    twice = two_groups(first={"name": "same"}, second={"name": "same"})([OptimizerMonitor()]).run()
    assert {"grad_norm/0", "weight_norm/1"} <= twice.metrics.keys()


def test_patterns_are_recorded_besides():
    """By names of parameters."""
    run = small_engine(3, [OptimizerMonitor(patterns=["b*"], ratio=True)]).run()
    assert run.history("weight_norm/b*")[-1] == run.network.bias.detach().norm().item()
    assert {"grad_norm", "grad_norm/b*", "update_ratio/b*"} <= run.metrics.keys()


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(PluginError, match=r"no parameter of the network matches 'wieght'; the nearest is 'weight'"):
        small_engine(3, [OptimizerMonitor(patterns=["wieght"])]).run()


class Skips(Plugin):
    """Skips the second update, behind the monitor."""

    runs_after = ("OptimizerMonitor",)

    def on_enter_optimizer_update(self, run):
        if run.windows == 1:
            run.skip_update("planned")


def test_a_skipped_update_has_no_norms(tmp_path: Path):
    """Also where it is skipped after its gradients were looked at; no histogram either."""
    logger = TensorBoardLogger(tmp_path)
    run = small_engine(4, [OptimizerMonitor(histograms=logger), logger, Skips()]).run()
    assert [value.update for value in run.records() if value.name == "grad_norm"] == [1, 2, 3]
    events = EventAccumulator(str(tmp_path), {"histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("gradients/weight")] == [1, 2, 3]


def test_histograms_for_a_logger_that_takes_no_part_are_refused_before_the_first_update(tmp_path: Path):
    engine = small_engine(2, [OptimizerMonitor(histograms=TensorBoardLogger(tmp_path))])
    with pytest.raises(PluginError, match=r"this logger takes no part in the run; put it into the list of plugins"):
        engine.run()
    assert engine.current.update == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e20, -1e30])
def test_a_gradient_that_is_not_finite_is_recorded_as_it_is(value, tmp_path: Path):
    """Its histogram is of what is finite, and not beyond TensorBoard's bins."""
    logger = TensorBoardLogger(tmp_path)

    class Breaks(Plugin):
        runs_before = ("OptimizerMonitor",)

        def on_enter_optimizer_update(self, run):
            run.network.weight.grad[0, 0] = value
            run.network.bias.grad.fill_(value)

    engine = small_engine(2, [Breaks(), OptimizerMonitor(histograms=logger), logger])
    run = engine.run()
    norm = run.history("grad_norm")[0]
    assert repr(norm) == repr(value) if not math.isfinite(value) else norm > 1e20
    events = EventAccumulator(str(tmp_path), {"histograms": 0}).Reload()
    assert events.Histograms("gradients/weight")[0].histogram_value.num == 11
    assert "gradients/bias" not in events.Tags()["histograms"]


def test_a_group_without_gradients_has_no_gradient_norm():
    """A frozen part."""
    engine = two_groups()([OptimizerMonitor(ratio=True)])
    engine.current.network.bias.requires_grad_(False)
    run = engine.run()
    assert "grad_norm/1" not in run.metrics
    assert run.metrics["update_ratio/1"] == 0.0
    assert run.metrics["weight_norm/1"] > 0


def test_sparse_gradients_count_by_their_sums(tmp_path: Path):
    """An index that occurs twice has one number, as in the dense gradient."""
    norms = []
    for sparse in (True, False):
        torch.manual_seed(0)
        words = nn.Embedding(5, 3, sparse=sparse)
        logger = TensorBoardLogger(tmp_path / str(sparse))
        parts = Components(
            network=words,
            loader=[(torch.tensor([1, 1, 4]), torch.tensor([0, 1, 2]))] * 3,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(words.parameters(), lr=0.1),
        )
        run = Engine(parts, RunConfig(epochs=1), [OptimizerMonitor(histograms=logger), logger]).run()
        norms.append(run.history("grad_norm"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_side_optimizers_are_left_out():
    """Other plugins step them."""
    network, tilt = small_network(), nn.Parameter(torch.ones(()))
    parts = small_components(network, side_optimizers={"tilt": torch.optim.SGD([tilt], lr=0.1)})
    run = Engine(parts, RunConfig(epochs=1), [OptimizerMonitor()]).run()
    assert {name for name in run.metrics if "norm" in name} == {"grad_norm", "weight_norm"}


def test_histograms_hold_each_parameter_at_the_updates_that_are_looked_at(tmp_path: Path):
    """Gradients before the update, weights after it."""
    logger = TensorBoardLogger(tmp_path)
    engine = small_engine(6, [OptimizerMonitor(2, histograms=logger), logger])
    sums = []
    engine.on_enter("optimizer_update")(lambda run: sums.append(run.network.weight.grad.double().sum().item()))
    run = engine.run()
    events = EventAccumulator(str(tmp_path), {"histograms": 0}).Reload()
    assert sorted(events.Tags()["histograms"]) == [
        *("gradients/bias", "gradients/weight", "weights/bias", "weights/weight")
    ]
    found = events.Histograms("gradients/weight")
    assert [event.step for event in found] == [2, 4, 6]
    assert [event.histogram_value.sum for event in found] == pytest.approx(sums[1::2], abs=1e-6)
    last = events.Histograms("weights/weight")[-1].histogram_value
    assert last.sum == pytest.approx(run.network.weight.detach().sum().item(), abs=1e-5)
    assert last.max == pytest.approx(run.network.weight.max().item(), rel=1e-6)


def test_loggers_have_the_values_of_the_update(tmp_path: Path):
    """They come behind it."""
    path = tmp_path / "values.csv"
    small_engine(3, [CSVLogger(path), OptimizerMonitor()]).run()
    assert "grad_norm" in path.read_text(encoding="utf-8")


def test_it_changes_nothing():
    """The weights are those of a run without it."""
    one, other = small_engine(5, [OptimizerMonitor(ratio=True)], epochs=2).run(), small_engine(5, epochs=2).run()
    assert torch.equal(one.network.weight, other.network.weight)


def test_with_on_error_detach_the_run_continues():
    """The log says that it was detached."""

    class Broken:
        @property
        def writer(self):
            raise Planned

    run = small_engine(3, [OptimizerMonitor(histograms=Broken(), on_error="detach")]).run()
    assert run.update == 3
    assert "detach" in [note.kind for note in run.log.notes()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, r"OptimizerMonitor\(every=…\) must be a whole number from 1 on"),
        ({"patterns": "weight"}, r"OptimizerMonitor\(patterns=…\) must be a list of names"),
        ({"patterns": [1]}, r"OptimizerMonitor\(patterns=…\) must be a list of names"),
        ({"ratio": 1}, r"OptimizerMonitor\(ratio=…\) must be True or False"),
        (
            {"histograms": "runs"},
            r"OptimizerMonitor\(histograms=…\) must be the TensorBoardLogger of the run, got 'runs'",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(PluginError, match=message):
        OptimizerMonitor(**options)


def test_it_keeps_the_contract():
    assert "no fault found" in str(check_plugin(lambda: OptimizerMonitor(2, ratio=True)))
