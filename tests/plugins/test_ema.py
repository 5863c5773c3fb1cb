"""`EMA`: torch's average, seen by evaluations and by nothing else."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from builders import Side, batches, equal, small_engine, small_network, weights
from heptad import Components, Detour, Engine, EngineError, Plugin, PluginError, Run, RunConfig, load_weights
from heptad.testing import check_plugin
from heptad_plugins.checkpoint import Checkpoint as Store
from heptad_plugins.ema import EMA
from heptad_plugins.evaluate import Evaluate
from rebirth import Reborn, through_checkpoint


def normed_network():
    """Return a network with parameters, averages of batch norm, a count, indices, and a buffer that is not saved."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    network.register_buffer("indices", torch.arange(1000))
    network.register_buffer("mask", torch.tensor([True, False]))
    network.register_buffer("scale", torch.ones(2), persistent=False)
    return network


def tensors(network):
    """Return copies of all parameters and buffers by name."""
    return {name: t.detach().clone() for name, t in [*network.named_parameters(), *network.named_buffers()]}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def evaluation(look, after="after_epoch"):
    """Return a plugin that adds a state `evaluate` in which `look` is called with the run."""
    return Side(Detour("evaluate", after, lambda run: True, look))


class Skip(Plugin):
    """Skips the updates of these numbers, counted from 0 over all that are due."""

    def __init__(self, *numbers):
        self.numbers, self.due = numbers, 0

    def on_enter_optimizer_update(self, run):
        if self.due in self.numbers:
            run.skip_update("Skip: planned")
        self.due += 1


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_average_is_torchs_own(decay, accumulation):
    """Parameters and buffers are those of an `AveragedModel` that is updated after each update, bit for bit."""
    engine = small_engine(6, [plugin := EMA(decay)], network=normed_network(), epochs=2, accumulation=accumulation)
    averaged = AveragedModel(normed_network(), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    engine.on_exit("optimizer_update")(lambda run: averaged.update_parameters(run.network))
    engine.run()
    mine, theirs = tensors(plugin.network), tensors(averaged.module)
    whole = {name for name, tensor in mine.items() if not tensor.is_floating_point()}
    assert whole == {"1.num_batches_tracked", "indices", "mask"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine.keys() - whole)


def test_whole_numbers_and_truth_values_are_those_of_the_network():
    """Their mean would be rounded down: an index of the network would become another one."""
    engine = small_engine(6, [plugin := EMA(0.9)], network=normed_network())
    run = engine.run()
    mine, theirs = tensors(plugin.network), tensors(run.network)
    for name in ("1.num_batches_tracked", "indices", "mask"):
        assert torch.equal(mine[name], theirs[name])


def test_the_trained_weights_are_the_same_with_and_without_it():
    """Bit for bit, also where it is swapped in after every step, in the middle of windows."""
    look = lambda run: run.network(torch.ones(2, 4))  # noqa: E731
    plain = small_engine(5, network=normed_network(), epochs=2, accumulation=3).run()
    engine = small_engine(5, [EMA(0.9)], network=normed_network(), epochs=2, accumulation=3)
    assert same(tensors(engine.run().network), tensors(plain.network))

    class Eval(Side):
        def on_enter_evaluate(self, run):
            run.network.eval()

        def on_exit_evaluate(self, run):
            run.network.train()

    swaps = Eval(Detour("evaluate", ("after_step", "optimizer_update"), lambda run: True, look))
    engine = small_engine(5, [EMA(0.9), swaps], network=normed_network(), epochs=2, accumulation=3)
    run = engine.run()
    assert run.log.counts()["evaluate"] == 16
    assert same(tensors(run.network), tensors(plain.network))


def test_an_evaluation_sees_the_average_and_what_follows_sees_the_weights():
    """In `evaluate` the network holds the values of the average, on its exit its own again."""
    seen, network, plugin = [], normed_network(), EMA(0.9)
    engine = small_engine(
        4, [plugin, evaluation(lambda run: seen.append(tensors(run.network)), "optimizer_update")], network=network
    )
    averages, trained, after = [], [], []

    @engine.on_exit("optimizer_update")
    def before(run):
        averages.append(tensors(plugin.network))
        trained.append(tensors(run.network))

    engine.on_exit("evaluate")(lambda run: after.append(tensors(run.network)))
    engine.run()
    assert len(seen) == 4
    assert all(same(a, b) for a, b in zip(seen, averages, strict=True))
    assert all(same(a, b) for a, b in zip(after, trained, strict=True))
    assert not any(torch.equal(a["0.weight"], b["0.weight"]) for a, b in zip(averages[1:], trained[1:], strict=True))


@pytest.mark.parametrize("order", [1, -1])
def test_evaluate_measures_the_average(order):
    """`valid/loss` is the loss of the averaged network, whatever the order of the list."""
    plugin = EMA(0.9)
    run = small_engine(4, [Evaluate(batches(2), name="valid"), plugin][::order]).run()
    losses = [nn.CrossEntropyLoss()(plugin.network(data), target).item() for data, target in batches(2)]
    assert run.metrics["valid/loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert not equal(weights(run.network), weights(plugin.network))


def test_tensors_stay_where_they_are():
    """Values are exchanged, not tensors: optimizers, views and compiled code keep what they hold."""
    network = normed_network()
    places = lambda: [t.data_ptr() for t in [*network.parameters(), *network.buffers()]]  # noqa: E731
    seen, before = [], places()
    small_engine(2, [EMA(0.9), evaluation(lambda run: seen.append(places()))], network=network).run()
    assert [*seen, places()] == [before] * 2


def test_stands_still_on_a_skipped_update():
    """The average is that of the updates that were made, also where the very first is skipped."""
    engine = small_engine(6, [Skip(0, 3), plugin := EMA(0.9)])
    averaged = AveragedModel(small_network(), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    engine.on_exit("optimizer_update", when=lambda run: not run.update_skipped)(
        lambda run: averaged.update_parameters(run.network)
    )
    assert engine.run().update == 4
    assert equal(weights(plugin.network), weights(averaged.module))


def test_an_evaluation_that_fails_leaves_the_trained_weights():
    """`close` puts them back."""
    expected = weights(small_engine(4).run().network)
    network = small_network()
    plugins = [EMA(0.9), evaluation(lambda run: 1 / 0)]
    with pytest.raises(ZeroDivisionError):
        small_engine(4, plugins, network=network).run()
    assert equal(weights(network), expected)


@pytest.mark.parametrize("turn", ["advance", "run"])
def test_a_failing_evaluation_leaves_the_trained_weights_however_it_is_driven(turn):
    """A turn at a time too."""
    expected, network = weights(small_engine(4).run().network), small_network()
    engine = small_engine(4, [EMA(0.9), evaluation(lambda run: 1 / 0)], network=network)
    with pytest.raises(ZeroDivisionError):
        while True:
            getattr(engine, turn)()
    assert equal(weights(network), expected)


class Fails(Plugin):
    """Fails at one of the moments of an evaluation."""

    def __init__(self, moment: str, error: BaseException, order: int) -> None:
        self.moment, self.error = moment, error
        setattr(self, "runs_after" if order > 0 else "runs_before", (EMA,))

    def at(self, moment: str) -> None:
        if moment == self.moment:
            raise self.error

    def on_enter_evaluate(self, run: Run) -> None:
        self.at("enter")

    def on_exit_evaluate(self, run: Run) -> None:
        self.at("exit")

    def on_pause(self, run: Run) -> None:
        self.at("on_pause")

    def open(self, run: Run) -> None:
        if run.state == "evaluate":
            self.at("open")

    def close(self, run: Run) -> None:
        self.at("close")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, StopIteration])
@pytest.mark.parametrize("moment", ["enter", "body", "exit", "on_pause", "open", "close"])
def test_whatever_fails_around_an_evaluation_the_trained_weights_are_left(moment, error, order):
    """Whoever raises, before the average or behind it, when the run pauses in the evaluation and when it continues."""
    expected, network, seen = weights(small_engine(4).run().network), small_network(), []
    planned = error("planned")

    def body(run: Run) -> None:
        seen.append(weights(run.network))
        if moment == "body":
            raise planned

    engine = small_engine(4, [EMA(0.9), Fails(moment, planned, order), evaluation(body)], network=network)
    if moment in ("on_pause", "close"):
        engine.on_exit("after_epoch")(lambda run: run.pause("asked by the test"))
    with pytest.raises(error) as caught:
        if moment == "open":
            engine.run(until="evaluate")
        engine.run()
    assert caught.value is planned
    if moment in ("on_pause", "open", "close"):
        assert engine.current.state == "evaluate"
    if moment in ("body", "exit"):
        assert not equal(seen[0], expected)
    assert equal(weights(network), expected)


class Checkpoint(Plugin):
    """Looks at the network where a checkpoint would."""

    def __init__(self):
        self.seen = []

    def on_pause(self, run):
        self.seen.append(weights(run.network))


@pytest.mark.parametrize("order", [1, -1])
def test_a_pause_in_an_evaluation_finds_the_trained_weights(order):
    """A checkpoint taken there holds them; when the run continues, the evaluation sees the average again."""
    expected = weights(small_engine(4).run().network)
    average = EMA(0.9)
    small_engine(4, [average]).run()
    checkpoint, network, seen = Checkpoint(), small_network(), []
    data = batches(3)

    class Valid:
        def __iter__(self):
            seen.append(weights(network))
            for batch in data:
                if len(seen) == 1:
                    engine.current.pause("asked by the test")
                yield batch

    plugins = [checkpoint, Evaluate(Valid()), EMA(0.9)][::order]
    engine = small_engine(4, plugins, network=network)
    run = engine.run()
    assert (run.state, run.paused) == ("evaluate", "asked by the test")
    assert equal(weights(network), expected)
    assert len(checkpoint.seen) == 1
    assert equal(checkpoint.seen[0], expected)
    assert engine.run().state == "finished"
    assert len(seen) == 2
    assert all(equal(one, weights(average.network)) for one in seen)
    assert equal(weights(network), expected)


def test_a_run_paused_on_entry_to_an_evaluation_finds_the_trained_weights_and_continues_with_the_average():
    """`close` swaps out, `open` swaps in."""
    expected, seen, network, plugin = weights(small_engine(4).run().network), [], small_network(), EMA(0.9)
    engine = small_engine(4, [plugin, evaluation(lambda run: seen.append(weights(run.network)))], network=network)
    engine.run(until="evaluate")
    assert equal(weights(network), expected)
    engine.run()
    assert len(seen) == 1
    assert equal(seen[0], weights(plugin.network))
    assert equal(weights(network), expected)


def test_a_turn_at_a_time_the_network_holds_the_average_in_an_evaluation():
    """And `plugin.network` the trained weights; `Engine.close` puts both back."""
    expected, network, plugin = weights(small_engine(4).run().network), small_network(), EMA(0.9)
    engine = small_engine(4, [plugin, evaluation(lambda run: None)], network=network)
    while engine.advance().dest != "evaluate":
        pass
    average = weights(network)
    assert not equal(average, expected)
    assert equal(weights(plugin.network), expected)
    assert equal(list(plugin.state_dict()["tensors"].values()), average)
    engine.close()
    assert equal(weights(network), expected)
    assert equal(weights(plugin.network), average)


def test_begins_with_the_weights_that_before_loop_leaves():
    """Initialised by the engine and placed; in evaluation mode and without gradients."""
    network, plugin = small_network(), EMA(0.9)
    components = Components(
        network=network,
        loader=batches(2),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1),
        init_weights=lambda network: nn.init.constant_(network.weight, 0.5),
    )
    run = Engine(components, RunConfig(epochs=0), [plugin]).run()
    assert equal(weights(plugin.network), weights(run.network))
    assert bool((plugin.network.weight == 0.5).all())
    assert not plugin.network.training
    assert not any(parameter.requires_grad for parameter in plugin.network.parameters())


