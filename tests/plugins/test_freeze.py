"""`Freeze`: parameters stand still and are trained later; a resumed run is the same to the bit, whenever it is cut."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from builders import batches, equal, small_components, weights
from checkpoint.crafted import put_state
from heptad import CheckpointError, Engine, EngineError, PluginError, RunConfig
from heptad.plugin import Recompilation
from heptad_plugins import EMA, SAM, Checkpoint, Evaluate, Freeze, GradientClipping, LRSchedule
from scenario import outcome


class Net(nn.Module):
    """A part with BatchNorm and dropout, and a head."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.backbone = nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 8)
            )
            self.head = nn.Linear(8, 3)

    def forward(self, data):
        return self.head(self.backbone(data))


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1, **options)


def everything(net):
    return adamw(net.parameters())


def trainable(net):
    return adamw([one for one in net.parameters() if one.requires_grad])


def momentum(net):
    return torch.optim.SGD((one for one in net.parameters() if one.requires_grad), lr=0.1, momentum=0.9)


def decaying(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)


def named(net):
    return adamw([(name, one) for name, one in net.named_parameters() if one.requires_grad])


def engine_of(directory, plugins, optimizer=trainable, net=None, **config):
    """Return an engine of four epochs of six batches, two to an update, which store a checkpoint where they pause."""
    net = Net() if net is None else net
    components = small_components(net, loader=batches(6, size=4), optimizer=optimizer)
    settings = {"epochs": 4, "accumulation": 2, **config}
    stores = [] if directory is None else [Checkpoint(directory, every=100)]
    return Engine(components, RunConfig(**settings), [*plugins, *stores])


def backbone(engine):
    return [one.detach().clone() for one in engine.current.network.backbone.parameters()]


def group_names(run):
    names = {id(one): name for name, one in run.network.named_parameters()}
    return [[names[id(one)] for one in group["params"]] for group in run.optimizer.param_groups]


# -- what it does


@pytest.mark.parametrize("make", [everything, trainable, decaying])
def test_frozen_parameters_stand_still(make):
    """Weight decay and momentum do not move them, and the rest is trained."""
    engine = engine_of(None, [Freeze("backbone.*")], make)
    before, head = backbone(engine), weights(engine.current.network.head)
    engine.run()
    assert equal(backbone(engine), before)
    assert not equal(weights(engine.current.network.head), head)


def test_a_ready_made_optimizer_skips_them_and_holds_them_afterwards():
    """Nothing joins it, and no group is added."""
    net = Net()
    engine = engine_of(None, [Freeze("backbone.*", until=2)], everything(net), net)
    before = backbone(engine)
    engine.run(until=lambda run: run.epoch == 1)
    assert equal(backbone(engine), before)
    run = engine.run()
    assert not equal(backbone(engine), before)
    assert len(run.optimizer.param_groups) == 1


def test_options_of_a_group_that_never_joins_are_named():
    """The ready-made optimizer keeps its own rate for all."""
    net = Net()
    run = engine_of(None, [Freeze("backbone.*", until=1, lr=0.5)], everything(net), net).run()
    assert "lr and group are not used" in run.log.notes("note")[0].text


@pytest.mark.parametrize(("until", "said"), [(3, []), (4, ["nothing will be thawed: until=4, and epochs=4"])])
def test_an_end_that_the_run_never_reaches_is_named(until, said):
    """A resumed run may have more epochs, so it is no error."""
    engine = engine_of(None, [Freeze("backbone.*", until=until)])
    run = engine.run(until=lambda run: run.epoch == 1)
    assert [note.text.removeprefix("Freeze/backbone.*: ") for note in run.log.notes("note")] == said


