"""Updates that train nothing, or not all that they did, since a handler put other parameters in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from builders import CLASSES, FEATURES, Unsized, batches, small_components, small_config
from heptad import Engine, EngineError
from heptad.record.event_codec import from_plain, to_plain

HIDDEN = 5


def two_layers():
    """Return a network of two trainable layers."""
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def changed_in_update(change, network=None, update=3, loader=6, **fields):
    """Return an engine in which a function of the run is called on exit of one update."""
    data = batches(loader) if isinstance(loader, int) else loader
    config = {name: fields.pop(name) for name in ("epochs", "max_updates") if name in fields}
    engine = Engine(small_components(network or two_layers(), loader=data, **fields), small_config(**config))

    @engine.on_exit("optimizer_update")
    def _(run):
        if run.update == update:
            change(run)

    return engine


def put_a_layer(run):
    run.network[0] = nn.Linear(FEATURES, HIDDEN)


def clear_groups(run):
    run.optimizer.param_groups.clear()


def empty_the_group(run):
    run.optimizer.param_groups[0]["params"].clear()


def hold_copies(run):
    group = run.optimizer.param_groups[0]
    group["params"] = [nn.Parameter(one.detach().clone()) for one in group["params"]]


def assign(run):
    run.network.load_state_dict({name: one.clone() for name, one in run.network.state_dict().items()}, assign=True)


def put_all(run):
    for name in ("0", "2"):
        setattr(run.network, name, nn.Linear(*reversed(run.network[int(name)].weight.shape)))


@pytest.mark.parametrize("loader", [6, Unsized(batches(6))], ids=["sized", "unsized"])
@pytest.mark.parametrize("change", [clear_groups, empty_the_group, hold_copies, assign, put_all])
def test_a_run_whose_updates_reach_nothing_any_more_fails(change, loader):
    """It would count updates to its end, and no weight would move."""
    engine = changed_in_update(change, loader=loader)
    with pytest.raises(EngineError, match="updates change no parameter of the network any more"):
        engine.run()
    assert engine.current.state == "failed"
    assert engine.current.epoch == 0
    assert len(engine.current.log.notes("untrained")) == 1


def test_a_layer_that_no_optimizer_holds_is_named_once():
    """The first update after it is known by arithmetic: the epoch in which it was replaced ends with 6 updates."""
    run = changed_in_update(put_a_layer, epochs=3).run()
    (note,) = run.log.notes("untrained")
    assert "no optimizer holds what was put into the network: 0.weight, 0.bias" in note.text
    assert (run.update, run.log[note.seq].source, run.log[note.seq].update) == (18, "after_epoch", 6)
    assert from_plain(to_plain(note)) == note


def test_a_group_that_is_taken_from_the_optimizer_is_named():
    """The layer stays in the network and does not move any more."""
    network = two_layers()
    groups = torch.optim.SGD([{"params": network[0].parameters()}, {"params": network[2].parameters()}], lr=0.1)
    run = changed_in_update(lambda run: run.optimizer.param_groups.pop(), network, optimizer=groups).run()
    (note,) = run.log.notes("untrained")
    assert "no optimizer holds these parameters of the network any more: 2.weight, 2.bias" in note.text


def test_a_layer_that_is_taken_from_the_network_is_named():
    """The optimizer holds on to it."""
    run = changed_in_update(lambda run: run.network.__setitem__(2, nn.Identity())).run()
    (note,) = run.log.notes("untrained")
    assert "an optimizer holds what is not in the network any more: 2.weight, 2.bias" in note.text


def hand_over(run):
    put_a_layer(run)
    run.optimizer.add_param_group({"params": run.network[0].parameters()})


def freeze(run):
    run.network[0].requires_grad_(False)


def prune(run):
    l1_unstructured(run.network[0], "weight", amount=2)


def parametrize(run):
    nn.utils.parametrizations.spectral_norm(run.network[0])


def to_double_and_back(run):
    run.network.double().float()


def in_place(run):
    nn.init.zeros_(run.network[0].weight)


def put_a_frozen_layer_beside(run):
    run.network.append(nn.Identity()).append(nn.Linear(CLASSES, CLASSES).requires_grad_(False))


@pytest.mark.parametrize(
    "change", [hand_over, freeze, prune, parametrize, to_double_and_back, in_place, put_a_frozen_layer_beside]
)
def test_what_is_trained_on_or_frozen_on_purpose_is_not_reported(change):
    assert not changed_in_update(change, epochs=2).run().log.notes("untrained")


def test_layers_added_to_the_optimizer_later_may_leave_it_later():
    """Only what was taken away is named."""
    network = two_layers()
    sgd = torch.optim.SGD(network[2].parameters(), lr=0.1)
    engine = changed_in_update(
        lambda run: run.optimizer.add_param_group({"params": run.network[0].parameters()}),
        network,
        optimizer=sgd,
        epochs=2,
    )
    engine.on_exit("optimizer_update", every=9)(lambda run: run.optimizer.param_groups.pop())
    (note,) = engine.run().log.notes("untrained")
    assert "any more: 0.weight, 0.bias" in note.text
    assert "2.weight" not in note.text


def test_gradients_that_a_handler_drops_in_mid_run_are_reported():
    """From the fourth update on nothing moves; the last update of the pass is looked at."""
    engine = changed_in_update(lambda run: None)

    @engine.on_enter("optimizer_update")
    def _(run):
        if run.update >= 3:
            run.optimizer.zero_grad()

    (note,) = engine.run().log.notes("untrained")
    assert "no parameter that the optimizer holds has a gradient" in note.text


def test_gradients_cleared_after_an_update_are_no_fault():
    """What is looked at is what the update applies."""
    engine = changed_in_update(lambda run: None, epochs=2)
    engine.on_exit("optimizer_update")(lambda run: run.optimizer.zero_grad())
    assert not engine.run().log.notes("untrained")


def endless():
    while True:
        yield from batches(6)


@pytest.mark.parametrize("updates", [4100, 500])
def test_an_endless_stream_is_looked_at_all_the_same(updates):
    """In the 4,096th update, and in the last one: no pass ends, so that nothing else would."""
    engine = changed_in_update(lambda run: None, loader=endless(), max_updates=updates)

    @engine.on_enter("optimizer_update")
    def _(run):
        if run.update >= 3:
            run.optimizer.zero_grad()

    (note,) = (run := engine.run()).log.notes("untrained")
    assert "no parameter that the optimizer holds has a gradient" in note.text
    assert run.log[note.seq].source == "optimizer_update"
    assert run.log[note.seq].update == (4097 if updates > 4096 else updates)


def test_a_layer_replaced_in_an_endless_stream_is_named_within_4096_updates():
    run = changed_in_update(put_a_layer, loader=endless(), max_updates=4100).run()
    (note,) = run.log.notes("untrained")
    assert "no optimizer holds what was put into the network: 0.weight, 0.bias" in note.text
    assert (run.log[note.seq].source, run.log[note.seq].update) == ("optimizer_update", 4097)


def test_an_event_of_before_there_was_a_finding_is_read():
    note = from_plain({"event": "Untrained", "seq": 7, "time_ns": 1})
    assert "no parameter that the optimizer holds has a gradient" in note.text
