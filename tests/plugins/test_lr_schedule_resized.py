"""`LRSchedule` in a run that is resumed for longer, or with other options: refused, stretched or kept."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from builders import batches, equal, small_network, weights
from heptad import CheckpointError, Components, Engine, EngineError, PluginError, RunConfig
from heptad_plugins import Checkpoint, LRSchedule


class Line(schedulers.LRScheduler):
    """A scheduler of one's own: in a line to zero."""

    def __init__(self, optimizer, length):
        self.length = length
        super().__init__(optimizer)

    def get_lr(self):
        return [rate * max(0.0, 1 - self.last_epoch / self.length) for rate in self.base_lrs]


def warm_up_and_cosine(optimizer, total):
    warm_up = schedulers.LinearLR(optimizer, 0.1, total_iters=total // 5)
    rest = schedulers.CosineAnnealingLR(optimizer, total - total // 5)
    return schedulers.SequentialLR(optimizer, [warm_up, rest], [total // 5])


SCHEDULES = {
    "cosine": schedulers.CosineAnnealingLR,
    "one cycle": lambda optimizer, total: schedulers.OneCycleLR(optimizer, 1.0, total_steps=total),
    "lambda": lambda optimizer, total: schedulers.LambdaLR(optimizer, lambda update: max(0.0, 1 - update / total)),
    "sequential": warm_up_and_cosine,
    "own": Line,
}


def built(build):
    """Return a function of (optimizer, total_updates), for a class is refused."""

    def call(optimizer, total):
        return build(optimizer, total)

    return call


def engine_of(directory, plugin, at="after_epoch", **config):
    """Return an engine over five batches that stores each epoch, or each update."""
    network = small_network()
    components = Components(
        network=network,
        loader=batches(5),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    )
    plugins = [plugin, Checkpoint(directory, at, overwrite=True)]
    return Engine(components, RunConfig(**config), plugins)


def first_run(directory, plugin, **config):
    """Make a run of ten updates."""
    return engine_of(directory, plugin, **({"epochs": 2} | config)).run()


def options(run):
    return {name: value for name, value in run.optimizer.param_groups[0].items() if name != "params"}


LONGER = [
    ({"epochs": 2}, {"epochs": 4}),
    ({"max_updates": 10}, {"max_updates": 20}),
    ({"epochs": 2}, {"max_updates": 20}),
]


@pytest.mark.parametrize(("short", "long"), LONGER)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_longer_run_is_refused_and_the_ways_are_named(tmp_path, schedule, short, long):
    """Before anything changes, with both lengths."""
    first_run(tmp_path, LRSchedule(built(SCHEDULES[schedule])), **({"epochs": None} | short))
    engine = engine_of(tmp_path, LRSchedule(built(SCHEDULES[schedule])), **long)
    before = weights(engine.current.network)
    with pytest.raises(CheckpointError, match=r"sized for 10 updates, and the run makes 20.*'stretch'.*'keep'"):
        engine.run(resume=tmp_path)
    assert equal(weights(engine.current.network), before)


@pytest.mark.parametrize("at", [1, 4, 10])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stretched_it_has_the_rates_that_a_run_of_the_new_length_has_from_there_on(tmp_path, schedule, at):
    """Bit for bit, momentum and all other options of the groups too."""
    build = built(SCHEDULES[schedule])
    whole = engine_of(tmp_path / "whole", LRSchedule(build), epochs=4).run()
    engine = engine_of(tmp_path / "short", LRSchedule(build), "optimizer_update", epochs=2)
    engine.run(until=lambda run: run.update == at and run.state == "checkpoint")
    engine.advance()
    engine.close()
    resumed = engine_of(tmp_path / "short", LRSchedule(build, on_resize="stretch"), "optimizer_update", epochs=4)
    seen = []
    resumed.on_enter("optimizer_update")(lambda run: seen.append(options(run)["momentum"]))
    run = resumed.run(resume=tmp_path / "short")
    assert run.update == 20
    assert run.history("lr")[at:] == whole.history("lr")[at:]
    assert len(run.history("lr")) == 20
    assert options(run) == options(whole)
    assert schedule != "one cycle" or seen[0] != seen[5]


def test_stretched_it_can_be_stretched_again_and_be_resumed(tmp_path):
    """Its state is that of the schedule it has."""
    build = built(schedulers.CosineAnnealingLR)
    whole = engine_of(tmp_path / "whole", LRSchedule(build), epochs=6).run()
    first_run(tmp_path / "short", LRSchedule(build))
    longer = engine_of(tmp_path / "short", LRSchedule(build, on_resize="stretch"), epochs=4)
    longer.run(until=lambda run: run.update == 16, resume=tmp_path / "short")
    longer.close()
    assert engine_of(tmp_path / "short", LRSchedule(build), epochs=4).run(resume=tmp_path / "short").update == 20
    run = engine_of(tmp_path / "short", LRSchedule(build, on_resize="stretch"), epochs=6).run(resume=tmp_path / "short")
    assert run.history("lr")[20:] == whole.history("lr")[20:]


@pytest.mark.parametrize("schedule", ["cosine", "lambda", "own"])
def test_kept_it_goes_on_as_it_was_built(tmp_path, schedule):
    """The rates are those of torch's schedule of ten updates, moved twenty times."""
    build = SCHEDULES[schedule]
    first_run(tmp_path, LRSchedule(built(build)))
    run = engine_of(tmp_path, LRSchedule(built(build), on_resize="keep"), epochs=4).run(resume=tmp_path)
    optimizer = torch.optim.SGD(small_network().parameters(), lr=0.1, momentum=0.9)
    scheduler, rates = build(optimizer, 10), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert run.history("lr") == rates
    with pytest.raises(CheckpointError, match="sized for 10 updates"):
        engine_of(tmp_path, LRSchedule(built(build)), epochs=5).run(resume=tmp_path)


def test_a_schedule_that_ends_too_early_says_what_to_do(tmp_path):
    """Where torch raises in mid-run."""
    build = built(SCHEDULES["one cycle"])
    first_run(tmp_path, LRSchedule(build))
    with pytest.raises(ValueError, match="Tried to step") as caught:
        engine_of(tmp_path, LRSchedule(build, on_resize="keep"), epochs=4).run(resume=tmp_path)
    assert any("has moved 10 times" in note and "makes 20 updates" in note for note in caught.value.__notes__)


def test_stretched_after_epochs_it_has_moved_as_often_as_there_were_epochs(tmp_path):
    """Also one whose interval is the epoch."""
    make = partial(LRSchedule, lambda optimizer, total: schedulers.CosineAnnealingLR(optimizer, total // 5), "epoch")
    whole = engine_of(tmp_path / "whole", make(), epochs=6).run()
    engine = engine_of(tmp_path / "short", make(), epochs=3)
    engine.run(until=lambda run: run.update == 12)
    engine.close()
    run = engine_of(tmp_path / "short", make(on_resize="stretch"), epochs=6).run(resume=tmp_path / "short")
    assert run.history("lr")[2:] == whole.history("lr")[2:]


@pytest.mark.parametrize("interval", ["update", "epoch"])
def test_a_checkpoint_that_was_written_before_can_be_stretched(tmp_path, interval):
    """It holds the length and the scheduler's state; from its rates alone nobody could tell where it stands."""
    make = partial(LRSchedule, built(schedulers.CosineAnnealingLR), interval)
    whole = engine_of(tmp_path / "whole", make(), epochs=4).run().history("lr")

    class Older(LRSchedule):
        def state_dict(self):
            state = super().state_dict()
            return {name: state[name] for name in ("scheduler", "total_updates", "moved_at") if state}

    first_run(tmp_path / "short", Older(built(schedulers.CosineAnnealingLR), interval, name="LRSchedule"))
    with pytest.raises(CheckpointError, match="sized for 10 updates, and the run makes 20"):
        engine_of(tmp_path / "short", make(), epochs=4).run(resume=tmp_path / "short")
    run = engine_of(tmp_path / "short", make(on_resize="stretch"), epochs=4).run(resume=tmp_path / "short")
    assert run.history("lr")[len(whole) // 2 :] == whole[len(whole) // 2 :]


def test_a_shorter_run_is_refused_too(tmp_path):
    make = partial(LRSchedule, built(schedulers.CosineAnnealingLR))
    engine = engine_of(tmp_path, make(), epochs=4)
    engine.run(until=lambda run: run.update == 8)
    engine.close()
    with pytest.raises(CheckpointError, match="sized for 20 updates, and the run makes 10"):
        engine_of(tmp_path, make(), epochs=2).run(resume=tmp_path)
    whole = engine_of(tmp_path / "whole", make(), epochs=2).run()
    run = engine_of(tmp_path, make(on_resize="stretch"), epochs=2).run(resume=tmp_path)
    assert run.history("lr")[5:] == whole.history("lr")[5:]


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer, total: schedulers.ExponentialLR(optimizer, 0.9),
        lambda optimizer: schedulers.LambdaLR(optimizer, lambda update: 0.5**update),
        lambda optimizer, total: schedulers.MultiStepLR(optimizer, [2, 4, 12]),
    ],
)
def test_a_schedule_that_does_not_depend_on_the_length_is_resumed_for_longer(tmp_path, build):
    """A function may take the length and make nothing of it."""
    whole = engine_of(tmp_path / "whole", LRSchedule(build), epochs=4).run()
    first_run(tmp_path / "short", LRSchedule(build))
    run = engine_of(tmp_path / "short", LRSchedule(build), epochs=4).run(resume=tmp_path / "short")
    assert run.history("lr") == whole.history("lr")


def test_a_plateau_has_no_length(tmp_path):
    """It depends on what was measured."""

    def make():
        return LRSchedule(lambda optimizer, total: schedulers.ReduceLROnPlateau(optimizer), monitor="error")

    for epochs, resume in ((2, None), (4, tmp_path)):
        engine = engine_of(tmp_path, make(), epochs=epochs)
        engine.on_enter("optimizer_update")(lambda run: run.record("error", 1.0))
        assert engine.run(resume=resume).update == epochs * 5


@pytest.mark.parametrize("given", ["function", "scheduler"])
def test_other_options_of_the_schedule_are_refused_and_named(tmp_path, given):
    """Those of the checkpoint would hold in silence; a schedule that was built by hand for longer is such a case."""

    def engine(length, epochs, **resized):
        network = small_network()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        source = (
            schedulers.CosineAnnealingLR(optimizer, length)
            if given == "scheduler"
            else lambda optimizer: schedulers.CosineAnnealingLR(optimizer, length)
        )
        components = Components(
            network=network, loader=batches(5), criterion=nn.CrossEntropyLoss(), optimizer=optimizer
        )
        plugins = [LRSchedule(source, **resized), Checkpoint(tmp_path, overwrite=True)]
        return Engine(components, RunConfig(epochs=epochs), plugins)

    engine(10, 2).run()
    with pytest.raises(CheckpointError, match="T_max was 10 and is 20 here"):
        engine(20, 4).run(resume=tmp_path)
    assert engine(20, 4, on_resize="keep").run(resume=tmp_path).history("lr")[11] > 0
    if given == "scheduler":
        with pytest.raises(PluginError, match="takes a function"):
            engine(20, 4, on_resize="stretch")


def test_other_options_of_a_group_stay_what_a_handler_made_them(tmp_path):
    """Only what the schedule writes is brought to its place."""
    build = built(SCHEDULES["one cycle"])
    engine = engine_of(tmp_path, LRSchedule(build), epochs=2)
    engine.on_exit("before_loop")(lambda run: run.optimizer.param_groups[0].update(weight_decay=0.5))
    engine.run()
    resumed = engine_of(tmp_path, LRSchedule(build, on_resize="stretch"), epochs=4).run(resume=tmp_path)
    assert options(resumed)["weight_decay"] == 0.5


@pytest.mark.parametrize("value", ["grow", True, 3])
def test_another_word_for_on_resize_is_refused_when_it_is_built(value):
    with pytest.raises(PluginError, match=r"LRSchedule\(on_resize=…\)"):
        LRSchedule(built(Line), on_resize=value)


def two_schedules(directory, on_resize=None, lr=0.1, **config):
    """Return an engine whose optimizer has a decay of no length and a warm-up that has one."""
    network = small_network()
    components = Components(
        network=network,
        loader=batches(5),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=lr),
    )
    decay = LRSchedule(lambda optimizer: schedulers.ExponentialLR(optimizer, 0.9), name="decay")
    warm_up = LRSchedule(
        lambda optimizer, total: schedulers.LinearLR(optimizer, 0.1, total_iters=total // 2),
        name="warm-up",
        on_resize=on_resize,
    )
    return Engine(components, RunConfig(**config), [decay, warm_up, Checkpoint(directory, "optimizer_update")])


def test_beside_another_schedule_of_the_optimizer_none_is_moved_to_its_place(tmp_path):
    """The rates are the work of both; kept, both go on."""
    two_schedules(tmp_path, epochs=2).run(until=lambda run: run.update == 5)
    with pytest.raises(CheckpointError, match=r"warm-up: with on_resize='stretch'.*beside decay.*on_resize='keep'"):
        two_schedules(tmp_path, "stretch", epochs=4).run(resume=tmp_path)
    with pytest.raises(EngineError, match=r"decay: with a changed learning rate.*beside warm-up.*keep that of the"):
        two_schedules(tmp_path, lr=0.2, epochs=2).run(resume=tmp_path, allow_changes=("optimizer",))
    kept = two_schedules(tmp_path, "keep", epochs=4).run(resume=tmp_path).history("lr")
    factors = [0.9**move * min(1.0, 0.1 + 0.9 * move / 5) for move in range(20)]
    assert kept == pytest.approx([0.1 * factor for factor in factors])


@pytest.mark.parametrize("on_resize", [None, "keep", "stretch"])
def test_a_run_over_data_that_change_has_the_schedule_it_had(on_resize, tmp_path):
    """Nobody knows its length after the first change, so there is nothing to compare."""

    def engine(directory):
        data = [(torch.ones(4), 0)] * 8
        network = small_network()
        plugin = LRSchedule(built(schedulers.CosineAnnealingLR), on_resize=on_resize)
        components = Components(
            network=network,
            dataset=data,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        )
        made = Engine(
            components,
            RunConfig(epochs=3, batch_size=8, seed=1),
            [plugin, Checkpoint(directory, "optimizer_update", keep_last=9)],
        )
        made.on_enter("before_epoch")(
            lambda run: data.__setitem__(slice(None), [(torch.ones(4), 0)] * 8 * (run.epoch + 1))
        )
        return made

    whole = engine(tmp_path / "whole").run()
    engine(tmp_path / "cut").run(until=lambda run: run.update == 2)
    resumed = engine(tmp_path / "cut").run(resume=tmp_path / "cut")
    assert resumed.history("lr") == whole.history("lr")
    assert equal(weights(resumed.network), weights(whole.network))