def test_they_are_frozen_before_the_optimizer_is_built_and_join_it_later():
    """The group has the options that are given, and the defaults of the optimizer."""
    engine = engine_of(None, [Freeze("backbone.*", until=2, lr=0.01, group={"weight_decay": 0.0})])
    engine.run(until=lambda run: run.epoch == 1)
    assert group_names(engine.current) == [["head.weight", "head.bias"]]
    run = engine.run()
    joined = run.optimizer.param_groups[1]
    assert group_names(run)[1] == [name for name, _ in run.network.named_parameters() if name.startswith("backbone.")]
    assert (joined["lr"], joined["weight_decay"], joined["betas"]) == (0.01, 0.0, (0.9, 0.999))
    (note,) = [note.text for note in run.log.notes("note")]
    assert note == "Freeze/backbone.*: 6 parameters thawed, 6 of them join AdamW as group 1"


def test_it_is_the_loop_that_one_would_write():
    """The bits of a plain loop that freezes, and adds a group after two epochs."""
    run = engine_of(None, [Freeze("backbone.*", until=2, lr=0.01)], momentum, seed=0, accumulation=1).run()
    torch.manual_seed(0)
    net, data = Net(), batches(6, size=4)
    net.backbone.requires_grad_(False)
    optimizer = momentum(net)
    net.backbone[1].eval()
    for epoch in range(4):
        if epoch == 2:
            net.backbone.requires_grad_(True)
            net.backbone[1].train()
            optimizer.add_param_group({"params": list(net.backbone.parameters()), "lr": 0.01})
        for given, target in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(given), target).backward()
            optimizer.step()
    assert equal(weights(run.network), weights(net))


def test_running_statistics_of_frozen_layers_stand_still():
    """By default; the layer is in evaluation mode as long as it is frozen, also after an evaluation."""
    engine = engine_of(None, [Freeze("backbone.*", until=2), Evaluate(batches(1))])
    layer = engine.current.network.backbone[1]
    engine.run(until=lambda run: run.epoch == 1)
    assert not layer.training
    assert engine.current.network.backbone[3].training
    assert int(layer.num_batches_tracked) == 0
    engine.run(until=lambda run: run.epoch == 2)
    assert layer.training
    engine.run()
    assert int(layer.num_batches_tracked) == 12


def test_running_statistics_may_follow_the_data():
    """`freeze_statistics=False`: as torch does it."""
    engine = engine_of(None, [Freeze("backbone.*", freeze_statistics=False)])
    assert int(engine.run().network.backbone[1].num_batches_tracked) == 24


def test_several_thaw_one_after_another():
    """Each adds a group of its own."""
    plugins = [Freeze("backbone.4.*", until=1, lr=0.02), Freeze("backbone.[01].*", until=2, lr=0.01)]
    run = engine_of(None, plugins).run()
    assert [len(names) for names in group_names(run)] == [2, 2, 4]
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.05, 0.02, 0.01]


def test_what_was_frozen_before_stays_frozen():
    """It is not thawed with the others."""
    net = Net()
    net.backbone[0].requires_grad_(False)
    run = engine_of(None, [Freeze("backbone.*", until=1)], net=net).run()
    assert [name for name, one in run.network.named_parameters() if not one.requires_grad] == [
        "backbone.0.weight",
        "backbone.0.bias",
    ]


def test_a_side_optimizer_holds_what_it_holds():
    """Nothing joins then."""
    net = Net()
    side = torch.optim.SGD(net.backbone.parameters(), lr=0.1)
    components = small_components(net, optimizer=lambda net: adamw(net.head.parameters()), side_optimizers={"s": side})
    run = Engine(components, RunConfig(epochs=2), [Freeze("backbone.*", until=1)]).run()
    assert len(run.optimizer.param_groups) == 1
    assert all(one.grad is not None for one in net.backbone.parameters()) or run.state == "finished"


