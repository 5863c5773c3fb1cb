"""`Evaluate`: a state of its own, values that are right and in time, and no trace in the weights."""

import os
import random
import signal

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from builders import CLASSES, FEATURES, Side, Unsized, Witness, batches, equal, small_engine, small_network, weights
from heptad import Components, DataError, Detour, Engine, EngineError, LossOutput, Plugin, PluginError, RunConfig
from heptad_plugins.evaluate import Evaluate

VALID = batches(2, size=3)


def accuracy(output, batch):
    return output.argmax(1) == batch[1]


class Noise(nn.Module):
    """Draws from the global generators of torch, python and numpy, in evaluation mode too."""

    def forward(self, data):
        return data + 0.1 * torch.randn_like(data) + 0.01 * random.random() + 0.01 * np.random.random()


def lively_network():
    """Return a network that remembers every forward pass, in its buffers or in the random generators."""
    torch.manual_seed(1)
    return nn.Sequential(Noise(), nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))


class Transformed(Dataset):
    """Samples with a transform that draws at random."""

    def __init__(self, samples):
        generator = torch.Generator().manual_seed(samples)
        self.data = torch.randn(samples, FEATURES, generator=generator)
        self.target = torch.randint(0, CLASSES, (samples,), generator=generator)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index] + torch.rand(FEATURES) + random.random(), self.target[index]


def engine_over(data, plugins=(), network=None, compute_loss=None, **config):
    """Return an engine over a dataset in batches of 4, or over a loader."""
    network = network or small_network()
    loader = isinstance(data, DataLoader)
    components = Components(
        network=network,
        criterion=None if compute_loss else nn.CrossEntropyLoss(),
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        **{"loader" if loader else "dataset": data},
    )
    return Engine(components, RunConfig(**({} if loader else {"batch_size": 4}), **config), plugins)


def mean_loss(network, items):
    """Return the loss over all samples of some batches as one."""
    data, target = (torch.cat(part) for part in zip(*items, strict=True))
    return nn.functional.cross_entropy(network(data), target).item()


# -- what it measures


def test_records_loss_and_metrics_under_its_name():
    """The values are those of the weights at the epoch's end, over all samples."""
    run = small_engine(3, [Evaluate(VALID, {"accuracy": accuracy})]).run()
    data, target = (torch.cat(part) for part in zip(*VALID, strict=True))
    hits = (run.network(data).argmax(1) == target).double().mean().item()
    assert run.metrics == {"valid/loss": pytest.approx(mean_loss(run.network, VALID)), "valid/accuracy": hits}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        pytest.param(lambda output, batch: batch[1].double(), 4.5, id="one value a sample"),
        pytest.param(lambda output, batch: batch[1].double().mean(), 4.5, id="the mean over the batch"),
        pytest.param(lambda output, batch: float(len(batch[1])), (4 * 4 + 4 * 4 + 2 * 2) / 10, id="a number"),
    ],
)
def test_a_metric_is_meaned_with_the_weight_of_the_step(metric, expected):
    """A smaller last batch counts by its samples, and none is dropped."""
    valid = TensorDataset(torch.zeros(10, FEATURES), torch.arange(10))
    network = nn.Linear(FEATURES, 10)
    train = TensorDataset(torch.zeros(4, FEATURES), torch.zeros(4, dtype=torch.int64))
    run = engine_over(train, [Evaluate(valid, {"metric": metric})], network, epochs=1).run()
    assert run.metrics["valid/metric"] == pytest.approx(expected)


def test_the_weight_is_that_of_the_loss_output():
    """With `compute_loss` the values are meaned over what it says that the loss was."""

    def tokens(network, batch):
        (data,) = batch
        return LossOutput(network(data).square().mean(), weight=batch[0].sum(), output=data)

    valid = [(torch.full((2, FEATURES), 1.0),), (torch.full((2, FEATURES), 3.0),)]
    loader = DataLoader(TensorDataset(torch.ones(4, FEATURES)), batch_size=2)
    plugin = Evaluate(valid, {"value": lambda output, batch: output[:, 0]})
    run = engine_over(loader, [plugin], compute_loss=tokens, epochs=1).run()
    assert run.metrics["valid/value"] == pytest.approx((1.0 * 8 + 3.0 * 24) / 32)