@pytest.mark.parametrize("step", range(0, 12))
def test_built_anew_from_its_state_it_continues_as_if_nothing_had_been(step):
    """Average and trained weights are those of the unbroken run, wherever it is rebuilt; evaluated or not."""
    config = {"epochs": 2, "accumulation": 3}
    engine = small_engine(5, [plugin := EMA(0.9)], network=normed_network(), **config)
    expected = tensors(engine.run().network)
    reborn = Reborn(lambda: EMA(0.9), step)
    engine = small_engine(5, [reborn, evaluation(lambda run: None)], network=normed_network(), **config)
    assert same(tensors(engine.run().network), expected)
    assert same(tensors(reborn.inner.network), tensors(plugin.network))


def test_its_state_holds_all_tensors_and_the_count():
    """Those too that a network's own state_dict leaves out."""
    engine = small_engine(5, [plugin := EMA(0.9)], network=normed_network())
    engine.run()
    state = through_checkpoint(plugin.state_dict())
    assert state["n_averaged"] == 5
    assert same(state["tensors"], tensors(plugin.network))
    assert "scale" in state["tensors"]


def test_the_state_of_another_network_is_an_error():
    """It names what differs."""
    small_engine(2, [one := EMA(0.9)]).run()
    engine = small_engine(2, [other := EMA(0.9)], network=normed_network())
    engine.advance()
    other.load_state_dict(one.state_dict())
    with pytest.raises(EngineError, match=r"another network.*0\.weight"):
        engine.run()


