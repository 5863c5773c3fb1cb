"""`NonFiniteGuard`: no NaN and no infinity reaches the weights."""

import math

import pytest
import torch
from torch import nn

from builders import batches, equal, small_engine, small_network, weights
from heptad import Components, Engine, LossOutput, PluginError, Run, RunConfig
from heptad.testing import check_plugin
from heptad_plugins.ema import EMA
from heptad_plugins.gradient_clipping import GradientClipping
from heptad_plugins.lr_schedule import LRSchedule
from heptad_plugins.non_finite_guard import NonFiniteGuard
from rebirth import Reborn

BAD = [math.nan, math.inf, -math.inf]


def poisoned(count, *bad, value=math.nan):
    """Return batches, those of these numbers with a value that is not finite in their data."""
    return [
        (data.clone().index_fill_(0, torch.tensor(0), value) if number in bad else data, target)
        for number, (data, target) in enumerate(batches(count))
    ]


def notes(run, kind):
    return [note.text for note in run.log.notes() if note.kind == kind]


def test_skip_gives_the_weights_of_the_run_without_the_bad_batches():
    """Two of six are left out; the notes name what was found."""
    run = small_engine(poisoned(6, 1, 4), [NonFiniteGuard("skip")]).run()
    kept = [batch for number, batch in enumerate(batches(6)) if number not in (1, 4)]
    assert run.update == 4
    assert equal(weights(run.network), weights(small_engine(kept).run().network))
    assert notes(run, "skip") == [
        f"NonFiniteGuard: not finite in update {update}: loss (nan), gradient of weight, gradient of bias"
        for update in (1, 3)
    ]


def test_stop_ends_the_run_in_order_with_the_weights_of_the_last_good_update():
    """No update follows, and the weights never see the NaN."""
    run = small_engine(poisoned(6, 2), [NonFiniteGuard()], epochs=5).run()
    assert (run.state, run.update, run.epoch) == ("finished", 2, 1)
    assert run.reason.startswith("NonFiniteGuard: not finite in update 2: loss (nan)")
    expected = small_engine(batches(6), max_updates=2).run().network
    assert equal(weights(run.network), weights(expected))


def test_raise_names_what_is_not_finite():
    """A FloatingPointError, with the names of the parameters."""
    with pytest.raises(FloatingPointError, match=r"update 2: loss \(nan\), gradient of weight, gradient of bias"):
        small_engine(poisoned(6, 2), [NonFiniteGuard("raise")]).run()


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_step_anywhere_in_the_window_skips_the_whole_window(bad):
    """With accumulation the gradients are those of the window."""
    run = small_engine(poisoned(6, bad), [NonFiniteGuard("skip")], accumulation=3).run()
    assert (run.update, run.step) == (1, 6)
    assert equal(weights(run.network), weights(small_engine(batches(6)[3:], accumulation=3).run().network))