def test_nothing_is_shuffled_or_dropped():
    """Each evaluation sees all samples in their own order, in the batch size of the run."""
    seen = []
    valid = TensorDataset(torch.zeros(10, FEATURES), torch.arange(10) % CLASSES)
    metrics = {"seen": lambda output, batch: seen.append(batch[1].tolist()) or 0.0}
    engine_over(Transformed(8), [Evaluate(valid, metrics, trial=False)], epochs=2, shuffle=True, drop_last=True).run()
    assert seen == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0]] * 2


def test_no_gradient_is_taken():
    """Metrics see tensors without a graph of a network in evaluation mode, and inference tensors if asked for."""
    seen = []

    def look(output, batch):
        seen.append((output.is_inference(), output.requires_grad, engine.current.network.training))
        return 0.0

    for option in ({}, {"inference_mode": True}):
        engine = small_engine(3, [Evaluate(VALID, {"look": look}, trial=False, **option)])
        engine.run()
    assert seen == [(False, False, False)] * len(VALID) + [(True, False, False)] * len(VALID)


def test_random_transforms_of_the_data_are_the_same_in_each_evaluation():
    """What differs between two evaluations is the network."""
    seen = []
    metrics = {"data": lambda output, batch: seen.append(batch[0]) or 0.0}
    engine_over(Transformed(8), [Evaluate(Transformed(6), metrics, trial=False)], epochs=2).run()
    assert len(seen) == 4
    assert equal(seen[:2], seen[2:])


def test_two_of_them_run_under_two_names():
    """Both measure at the end of the epoch, in the order of the list, each in a turn of its own."""
    run = small_engine(3, [Evaluate(VALID), Evaluate(batches(1), name="other")]).run()
    assert list(run.metrics) == ["valid/loss", "other/loss"]
    assert run.log.path()[-5:] == ["evaluate", "evaluate", "after_epoch", "after_loop", "finished"]
    assert run.metrics["other/loss"] == pytest.approx(mean_loss(run.network, batches(1)))


def test_two_of_one_name_are_refused():
    """The name is the plugin's name, which is unique."""
    with pytest.raises(PluginError, match="two plugins have the name 'valid'"):
        small_engine(3, [Evaluate(VALID), Evaluate(VALID)])


# -- metric objects


def test_an_object_of_torchmetrics_gives_its_value():
    """It sees output and target of every batch, and is reset before each evaluation."""
    metric = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
    plugin = Evaluate(batches(20, size=5), {"object": metric, "function": accuracy})
    run = small_engine(3, [plugin], epochs=4).run()
    assert run.history("valid/object") == pytest.approx(run.history("valid/function"))
    assert len(set(run.history("valid/object"))) > 1


def test_an_object_that_holds_state_is_reset():
    """What it saw before the evaluation does not count."""
    metric = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
    metric.update(torch.zeros(100, dtype=torch.int64), torch.ones(100, dtype=torch.int64))
    run = small_engine(3, [Evaluate(VALID, {"object": metric, "function": accuracy})]).run()
    assert run.metrics["valid/object"] == pytest.approx(run.metrics["valid/function"])


def test_an_object_may_be_used_on_after_the_run():
    """Its state is not bound to the inference mode of the evaluation."""
    metric = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
    small_engine(3, [Evaluate(VALID, {"object": metric})]).run()
    metric.reset()
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert metric.compute().item() == 0.5


class Sum:
    """A metric object of a user's own, that writes down its calls."""

    def __init__(self, value=None):
        self.value = value
        self.calls = []
        self.total = 0

    def to(self, device):
        self.calls.append(f"to {device}")

    def reset(self):
        self.calls.append("reset")
        self.total = 0

    def update(self, output, target):
        self.calls.append("update")
        self.total += int(target.sum())

    def compute(self):
        self.calls.append("compute")
        return self.total if self.value is None else self.value