def test_compiled_it_is_the_same_run_and_a_thaw_compiles_once():
    """Compiled code holds which parameters take a gradient."""
    torch.compiler.reset()
    plain = engine_of(None, [Freeze("backbone.*", until=2)]).run()
    run = engine_of(None, [Freeze("backbone.*", until=2)], compile={"backend": "eager"}).run()
    assert equal(weights(run.network), weights(plain.network))
    later = [event for event in run.log.notes("compile") if run.log[event.seq].epoch]
    assert [(type(event), run.log[event.seq].epoch) for event in later] == [(Recompilation, 2)]
    assert "requires_grad" in later[0].text


def test_a_smoke_run_before_it_leaves_no_trace():
    """What takes a gradient is put back too."""
    smoked, plain = (engine_of(None, [Freeze("backbone.*", until=2), LRSchedule(cosine)]) for _ in range(2))
    smoked.smoke()
    assert all(one.requires_grad for one in smoked.current.network.parameters())
    for engine in (smoked, plain):
        engine.run()
    assert outcome(smoked) == outcome(plain)


# -- resumed


def with_schedule(build, **options):
    return lambda: [LRSchedule(build, **options)]


def cosine(optimizer, total):
    return schedulers.CosineAnnealingLR(optimizer, total)


def lambdas(optimizer, total):
    """Return a schedule with a function for each group that is there."""
    rules = [lambda update: 1 - update / (total + 1), lambda update: 1 / (1 + update)]
    return schedulers.LambdaLR(optimizer, rules[: len(optimizer.param_groups)])


def cycle(optimizer, total):
    return schedulers.OneCycleLR(optimizer, [0.1, 0.03][: len(optimizer.param_groups)], total_steps=total + 1)


def warm_up(optimizer, total):
    first = schedulers.LinearLR(optimizer, 0.1, total_iters=3)
    return schedulers.SequentialLR(optimizer, [first, schedulers.CosineAnnealingLR(optimizer, total)], [3])


THAWS = partial(Freeze, "backbone.*", until=2, lr=0.01)
RUNS = {
    "joins": (trainable, lambda: [THAWS()], {}),
    "joins SGD with momentum": (momentum, lambda: [THAWS()], {}),
    "joins by name": (named, lambda: [THAWS(), LRSchedule(cosine)], {}),
    "held from the beginning": (everything, lambda: [Freeze("backbone.*", until=2)], {}),
    "gradually": (trainable, lambda: [Freeze("backbone.4.*", until=1), Freeze("backbone.[01].*", until=2)], {}),
    "never": (trainable, lambda: [Freeze("backbone.*")], {}),
    "with its friends": (
        trainable,
        lambda: [THAWS(), EMA(0.8), GradientClipping(max_norm=0.5), Evaluate(batches(2))],
        {},
    ),
    "with SAM": (momentum, lambda: [THAWS(), SAM()], {}),
    "in fp16": (trainable, lambda: [THAWS()], {"precision": "fp16-mixed"}),
    "carry": (trainable, lambda: [THAWS()], {"remainder": "carry", "accumulation": 4}),
    "cosine": (trainable, lambda: [THAWS(), LRSchedule(cosine)], {}),
    "lambdas": (trainable, lambda: [THAWS(), LRSchedule(lambdas)], {}),
    "one cycle": (trainable, lambda: [THAWS(), LRSchedule(cycle)], {}),
    "sequential": (trainable, lambda: [THAWS(), LRSchedule(warm_up)], {}),
    "by epoch": (
        trainable,
        lambda: [THAWS(), LRSchedule(lambda opt: schedulers.StepLR(opt, 1, 0.5), interval="epoch")],
        {},
    ),
    "plateau": (
        trainable,
        lambda: [
            THAWS(),
            LRSchedule(lambda opt: schedulers.ReduceLROnPlateau(opt, patience=0), "epoch", "train/epoch_loss"),
        ],
        {},
    ),
}


def position_of(sections):
    return sections["run"]["dict"]["position"]["dict"]