def test_the_network_of_a_second_run_is_another_one():
    """That of the first stays what it was, for whoever has it."""
    plugin = EMA(0.9)
    small_engine(5, [plugin], network=normed_network()).run()
    first, held = plugin.network, weights(plugin.network)
    small_engine(3, [plugin], network=small_network()).run()
    assert plugin.network is not first
    assert equal(weights(first), held)
    small_engine(3, [fresh := EMA(0.9)], network=small_network()).run()
    assert equal(weights(plugin.network), weights(fresh.network))


def test_there_is_no_averaged_network_before_the_network_is_copied():
    """Also where an earlier run had one."""
    plugin = EMA(0.9)
    small_engine(1, [plugin]).run()
    engine = small_engine(1, [plugin])

    @engine.on_enter("before_loop")
    def look(run: Run) -> None:
        with pytest.raises(EngineError, match=r"EMA\.network exists from the exit of before_loop on"):
            _ = plugin.network

    engine.run()


def plain_average(network, decay, moves, dtype=torch.float32):
    """Return the average that a plain loop keeps in `dtype`: `moves` says of each update, from 1, what is done."""
    optimizer, criterion = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), nn.CrossEntropyLoss()
    averages = [p.detach().to(dtype, copy=True) for p in network.parameters()]
    for update, (data, target) in enumerate(batches(10), 1):
        optimizer.zero_grad()
        criterion(network(data.to(network.weight.dtype)), target).backward()
        optimizer.step()
        for average, parameter in zip(averages, network.parameters(), strict=True):
            if moves(update) == "copy":
                average.copy_(parameter.detach())
            elif moves(update) == "blend":
                average.lerp_(parameter.detach().to(dtype), 1 - decay)
    return averages