@pytest.mark.parametrize("bad", [(0,), (1,), (2,), (0, 2)])
def test_skip_batch_leaves_out_the_bad_steps_of_a_window(bad):
    """The update is that of the others; a window of bad steps is skipped."""
    run = small_engine(poisoned(6, *bad, 3, 4, 5), [NonFiniteGuard("skip_batch")], accumulation=3).run()
    kept = [batch for number, batch in enumerate(batches(6)[:3]) if number not in bad]
    expected = small_engine(kept, accumulation=len(kept)).run()
    assert (run.update, run.windows, run.step) == (1, 2, 6)
    for ours, theirs in zip(run.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert notes(run, "skip_batch") == [
        f"NonFiniteGuard: not finite in step {step}: loss (nan)" for step in (*bad, 3, 4, 5)
    ]
    assert notes(run, "skip") == ["no step of this window counts: each weighs 0 or has no loss"]


def test_skip_batch_skips_an_update_whose_gradients_are_not_finite():
    """The loss was finite, so the step was made."""
    network = small_network()
    network.weight.register_hook(lambda gradient: gradient * math.nan)
    run = small_engine(2, [NonFiniteGuard("skip_batch")], network=network).run()
    assert (run.update, notes(run, "skip_batch")) == (0, [])
    assert notes(run, "skip") == ["NonFiniteGuard: not finite in update 0: gradient of weight"] * 2


def test_a_hundred_bad_steps_in_a_row_end_the_run():
    """The weights are not finite then, and the run would have no end."""
    engine = small_engine(poisoned(2, 0, 1), [NonFiniteGuard("skip_batch")], max_updates=5)
    with pytest.raises(FloatingPointError, match="100 steps in a row were skipped"):
        engine.run()
    assert engine.current.step == 99


def test_a_step_of_ignored_targets_is_no_alarm():
    """Its loss is not a number, and counts for nothing."""
    data = batches(6)
    for number in (2, 3, 4, 5):
        data[number][1].fill_(-100)
    for action in ("stop", "skip", "raise", "skip_batch"):
        run = small_engine(data, [NonFiniteGuard(action)], accumulation=3).run()
        assert (run.update, run.windows, run.reason) == (1, 2, "epochs=1 complete")
        assert notes(run, "skip_batch") == []


def test_only_skip_batch_is_called_for_each_loss():
    """The other actions add no call to a step."""
    engines = {action: small_engine(2, [NonFiniteGuard(action)]) for action in ("stop", "skip", "raise", "skip_batch")}
    assert {name: len(engine.current._runtime.on_loss) for name, engine in engines.items()} == {
        "stop": 0,
        "skip": 0,
        "raise": 0,
        "skip_batch": 1,
    }


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("where", [("weight", (0, 0)), ("weight", (2, 3)), ("bias", (1,))])
def test_a_single_bad_number_in_a_gradient_is_found(value, where):
    """Wherever it stands, while the loss is finite; the message names the parameter alone."""
    name, place = where
    network = small_network()

    def spoil(gradient):
        gradient = gradient.clone()
        gradient[place] = value
        return gradient

    network.get_parameter(name).register_hook(spoil)
    with pytest.raises(FloatingPointError, match=rf"(?m)update 0: gradient of {name}$"):
        small_engine(2, [NonFiniteGuard("raise")], network=network).run()


def engine_with(compute_loss, network, plugin, optimizer=None, steps=2):
    components = Components(
        network=network,
        loader=batches(steps),
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1) if optimizer is None else optimizer,
    )
    return Engine(components, RunConfig(epochs=1), [plugin])


@pytest.mark.parametrize("value", BAD)
def test_a_bad_loss_with_finite_gradients_is_found(value):
    """The message names the loss alone."""
    engine = engine_with(
        lambda network, batch: network(batch[0]).mean() + value, small_network(), NonFiniteGuard("raise")
    )
    with pytest.raises(FloatingPointError, match=rf"(?m)update 0: loss \({value:g}\)$"):
        engine.run()


def test_large_gradients_are_no_alarm():
    """Their squares would be infinite; they themselves are not."""
    network = small_network()
    network.weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    still = torch.optim.SGD(network.parameters(), lr=0.0)
    run = engine_with(lambda network, batch: network(batch[0]).mean(), network, NonFiniteGuard("raise"), still).run()
    assert run.update == 2


def test_looks_at_all_that_the_optimizers_hold():
    """Parameters outside the network are checked too; those without a gradient or elements are ignored."""
    network = small_network()
    scale, unused, empty = (nn.Parameter(torch.ones(n)) for n in (2, 3, 0))
    scale.register_hook(lambda gradient: gradient * math.nan)
    optimizer = torch.optim.SGD([*network.parameters(), scale, unused, empty], lr=0.1)

    def compute_loss(network, batch):
        return network(batch[0]).mean() * scale.mean() + empty.sum()

    engine = engine_with(compute_loss, network, NonFiniteGuard("raise"), optimizer)
    with pytest.raises(FloatingPointError, match=r"(?m)a parameter of shape \(2,\) outside of the network$"):
        engine.run()


