"""Signed but wrong: digests are right, and what is stored does not fit the live objects. It is refused, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crafted import bounded, resaved
from torch import Tensor, nn
from torch.utils.data import Dataset

from heptad import CheckpointError, Components, Engine, EngineError, Plugin, RunConfig, load_weights
from heptad.checkpoints.store import Store
from heptad.data.generators import global_states
from heptad_plugins import Checkpoint, NonFiniteGuard
from scenario import digest, full_engine, network, outcome

Sections = dict[str, Any]


def engine_for(directory: Path, **options: Any) -> Engine:
    """Return the engine whose checkpoint is crafted: windows are computed again, and there is a side optimizer."""
    return full_engine(directory, plugins=[NonFiniteGuard()], again=True, at="after_step", **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint in the middle of a window."""
    directory = tmp_path_factory.mktemp("source")
    engine_for(directory).run(until=lambda run: run.step == 6)
    return Store(directory).entries()[-1].path


def everything(engine: Engine) -> dict[str, str]:
    """Return digests of all that a resume may change; no optimizer has a state before a run begins."""
    run, live = engine.current, list(engine.current.network.parameters())
    parts: dict[str, Any] = {
        "weights": dict(run.network.state_dict()),
        "gradients": [parameter.grad for parameter in live],
        "modes": [module.training for module in run.network.modules()],
        "takes": [parameter.requires_grad for parameter in live],
        "generators": global_states(),
        "values": [value.value for value in run.records()],
        "position": [run.state, run.epoch, run.step, run.update, run.id, run.resumed_from or ""],
        "plugins": {plugin.name: plugin.state_dict() for plugin in engine._manager.plugins},
        "states": [len(one.state) for one in (*run._runtime.optimizers, *run._runtime.optimizers.side.values())],
    }
    return {name: digest(part) for name, part in parts.items()}


def assert_refused(engine: Engine, path: Path, says: str | None = None) -> None:
    """The checkpoint is refused by name, nothing has changed, and the engine is not driven."""
    before = everything(engine)
    with pytest.raises(CheckpointError, match=says):
        engine.run(resume=path)
    assert sum(len(one.state) for one in engine.current._runtime.optimizers) == 0
    for drive in (engine.run, engine.advance):
        with pytest.raises(EngineError, match=r"(?s)could not be resumed .* build a new Engine"):
            drive()
    after = everything(engine)
    assert [name for name in before if name != "states" and before[name] != after[name]] == []


def optimizer(sections: Sections) -> dict[str, Any]:
    """Return the state of the optimizer."""
    return sections["optimizers"]["states"][0]["state"]


def grown(tensor: Tensor) -> Tensor:
    """Return a tensor with one row more."""
    return torch.cat([tensor, tensor[:1]])


def swap(held: dict[Any, Any], one: Any, other: Any) -> None:
    """Swap two values."""
    held[one], held[other] = held[other], held[one]


def position(sections: Sections) -> dict[str, Any]:
    """Return the position."""
    return sections["run"]["position"]


def far(states: dict[str, Any], place: Any) -> None:
    """Put another place in the state of numpy's generator, which numpy takes without a look."""
    name, key, _, *rest = states["numpy"]
    states["numpy"] = (name, key, place, *rest)


BYTES = torch.tensor([112, 2], dtype=torch.uint8)
"""How many numbers are left to torch's generator: all 624, wherever the next one is."""

