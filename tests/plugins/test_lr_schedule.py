"""`LRSchedule`: torch's schedules, sized by the run, standing still where no update is made."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from builders import Side, Unsized, batches, equal, small_engine, small_network, weights
from heptad import Components, Detour, Engine, EngineError, Plugin, PluginError, RunConfig
from heptad.step.optimizers import Optimizers
from heptad.testing import check_plugin
from heptad_plugins._scheduler import scheduler_from_format_1
from heptad_plugins.evaluate import Evaluate
from heptad_plugins.lr_schedule import LRSchedule
from rebirth import Reborn


def one_cycle(optimizer, total):
    return schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=total)


def warm_up_and_cosine(optimizer, total):
    warm_up = schedulers.LinearLR(optimizer, 0.1, total_iters=2)
    return schedulers.SequentialLR(optimizer, [warm_up, schedulers.CosineAnnealingLR(optimizer, total - 2)], [2])


def line_to_zero(optimizer, total):
    return schedulers.LambdaLR(optimizer, lambda update: 1 - update / total)


def steps(optimizer, total):
    return schedulers.MultiStepLR(optimizer, [2, 4, 5])


def chain(optimizer, total):
    return schedulers.ChainedScheduler(
        [schedulers.LinearLR(optimizer, 0.1, total_iters=3), schedulers.ExponentialLR(optimizer, 0.9)]
    )


def cyclic(optimizer, total):
    return schedulers.CyclicLR(optimizer, 0.01, 0.2, step_size_up=2)


EACH = [one_cycle, warm_up_and_cosine, line_to_zero, steps, chain, cyclic]


def textbook(build, total, moves=None):
    """Return torch's own rates for `total` updates, and the rate after the last."""
    optimizer = torch.optim.SGD(small_network().parameters(), lr=0.1, momentum=0.9)
    scheduler = build(optimizer, total if moves is None else moves)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates, optimizer.param_groups[0]["lr"]


class Skip(Plugin):
    """Skips the updates of these numbers, counted from 0 over all that are due."""

    def __init__(self, *numbers):
        self.numbers, self.due = numbers, 0

    def on_enter_optimizer_update(self, run):
        if self.due in self.numbers:
            run.skip_update("Skip: planned")
        self.due += 1


@pytest.mark.parametrize("build", EACH)
@pytest.mark.parametrize(
    ("config", "updates"),
    [
        ({"epochs": 2}, 14),
        ({"epochs": 3, "accumulation": 3}, 9),
        ({"epochs": 3, "accumulation": 3, "remainder": "flush"}, 9),
        ({"epochs": 3, "accumulation": 3, "remainder": "drop"}, 6),
        ({"max_updates": 5, "accumulation": 3}, 5),
    ],
)
def test_gives_the_rates_of_the_textbook_loop_and_ends_where_the_run_ends(build, config, updates):
    """Each update's rate, and the one behind the last, are torch's own for that many updates."""
    engine = small_engine(7, [LRSchedule(build)], **config)
    run = engine.run()
    assert run.update == updates
    assert (run.history("lr"), run.optimizer.param_groups[0]["lr"]) == textbook(build, updates)


def test_a_one_cycle_makes_its_last_update_at_its_lowest_rate():
    """The run is exactly as long as the schedule: neither is the end cut off, nor does it come too early."""
    rates = small_engine(7, [LRSchedule(one_cycle)], epochs=3, accumulation=3).run().history("lr")
    assert min(rates) == rates[-1] == pytest.approx(1.0 / 25 / 1e4)
    assert max(rates) == pytest.approx(1.0, rel=0.1)


def test_takes_a_scheduler_that_is_built_already():
    """Its optimizer is the run's; nobody needs to know how long the run is."""
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    components = Components(
        network=network, loader=Unsized(batches(3)), criterion=nn.CrossEntropyLoss(), optimizer=optimizer
    )
    plugin = LRSchedule(schedulers.ExponentialLR(optimizer, 0.5))
    run = Engine(components, RunConfig(epochs=1), [plugin]).run()
    assert run.history("lr") == [0.1, 0.05, 0.025]


def test_interval_epoch_moves_once_an_epoch():
    """One value an epoch, while `total_updates` counts updates."""
    given = []

    def build(optimizer, total):
        given.append(total)
        return schedulers.ExponentialLR(optimizer, 0.5)

    run = small_engine(4, [LRSchedule(build, interval="epoch")], epochs=3).run()
    assert given == [12]
    assert run.history("lr") == [0.1, 0.05, 0.025]
    assert [record.update for record in run.records() if record.name == "lr"] == [4, 8, 12]