def test_an_object_is_moved_reset_updated_and_computed():
    """These are all calls that it gets, in this order, in every evaluation; a plain number is a value."""
    metric = Sum()
    run = small_engine(3, [Evaluate(VALID, {"sum": metric})], epochs=2, device="cpu").run()
    assert metric.calls == ["to cpu", "reset", "update", "update", "compute"] * 2
    assert run.history("valid/sum") == [float(sum(target.sum() for _, target in VALID))] * 2


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(3) * 1j, r"got complex64 of shape \(3,\)"),
        (["0.5"], "got a list"),
        ("0.5", "got a str"),
        (object(), "got an object"),
    ],
)
@pytest.mark.parametrize("trial", [True, False])
def test_an_object_must_compute_numbers(value, got, trial):
    """The error names the metric and what it gave; a trial finds it when the engine is built."""
    engine = None
    with pytest.raises(EngineError, match=rf"metrics\['table'\].compute\(\) must return numbers: .*{got}"):
        (engine := small_engine(3, [Evaluate(VALID, {"table": Sum(value)}, trial=trial)])).run()
    assert (engine is None) is trial


def test_an_object_needs_batches_of_data_and_target():
    """The error says how to say what it is called with."""

    def loss(network, batch):
        return network(batch["data"]).square().mean()

    data = [{"data": torch.ones(2, FEATURES)}]
    network = small_network()
    components = Components(
        network=network, loader=data, compute_loss=loss, optimizer=torch.optim.SGD(network.parameters(), lr=0.1)
    )
    with pytest.raises(
        DataError, match=r"metrics\['sum'\].update takes \(output, target\).*got a dict; .*inputs=lambda"
    ):
        Engine(components, RunConfig(epochs=1), [Evaluate(data, {"sum": Sum()})])


# -- when


def test_the_path_of_an_epoch_of_three_batches_by_two():
    """The epoch is extended to four steps; the evaluation stands between its last update and its end."""
    run = small_engine(3, [Evaluate(VALID)], accumulation=2).run()
    assert run.log.path() == [
        "idle", "before_loop", "before_epoch",
        "before_step", "process_batch", "after_step",
        "before_step", "process_batch", "after_step", "optimizer_update",
        "before_step", "process_batch", "after_step",
        "before_step", "process_batch", "after_step", "optimizer_update",
        "evaluate", "after_epoch", "after_loop", "finished",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("remainder", "unsized", "steps", "source"),
    [
        ("extend", False, 4, "optimizer_update"),
        ("extend", True, 4, "optimizer_update"),
        ("flush", False, 3, "optimizer_update"),
        ("flush", True, 3, "optimizer_update"),
        ("drop", False, 2, "optimizer_update"),
        ("drop", True, 3, "after_step"),
    ],
)
def test_every_epoch_is_evaluated_once_whatever_its_remainder(remainder, unsized, steps, source):
    """It leaves from where neither an update nor a batch is left: from `after_step` where steps were left over."""
    loader = Unsized(batches(3)) if unsized else 3
    run = small_engine(loader, [Evaluate(VALID)], accumulation=2, remainder=remainder, epochs=2).run()
    taken = [(t.source, t.epoch, t.step) for t in run.log.where(dest="evaluate")]
    assert taken == [(source, 0, steps), (source, 1, 2 * steps)]
    assert [t.dest for t in run.log.where(source="evaluate")] == ["after_epoch"] * 2