CRAFTED: dict[str, tuple[Callable[[Sections], object], str]] = {
    # the network
    "a tensor of another dtype": (
        lambda s: s["network"]["tensors"].update({"0.bias": torch.zeros(8).double()}), "float64"),
    "two tensors swapped": (lambda s: swap(s["network"]["tensors"], "0.weight", "4.weight"), r"0.weight"),
    "a sparse tensor": (
        lambda s: s["network"]["tensors"].update({"0.weight": torch.ones(8, 4).to_sparse()}), "sparse_coo"),
    "a mode of a part that is not here": (
        lambda s: [s["network"][of].update({"9": value}) for of, value in (("parts", "x"), ("training", True))], "9"),
    "no mode of a part": (lambda s: s["network"]["training"].pop("0"), "network.training: 0 is here only"),
    "no word on a gradient": (lambda s: s["network"]["requires_grad"].pop("0.bias"), "requires_grad: 0.bias"),
    "a mode that is a number": (lambda s: s["network"]["training"].update({"0": 1}), "training"),
    "an extra state of a part that has none": (lambda s: s["network"]["extra"].update({"0": 1}), "an extra state"),
    # gradients
    "two gradients swapped": (
        lambda s: swap(s["optimizers"]["gradients"], "network.0.weight", "network.4.weight"), "gradient of network"),
    "a gradient of another dtype": (
        lambda s: s["optimizers"]["gradients"].update({"network.0.bias": torch.zeros(8).double()}), "float64"),
    "a gradient of nothing": (
        lambda s: s["optimizers"]["gradients"].update({"network.9.bias": torch.zeros(8)}), "no such parameter"),
    "a gradient that is no tensor": (
        lambda s: s["optimizers"]["gradients"].update({"network.0.bias": 1.0}), "gradients"),
    # optimizers
    "a moment of another shape": (
        lambda s: optimizer(s)["state"][0].update(exp_avg=torch.zeros(3)), r"exp_avg is float32 \(3,\)"),
    "a moment that would be broadcast": (
        lambda s: optimizer(s)["state"][0].update(exp_avg_sq=torch.zeros(1, 4)), r"exp_avg_sq is float32 \(1, 4\)"),
    "a moment of another dtype": (
        lambda s: optimizer(s)["state"][0].update(exp_avg_sq=torch.zeros(8, 4).double()), "exp_avg_sq is float64"),
    "a moment that is a number": (lambda s: optimizer(s)["state"][0].update(exp_avg=0.0), "exp_avg is 0.0"),
    "a count that is a text": (lambda s: optimizer(s)["state"][0].update(step="7"), "step is '7'"),
    "a count of unsigned numbers": (
        lambda s: optimizer(s)["state"][0].update(step=torch.tensor(7, dtype=torch.uint32)), "step is "),
    "a momentum of whole numbers": (
        lambda s: s["optimizers"]["side"]["tilt"]["state"]["state"][0].update(momentum_buffer=torch.tensor(1)),
        "momentum_buffer is "),
    "a sparse moment": (
        lambda s: optimizer(s)["state"][0].update(exp_avg=torch.ones(8, 4).to_sparse()), "exp_avg is .*sparse"),
    "a count below nothing": (
        lambda s: optimizer(s)["state"][0].update(step=torch.tensor(-2.0)), "step is -2.0"),
    "a momentum of one dimension too many": (
        lambda s: s["optimizers"]["side"]["tilt"]["state"]["state"][0].update(momentum_buffer=torch.zeros(1)),
        "momentum_buffer is "),
    "the moments of another parameter": (lambda s: swap(optimizer(s)["state"], 0, 5), "exp_avg"),
    "moments of no parameter": (lambda s: optimizer(s)["state"].update({99: {}}), "the parameter 99, of 6"),
    "moments by name": (lambda s: optimizer(s)["state"].update(x={}), "no number of a parameter"),
    "no moments but a number": (lambda s: optimizer(s)["state"].update({0: 5}), "the state of parameter 0 is 5"),
    "parameters in another order": (
        lambda s: optimizer(s)["param_groups"][0].update(params=[1, 0, 2, 3, 4, 5]), "has the parameters"),
    "a parameter too many": (lambda s: optimizer(s)["param_groups"][0]["params"].append(6), "has the parameters"),
    "no options": (lambda s: optimizer(s)["param_groups"].clear(), "groups of names"),
    "a rate in words": (lambda s: optimizer(s)["param_groups"][0].update(lr="fast"), "lr is 'fast'"),
    "rates": (lambda s: optimizer(s)["param_groups"][0].update(lr=torch.zeros(2)), "lr is a tensor"),
    "one beta": (lambda s: optimizer(s)["param_groups"][0].update(betas=(0.9,)), "betas"),
    "no betas": (lambda s: optimizer(s)["param_groups"][0].pop("betas"), "no step can be made"),
    "a number for a switch": (lambda s: optimizer(s)["param_groups"][0].update(maximize=2.0), "maximize is 2.0"),
    "a list for a state": (lambda s: s["optimizers"]["states"][0].update(state=[1]), "expected state and param_groups"),
    "a tensor for a state": (lambda s: s["optimizers"]["states"][0].update(state=torch.zeros(3)), "no state"),
    "an optimizer less": (lambda s: position(s)["optimizers"].clear(), "optimizers: 1 in the checkpoint, 1 here"),
    "a side optimizer's momentum of another shape": (
        lambda s: s["optimizers"]["side"]["tilt"]["state"]["state"][0].update(momentum_buffer=torch.zeros(2)),
        "side/tilt: held.0: momentum_buffer"),
    "a parameter that nobody holds": (lambda s: s["optimizers"]["held"].update(x=torch.zeros(1)), "x is in the"),
    "no parameter of the side optimizer": (lambda s: s["optimizers"]["held"].clear(), "is here only"),
    # the position
    "a batch in place of a window": (lambda s: position(s)["window"].update(losses=[torch.zeros(3)]), "losses"),
    "a window that is overfull": (lambda s: position(s)["window"].update(steps=9), "a window of 3 steps holds 9"),
    "a window of another size": (lambda s: position(s)["window"].update(size=1 << 40), "accumulation is 3 here"),
    "a window of no weight": (lambda s: position(s)["window"].update(total=None), "no sum"),
    "steps without a weight": (lambda s: position(s)["window"].update(first=None), "steps without a weight"),
    "a weight below nothing": (lambda s: position(s)["window"].update(first=-1.0), "a number from 0 on"),
    "a loss of several numbers": (lambda s: position(s).update(loss=torch.zeros(3)), "one floating-point number"),
    "three sums of an epoch": (lambda s: position(s).update(epoch_loss=[0.0] * 3), "four sums"),
    "more updates than steps": (lambda s: position(s)["placed"].update(update=99), "99 updates"),
    "a count of 70 bits": (lambda s: position(s)["placed"].update(samples=1 << 69), "samples"),
    "a count of 20,000 bits": (lambda s: position(s)["placed"].update(samples=1 << 20_000), "samples"),
    "between two epochs": (lambda s: position(s)["placed"].update(epoch_open=False), "between two epochs"),
    "batches that are not there": (lambda s: position(s)["placed"].update(remaining=100), "the place in the pass"),
    "another pass": (lambda s: s["run"]["data"].update(key=[9, 5, 0]), "the place in the pass"),
    "a batch that is taken again": (
        lambda s: [s["run"]["data"].update(next=4), position(s)["placed"].update(remaining=3)], "the place"),
    "samples without a number": (lambda s: s["run"]["data"].update(samples=None), "samples"),
    "a closed pass": (lambda s: s["run"]["data"].update(open=False), "the place in the pass"),
    "data of unknown length": (lambda s: position(s)["placed"].update(sized=False), "no known length"),
    "a filter of a list": (lambda s: position(s)["filters"][0].__setitem__(0, ["x"]), "filter"),
    "a filter of a tensor": (lambda s: position(s)["filters"][0].__setitem__(5, torch.zeros(2)), "filter"),
    "a visit below 0": (lambda s: position(s)["visits"].__setitem__(0, -1), "visits"),
    "an event of no kind": (lambda s: position(s)["events"].append({"event": ["x"]}), "event"),
    "an event without end": (
        lambda s: position(s)["events"].append({"event": "Note", "seq": 1 << 80, "time_ns": 0, "text": ""}), "event"),
    # kept batches
    "a kept batch too many": (lambda s: position(s)["kept"]["batches"].extend([1, 2, 3]), "were kept of 2 steps"),
    "a kept batch of another dtype": (
        lambda s: position(s)["kept"]["batches"].__setitem__(1, [torch.zeros(2, 4).long(), torch.zeros(2).long()]),
        "differ in form"),
    "kept batches without targets": (
        lambda s: position(s)["kept"].update(batches=[torch.zeros(2, 4), torch.zeros(2, 4)]), r"not \(data, target\)"),
    "a kept loss in words": (lambda s: position(s)["kept"].update(loss="x"), "kept.loss"),
    # values, generators, identity
    "names of another dtype": (
        lambda s: s["run"]["values"].update(name=s["run"]["values"]["name"].double()), "float64"),
    "values of another dtype": (
        lambda s: s["run"]["values"].update(value=s["run"]["values"]["value"].float()), "float32"),
    "places in a table": (lambda s: s["run"]["values"].update(place=s["run"]["values"]["place"].view(-1, 4)), "place"),
    "places in no order": (lambda s: s["run"]["values"].update(place=s["run"]["values"]["place"].flip(0)), "no order"),
    "one name twice": (lambda s: s["run"]["values"]["names"].__setitem__(1, s["run"]["values"]["names"][0]), "twice"),
    "a place behind what numpy has drawn": (lambda s: far(s["run"]["random"], 625), "no place 625"),
    "a place before what numpy has drawn": (lambda s: far(s["run"]["random"], -(10**9)), "no place -1000000000"),
    "a place of numpy's in words": (lambda s: far(s["run"]["random"], "x"), "no place 'x'"),
    "a place behind what torch has drawn": (lambda s: s["run"]["random"]["torch"][8:10].copy_(BYTES), "no place"),
    "a flag in words": (lambda s: s["plugins"]["Checkpoint"].update(state={"has_valued": "x"}), "has_valued is 'x'"),
    "a generator of a device": (lambda s: s["run"]["random"].update(cuda=5), "cuda generators"),
    "a tensor in the configuration": (
        lambda s: s["run"]["identity"]["config"].update(epochs=torch.zeros(2)), "plain data"),
    "a limit in words": (lambda s: s["run"]["identity"]["config"].update(max_updates="x"), "max_updates"),
    "a tensor in the environment": (lambda s: s["run"]["environment"].update(threads=torch.zeros(2)), "plain data"),
    "a plugin of no state": (lambda s: s["plugins"]["EMA"].update(state=torch.zeros(2)), "plugins.EMA.state"),
}  # fmt: skip


