"""`GradientClipping`: torch's clipping, of the gradients that are applied."""

import pytest
import torch
from torch import nn

from builders import batches, equal, small_engine, small_network, weights
from heptad import Components, Engine, Plugin, PluginError, RunConfig
from heptad.testing import check_plugin
from heptad_plugins.gradient_clipping import GradientClipping


def textbook(clip, accumulation=1):
    """Return weights and what `clip` gave, by a plain loop over one epoch of 6 batches."""
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    given = []
    for number, (data, target) in enumerate(batches(6), 1):
        (criterion(network(data), target) / accumulation).backward()
        if number % accumulation == 0:
            given.append(clip(network.parameters()))
            optimizer.step()
            optimizer.zero_grad()
    return weights(network), given


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("max_norm", [0.2, 1e9])
def test_max_norm_is_torchs_own_clipping_and_the_norm_before_it_is_recorded(accumulation, max_norm):
    """Weights and norms are those of the textbook loop, with accumulation those of the whole window."""
    expected, norms = textbook(lambda p: nn.utils.clip_grad_norm_(p, max_norm).item(), accumulation)
    run = small_engine(6, [GradientClipping(max_norm=max_norm)], accumulation=accumulation).run()
    assert run.history("gradient_norm") == norms
    assert equal(weights(run.network), expected)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_max_value_is_torchs_own_clipping(accumulation):
    """Weights are those of the textbook loop; no norm is computed."""
    expected, _ = textbook(lambda p: nn.utils.clip_grad_value_(p, 0.05), accumulation)
    run = small_engine(6, [GradientClipping(max_value=0.05)], accumulation=accumulation).run()
    assert run.history("gradient_norm") == []
    assert equal(weights(run.network), expected)
    assert not equal(weights(run.network), textbook(lambda p: None, accumulation)[0])


def test_the_parameters_of_all_optimizers_count_together_and_each_once():
    """One norm over weight and bias, though the bias is held by two optimizers."""
    network = small_network()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.0), torch.optim.SGD([network.bias], lr=0.0)]
    components = Components(network=network, loader=batches(1), criterion=nn.CrossEntropyLoss(), optimizer=optimizers)
    run = Engine(components, RunConfig(epochs=1), [GradientClipping(max_norm=1e9)]).run()
    data, target = batches(1)[0]
    nn.CrossEntropyLoss()(network(data), target).backward()
    assert run.history("gradient_norm") == [nn.utils.clip_grad_norm_(network.parameters(), 1e9).item()]


def grouped():
    """Return a network of five layers and an optimizer whose groups stand in another order than the network."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 3))
    matrices = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices[::-1], "weight_decay": 0.1}]
    return network, torch.optim.AdamW(groups, lr=0.01)


@pytest.mark.parametrize("held", ["all", "last"])
def test_the_norm_is_taken_in_the_order_of_the_network(held):
    """Norms and weights have the bits of a script that clips `network.parameters()`, whatever the groups."""

    def parts():
        network, optimizer = grouped()
        return network, optimizer if held == "all" else torch.optim.SGD(network[-1].parameters(), lr=0.1)

    network, optimizer = parts()
    norms = []
    for data, target in batches(6):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(network(data), target).backward()
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), 0.2).item())
        optimizer.step()
    expected = weights(network)
    network, optimizer = parts()
    components = Components(network=network, loader=batches(6), criterion=nn.CrossEntropyLoss(), optimizer=optimizer)
    run = Engine(components, RunConfig(epochs=1), [GradientClipping(max_norm=0.2)]).run()
    assert run.history("gradient_norm") == norms
    assert equal(weights(run.network), expected)


def test_a_parameter_that_only_an_optimizer_holds_is_clipped_with_the_network():
    """Such as the temperature of a criterion."""
    network, temperature = small_network(), nn.Parameter(torch.tensor(2.0))
    components = Components(
        network=network,
        loader=batches(1),
        compute_loss=lambda network, batch: nn.functional.cross_entropy(network(batch[0]) * temperature, batch[1]),
        optimizer=torch.optim.SGD([temperature, *network.parameters()], lr=0.0),
    )
    run = Engine(components, RunConfig(epochs=1), [GradientClipping(max_norm=1e9)]).run()
    data, target = batches(1)[0]
    nn.functional.cross_entropy(network(data) * temperature, target).backward()
    norm = nn.utils.clip_grad_norm_([*network.parameters(), temperature], 1e9)
    assert run.history("gradient_norm") == [norm.item()]


def test_comes_after_the_guard_against_non_finite_values():
    """Whatever their place in the list, the guard sees the gradients as they were."""
    seen = []

    class NonFiniteGuard(Plugin):
        def on_enter_optimizer_update(self, run):
            seen.append(float(nn.utils.get_total_norm([p.grad for p in run.network.parameters()])))

    plugins = [GradientClipping(max_norm=1e-3), NonFiniteGuard()]
    one = small_engine(3, plugins).run().history("gradient_norm")
    first, seen[:] = seen[:], []
    other = small_engine(3, [NonFiniteGuard(), GradientClipping(max_norm=1e-3)]).run().history("gradient_norm")
    assert one == first == other == seen
    assert min(seen) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_norm": 1.0, "max_value": 1.0},
        {"max_norm": 0},
        {"max_norm": -1.0},
        {"max_norm": float("nan")},
        {"max_norm": "1"},
        {"max_value": True},
        {"max_value": 0.0},
    ],
)
def test_bad_options_are_refused_when_it_is_built(options):
    """Exactly one bound, and a number above 0."""
    with pytest.raises(PluginError, match="GradientClipping"):
        GradientClipping(**options)


@pytest.mark.parametrize("option", ["max_norm", "max_value"])
def test_passes_the_conformance_kit(option):
    """Paused, rebuilt and restored anywhere, on every path."""
    check_plugin(lambda: GradientClipping(**{option: 0.1}))