def first_copied(update):
    return "copy" if update == 1 else "blend"


def half_engine(plugins, dtype, **config):
    """Return an engine over ten batches that trains in a half precision."""
    data = [(x.to(dtype), y) for x, y in batches(10)]
    return small_engine(data, plugins, network=small_network(dtype), **config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_averaged_in_float32(dtype):
    """A decay whose step their own dtype would round away moves the average all the same."""
    plugin = EMA(0.9999)
    half_engine([plugin], dtype).run()
    own = list(plugin.state_dict()["tensors"].values())
    expected = plain_average(small_network(dtype), 0.9999, first_copied)
    assert [tensor.dtype for tensor in own] == [torch.float32] * 2
    assert equal(own, expected)
    in_half = plain_average(small_network(dtype), 0.9999, first_copied, dtype)
    assert not torch.equal(own[0], in_half[0].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_averages_in_the_dtype_that_is_named(dtype):
    plugin = EMA(0.9, dtype=dtype)
    half_engine([plugin], torch.bfloat16).run()
    expected = plain_average(small_network(torch.bfloat16), 0.9, first_copied, dtype)
    assert equal(list(plugin.state_dict()["tensors"].values()), expected)


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({"every": 3}, lambda u: "" if u % 3 else "copy" if u == 3 else "blend"),
        ({"start": 4}, lambda u: "copy" if u <= 4 else "blend"),
        ({"start": 4, "every": 3}, lambda u: "copy" if u <= 4 else "" if u % 3 else "blend"),
        ({"start": 100}, lambda u: "copy"),
        ({"every": 100}, lambda u: ""),
    ],
)
def test_moves_at_every_nth_update_and_is_a_copy_until_its_start(options, moves):
    """The averages are those of a plain loop, bit for bit."""
    engine = small_engine(10, [plugin := EMA(0.9, **options)])
    engine.run()
    assert equal(list(plugin.state_dict()["tensors"].values()), plain_average(small_network(), 0.9, moves))
    assert equal(weights(plugin.network), plain_average(small_network(), 0.9, moves))