@pytest.mark.parametrize("what", CRAFTED)
def test_what_does_not_fit_is_refused_before_anything_changes(what: str, source: Path, tmp_path: Path):
    """Network, optimizers, gradients, plugins and generators are what they were, and the engine is not driven."""
    change, says = CRAFTED[what]
    path = resaved(source, tmp_path / "crafted", change)
    assert_refused(engine_for(tmp_path / "own"), path, says)


def test_the_checkpoint_itself_is_resumed(source: Path, tmp_path: Path):
    """Or the tests above would show nothing; an engine that refused a crafted one takes it as well."""
    straight = engine_for(tmp_path / "straight")
    straight.run()
    engine = engine_for(tmp_path / "own")
    bad = resaved(source, tmp_path / "crafted", CRAFTED["two gradients swapped"][0])
    with pytest.raises(CheckpointError):
        engine.run(resume=bad)
    engine.run(resume=resaved(source, tmp_path / "again", lambda sections: None))
    parts = [part for part in outcome(engine) if part != "plugins"]
    assert [outcome(engine)[part] for part in parts] == [outcome(straight)[part] for part in parts]


QUASI_NEWTON: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a direction that is cut": (lambda state: state.update(d=state["d"][:-1]), "d holds a tensor"),
    "an old direction that is a number": (lambda state: state["old_dirs"].append(1.0), "old_dirs holds 1.0"),
    "a sparse direction": (lambda state: state.update(d=state["d"].to_sparse()), "d holds a tensor"),
    "a number for a list": (lambda state: state.update(ro=-1), "ro is -1, expected a list"),
    "a list for a number": (lambda state: state.update(t=[1.0]), "t is "),
    "nothing for a direction": (lambda state: state.update(d=None), "d holds None"),
    "a place too few": (lambda state: state["al"].pop(), "shorter than its history"),
    "a factor too few": (lambda state: state["ro"].pop(), "differ in length"),
    "a count of calls in words": (lambda state: state.update(func_evals="x"), "func_evals holds 'x'"),
}