CUTS = [
    ("before_step", 3),
    ("after_epoch", 6),
    ("before_epoch", 6),
    ("before_step", 9),
    ("after_epoch", 12),
    ("before_epoch", 12),
    ("before_step", 12),
    ("before_step", 13),
    ("before_step", 14),
    ("after_epoch", 18),
    ("before_step", 21),
]


def cut(engine, state, step, **given):
    """Run an engine until it pauses in a state at a step, where it stores a checkpoint."""
    engine.on_enter(state)(lambda run: run.step == step and run.pause("to be killed"))
    run = engine.run(**given)
    assert (run.paused, run.state, run.step) == ("to be killed", state, step)


@pytest.mark.parametrize("what", RUNS)
def test_a_resumed_run_is_the_same_to_the_bit(what, tmp_path):
    """Cut before the thaws, at them, after them, and in the middle of a window: weights, moments, rates, plugins."""
    make, plugins, config = RUNS[what]
    straight = engine_of(tmp_path / "s", plugins(), make, **config)
    straight.run()
    given = {}
    for state, step in CUTS:
        cut(engine_of(tmp_path / "a", plugins(), make, **config), state, step, **given)
        given = {"resume": tmp_path / "a"}
    last = engine_of(tmp_path / "a", plugins(), make, **config)
    last.run(**given)
    assert outcome(last) == outcome(straight)


def test_a_checkpoint_without_the_word_on_frozen_parameters_is_read(tmp_path):
    """Older ones lack it; the optimizer is built from the parameters as they are here."""
    cut(engine_of(tmp_path / "a", [Freeze("backbone.*")], everything), "before_step", 9)
    (path,) = (tmp_path / "a").glob("checkpoint-*")
    put_state(path, lambda sections: position_of(sections).pop("frozen"))
    straight = engine_of(tmp_path / "s", [Freeze("backbone.*")], everything)
    straight.run()
    resumed = engine_of(tmp_path / "a", [Freeze("backbone.*")], everything)
    resumed.run(resume=tmp_path / "a")
    assert outcome(resumed) == outcome(straight)


def test_a_checkpoint_of_before_says_which_parameters_differ(tmp_path):
    """One without the word, of an optimizer that left frozen parameters out, finds them in it here."""
    cut(engine_of(tmp_path / "a", [Freeze("backbone.*")]), "before_step", 9)
    (path,) = (tmp_path / "a").glob("checkpoint-*")
    put_state(path, lambda sections: position_of(sections).pop("frozen"))
    with pytest.raises(CheckpointError, match=r"parameter 0 of group 0 is network.head.weight in the"):
        engine_of(tmp_path / "a", [Freeze("backbone.*")]).run(resume=tmp_path / "a")


def test_a_name_that_is_not_here_is_refused(tmp_path):
    """Nothing has changed then: each parameter takes a gradient as before."""
    cut(engine_of(tmp_path / "a", [Freeze("backbone.*")]), "before_step", 9)
    (path,) = (tmp_path / "a").glob("checkpoint-*")
    put_state(path, lambda sections: position_of(sections)["frozen"].append("tail.weight"))
    engine = engine_of(tmp_path / "a", [Freeze("backbone.*")])
    with pytest.raises(CheckpointError, match=r"network.tail.weight: took no gradient when the"):
        engine.run(resume=tmp_path / "a")
    assert all(one.requires_grad for one in engine.current.network.parameters())


def test_a_resume_that_fails_leaves_the_parameters_as_they_were(tmp_path):
    """Also where it fails after the optimizers were built."""
    cut(engine_of(tmp_path / "a", [Freeze("backbone.*")], momentum), "before_step", 9)
    engine = engine_of(tmp_path / "a", [Freeze("backbone.*")])
    with pytest.raises(CheckpointError, match="SGD in the checkpoint"):
        engine.run(resume=tmp_path / "a")
    assert all(one.requires_grad for one in engine.current.network.parameters())


