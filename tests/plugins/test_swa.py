"""`SWA`: torch's mean of weights over epochs, with BatchNorm updated for it, seen by evaluations."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

from builders import CLASSES, FEATURES, Side, Unsized, batches, equal, small_engine, weights
from heptad import (
    CheckpointError,
    Components,
    Detour,
    Engine,
    EngineError,
    LossOutput,
    PluginError,
    RunConfig,
    load_weights,
)
from heptad.data.generators import global_states
from heptad.testing import check_plugin
from heptad_plugins import EMA, SWA, Checkpoint, Evaluate, Freeze, LRSchedule
from rebirth import Reborn
from scenario import digest

torch.set_num_threads(1)


def normed(dropout=0.0):
    """Return a network with batch norm."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(dropout), nn.Linear(5, 3))


def tensors(network):
    return {name: t.detach().clone() for name, t in [*network.named_parameters(), *network.named_buffers()]}


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    return True


def plain_loop(epochs, start, cycle=1, count=4, accumulation=1, schedule=None):
    """Return the trained network and torch's own average of it, after a loop without an engine."""
    network, data = normed(), batches(count)
    optimizer, averaged = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), AveragedModel(network)
    scheduler = schedule(optimizer) if schedule else None
    for epoch in range(epochs):
        for number, (sample, target) in enumerate(data):
            if number % accumulation == 0:
                optimizer.zero_grad()
            (nn.CrossEntropyLoss()(network(sample), target) / accumulation).backward()
            if number % accumulation == accumulation - 1:
                optimizer.step()
        if scheduler:
            scheduler.step()
        if epoch >= start and (epoch - start) % cycle == 0:
            averaged.update_parameters(network)
    update_bn(data, averaged)
    return network, averaged.module


@pytest.mark.parametrize(("start", "cycle", "accumulation"), [(0, 1, 1), (2, 1, 1), (1, 2, 2), (4, 1, 1)])
def test_the_average_is_torchs_own(start, cycle, accumulation):
    """Parameters, statistics and counts are those of `AveragedModel` and `update_bn`, bit for bit."""
    plugin = SWA(start, cycle=cycle)
    run = small_engine(4, [plugin], network=normed(), epochs=5, accumulation=accumulation).run()
    network, averaged = plain_loop(5, start, cycle, accumulation=accumulation)
    assert same(tensors(run.network), tensors(network))
    assert same(tensors(plugin.network), tensors(averaged))
    assert not plugin.network.training


@pytest.mark.parametrize("order", [1, -1])
def test_evaluations_see_the_average_with_statistics_of_its_own(order):
    """From the end of epoch `start` on, that epoch included; before that, the trained weights."""
    seen, plugin = [], SWA(1)

    class Valid:
        def __iter__(self):
            seen.append(tensors(engine.current.network))
            return iter(batches(2))

    engine = small_engine(4, [Evaluate(Valid(), trial=False), plugin][::order], network=normed(), epochs=3)
    run = engine.run()
    assert same(seen[0], tensors(plain_loop(1, 0)[0]))
    assert same(seen[1], tensors(plain_loop(2, 1)[1]))
    assert same(seen[2], tensors(plain_loop(3, 1)[1]))
    assert same(tensors(run.network), tensors(plain_loop(3, 1)[0]))
    assert same(tensors(plugin.network), tensors(plain_loop(3, 1)[1]))


def test_an_evaluation_after_the_epoch_averages_it_once():
    """A detour behind `after_epoch` sees what was averaged on entry to it."""
    counts, plugin = [], SWA(1)
    look = Side(Detour("evaluate", "after_epoch", lambda run: True, lambda run: None))
    engine = small_engine(4, [plugin, look], network=normed(), epochs=3)
    engine.on_exit("evaluate")(lambda run: counts.append(plugin.state_dict().get("n_averaged")))
    engine.run()
    assert counts == [None, 1, 2]
    assert same(tensors(plugin.network), tensors(plain_loop(3, 1)[1]))


def test_an_evaluation_before_the_loop_averages_nothing():
    """There is no epoch yet."""
    plugin = SWA(0)
    small_engine(4, [plugin, Evaluate(batches(2), at=("before_loop", "after_step"))], network=normed(), epochs=2).run()
    assert plugin.state_dict()["n_averaged"] == 2