@pytest.mark.parametrize("what", QUASI_NEWTON)
def test_the_vectors_of_a_quasi_newton_method_are_as_long_as_its_parameters(what: str, tmp_path: Path):
    """They belong to no parameter alone."""
    options = {"closure": True, "schedule": False}
    full_engine(tmp_path / "a", **options).run(until=lambda run: run.update == 2)
    change, says = QUASI_NEWTON[what]
    newest = Store(tmp_path / "a").entries()[-1].path
    path = resaved(newest, tmp_path / "b", lambda sections: change(optimizer(sections)["state"][0]))
    assert_refused(full_engine(tmp_path / "c", **options), path, says)


class Extra(nn.Linear):
    """A layer with an extra state, which it takes half before it looks at the rest."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.seen = {"a": 0}

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen["a"] = state["a"]
        if not isinstance(state["a"], int):
            raise TypeError("a is a number")


def test_a_submodule_that_refuses_its_extra_state_is_put_back(tmp_path: Path):
    """It is asked before anything changes."""

    def engine(directory: Path) -> Engine:
        components = Components(
            network=Extra(),
            loader=[(torch.ones(2, 4), torch.zeros(2).long())] * 4,
            criterion=nn.CrossEntropyLoss(),
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        )
        return Engine(components, RunConfig(epochs=1, seed=1), [Checkpoint(directory, at="after_step")])

    engine(tmp_path / "a").run(until=lambda run: run.step == 2)
    newest = Store(tmp_path / "a").entries()[-1].path
    path = resaved(newest, tmp_path / "b", lambda sections: sections["network"]["extra"].update({"": {"a": "x"}}))
    refusing = engine(tmp_path / "c")
    layer: Any = refusing.current.network
    weight = layer.weight.clone()
    with pytest.raises(CheckpointError, match="network does not take its extra state: TypeError: a is a number"):
        refusing.run(resume=path)
    assert layer.seen == {"a": 0}
    assert torch.equal(layer.weight, weight)


def schedule(sections: Sections) -> dict[str, Any]:
    """Return the state of the schedule."""
    return sections["plugins"]["LRSchedule"]["state"]


def phase(sections: Sections) -> dict[str, Any]:
    """Return the second phase of the schedule."""
    return schedule(sections)["scheduler"]["_schedule_phases"][1]


def plugin_state(name: str) -> Callable[[Sections], dict[str, Any]]:
    """Return what leads to the state of a plugin."""
    return lambda sections: sections["plugins"][name]["state"]


average, stopping, guard = plugin_state("EMA"), plugin_state("EarlyStopping"), plugin_state("NonFiniteGuard")

STATES: dict[str, tuple[Callable[[Sections], object], str]] = {
    "averages of another shape": (lambda s: average(s)["tensors"].update({"0.bias": torch.zeros(9)}), "EMA .* 0.bias"),
    "two averages swapped": (lambda s: swap(average(s)["tensors"], "0.weight", "4.weight"), "EMA .* another network"),
    "an average too few": (lambda s: average(s)["tensors"].pop("0.bias"), "EMA .* 0.bias"),
    "an average that is a number": (lambda s: average(s)["tensors"].update({"0.bias": 1.0}), "no tensor"),
    "an average of whole numbers": (
        lambda s: average(s)["tensors"].update({"0.bias": torch.zeros(8).long()}), "EMA .* 0.bias"),
    "no averages": (lambda s: average(s).pop("tensors"), "EMA cannot load"),
    "a count of averages in words": (lambda s: average(s).update(n_averaged="x"), "n_averaged is 'x'"),
    "a best value in words": (lambda s: stopping(s).update(best="x"), "EarlyStopping .* best is 'x'"),
    "no count": (lambda s: stopping(s).pop("count"), "EarlyStopping .* count is missing"),
    "a stop that is a number": (lambda s: stopping(s).update(stopped=2), "stopped is 2"),
    "a count below 0": (lambda s: guard(s).update(skipped=-1), "NonFiniteGuard .* skipped is -1"),
    "a phase that is cut": (lambda s: phase(s).pop("end_step"), r"LRSchedule .*\[1\].end_step is missing"),
    "a phase in words": (lambda s: phase(s).update(end_lr="x"), "end_lr is 'x'"),
    "a phase too few": (lambda s: schedule(s)["scheduler"]["_schedule_phases"].pop(), "_schedule_phases"),
    "a schedule that is a number": (lambda s: schedule(s).update(scheduler=5), "LRSchedule cannot load"),
    "a curve of no kind": (lambda s: schedule(s)["scheduler"].update(_anneal_func_type="co"), "cannot move: Value"),
    "a phase of unsigned numbers": (
        lambda s: phase(s).update(end_step=torch.tensor(3, dtype=torch.uint16)), "end_step is "),
    "a place between two moves": (lambda s: schedule(s)["scheduler"].update(last_epoch=1.5), "last_epoch is 1.5"),
    "moves without end": (lambda s: schedule(s).update(moves=1 << 62), "has moved 4611686018427387904 times"),
    "another number of rates": (lambda s: schedule(s)["scheduler"].update(base_lrs=[]), "base_lrs"),
    "moves in words": (lambda s: schedule(s).update(moves="x"), "moves is 'x'"),
    "a state of nothing": (lambda s: s["plugins"]["EMA"].update(state=5), "EMA cannot load its state"),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_the_shipped_plugins_look_at_their_states(what: str, tmp_path: Path, scheduled: Path):
    """When they load them, not turns later; all plugins are put back."""
    change, says = STATES[what]
    path = resaved(scheduled, tmp_path / "crafted", change)
    engine = full_engine(tmp_path / "own", plugins=[NonFiniteGuard()], at="after_step")
    assert_refused(engine, path, f"(?s){says}")


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with a schedule, and with averages of one update."""
    directory = tmp_path_factory.mktemp("scheduled")
    engine = full_engine(directory, plugins=[NonFiniteGuard()], at="after_step")
    engine.run(until=lambda run: run.step == 6)
    return Store(directory).entries()[-1].path