def test_one_that_comes_with_the_resume_freezes_from_there_on(tmp_path):
    """The checkpoint has none of it; what it names stands still."""
    cut(engine_of(tmp_path / "a", [], everything), "before_step", 9)
    engine = engine_of(tmp_path / "a", [Freeze("backbone.*")], everything)
    engine.run(until="before_step", resume=tmp_path / "a")
    before = backbone(engine)
    engine.run()
    assert equal(backbone(engine), before)
    assert not engine.current.network.backbone[1].training


def test_until_may_be_another_when_a_run_is_resumed(tmp_path):
    """What is frozen then is thawed later."""
    cut(engine_of(tmp_path / "a", [Freeze("backbone.*", until=1)]), "before_step", 3)
    engine = engine_of(tmp_path / "a", [Freeze("backbone.*", until=3)])
    engine.run(until=lambda run: run.epoch == 2, resume=tmp_path / "a")
    assert len(engine.current.optimizer.param_groups) == 1
    assert len(engine.run().optimizer.param_groups) == 2


# -- schedules


def test_a_group_that_joins_has_the_rates_that_it_would_have_had():
    """The schedule is one of the whole run: half-way through a cosine it joins at half of its rate."""
    run = engine_of(None, [Freeze("backbone.*", until=2, lr=0.01), LRSchedule(cosine)]).run()
    whole = engine_of(None, [LRSchedule(cosine)], everything).run()
    rates = whole.history("lr")
    assert len(rates) == 12
    assert [*run.history("lr"), *run.history("lr/0")] == rates
    torch.testing.assert_close(run.history("lr/1"), [rate / 5 for rate in rates[6:]])


def test_a_list_of_rules_has_one_for_each_group_that_is_there():
    """The function is called again when a group has joined."""
    run = engine_of(None, [Freeze("backbone.*", until=2, lr=0.01), LRSchedule(lambdas)]).run()
    torch.testing.assert_close(run.history("lr/1"), [0.01 / (1 + update) for update in range(6, 12)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda opt: [LRSchedule(schedulers.ExponentialLR(opt, 0.9))], "given a ExponentialLR that is built already"),
        (lambda opt: [LRSchedule(cosine), LRSchedule(warm_up, name="second")], "LRSchedule schedules this optimizer"),
    ],
    ids=["built", "two"],
)
def test_a_schedule_that_cannot_include_a_group_is_refused_before_the_first_epoch(make, said):
    """And not when the group joins, hours later."""
    net = Net()
    optimizer = adamw(net.head.parameters())
    engine = engine_of(None, [Freeze("backbone.*", until=3), *make(optimizer)], optimizer, net)
    with pytest.raises(EngineError, match=said):
        engine.run()
    assert engine.current.epoch == 0


def test_a_schedule_is_stretched_with_the_group_that_has_joined(tmp_path):
    """The rates are those of a run that had this length from its beginning."""

    def plugins(**options):
        return [Freeze("backbone.*", until=2, lr=0.01), LRSchedule(cosine, **options)]

    cut(engine_of(tmp_path / "a", plugins()), "before_step", 20)
    longer = engine_of(tmp_path / "a", plugins(on_resize="stretch"), epochs=6)
    run = longer.run(resume=tmp_path / "a")
    whole = engine_of(None, plugins(), epochs=6).run()
    assert [group["lr"] for group in run.optimizer.param_groups] == [
        group["lr"] for group in whole.optimizer.param_groups
    ]
    assert run.history("lr/1")[-7:] == whole.history("lr/1")[-7:]


# -- mistakes