def test_an_update_without_any_gradient_is_sound():
    """The loss depends on what is in no optimizer: there is nothing to look at but the loss."""
    network, other = small_network(), nn.Parameter(torch.ones(1))
    run = engine_with(lambda network, batch: other.sum(), network, NonFiniteGuard("raise")).run()
    assert run.update == 2


def test_looks_at_gradients_of_several_types_together():
    """A float64 gradient beyond the range of float32 is finite; the NaN in the bfloat16 one is found."""
    network = nn.ParameterList([torch.ones(2).double(), torch.ones(2).bfloat16()])
    network[0].register_hook(lambda gradient: gradient * 1e300)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    loss = lambda network, batch: network[0].sum().float() + network[1].sum().float()  # noqa: E731
    assert engine_with(loss, network, NonFiniteGuard("raise"), optimizer).run().update == 2
    network[1].register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match=r"(?m)update 0: gradient of 1$"):
        engine_with(loss, network, NonFiniteGuard("raise"), optimizer).run()


@pytest.mark.parametrize("bad", [False, True])
def test_looks_at_sparse_gradients(bad):
    """At the numbers that they store."""
    network = nn.Embedding(5, 2, sparse=True)
    factor = math.nan if bad else 1.0

    def compute_loss(network, batch):
        return LossOutput((network(batch[1]) * factor).sum() * 0 + network(batch[1]).sum() * factor)

    run = engine_with(compute_loss, network, NonFiniteGuard("skip")).run()
    assert run.update == (0 if bad else 2)


@pytest.mark.parametrize(("layers", "more"), [(3, "1 gradient"), (4, "3 gradients")])
def test_many_bad_gradients_are_counted_not_listed(layers, more):
    """The first five are named."""
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    with pytest.raises(FloatingPointError, match=rf"(?m)gradient of 2\.weight, {more} more$"):
        small_engine(poisoned(1, 0), [NonFiniteGuard("raise")], network=network).run()


def test_every_counts_the_updates_that_are_due():
    """Of seven, the third and the sixth are looked at; that they are skipped does not stop the count."""
    run = small_engine(poisoned(7, 2, 5), [NonFiniteGuard("skip", every=3)]).run()
    assert run.update == 5
    assert len(notes(run, "skip")) == 2


def test_between_two_checks_a_bad_update_goes_by_and_is_found_at_the_next():
    """The delay that the docstring states."""
    with pytest.raises(FloatingPointError, match="update 2"):
        small_engine(poisoned(6, 0), [NonFiniteGuard("raise", every=3)]).run()


@pytest.mark.parametrize("step", range(8))
def test_built_anew_from_its_state_it_checks_when_the_unbroken_run_does(step):
    """The count is state."""
    run = small_engine(poisoned(8, 2, 5), [Reborn(lambda: NonFiniteGuard("skip", every=3), step)]).run()
    assert run.update == 6


def line_to_zero(optimizer, total):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / total)


def test_on_an_update_that_it_skips_schedule_and_average_stand_still():
    """Weights, rates and average are those of a run in which the bad batches never were."""
    guarded, plain = EMA(0.9), EMA(0.9)
    plugins = [
        GradientClipping(max_norm=0.5),
        guarded,
        LRSchedule(lambda o, n: line_to_zero(o, 6)),
        NonFiniteGuard("skip"),
    ]
    run = small_engine(poisoned(6, 0, 3), plugins).run()
    kept = [batch for number, batch in enumerate(batches(6)) if number not in (0, 3)]
    plugins = [GradientClipping(max_norm=0.5), plain, LRSchedule(lambda o, n: line_to_zero(o, 6))]
    expected = small_engine(kept, plugins).run()
    assert run.history("lr") == expected.history("lr")
    assert equal(weights(run.network), weights(expected.network))
    assert equal(weights(guarded.network), weights(plain.network))