def test_a_schedule_that_has_moved_for_ever_is_refused_at_once(scheduled: Path, tmp_path: Path):
    """From another rate, its moves are made again one by one."""

    def craft(sections: Sections) -> None:
        schedule(sections)["scheduler"].update(last_epoch=10**15, base_lrs=[0.5])

    path = resaved(scheduled, tmp_path / "crafted", craft)
    engine = full_engine(tmp_path / "own", plugins=[NonFiniteGuard()], at="after_step")
    said = bounded(lambda: engine.run(resume=path), megabytes=2048, seconds=20)
    assert "LRSchedule: the schedule in the checkpoint has moved 1000000000000000 times" in said


class Half(Plugin):
    """Takes half of its state, in its attributes and in what they hold, and refuses the rest."""

    def __init__(self, refuses: bool, on_error: str = "raise") -> None:
        self.refuses = refuses
        self.on_error: Any = on_error
        self.count = 0
        self.seen: list[int] = []
        self.mean = torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "seen": self.seen, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.seen.extend(state["seen"])
        self.mean.copy_(state["mean"])
        if self.refuses and self.count:
            self.late = True
            raise KeyError("the rest")


@pytest.mark.parametrize("on_error", ["raise", "detach"])
def test_a_plugin_that_fails_half_way_is_put_back(on_error: str, tmp_path: Path):
    """Its attributes, the lists in them and its tensors; so is a plugin that began here, where the resume fails."""
    plugin = Half(refuses=False)
    plugin.count, plugin.seen, plugin.mean = 3, [1, 2], torch.ones(2)
    full_engine(tmp_path / "a", plugins=[plugin], at="after_step").run(until=lambda run: run.step == 2)
    again = Half(refuses=True, on_error=on_error)
    seen, mean = again.seen, again.mean
    engine = full_engine(tmp_path / "a", plugins=[again], at="after_step")
    if on_error == "raise":
        assert_refused(engine, Store(tmp_path / "a").entries()[-1].path, "Half cannot load its state: KeyError")
    else:
        engine.run(resume="auto", until=lambda run: True)
    assert (again.count, again.seen, again.mean.tolist(), hasattr(again, "late")) == (0, [], [0.0, 0.0], False)
    assert again.seen is seen
    assert again.mean is mean