def test_several_groups_are_recorded_by_number():
    """`lr/0`, `lr/1`, …, and no `lr`."""
    network = small_network()
    groups = [{"params": [network.weight], "lr": 0.1}, {"params": [network.bias], "lr": 0.4}]
    components = Components(
        network=network, loader=batches(2), criterion=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(groups)
    )
    run = Engine(components, RunConfig(epochs=1), [LRSchedule(lambda o, n: schedulers.ExponentialLR(o, 0.5))]).run()
    assert (run.history("lr/0"), run.history("lr/1"), run.history("lr")) == ([0.1, 0.05], [0.4, 0.2], [])


def two_optimizers(*plugins):
    """Return an engine whose weight and bias have an optimizer each."""
    network = small_network()
    optimizers = [torch.optim.SGD([network.weight], lr=0.1), torch.optim.SGD([network.bias], lr=0.4)]
    components = Components(network=network, loader=batches(2), criterion=nn.CrossEntropyLoss(), optimizer=optimizers)
    return Engine(components, RunConfig(epochs=1), plugins)


def test_each_of_several_optimizers_has_a_schedule_of_its_own():
    """A function gets the one that is named; rates are counted over all optimizers, each recorded by its own."""

    def halved(optimizer):
        return schedulers.ExponentialLR(optimizer, 0.5)

    run = two_optimizers(LRSchedule(halved), LRSchedule(line_to_zero, optimizer=1)).run()
    assert (run.history("lr/0"), run.history("lr/1"), run.history("lr")) == ([0.1, 0.05], [0.4, 0.2], [])
    run = two_optimizers(LRSchedule(halved, optimizer=1)).run()
    assert (run.history("lr/0"), run.history("lr/1")) == ([], [0.4, 0.2])
    assert [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers] == [0.1, 0.1]


def test_two_schedules_of_one_optimizer_have_names_of_their_own():
    """The second chains on the first, as torch's do; the rate is recorded once, before either moves."""

    def halved(optimizer):
        return schedulers.ExponentialLR(optimizer, 0.5)

    with pytest.raises(PluginError, match="two plugins have the name 'LRSchedule'"):
        small_engine(3, [LRSchedule(halved), LRSchedule(halved)])
    run = small_engine(3, [LRSchedule(halved), LRSchedule(halved, name="second")]).run()
    assert run.history("lr") == [0.1, 0.025, 0.00625]
    assert LRSchedule(halved, optimizer=1).name == "LRSchedule/1"
    assert LRSchedule(halved, optimizer=1, name="second").name == "second"
    for wrong in ("", 3):
        with pytest.raises(PluginError, match=r"LRSchedule\(name=…\)"):
            LRSchedule(halved, name=wrong)


def test_one_optimizer_is_said_to_be_one():
    """And not several."""
    with pytest.raises(EngineError, match=r"LRSchedule\(optimizer=1\): there is 1 optimizer, counted from 0"):
        small_engine(2, [LRSchedule(steps, optimizer=1)]).run()


def test_an_optimizer_that_is_not_there_is_named():
    """With how many there are."""
    with pytest.raises(EngineError, match=r"LRSchedule\(optimizer=2\): there are 2 optimizers, counted from 0"):
        two_optimizers(LRSchedule(line_to_zero, optimizer=2)).run()
    with pytest.raises(PluginError, match="optimizer=…"):
        LRSchedule(line_to_zero, optimizer=-1)


def test_stands_still_on_a_skipped_update():
    """The rates are those of the updates that were made, also where the very first is skipped."""
    run = small_engine(6, [Skip(0, 3), LRSchedule(line_to_zero)]).run()
    assert run.update == 4
    assert run.history("lr") == textbook(line_to_zero, 4, moves=6)[0]


def test_stands_still_in_an_epoch_without_an_update():
    """No rate is recorded for it, and torch has nothing to warn of."""
    plugin = LRSchedule(lambda o, n: schedulers.ExponentialLR(o, 0.5), interval="epoch")
    run = small_engine(2, [Skip(0, 1), plugin], epochs=3).run()
    assert run.history("lr") == [0.1, 0.05]


def test_a_run_without_updates_asks_for_no_schedule():
    """A schedule of length 0 would divide by it; none is built."""
    assert small_engine(3, [LRSchedule(line_to_zero)], max_updates=0).run().state == "finished"