def test_an_evaluation_of_half_precision_sees_the_rounded_average_and_training_its_own_bits():
    """And the average keeps its own precision."""
    dtype, seen, plugin = torch.bfloat16, [], EMA(0.9)
    side = evaluation(lambda run: seen.append(weights(run.network)), "optimizer_update")
    engine = half_engine([plugin, side], dtype)
    averages = []

    @engine.on_exit("optimizer_update")
    def look(run):
        averages.append([tensor.to(dtype) for tensor in plugin.state_dict()["tensors"].values()])
        assert equal(weights(plugin.network), averages[-1])

    run = engine.run()
    assert len(seen) == 10
    assert all(equal(one, other) for one, other in zip(seen, averages, strict=True))
    assert equal(weights(run.network), weights(half_engine([], dtype).run().network))
    assert equal(list(plugin.state_dict()["tensors"].values()), plain_average(small_network(dtype), 0.9, first_copied))


def test_in_an_evaluation_of_half_precision_the_state_is_the_average_and_its_network_the_trained_weights():
    """As with float32 weights, wherever the run stands."""
    dtype, plugin = torch.bfloat16, EMA(0.9)
    engine = half_engine([plugin, evaluation(lambda run: None)], dtype)
    while engine.advance().dest != "evaluate":
        pass
    expected = plain_average(small_network(dtype), 0.9, first_copied)
    assert equal(list(plugin.state_dict()["tensors"].values()), expected)
    assert equal(weights(plugin.network), weights(half_engine([], dtype).run().network))
    engine.close()
    assert equal(weights(plugin.network), [tensor.to(dtype) for tensor in expected])


@pytest.mark.parametrize("options", [{"every": 2}, {"start": 3}, {"every": 2, "start": 3, "dtype": torch.float64}])
@pytest.mark.parametrize("step", [1, 4, 7])
def test_built_anew_it_keeps_its_phase_and_its_precision(options, step):
    """The averages of half-precision weights are those of the unbroken run, bit for bit."""
    half_engine([plugin := EMA(0.9, **options)], torch.bfloat16).run()
    reborn = Reborn(lambda: EMA(0.9, **options), step)
    half_engine([reborn], torch.bfloat16).run()
    assert same(reborn.inner.state_dict()["tensors"], plugin.state_dict()["tensors"])