def test_handlers_on_both_moments_of_after_epoch_see_the_values_of_the_epoch():
    """Loggers and schedules may stand on either moment."""
    seen = []
    engine = small_engine(3, [Evaluate(VALID, {"accuracy": accuracy})], epochs=2)
    for moment in ("enter", "exit"):
        getattr(engine, f"on_{moment}")("after_epoch")(
            lambda run, moment=moment: seen.append((moment, dict(run.metrics)))
        )
    run = engine.run()
    values = [
        {"valid/loss": loss, "valid/accuracy": hits}
        for loss, hits in zip(run.history("valid/loss"), run.history("valid/accuracy"), strict=True)
    ]
    assert seen == [("enter", values[0]), ("exit", values[0]), ("enter", values[1]), ("exit", values[1])]
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("at", "every", "expected"),
    [
        ("after_epoch", 1, [4, 8, 12]),
        ("after_epoch", 2, [8]),
        ("optimizer_update", 1, [2, 4, 6, 8, 10, 12]),
        ("optimizer_update", 4, [8]),
        ("after_step", 1, list(range(1, 13))),
        ("after_step", 5, [5, 10]),
    ],
)
def test_every_counts_what_at_names(at, every, expected):
    """Epochs, updates or steps: here 3 epochs of 4 steps, 2 to an update."""
    run = small_engine(4, [Evaluate(VALID, at=at, every=every)], accumulation=2, epochs=3).run()
    assert [t.step for t in run.log.where(source="evaluate")] == expected
    assert len(run.history("valid/loss")) == len(expected)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("moment", "state"), [("enter", "process_batch"), ("exit", "after_step")])
def test_an_epoch_that_a_stop_ends_is_evaluated(moment, state, k):
    """A stop at the first step ends the run after its window, and the end of this epoch has its values."""
    engine = small_engine(8, [Evaluate(VALID)], accumulation=k)
    getattr(engine, f"on_{moment}")(state, once=True)(lambda run: run.stop("enough"))
    run = engine.run()
    assert run.step == k
    assert run.log.path()[-5:] == ["optimizer_update", "evaluate", "after_epoch", "after_loop", "finished"]
    assert run.metrics["valid/loss"] == pytest.approx(mean_loss(run.network, VALID))


def test_a_stop_in_the_exit_handler_of_the_update_counts_at_once():
    """The epoch that is ended there is evaluated."""
    engine = small_engine(8, [Evaluate(VALID)])
    engine.on_exit("optimizer_update", once=True)(lambda run: run.stop("enough"))
    assert engine.run().log.counts()["evaluate"] == 1
    assert engine.current.step == 1


def test_a_run_of_no_epochs_evaluates_nothing():
    """There is no epoch whose end it could be."""
    run = small_engine(3, [Evaluate(VALID)], epochs=0).run()
    assert run.log.path() == ["idle", "before_loop", "after_loop", "finished"]
    assert run.metrics == {}


def test_an_epoch_without_a_step_is_not_evaluated():
    """`remainder="drop"` starts no window that the data cannot fill; nothing was trained."""
    run = small_engine(1, [Evaluate(VALID)], accumulation=2, remainder="drop").run()
    assert "evaluate" not in run.log.path()