@pytest.mark.parametrize("interval", ["epoch", "update"])
def test_reduce_on_plateau_looks_at_the_newest_recorded_value(interval):
    """The rates are those that torch's scheduler gives for the same values."""
    values = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5]
    optimizer = torch.optim.SGD(small_network().parameters(), lr=0.1)
    expected, scheduler = [], schedulers.ReduceLROnPlateau(optimizer, patience=1)
    for value in values:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(value)
    plugin = LRSchedule(lambda o, n: schedulers.ReduceLROnPlateau(o, patience=1), interval, monitor="error")
    engine = small_engine(1, [plugin], epochs=len(values))
    engine.on_enter("optimizer_update")(lambda run: run.record("error", values[run.epoch]))
    assert engine.run().history("lr") == expected


def test_a_monitor_that_was_never_recorded_is_an_error_that_names_what_was():
    """The message has the missing name and the recorded ones."""
    plugin = LRSchedule(lambda o, n: schedulers.ReduceLROnPlateau(o), "epoch", monitor="valid/los")
    engine = small_engine(2, [plugin])
    engine.on_exit("after_step")(lambda run: run.record("valid/loss", 1.0))
    with pytest.raises(EngineError, match=r"'valid/los'.*by the end of epoch 1 \(update 2\).*'valid/loss'"):
        engine.run()


def test_a_monitor_that_is_recorded_once_an_epoch_needs_the_interval_epoch():
    """The message says so where the schedule looks after each update, and when it looked."""
    plugin = LRSchedule(lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5), monitor="valid/loss")
    with pytest.raises(EngineError, match=r"(?m)recorded by update 1 \(epoch 0\); .* needs interval='epoch'$"):
        small_engine(2, [plugin, Evaluate(batches(1))]).run()


def test_an_unknown_number_of_updates_is_an_error_that_says_what_to_do():
    """Data without a length and no `max_updates`."""
    with pytest.raises(EngineError, match="max_updates"):
        small_engine(Unsized(batches(3)), [LRSchedule(one_cycle)]).run()


def test_a_scheduler_of_another_optimizer_is_an_error():
    """It would move the rate of nothing."""
    other = torch.optim.SGD(small_network().parameters(), lr=0.1)
    with pytest.raises(EngineError, match="optimizer that is not the run's"):
        small_engine(3, [LRSchedule(schedulers.ExponentialLR(other, 0.5))]).run()


def test_a_function_that_returns_no_scheduler_is_an_error():
    """The message has what it returned."""
    with pytest.raises(EngineError, match="must return a torch scheduler, got None"):
        small_engine(3, [LRSchedule(lambda optimizer, total: None)]).run()


def plateau():
    return schedulers.ReduceLROnPlateau(torch.optim.SGD(small_network().parameters()))


def exponential():
    return schedulers.ExponentialLR(torch.optim.SGD(small_network().parameters()), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: {"scheduler": 3}, "takes a scheduler or a function"),
        (lambda: {"scheduler": lambda: None}, r"calls its function as \(optimizer, total_updates\)"),
        (lambda: {"scheduler": lambda one, two, three: None}, r"or with the optimizer alone; got \(one, two, three\)"),
        (lambda: {"scheduler": one_cycle, "interval": "step"}, "interval"),
        (lambda: {"scheduler": plateau()}, "monitor=None with ReduceLROnPlateau"),
        (lambda: {"scheduler": exponential(), "monitor": "loss"}, "monitor='loss' with ExponentialLR"),
        (
            lambda: {"scheduler": schedulers.ExponentialLR},
            r"the class ExponentialLR, .* LRSchedule\(lambda optimizer: ExponentialLR\(optimizer, …\)\)",
        ),
        (lambda: {"scheduler": schedulers.CosineAnnealingLR}, "the class CosineAnnealingLR"),
        (lambda: {"scheduler": schedulers.ReduceLROnPlateau, "monitor": "loss"}, "the class ReduceLROnPlateau"),
        (
            lambda: {"scheduler": partial(schedulers.ExponentialLR)},
            r"total_updates to this partial of ExponentialLR, whose next parameter is gamma; .*, gamma=…\)\)",
        ),
        (lambda: {"scheduler": partial(schedulers.StepLR, gamma=0.5)}, "whose next parameter is step_size"),
    ],
)
def test_bad_options_are_refused_when_it_is_built(arguments, message):
    """Nothing waits for the run to find them."""
    with pytest.raises(PluginError, match=message):
        LRSchedule(**arguments())