def test_the_run_draws_and_trains_the_same_with_and_without_it():
    """The passes touch neither the generators nor the feed, also where the order is drawn and dropout draws."""

    def train(plugins, loader):
        torch.manual_seed(3)
        data = TensorDataset(torch.randn(14, FEATURES), torch.arange(14) % CLASSES)
        given = (
            {"loader": DataLoader(data, 4, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(5))}
            if loader
            else {"dataset": data}
        )
        network = normed(0.5)
        parts = Components(
            network=network,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
            **given,
        )
        config = RunConfig(epochs=4, seed=2, **({} if loader else {"batch_size": 4}))
        run = Engine(parts, config, [*plugins, Evaluate(batches(2), at="optimizer_update")]).run()
        return digest([tensors(run.network), global_states(), run.history("train/loss")])

    for loader in (False, True):
        assert train([SWA(0)], loader) == train([], loader)


def test_a_network_without_batch_norm_costs_no_pass():
    """The data are read by the run alone."""
    walks = []

    class Data(Unsized):
        def __iter__(self):
            walks.append(1)
            return super().__iter__()

    small_engine(Data(batches(3)), [SWA(0), Evaluate(batches(1))], epochs=3).run()
    assert len(walks) == 3


def test_apply_leaves_the_average_in_the_network():
    """On exit of `after_loop`."""
    plugin = SWA(1, apply=True)
    run = small_engine(4, [plugin], network=normed(), epochs=3).run()
    assert same(tensors(run.network), tensors(plain_loop(3, 1)[1]))
    assert same(tensors(run.network), tensors(plugin.network))