@pytest.mark.parametrize("name", ["EarlyStopping", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint"])
def test_it_comes_before_those_that_read_its_values(name):
    """Wherever in the list the other stands."""
    side = Side(Detour("reads", ("optimizer_update", "after_step"), lambda run: run.step == 3, lambda run: None))
    side.name = name
    for plugins in ([side, Evaluate(VALID)], [Evaluate(VALID), side]):
        path = small_engine(3, plugins).run().log.path()
        assert [state for state in path if state in ("evaluate", "reads")][-2:] == ["evaluate", "reads"]


# -- what it leaves alone


def ran_with(plugins, *, loader=False, k=1, **config):
    """Return the weights and the losses of a run that remembers every disturbance."""
    data = DataLoader(Transformed(22), batch_size=4, shuffle=True) if loader else Transformed(22)
    engine = engine_over(data, plugins, lively_network(), epochs=2, accumulation=k, **config)
    losses = []
    engine.on_exit("process_batch")(lambda run: losses.append(run.loss))
    random.seed(0)
    np.random.seed(0)
    return weights(engine.run().network) + losses + [torch.get_rng_state(), torch.tensor(random.random())]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize("at", ["after_epoch", "optimizer_update", "after_step"])
def test_the_weights_are_bit_equal_with_and_without_it(at, loader, k):
    """Dropout, batch norm, random transforms, a network that draws when evaluated: none of it shows."""
    valid = DataLoader(Transformed(7), batch_size=4, shuffle=True) if loader else Transformed(7)
    evaluated = ran_with([Evaluate(valid, {"accuracy": accuracy}, at=at)], loader=loader, k=k)
    assert equal(ran_with([], loader=loader, k=k), evaluated)


def test_the_mode_of_every_module_is_as_before():
    """A part that its owner keeps in evaluation mode stays there, the rest trains on."""
    network = lively_network()
    modes = []
    engine = engine_over(Transformed(8), [Evaluate(Transformed(4), at="optimizer_update")], network, epochs=1)
    engine.on_exit("before_loop")(lambda run: network[2].eval())
    for moment in (engine.on_enter, engine.on_exit):
        moment("evaluate")(lambda run: modes.append([module.training for module in network.modules()]))
    engine.run()
    assert modes == [[True, True, True, False, True, True]] * 4


def test_no_training_subscription_hears_it():
    """The handlers of the training run are called as without it, and the log has one row for each evaluation."""
    plain, watching = Witness(), Witness()
    small_engine(3, [plain], epochs=2).run()
    run = small_engine(3, [watching, Evaluate(VALID)], epochs=2).run()
    assert (watching.seen, watching.counters) == (plain.seen, plain.counters)
    assert run.log.counts()["evaluate"] == 2


def test_the_moments_of_evaluate_are_for_other_plugins():
    """Their handlers see the run before and after the values are recorded."""

    class Around(Plugin):
        seen: list

        def on_enter_evaluate(self, run):
            self.seen.append(("enter", run.state, len(run.history("valid/loss"))))

        def on_exit_evaluate(self, run):
            self.seen.append(("exit", run.state, len(run.history("valid/loss"))))

    around = Around()
    around.seen = []
    small_engine(3, [around, Evaluate(VALID)], epochs=2).run()
    assert around.seen == [
        ("enter", "evaluate", 0),
        ("exit", "evaluate", 1),
        ("enter", "evaluate", 1),
        ("exit", "evaluate", 2),
    ]


@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_see_the_data_as_they_are_or_serve_all_evaluations_of_a_run(persistent):
    """They are started anew each time, or once; none is left when `run()` returns."""
    workers = set()
    metrics = {"pid": lambda output, batch: workers.update(batch[1].tolist()) or 0.0}
    plugin = Evaluate(Pids(5), metrics, trial=False)  # which has a worker of its own

    def loss(network, batch):
        return network(batch[0]).square().mean()

    config = {"num_workers": 1, "persistent_workers": persistent}
    run = engine_over(Pids(8), [plugin], compute_loss=loss, epochs=3, **config).run()
    assert len(run.history("valid/pid")) == 3
    assert len(workers) == (1 if persistent else 3)
    with pytest.raises(ProcessLookupError):
        os.kill(workers.pop(), 0)


class Pids(Transformed):
    """Samples whose target is the process that fetched them."""

    def __getitem__(self, index):
        return self.data[index], os.getpid()


# -- pauses


class Pausing:
    """A metric that pauses the run at its n-th batch, from 0, once."""

    def __init__(self, batch):
        self.batch = batch
        self.calls = 0
        self.act = lambda: None

    def __call__(self, output, batch):
        if self.calls == self.batch:
            self.act()
        self.calls += 1
        return accuracy(output, batch)


def paused_run(batch, at, k=1, valid=None):
    """Return an engine whose evaluation is paused at a batch, and the metric that does it."""
    metric = Pausing(batch)
    metrics = {"accuracy": metric, "object": torchmetrics.Accuracy("multiclass", num_classes=CLASSES)}
    valid = valid or batches(3, size=4)
    plugin = Evaluate(valid, metrics, at, trial=False)  # which would pause the run too
    engine = engine_over(Transformed(22), [plugin], lively_network(), epochs=2, accumulation=k)
    metric.act = lambda: engine.current.pause("asked by the test")
    return engine, metric


def outcome(run):
    """Return all that a pause must not change."""
    return run.log.path(), run.history("valid/loss"), run.history("valid/accuracy"), run.history("valid/object")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("at", ["after_epoch", "optimizer_update", "after_step"])
def test_a_pause_ends_the_evaluation_at_its_next_batch(at, k):
    """The run pauses in `evaluate`, nothing is recorded; it continues with a whole evaluation and the same results."""
    straight = paused_run(None, at, k)[0].run()
    engine, metric = paused_run(1, at, k)
    run = engine.run()
    assert (run.state, run.paused) == ("evaluate", "asked by the test")
    assert metric.calls == 2
    assert run.metrics == {}
    turns = len(run.log)
    assert engine.run().state == "finished"
    assert (run.log[turns].source, metric.calls) == ("evaluate", 2 + 3 * run.log.counts()["evaluate"])
    assert outcome(run) == outcome(straight)
    assert equal(weights(run.network), weights(straight.network))


def test_data_without_a_length_begin_anew_after_a_pause():
    """The evaluation sees all of it."""
    straight = paused_run(None, "after_epoch", valid=Unsized(batches(3)))[0].run()
    engine, _ = paused_run(0, "after_epoch", valid=Unsized(batches(3)))
    assert engine.run().state == "evaluate"
    assert outcome(engine.run()) == outcome(straight)


def test_a_pause_in_the_last_batch_leaves_the_evaluation_whole():
    """No batch is left at which it could end early: it is recorded once, and the run pauses behind it."""
    engine, metric = paused_run(2, "after_epoch")
    run = engine.run()
    assert (run.state, metric.calls, len(run.history("valid/loss"))) == ("after_epoch", 3, 1)
    engine.run()
    assert len(run.history("valid/loss")) == 2


def test_a_pause_that_is_asked_for_while_paused_leaves_the_evaluation_whole():
    """A call of `run()` makes a turn at least, so that a run that is paused again and again comes to its end."""
    engine, _ = paused_run(None, "after_epoch")
    run = engine.run(until="evaluate")
    run.pause("asked by the test")
    assert (engine.run().state, len(run.history("valid/loss"))) == ("after_epoch", 1)


def test_modes_and_generators_are_as_before_while_the_run_is_paused():
    """An evaluation that ended early puts back what one that ended puts back."""
    engine, _ = paused_run(0, "after_epoch")
    before = []
    engine.on_enter("evaluate", once=True)(lambda run: before.append(torch.get_rng_state()))
    run = engine.run()
    assert run.state == "evaluate"
    assert all(module.training for module in run.network.modules())
    assert torch.equal(torch.get_rng_state(), before[0])


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_evaluation_too():
    """`run()` raises KeyboardInterrupt and continues when called again."""
    straight = paused_run(None, "after_epoch")[0].run()
    engine, metric = paused_run(0, "after_epoch")
    metric.act = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="paused in evaluate"):
        engine.run()
    assert metric.calls == 1
    assert outcome(engine.run()) == outcome(straight)


def test_an_evaluation_driven_by_advance_is_paused_too():
    """The turn is not made; the next call makes it."""
    engine, metric = paused_run(0, "after_epoch")
    with engine:
        while engine.current.state != "evaluate":
            engine.advance()
        assert engine.advance().dest == "evaluate"
        assert (engine.current.state, metric.calls) == ("evaluate", 1)
        assert engine.advance().dest == "after_epoch"
        assert len(engine.current.history("valid/loss")) == 1


# -- mistakes


@pytest.mark.parametrize("at", ["after_epoch", "after_step"])
def test_a_failing_metric_ends_the_run(at):
    """The exception comes through, with a note that names the plugin, and all modes are as before."""

    def fail(output, batch):
        raise ZeroDivisionError("planned")

    plugin = Evaluate(VALID, {"bad": fail}, at=at, trial=False)
    engine = engine_over(Transformed(8), [plugin], lively_network(), epochs=1)
    with pytest.raises(ZeroDivisionError, match="planned") as raised:
        engine.run()
    step = {"after_epoch": 2, "after_step": 1}[at]
    shown = raised.value.__notes__[2:4]
    assert [note.split(": ")[1] for note in shown] == ["the batch", "the output"]
    assert raised.value.__notes__ == [
        "heptad: in metrics['bad']",
        "heptad: in the evaluation in the body of process_batch (epoch 0, batch 0, step 0, update 0)",
        *shown,
        f"heptad: in Evaluate 'valid' in the body of evaluate (epoch 0, batch {step}, step {step}, update "
        f"{engine.current.update})",
    ]
    assert engine.current.state == "failed"
    assert engine.current.metrics == {}
    assert all(module.training for module in engine.current.network.modules())


def test_one_that_may_fail_is_detached():
    """The run continues as without it."""

    def fail(output, batch):
        raise ZeroDivisionError("planned")

    run = small_engine(3, [Evaluate(VALID, {"bad": fail}, trial=False, on_error="detach")], epochs=3).run()
    assert (run.state, run.log.counts()["evaluate"], run.metrics) == ("finished", 1, {})
    assert "valid.evaluate raised ZeroDivisionError: planned" in str(run.log.notes()[0])
    assert equal(weights(run.network), weights(small_engine(3, epochs=3).run().network))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "nowhere"}, r"Evaluate\(at=…\) must be 'after_epoch', .* or .*, got 'nowhere'"),
        ({"every": 0}, r"Evaluate\(every=…\) must be a whole number from 1 on, got 0"),
        ({"every": True}, r"Evaluate\(every=…\) must be a whole number from 1 on, got True"),
        ({"name": ""}, r"Evaluate\(name=…\) must be a word such as 'valid', got ''"),
        ({"name": 3}, r"Evaluate\(name=…\) must be a word such as 'valid', got 3"),
        ({"metrics": {"accuracy": 0.5}}, r"metrics maps names to functions .*got 'accuracy': 0.5"),
        ({"metrics": {"loss": accuracy}}, "'loss' is always measured"),
        ({"metrics": {"": accuracy}}, "metrics maps names to functions"),
        ({"metrics": {1: accuracy}}, "metrics maps names to functions"),
        ({"metrics": [accuracy]}, "metrics maps names to metrics, got a list"),
        ({"metrics": {"sum": Sum}}, r"metrics\['sum'\] is the class Sum; pass an instance: Sum\(…\)"),
        ({"data": iter(VALID)}, r"Evaluate\(data=…\) is an iterator of type list_iterator, which can be iterated once"),
        (
            {"data": enumerate(VALID)},
            r"Evaluate\(data=…\) is an iterator of type enumerate, which can be iterated once",
        ),
        ({"data": None}, r"Evaluate\(data=…\) is None; pass a dataset, a DataLoader or a list of batches"),
        ({"data": 3}, r"Evaluate\(data=…\) is of type int; pass a dataset"),
        ({"data": "valid"}, r"Evaluate\(data=…\) is of type str; pass a dataset"),
        ({"data": TensorDataset}, r"Evaluate\(data=…\) is the class TensorDataset; pass a dataset"),
    ],
)
def test_a_bad_option_is_refused_where_it_is_written(options, message):
    """The message says what was found and what was expected."""
    with pytest.raises(PluginError, match=message):
        Evaluate(**{"data": VALID, **options})


def test_data_that_cannot_be_batched_are_refused_before_the_first_turn():
    """Samples need a batch size, which an engine over a loader has not."""
    engine = small_engine(3, [Evaluate(Transformed(4))])
    with pytest.raises(EngineError, match="holds samples, and this engine has no batch_size"):
        engine.run()
    assert engine.current.state == "idle"


def test_the_loader_that_is_trained_on_is_refused():
    """Walking it would move its workers and its sampler, and so the training data."""
    loader = DataLoader(Transformed(8), batch_size=4)
    engine = engine_over(loader, [Evaluate(loader, name="train")], epochs=1)
    with pytest.raises(PluginError, match=r"'train' is the DataLoader that the run trains on"):
        engine.run()


def test_an_error_of_the_data_says_that_they_are_those_of_the_evaluation():
    """The message is the one for data of any kind, and says which are meant."""
    with pytest.raises(DataError, match=r"^Evaluate\(data=…\) of 'held out' has no batches"):
        small_engine(2, [Evaluate([], name="held out")]).run()