@pytest.mark.parametrize(
    ("build", "rates"),
    [
        (partial(schedulers.ExponentialLR, gamma=0.5), [0.1, 0.05, 0.025, 0.0125]),
        (partial(schedulers.StepLR, step_size=2), [0.1, 0.1, 0.01, 0.01]),
        (partial(schedulers.CosineAnnealingLR, eta_min=0.05), [0.1, 0.0926776695296637, 0.075, 0.0573223304703363]),
    ],
)
def test_a_partial_whose_options_are_given_is_taken(build, rates):
    """All of them, or all but the one that is called like the length of a run."""
    assert small_engine(4, [LRSchedule(build)]).run().history("lr") == pytest.approx(rates)


def test_a_function_that_gives_a_plateau_without_a_monitor_is_an_error():
    """It is known only when the function is called."""
    with pytest.raises(EngineError, match="monitor=None with ReduceLROnPlateau"):
        small_engine(3, [LRSchedule(lambda o, n: schedulers.ReduceLROnPlateau(o))]).run()


def new_optimizer(run):
    """Put a new optimizer with the old one's state into the run, as resuming does."""
    old = run.optimizer
    new = torch.optim.SGD(run.network.parameters(), lr=0.1, momentum=0.9)
    new.load_state_dict(old.state_dict())
    run._runtime.optimizers = Optimizers([new])


@pytest.mark.parametrize("build", EACH)
@pytest.mark.parametrize("renew", [None, new_optimizer])
@pytest.mark.parametrize("step", [0, 4, 6, 20])
def test_built_anew_from_its_state_it_continues_as_if_nothing_had_been(build, renew, step):
    """Rates and weights are those of the unbroken run, wherever it is rebuilt, with the old optimizer or a new one."""
    config = {"epochs": 3, "accumulation": 3}
    unbroken = small_engine(7, [LRSchedule(build)], **config).run()
    reborn = small_engine(7, [Reborn(lambda: LRSchedule(build), step, renew)], **config).run()
    assert reborn.history("lr") == unbroken.history("lr")
    assert equal(weights(reborn.network), weights(unbroken.network))


def test_built_anew_between_the_last_update_of_an_epoch_and_its_end_it_moves_at_that_end():
    """The new optimizer has made no step yet; torch has nothing to warn of."""
    make = lambda: LRSchedule(lambda o, n: schedulers.ExponentialLR(o, 0.5), "epoch")  # noqa: E731
    plugin = Reborn(make, renew=new_optimizer)
    engine = small_engine(3, [plugin], epochs=3)
    engine.on_enter("after_epoch", once=True)(plugin.replace_now)
    assert engine.run().history("lr") == [0.1, 0.05, 0.025]


def test_a_plateau_built_anew_remembers_its_best_value():
    """Its count of bad epochs is state too."""

    def history(step):
        make = lambda: LRSchedule(lambda o, n: schedulers.ReduceLROnPlateau(o, patience=2), "epoch", "error")  # noqa: E731
        engine = small_engine(1, [Reborn(make, step)], epochs=8)
        engine.on_enter("after_epoch")(lambda run: run.record("error", [1.0, 2.0][run.epoch > 0]))
        return engine.run().history("lr")

    assert len(set(history(None))) == 3
    assert [history(step) for step in range(8)] == [history(None)] * 8


def test_comes_before_the_loggers():
    """Whatever their place in the list, they see the rate of this update."""
    seen = []

    class CSVLogger(Plugin):
        def on_exit_optimizer_update(self, run):
            seen.append(run.metrics["lr"])

    small_engine(3, [CSVLogger(), LRSchedule(line_to_zero)]).run()
    assert seen == textbook(line_to_zero, 3)[0]


@pytest.mark.parametrize("interval", ["update", "epoch"])
def test_passes_the_conformance_kit_wherever_the_length_of_the_run_is_known(interval):
    """Paused, rebuilt and restored anywhere; without a length, its refusal is the one thing that the kit may find."""
    try:
        check_plugin(lambda: LRSchedule(line_to_zero, interval))
    except PluginError as error:
        _, *faults = str(error).splitlines()
        assert ["LRSchedule cannot size the schedule" in fault for fault in faults] == [True]


def test_a_function_of_the_optimizer_alone_needs_no_length():
    """Data without a length can be trained on with a schedule that does not depend on how long the run is."""
    plugin = LRSchedule(lambda optimizer: schedulers.ExponentialLR(optimizer, 0.5))
    run = small_engine(Unsized(batches(3)), [plugin]).run()
    assert run.history("lr") == [0.1, 0.05, 0.025]