def test_the_average_of_half_precision_weights_is_loaded_by_networks_of_either_dtype(tmp_path):
    """Rounded by one of the weights' dtype, as it is by one of its own."""
    plugin = EMA(0.9)
    half_engine([plugin, Store(tmp_path)], torch.bfloat16).run()
    average = list(plugin.state_dict()["tensors"].values())
    for dtype in (torch.bfloat16, torch.float32):
        network = small_network(dtype)
        load_weights(tmp_path, network, which="ema")
        assert equal(weights(network), [tensor.to(dtype) for tensor in average])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "normed", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm]
)
def test_averages_a_network_whose_hooks_compute_its_weight(normed):
    """Such a weight is no parameter, and torch refuses to copy it; what it is computed from is averaged."""

    def network():
        torch.manual_seed(3)
        made = nn.Sequential(normed(nn.Linear(4, 5)), nn.Linear(5, 3))
        made(torch.ones(2, 4))  # computes the weight, which is no leaf from then on
        return made

    plugin, data = EMA(0.9), batches(2)
    run = small_engine(6, [Evaluate(data), plugin], network=network()).run()
    losses = [nn.CrossEntropyLoss()(plugin.network(x), y).item() for x, y in data]
    assert run.metrics["valid/loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert same(tensors(run.network), tensors(small_engine(6, network=network()).run().network))
    assert not same(tensors(run.network), tensors(plugin.network))


def test_averages_the_weights_of_lazy_modules_from_their_first_update_on():
    """They have no memory when the run begins."""

    def network():
        torch.manual_seed(3)
        return nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3))

    plugin = EMA(0.9)
    run = small_engine(6, [plugin, evaluation(lambda run: None, "optimizer_update")], network=network()).run()
    averages = []

    def follow(run):
        if not averages:
            averages.extend(weights(run.network))
        else:
            for average, new in zip(averages, weights(run.network), strict=True):
                average.lerp_(new, 0.1)

    engine = small_engine(6, network=network())
    engine.on_exit("optimizer_update")(follow)
    engine.run()
    assert same(tensors(run.network), tensors(engine.current.network))
    assert equal(weights(plugin.network), averages)


def test_a_network_that_cannot_be_copied_is_averaged_and_said_to_be_one():
    """Only `EMA.network` is a copy; its error says what else there is."""

    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("no copies of me")

    plugin = EMA(0.9)
    small_engine(3, [plugin], network=Locked(4, 3)).run()
    assert plugin.state_dict()["n_averaged"] == 3
    with pytest.raises(EngineError, match=r"a Locked cannot be copied \(no copies of me\); .* load_state_dict"):
        _ = plugin.network


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, float("nan"), "0.9", True, None])
def test_bad_options_are_refused_when_it_is_built(decay):
    """From 0 on and below 1."""
    with pytest.raises(PluginError, match=r"EMA\(decay=…\)"):
        EMA(decay)


@pytest.mark.parametrize(
    "option", [{"every": 0}, {"every": True}, {"start": -1}, {"start": 1.5}, {"dtype": torch.int64}]
)
def test_other_bad_options_are_named(option):
    with pytest.raises(PluginError, match=rf"EMA\({next(iter(option))}=…\)"):
        EMA(0.9, **option)


@pytest.mark.parametrize("options", [{}, {"every": 2, "start": 1, "dtype": torch.float64}])
def test_passes_the_conformance_kit(options):
    """Paused, rebuilt and restored anywhere, on every path."""
    check_plugin(lambda: EMA(0.9, **options))


def test_of_two_averages_one_is_seen_and_both_are_those_of_one_alone():
    """A second one that evaluations would see too is refused, before it takes the first for the weights."""

    def train(*plugins):
        run = small_engine(3, [*plugins, Evaluate(batches(2))], epochs=2).run()
        return weights(run.network), run.history("valid/loss")

    fast, slow = EMA(0.5), EMA(0.9, name="slow", evaluate=False)
    alone = EMA(0.9)
    expected, seen = train(EMA(0.5))
    found, values = train(fast, slow)
    assert equal(found, expected)
    assert values == seen
    train(alone)
    assert equal(weights(slow.network), weights(alone.network))
    with pytest.raises(PluginError, match=r"EMA and slow both give .* say evaluate=False for all but"):
        train(EMA(0.5), EMA(0.9, name="slow"))