@pytest.mark.parametrize("order", [1, -1])
def test_it_looks_before_the_gradients_are_clipped(order):
    """Clipping turns one infinity into NaN everywhere; the message names the one gradient that had it."""
    network = small_network()
    network.bias.register_hook(lambda gradient: gradient * math.inf)
    plugins = [GradientClipping(max_norm=1.0), NonFiniteGuard("raise")][::order]
    with pytest.raises(FloatingPointError, match=r"(?m)update 0: gradient of bias$"):
        small_engine(2, plugins, network=network).run()


@pytest.mark.parametrize("every", [1, 2])
def test_leaves_a_sound_run_alone(every):
    """Weights are the same, bit for bit, with and without it."""
    plain, guarded = small_engine(5, epochs=2), small_engine(5, [NonFiniteGuard(every=every)], epochs=2)
    assert equal(weights(plain.run().network), weights(guarded.run().network))


@pytest.mark.parametrize(
    "options", [{"action": "warn"}, {"action": None}, {"every": 0}, {"every": 1.5}, {"every": True}]
)
def test_bad_options_are_refused_when_it_is_built(options):
    """The message names the option."""
    with pytest.raises(PluginError, match=rf"NonFiniteGuard\({next(iter(options))}=…\)"):
        NonFiniteGuard(**options)


@pytest.mark.parametrize("action", ["stop", "skip", "raise"])
def test_passes_the_conformance_kit(action):
    """Paused, rebuilt and restored anywhere, on every path."""
    check_plugin(lambda: NonFiniteGuard(action, every=2))


def test_skipping_comes_to_an_end():
    """Weights that are not finite stay so: with `max_updates` alone such a run would continue for ever."""
    network = small_network()
    with torch.no_grad():
        network.weight.fill_(math.nan)
    components = Components(
        network=network,
        loader=batches(3),
        compute_loss=lambda network, batch: network(batch[0]).sum(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    engine = Engine(components, RunConfig(max_updates=5), [NonFiniteGuard("skip")])
    with pytest.raises(FloatingPointError, match="100 updates in a row were skipped: no further one would be sound"):
        engine.run()
    assert (engine.current.update, engine.current.step) == (0, 100)


def test_updates_that_are_sound_between_begin_the_count_anew():
    """Ninety-nine in a row are borne, again and again."""
    calls = []

    def compute_loss(network, batch):
        calls.append(batch)
        return network(batch[0]).sum() * (1.0 if len(calls) % 100 == 0 else math.nan)

    network = small_network()
    components = Components(
        network=network,
        loader=batches(3),
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    )
    run = Engine(components, RunConfig(max_updates=2), [NonFiniteGuard("skip")]).run()
    assert (run.update, run.step) == (2, 200)


def test_a_subclass_looks_at_losses_with_any_action():
    """Its own `on_loss` is called, and the guard's leaves steps out with `"skip_batch"` only."""

    class Looks(NonFiniteGuard):
        def on_loss(self, run: Run) -> None:
            super().on_loss(run)
            seen.append(run.loss.item())

    seen: list[float] = []
    small_engine(3, [Looks("stop")]).run()
    assert len(seen) == 3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_is_told_from_an_overflow_in_fp16(accumulation):
    """The scaler skips both updates; halving the scale mends the overflow alone."""
    config = {"precision": "fp16-mixed", "accumulation": accumulation, "device": "cpu"}
    run = small_engine(poisoned(8, 5), [NonFiniteGuard()], **config).run()
    assert run.reason.startswith(f"NonFiniteGuard: not finite in update {run.update}: loss (nan)")
    assert run.windows == 5 // accumulation + 1
    with pytest.raises(FloatingPointError, match="not finite in update"):
        small_engine(poisoned(8, 5), [NonFiniteGuard("raise")], **config).run()

    def loud(network, batch):
        return nn.functional.cross_entropy(network(batch[0]), batch[1]) * 100.0

    network = small_network()
    parts = Components(
        network=network,
        loader=batches(8),
        compute_loss=loud,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.001),
    )
    run = Engine(parts, RunConfig(epochs=1, **config), [NonFiniteGuard("raise")]).run()
    assert "fp16: a gradient is not finite at scale" in notes(run, "skip")[0]
    assert run.reason.startswith("epochs=1")