def test_an_evaluation_that_fails_leaves_the_trained_weights():
    """`close` swaps out."""
    network = normed()
    fails = Side(Detour("evaluate", "after_epoch", lambda run: run.epoch == 2, lambda run: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        small_engine(4, [SWA(0), fails], network=network, epochs=3).run()
    assert same(tensors(network), tensors(plain_loop(2, 0)[0]))


def test_a_pass_that_fails_leaves_the_trained_weights_momenta_and_modes():
    """Whatever the network raises."""
    network, passes = normed(), []
    network[1].eval()

    def fail(module, given):
        passes.append(1)
        if len(passes) == 6:
            assert module.momentum is None
            raise ZeroDivisionError

    engine = small_engine(4, [SWA(0), Evaluate(batches(2), trial=False)], network=network, epochs=1)
    network[1].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert equal(weights(network), weights(plain_loop(1, 0)[0]))
    assert (network[1].momentum, network[1].training) == (0.1, True)


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_built_anew_from_its_state_it_continues_as_if_nothing_had_been(step):
    """Average and trained weights are those of the unbroken run, wherever it is rebuilt."""
    engine = small_engine(4, [plugin := SWA(1), Evaluate(batches(1))], network=normed(), epochs=4)
    expected = tensors(engine.run().network)
    reborn = Reborn(partial(SWA, 1), step)
    engine = small_engine(4, [reborn, Evaluate(batches(1))], network=normed(), epochs=4)
    assert same(tensors(engine.run().network), expected)
    assert same(tensors(reborn.inner.network), tensors(plugin.network))


@pytest.mark.parametrize("until", ["evaluate", "after_epoch", "checkpoint", "before_step"])
def test_a_resumed_run_has_the_same_average(until, tmp_path):
    """Before the first averaged epoch, behind it, and between two of a cycle."""

    def build(name, plugin):
        plugins = [plugin, Evaluate(batches(1)), Checkpoint(tmp_path / name, at=("after_step", "after_epoch"))]
        return small_engine(4, plugins, network=normed(0.3), epochs=4)

    whole = build("whole", expected := SWA(1, cycle=2)).run()
    for updates in (3, 9, 13):
        folder = f"{until} {updates}"
        with build(folder, SWA(1, cycle=2)) as first:
            first.run(until=lambda run, least=updates: run.update >= least and run.state == until)
        run = build(folder, plugin := SWA(1, cycle=2)).run(resume="auto")
        assert same(tensors(run.network), tensors(whole.network))
        assert same(tensors(plugin.network), tensors(expected.network))
        assert run.history("valid/loss") == whole.history("valid/loss")


def test_a_pause_in_an_evaluation_finds_the_trained_weights():
    """And the evaluation sees the average when the run continues."""
    network, plugin, seen = normed(), SWA(0), []
    look = Side(Detour("evaluate", "after_epoch", lambda run: True, lambda run: seen.append(tensors(run.network))))
    engine = small_engine(4, [plugin, look], network=network, epochs=1)
    engine.run(until="evaluate")
    assert same(tensors(network), tensors(plain_loop(1, 0)[0]))
    engine.run()
    assert same(seen[0], tensors(plain_loop(1, 0)[1]))


def test_torchs_schedule_for_it_goes_through_lr_schedule():
    """`SWALR` by epochs, as in a plain loop."""
    schedule = partial(SWALR, swa_lr=0.02, anneal_epochs=2)
    plugins = [plugin := SWA(1), LRSchedule(schedule, interval="epoch")]
    run = small_engine(4, plugins, network=normed(), epochs=4).run()
    network, averaged = plain_loop(4, 1, schedule=schedule)
    assert same(tensors(run.network), tensors(network))
    assert same(tensors(plugin.network), tensors(averaged))
    assert run.optimizer.param_groups[0]["lr"] == 0.02


def test_the_pass_goes_through_compute_loss():
    """Batches of any kind; no output is asked of it."""
    network, plugin = normed(), SWA(0)

    def compute_loss(network, batch):
        return LossOutput(nn.functional.cross_entropy(network(batch["data"]), batch["target"]))

    data = [{"data": sample, "target": target} for sample, target in batches(4)]
    parts = Components(
        network=network,
        loader=data,
        compute_loss=compute_loss,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
    )
    Engine(parts, RunConfig(epochs=3), [plugin]).run()
    assert same(tensors(plugin.network), tensors(plain_loop(3, 0)[1]))


def test_weights_of_few_bits_are_averaged_in_float32():
    """Statistics stay in the dtype that the network has."""
    network, plugin = normed().to(torch.bfloat16), SWA(0)
    data = [(sample.bfloat16(), target) for sample, target in batches(4)]
    small_engine(data, [plugin], network=network, epochs=3).run()
    state = plugin.state_dict()["tensors"]
    assert state["0.weight"].dtype is torch.float32
    assert plugin.network[0].weight.dtype is torch.bfloat16
    assert float(plugin.network[1].num_batches_tracked) == 4
    assert not torch.equal(plugin.network[1].running_mean, torch.zeros(5, dtype=torch.bfloat16))


def test_a_stop_ends_the_epoch_that_is_averaged():
    """The epoch that is cut short counts."""
    plugin = SWA(1)
    engine = small_engine(4, [plugin], network=normed(), epochs=9)
    engine.on_exit("optimizer_update", when=lambda run: run.update == 6)(lambda run: run.stop("enough"))
    engine.run()
    assert plugin.state_dict()["n_averaged"] == 1


def test_a_run_that_ends_before_its_start_says_so():
    """In the log; there is no network to read."""
    plugin = SWA(3)
    run = small_engine(4, [plugin], network=normed(), epochs=None, max_updates=5).run()
    assert "SWA averaged nothing" in next(note.text for note in run.log.notes() if note.kind == "note")
    with pytest.raises(EngineError, match=r"SWA.network exists from the end of epoch 3 on"):
        plugin.network  # noqa: B018 - it raises


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, r"SWA\(start=…\) must be a whole number from 0 on, got -1"),
        ({"start": 0, "cycle": 0}, r"SWA\(cycle=…\) must be a whole number from 1 on"),
        ({"start": 0, "dtype": torch.int64}, r"SWA\(dtype=…\) must be a floating dtype"),
        ({"start": 0, "evaluate": 1}, r"SWA\(evaluate=…\) must be True or False"),
        ({"start": 0, "name": ""}, r"SWA\(name=…\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(PluginError, match=message):
        SWA(**options)


def test_a_start_that_no_epoch_reaches_is_refused_when_the_engine_is_built():
    with pytest.raises(PluginError, match=r"SWA\(start=3\): epochs count from 0, and the run has 3"):
        small_engine(2, [SWA(3)], epochs=3)


def test_two_averages_cannot_be_seen_by_one_evaluation():
    """The second would take the first for the weights: refused when the engine is built."""
    network = normed()
    with pytest.raises(PluginError, match=r"SWA and EMA both give .* say evaluate=False for all but the one"):
        small_engine(4, [SWA(0), EMA(0.9)], network=network)
    small_engine(4, [SWA(0), EMA(0.9, evaluate=False)], network=network, epochs=1).run()


def test_compiled_it_averages_the_same():
    """The pass is not compiled: code of one graph cannot have a momentum of None."""
    torch.compiler.reset()
    found = []
    for options in (False, {"backend": "eager", "fullgraph": True}):
        small_engine(4, [plugin := SWA(0)], network=normed(), epochs=2, compile=options).run()
        found.append(tensors(plugin.network))
    assert same(*found)


def test_batch_norm_in_evaluation_mode_keeps_its_statistics():
    """As `Freeze` holds it; the others are computed anew."""
    network = nn.Sequential(normed(), nn.BatchNorm1d(3), nn.Linear(3, 3))
    before = tensors(network[0][1])
    plugins = [plugin := SWA(0), Freeze("0.*"), Evaluate(batches(1))]
    small_engine(4, plugins, network=network, epochs=2).run()
    assert same(tensors(plugin.network[0][1]), before)
    assert int(plugin.network[1].num_batches_tracked) == 4


def test_load_weights_reads_the_average(tmp_path):
    """That of the plugin which is named, where there are two."""

    def train(folder, *plugins):
        plugins = [*plugins, Evaluate(batches(1)), Checkpoint(tmp_path / folder, at="after_epoch")]
        small_engine(4, plugins, network=normed(), epochs=3).run()

    train("one", plugin := SWA(1))
    load_weights(tmp_path / "one", network := normed(), average=True)
    assert same(tensors(network), tensors(plugin.network))
    train("two", plugin := SWA(1), ema := EMA(0.9, evaluate=False))
    with pytest.raises(CheckpointError, match="holds averages of EMA and SWA; name one: average='EMA'"):
        load_weights(tmp_path / "two", network, average=True)
    for one in (plugin, ema):
        load_weights(tmp_path / "two", network, average=one.name)
        assert same(tensors(network), tensors(one.network))


def test_load_weights_warns_of_statistics_that_are_not_those_of_the_average(tmp_path):
    """A checkpoint of before they were computed: nothing was evaluated yet."""
    plugins = [SWA(0), Checkpoint(tmp_path / "a", at="after_epoch")]
    small_engine(4, plugins, network=normed(), epochs=1).run()
    with pytest.warns(UserWarning, match=r"before SWA computed the statistics of BatchNorm .*update_bn\("):
        load_weights(tmp_path / "a", network := normed(), average=True)
    assert same(tensors(network)["0.weight"], plugins[0].network[0].weight.detach())


def test_it_keeps_the_contract():
    """The conformance kit finds no fault."""
    assert "no fault found" in str(check_plugin(lambda: SWA(0)))


def test_a_pass_over_the_training_data_leaves_the_run_alone():
    """In the middle of a pass, with workers that the run keeps."""
    data = TensorDataset(torch.randn(12, FEATURES), torch.arange(12) % CLASSES)
    loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=1, persistent_workers=True)
    seen = {True: [], False: []}
    for passes in (True, False):
        torch.manual_seed(0)
        loader._iterator = None
        engine = small_engine(loader, [], epochs=2)

        @engine.on_exit("process_batch")
        def look(run, passes=passes):
            if passes and run.step == 1:
                assert len(list(run.training_pass())) == 4
            seen[passes].append(run.batch[0].clone())

        engine.run()
    assert same(seen[True], seen[False])


def test_a_pass_over_a_dataset_is_in_plain_order_with_the_drop_last_of_the_run():
    """Not shuffled."""
    data, found = TensorDataset(torch.arange(40.0).reshape(10, 4), torch.arange(10) % CLASSES), []
    network = nn.Linear(4, 3)
    parts = Components(
        network=network, dataset=data, criterion=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(network.parameters())
    )
    engine = Engine(parts, RunConfig(epochs=1, batch_size=4))
    engine.on_exit("before_loop")(lambda run: found.extend(batch[0][:, 0].tolist() for batch in run.training_pass()))
    engine.run()
    assert found == [[0.0, 4.0, 8.0, 12.0], [16.0, 20.0, 24.0, 28.0]]