@pytest.mark.parametrize(("k", "updates"), [(1, 10), (4, 4)])
def test_keeps_the_length_it_was_built_with_when_the_accumulation_changes(k, updates):
    """Torch's schedulers cannot be stretched: the rates are those of the length that was known at the beginning."""
    engine = small_engine(12, [LRSchedule(line_to_zero)], accumulation=2)
    engine.on_exit("after_step", every=4)(lambda run: run.set_accumulation(k))
    run = engine.run()
    assert run.update == updates
    assert run.history("lr") == [0.1 * (1 - update / 6) for update in range(updates)]


@pytest.mark.parametrize("k", [1, 4])
def test_a_function_that_asks_for_the_length_itself_follows_a_change_of_accumulation(k):
    """It ends where the run ends, as the page says."""
    plugin = LRSchedule(
        lambda optimizer: schedulers.LambdaLR(optimizer, lambda update: 1 - update / engine.current.total_updates)
    )
    engine = small_engine(12, [plugin], accumulation=2)
    engine.on_exit("after_step", once=True)(lambda run: run.set_accumulation(k))
    run = engine.run()
    assert run.update == {1: 11, 4: 4}[k]
    assert run.optimizer.param_groups[0]["lr"] == 0.0
    assert run.history("lr")[1:] == [0.1 * (1 - update / run.update) for update in range(1, run.update)]


@pytest.mark.parametrize(
    ("stored", "scheduler"),
    [
        ({"dict": [["milestones", {"Counter": [[4, 1], [9, 2]]}], ["last_epoch", 3]]},
         {"milestones": Counter({4: 1, 9: 2}), "last_epoch": 3}),
        ({"dict": [["_schedulers", [{"dict": [["betas", {"tuple": [0.9, 0.95]}], ["lr_lambdas", [None]]]}]]]},
         {"_schedulers": [{"betas": (0.9, 0.95), "lr_lambdas": [None]}]}),
    ],
    ids=["counter", "nested"],
)  # fmt: skip
def test_a_state_of_a_checkpoint_of_the_first_version_is_read(stored: Any, scheduler: Any):
    """There tuples, dicts and Counters were tagged lists."""
    assert scheduler_from_format_1(stored) == scheduler
    assert scheduler_from_format_1(scheduler) == scheduler


# -- each new value


def plateau_rates(values, patience=1):
    """Return torch's own rates: that before each value, and the last."""
    optimizer = torch.optim.SGD(small_network().parameters(), lr=0.1)
    scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience)
    rates = [0.1]
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


VALUES = [3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5]


@pytest.mark.parametrize("step", [None, 1, 4, 7, 10])
@pytest.mark.parametrize("every", [1, 3])
def test_a_plateau_is_found_by_each_evaluation(every, step):
    """However often the run is evaluated, before training too; the rate of an update is what came of those before."""

    def make():
        return LRSchedule(
            lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1), "evaluation", monitor="error"
        )

    left = iter(VALUES)
    record = lambda run: run.record("error", next(left))  # noqa: E731
    sides = Side(
        Detour("evaluate", "before_loop", lambda run: True, record),
        Detour("evaluate", "optimizer_update", lambda run: True, record, every),
    )
    plugin = make() if step is None else Reborn(make, step)
    engine = small_engine(4, [plugin, sides], max_updates=7 * every)
    used = []
    engine.on_enter("optimizer_update")(lambda run: used.append(run.optimizer.param_groups[0]["lr"]))
    run = engine.run()
    expected = plateau_rates(VALUES)
    assert used == [rate for rate in expected[1:8] for _ in range(every)]
    assert run.optimizer.param_groups[0]["lr"] == expected[8]
    assert run.history("lr") == expected[:8]


def test_an_evaluation_interval_needs_a_value_to_look_at():
    with pytest.raises(PluginError, match=r"interval='evaluation'\) steps ReduceLROnPlateau on each new value"):
        LRSchedule(lambda o: schedulers.ReduceLROnPlateau(o, patience=1), "evaluation")
    with pytest.raises(EngineError, match="got monitor='error' with ExponentialLR"):
        small_engine(3, [LRSchedule(lambda o: schedulers.ExponentialLR(o, 0.9), "evaluation", "error")]).run()


def test_a_value_that_no_evaluation_records_is_reported_at_the_end_of_an_epoch():
    schedule = LRSchedule(lambda o: schedulers.ReduceLROnPlateau(o, patience=1), "evaluation", "valid/los")
    with pytest.raises(EngineError, match=r"LRSchedule\(monitor='valid/los'\).*did you mean 'valid/loss'"):
        small_engine(3, [schedule, Evaluate(batches(1))]).run()