def test_a_run_that_was_built_otherwise_may_begin_after_it_was_refused(source: Path, tmp_path: Path):
    """Nothing was touched to find that out."""
    engine = engine_for(tmp_path, seed=10)
    with pytest.raises(CheckpointError, match=r"RunConfig.seed"):
        engine.run(resume=source)
    assert engine.run().state == "finished"


def test_a_second_tensor_of_one_name_is_refused(tmp_path: Path):
    """The names of tied weights lead to one tensor here."""

    def engine(directory: Path) -> Engine:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        components = Components(
            network=model,
            loader=[(torch.ones(2, 3), torch.zeros(2).long())] * 4,
            criterion=nn.CrossEntropyLoss(),
            optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.1),
        )
        return Engine(components, RunConfig(epochs=1, seed=1), [Checkpoint(directory, at="after_step")])

    engine(tmp_path / "a").run(until=lambda run: run.step == 2)
    newest = Store(tmp_path / "a").entries()[-1].path
    path = resaved(newest, tmp_path / "b", lambda s: s["network"]["tensors"]["1.weight"].zero_())
    with pytest.raises(CheckpointError, match=r"0.weight and 1.weight are one tensor here, and two that differ"):
        engine(tmp_path / "c").run(resume=path)


WEIGHTS: dict[str, Callable[[Sections], object]] = {
    "a list for a section": lambda s: s.update(network=[1]),
    "nothing": lambda s: s.update(network={}),
    "numbers for tensors": lambda s: s["network"].update(tensors={"0.weight": 1.0}),
    "a tensor for tensors": lambda s: s["network"].update(tensors=torch.zeros(3)),
    "names that are numbers": lambda s: s["network"].update(tensors={1: torch.zeros(3)}),
    "a tensor for the names of buffers": lambda s: s["network"].update(not_persistent=torch.zeros(3)),
    "a number among the names of buffers": lambda s: s["network"].update(not_persistent=[1]),
    "another dtype": lambda s: s["network"]["tensors"].update({"4.bias": torch.zeros(3).double()}),
    "a sparse tensor": lambda s: s["network"]["tensors"].update({"0.weight": torch.ones(8, 4).to_sparse()}),
    "one name twice": lambda s: s["network"]["tensors"].update({"_orig_mod.0.bias": torch.zeros(8)}),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_do_not_fit_are_not_loaded(what: str, source: Path, tmp_path: Path):
    """Of the network or of an average: the error is of one kind, and the network is what it was."""
    for average in (False, True):

        def change(sections: Sections, average: bool = average) -> None:
            if average:
                sections["network"] = sections["plugins"]["EMA"]["state"]
            WEIGHTS[what](sections)
            if average:
                sections["plugins"]["EMA"]["state"] = sections["network"]
                sections["network"] = {"tensors": {}}

        path = resaved(source, tmp_path / "crafted", change)
        model = network()
        before = [tensor.clone() for tensor in model.state_dict().values()]
        if average and "buffers" in what:
            continue
        with pytest.raises(CheckpointError, match=str(path)):
            load_weights(path, model, average=average)
        assert all(map(torch.equal, before, model.state_dict().values()))


@pytest.mark.parametrize("plugins", [[1], {"EMA": 5}, {"EMA": {"state": 5}}, {"EMA": {"state": {"tensors": 5}}}])
def test_an_average_that_is_none_is_refused(plugins: Any, source: Path, tmp_path: Path):
    """Whatever stands in its place."""
    path = resaved(source, tmp_path / "crafted", lambda sections: sections.update(plugins=plugins))
    with pytest.raises(CheckpointError, match="holds no average"):
        load_weights(path, network(), average=True)


class Drawing(Dataset[Any]):
    """Samples that are drawn from a generator of the dataset's own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 8

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return torch.full((4,), self.generator.random()), torch.tensor(place % 3)


@pytest.mark.parametrize(
    ("bits", "place"),
    [(np.random.MT19937, "pos"), (np.random.Philox, "buffer_pos"), (np.random.RandomState, "pos")],
)
@pytest.mark.parametrize("far_away", [10**9, -(10**9)])
def test_a_generator_of_the_dataset_is_not_led_out_of_its_memory(bits: Any, place: str, far_away: int, tmp_path: Path):
    """Numpy takes any place, and would read there: the process ended. What is right is taken."""

    def engine(directory: Path) -> Engine:
        made = bits(1)
        components = Components(
            network=nn.Linear(4, 3),
            dataset=Drawing(made if bits is np.random.RandomState else np.random.Generator(made)),
            criterion=nn.CrossEntropyLoss(),
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        )
        return Engine(components, RunConfig(epochs=2, batch_size=2, seed=1), [Checkpoint(directory, at="after_step")])

    def change(sections: Sections) -> None:
        (state,) = sections["run"]["data"]["generators"]
        if isinstance(state, tuple):
            sections["run"]["data"]["generators"] = [(*state[:2], far_away, *state[3:])]
        else:
            state.setdefault("state", {})["pos"] = 0  # which is looked at too
            (state if place in state else state["state"])[place] = far_away

    engine(tmp_path / "a").run(until=lambda run: run.step == 2)
    newest = Store(tmp_path / "a").entries()[-1].path
    path = resaved(newest, tmp_path / "b", change)
    assert "has no place" in bounded(lambda: engine(tmp_path / "c").run(resume=path), megabytes=2048)
    assert engine(tmp_path / "a").run(resume=newest).state == "finished"


DRAWN: dict[tuple[str, str], Callable[[dict[str, Any]], object]] = {
    ("loader", "no states"): lambda place: place["began"][0].update({"global": None}),
    ("loader", "a state of python that is a number"): lambda place: place["began"][0]["global"].update(python=5),
    ("loader", "samplers that are numbers"): lambda place: place["began"][0].update(samplers=[5, 5]),
    ("loader", "a far place of numpy's"): lambda place: far(place["began"][1]["global"], 10**9),
    ("loader", "a generator too many"): lambda place: place["began"][1].update(own=[torch.zeros(3)]),
    ("loader", "no number of batches"): lambda place: place.update(batches=None),
    ("loader", "more batches than the data have"): lambda place: place.update(batches=9),
    ("loader", "a batch that is taken again"): lambda place: place.update(taken=1),
    ("unsized", "a pass that has ended"): lambda place: place["walk"].update(open=False),
    ("unsized", "a batch that nobody waits for"): lambda place: place.update(ahead=[5]),
    ("stream", "a number of batches"): lambda place: place["walk"].update(batches=3),
    ("stream", "a place that no counter speaks of"): lambda place: [
        place.update(taken=10**12), place["walk"].update(taken=10**12 + place["waits"])],
    ("unsized", "a number for what was drawn"): lambda place: place["walk"].update(began=[5]),
    ("unsized", "a place behind the end"): lambda place: [
        place.update(taken=10**6), place["walk"].update(taken=10**6 + place["waits"])],
    ("stateful", "a state of the loader in words"): lambda place: place.update(own="x"),
}  # fmt: skip


@pytest.mark.parametrize(("feed", "what"), DRAWN)
def test_a_place_that_the_data_cannot_return_to_is_refused(feed: str, what: str, tmp_path: Path):
    """Whatever the loader or a generator raises; the global generators are put back, and the engine is not driven."""
    full_engine(tmp_path / "a", feed=feed, at="after_step").run(until=lambda run: run.step == 3)
    newest = Store(tmp_path / "a").entries()[-1].path
    path = resaved(newest, tmp_path / "b", lambda sections: DRAWN[feed, what](sections["run"]["data"]))
    assert_refused(full_engine(tmp_path / "c", feed=feed, at="after_step"), path)