@pytest.mark.parametrize(
    ("patterns", "options", "said"),
    [
        ((), {}, "takes patterns of names of parameters"),
        ((3,), {}, "got 3"),
        ((["a"],), {}, r"each an argument of its own; got \['a'\]"),
        (("",), {}, "got ''"),
        (("a",), {"until": 0}, r"Freeze\(until=…\) must be a whole number from 1 on, got 0"),
        (("a",), {"lr": 0.1}, "say until="),
        (("a",), {"until": 1, "lr": -1.0}, r"Freeze\(lr=…\) must be a number from 0 on"),
        (("a",), {"until": 1, "group": 3}, r"Freeze\(group=…\) must be options of a parameter group by name"),
        (("a",), {"until": 1, "group": {"lr": 1.0}, "lr": 1.0}, "no lr beside"),
        (("a",), {"until": 1, "group": {"params": []}}, "has no params"),
        (("a",), {"optimizer": -1}, "from 0 on"),
        (("a",), {"freeze_statistics": 1}, "True or False"),
        (("a",), {"name": ""}, "a word such as"),
    ],
)
def test_a_mistake_is_found_when_it_is_built(patterns, options, said):
    with pytest.raises(PluginError, match=said):
        Freeze(*patterns, **options)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("backbone", r"Freeze: no parameter of the network matches 'backbone'; .* are 'backbone.\*'"),
        ("bakcbone.*", r"the nearest is 'backbone.\*'"),
        ("head.wieght", "the nearest is 'head.weight'"),
        ("*", r"matches all 8 parameters that are trained"),
    ],
)
def test_a_pattern_that_does_not_fit_is_found_when_the_engine_is_built(pattern, said):
    with pytest.raises(PluginError, match=said):
        engine_of(None, [Freeze(pattern)])


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ([Freeze("backbone.*"), Freeze("backbone.4.*")], r"both freeze backbone.4.weight"),
        ([Freeze("backbone.*"), Freeze("head.*")], "nothing is left to train"),
        ([Freeze("backbone.*", until=9, optimizer=1)], r"Freeze\(optimizer=1\): there are 1, counted from 0"),
        ([Freeze("backbone.*", until=9, group={"weight_deacy": 0.0})], "no option 'weight_deacy'; .* 'weight_decay'"),
    ],
)
def test_a_mistake_that_the_run_shows_ends_it_before_the_first_epoch(plugins, said):
    engine = engine_of(None, plugins)
    with pytest.raises(EngineError, match=said):
        engine.run()
    assert engine.current.epoch == 0


def test_what_is_frozen_already_is_no_work_for_it():
    net = Net()
    net.backbone.requires_grad_(False)
    with pytest.raises(EngineError, match="6 parameters that match are frozen already"):
        engine_of(None, [Freeze("backbone.*")], net=net).run()


def test_lbfgs_takes_no_group():
    """It steps its first group only."""

    def quasi_newton(net):
        return torch.optim.LBFGS([one for one in net.parameters() if one.requires_grad])

    with pytest.raises(EngineError, match="LBFGS steps its first parameter group only"):
        engine_of(None, [Freeze("backbone.*", until=1)], quasi_newton).run()


def test_an_optimizer_that_takes_no_group_is_found_before_the_first_epoch():
    """By trying it; one that takes the group is left without it."""

    class Closed(torch.optim.SGD):
        def add_param_group(self, param_group):
            super().add_param_group(param_group)
            if len(self.param_groups) > 1:
                raise ValueError("one group only")

    def closed(net):
        return Closed([one for one in net.parameters() if one.requires_grad], lr=0.1)

    engine = engine_of(None, [Freeze("backbone.*", until=3)], closed)
    with pytest.raises(EngineError, match=r"Closed takes no further group of backbone.0.weight, .* \(one group only\)"):
        engine.run()
    assert engine.current.epoch == 0
    assert group_names(engine.current) == [["head.weight", "head.bias"]]


def test_a_second_run_of_the_same_objects_freezes_anew():
    """Nothing is left of the first run."""
    net, plugin = Net(), Freeze("backbone.*", until=1)
    for _ in range(2):
        run = engine_of(None, [plugin], net=net, epochs=2).run()
        assert len(run.optimizer.param_groups) == 2
