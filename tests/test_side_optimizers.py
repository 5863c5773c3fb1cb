"""`Components.side_optimizers`: placed, cleared and stored by the engine, stepped by plugins."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from builders import batches, equal, sgd, small_components, small_config, small_network, weights
from heptad import CheckpointError, Components, ConfigError, Engine, EngineError, LossOutput, Plugin, Run, RunConfig
from heptad.plugin import OptionChange
from heptad_plugins import Checkpoint

ROWS = [
    (torch.cat([data] * copies) + copies, torch.cat([target] * copies))
    for copies, (data, target) in zip((1, 3, 2, 1), batches(4), strict=True)
]
"""Batches of unequal size, so that a window of them is corrected."""


class Two(nn.Module):
    """A network of two parts: one for the engine's optimizer, one for a plugin's."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side = small_network(), small_network()

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.main(data) + self.side(data)


def loss_of(network: nn.Module, batch: Any) -> LossOutput:
    data, target = batch
    return LossOutput(nn.functional.cross_entropy(network(data), target), weight=len(target))


def side_loss(network: nn.Module) -> torch.Tensor:
    return network.side(torch.ones(4)).square().sum()


class StepsAside(Plugin):
    """Steps the side optimizer after each update, on a loss of its own and what the window has left."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        side_loss(run.network).backward()
        run.side_optimizers["side"].step()


def side_adam(network: nn.Module) -> Optimizer:
    return Adam(network.side.parameters(), lr=0.01)


def main_sgd(network: nn.Module) -> Optimizer:
    return SGD(network.main.parameters(), lr=0.1, momentum=0.9)


def engine_of(plugins: Any = (), side: Any = side_adam, name: str = "side", **config: Any) -> Engine:
    parts = Components(
        network=Two(), loader=ROWS, compute_loss=loss_of, optimizer=main_sgd, side_optimizers={name: side}
    )
    return Engine(parts, RunConfig(**{"epochs": 3, "accumulation": 2, **config}), [*plugins, StepsAside()])


def plain(k: int, epochs: int = 3) -> nn.Module:
    """Return the network of a plain loop, in which only the gradients of the first part are corrected."""
    network = Two()
    first, second = main_sgd(network), side_adam(network)
    for number, (data, target) in enumerate(ROWS * epochs):
        if number % k == 0:
            first.zero_grad()
            second.zero_grad()
            reference, total = len(target), 0.0
        total += len(target) / reference
        (nn.functional.cross_entropy(network(data), target) * (len(target) / reference / k)).backward()
        if number % k == k - 1:
            for parameter in network.main.parameters() if k > 1 else ():
                parameter.grad.mul_(k / total)
            first.step()
            side_loss(network).backward()
            second.step()
    return network


@pytest.mark.parametrize("k", [1, 2])
def test_a_side_optimizer_is_cleared_and_neither_corrected_nor_stepped(k):
    run = engine_of(accumulation=k).run()
    assert equal(weights(run.network), weights(plain(k)))


def test_a_parameter_that_a_main_optimizer_holds_as_well_is_corrected():
    """The gradients are those of the run without side optimizers."""
    seen: list[list[torch.Tensor]] = []

    class Looks(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            seen.append([parameter.grad.clone() for parameter in run.network.parameters()])

    for side in ({}, {"all": lambda network: SGD(network.parameters(), lr=0.1)}):
        parts = Components(network=Two(), loader=ROWS, compute_loss=loss_of, optimizer=sgd, side_optimizers=side)
        Engine(parts, RunConfig(max_updates=1, accumulation=2), [Looks()]).run()
    assert equal(*seen)


@pytest.mark.parametrize("step", range(1, 12))
def test_resuming_is_exact(step, tmp_path):
    """From every step, in the middle of a window too: its state, and the gradients of what only it holds."""

    def engine() -> Engine:
        return engine_of([Checkpoint(tmp_path, at=("after_step", "optimizer_update"))])

    engine().run(until=lambda run: run.step == step)
    assert equal(weights(engine().run(resume="auto").network), weights(plain(2)))


def test_what_only_it_holds_is_stored(tmp_path):
    """A parameter outside of the network, such as a temperature."""

    class Warms(Plugin):
        def on_exit_optimizer_update(self, run: Run) -> None:
            (warmth,) = run.side_optimizers["warmth"].param_groups[0]["params"]
            (warmth * run.update).backward()
            run.side_optimizers["warmth"].step()

    def engine() -> tuple[Engine, torch.Tensor]:
        warmth = nn.Parameter(torch.ones(()))
        parts = small_components(side_optimizers={"warmth": SGD([warmth], lr=0.1, momentum=0.9)})
        return Engine(parts, small_config(epochs=2), [Warms(), Checkpoint(tmp_path, at="optimizer_update")]), warmth

    first, straight = engine()
    first.run()
    engine()[0].run(resume=next(iter(sorted(tmp_path.glob("checkpoint-*")))))
    second, resumed = engine()
    second.run(resume="auto")
    assert torch.equal(straight, resumed)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "other"}, "Components.side_optimizers: side in the checkpoint, other here"),
        (
            {"side": lambda network: SGD(network.side.parameters(), lr=0.01)},
            "side/side: a Adam in the checkpoint, a SGD here",
        ),
        (
            {"side": lambda network: Adam([network.side.weight], lr=0.01)},
            "side/side: group 0 has 2 parameters in the checkpoint, 1 here",
        ),
        (
            {"side": lambda network: Adam(network.side.parameters(), lr=0.1)},
            "side/side, group 0: lr 0.01 in the checkpoint, 0.1 here",
        ),
    ],
    ids=["name", "class", "parameters", "options"],
)
def test_another_one_is_refused(given, says, tmp_path):
    def engine(**options: Any) -> Engine:
        return engine_of([Checkpoint(tmp_path, at="after_step")], **options)

    engine().run(until=lambda run: run.step == 3)
    with pytest.raises(CheckpointError, match=says):
        engine(**given).run(resume="auto")


def test_its_options_may_change_where_the_call_allows_it(tmp_path):
    def engine(**options: Any) -> Engine:
        return engine_of([Checkpoint(tmp_path, at="after_step")], **options)

    engine().run(until=lambda run: run.step == 3)
    faster = engine(side=lambda network: Adam(network.side.parameters(), lr=0.1))
    run = faster.run(resume="auto", allow_changes=("optimizer",))
    changes = [str(event) for event in run.log.notes() if isinstance(event, OptionChange)]
    assert changes == ["#10 resume: side/side, group 0: lr 0.01 in the checkpoint, 0.1 here"]
    assert run.side_optimizers["side"].param_groups[0]["lr"] == 0.1


NETWORK = small_network()


@pytest.mark.parametrize(
    ("side", "says"),
    [
        ([sgd], "side_optimizers must map names to optimizers, got"),
        ({"": sgd}, "must map names to optimizers"),
        ({1: sgd}, "must map names to optimizers"),
        ({"a": SGD}, "'a' is <class 'torch.optim.sgd.SGD'>"),
        ({"a": "sgd"}, "'a' is 'sgd'"),
        ({"a": lambda: None}, r"is called as optimizer\(network\), but takes \(\)"),
        ({"a": lambda network: network}, r"side_optimizers\['a'\]: the function must return a torch optimizer"),
        ({"a": (one := sgd(NETWORK)), "b": one}, r"\['b'\] is the same SGD as Components.side_optimizers\['a'\]"),
    ],
)
def test_mistakes_are_reported(side, says):
    with pytest.raises(ConfigError, match=says):
        Engine(small_components(NETWORK, side_optimizers=side), small_config()).run()


def test_weights_that_are_put_in_place_of_others_are_reported():
    """A side optimizer would step what is no longer part of the network."""

    def replaces(network: nn.Module) -> None:
        network.side = small_network()

    parts = Components(
        network=Two(),
        loader=ROWS,
        compute_loss=loss_of,
        optimizer=main_sgd,
        side_optimizers={"side": side_adam, "warmth": SGD([nn.Parameter(torch.ones(()))], lr=0.1)},
        init_weights=replaces,
    )
    with pytest.raises(ConfigError) as caught:
        Engine(parts, small_config()).run()
    assert str(caught.value).startswith("Components.side_optimizers['side']: this Adam holds none of the network's")
    assert "init_weights put others in their place" in str(caught.value)


def test_the_optimizer_itself_is_refused_as_a_side_optimizer():
    optimizer = sgd(NETWORK)
    with pytest.raises(ConfigError, match=r"is the same SGD as Components\.optimizer"):
        Engine(small_components(NETWORK, optimizer=optimizer, side_optimizers={"a": optimizer}), small_config())


def test_they_exist_from_before_loop_on():
    engine = engine_of()
    with pytest.raises(EngineError, match="exist from the body of before_loop on"):
        engine.current.side_optimizers  # noqa: B018
    engine.run(until="before_epoch")
    assert list(engine.current.side_optimizers) == ["side"]
    with pytest.raises(TypeError):
        engine.current.side_optimizers["other"] = None  # type: ignore[index]


def test_the_example_is_the_plain_loop():
    """`examples/gan.py`: one update of each network in turn."""
    path = Path(__file__).parent.parent / "examples" / "gan.py"
    gan: Any = SimpleNamespace(**runpy.run_path(str(path)))
    data = gan.draw_ring(128, torch.Generator().manual_seed(1)).split(16)

    def parts() -> tuple[nn.ModuleDict, dict[str, Optimizer]]:
        torch.manual_seed(0)
        networks = gan.build_networks()
        return networks, {name: Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.99)) for name, part in networks.items()}

    networks, adam = parts()
    components = Components(
        network=networks,
        loader=data,
        compute_loss=gan.discriminator_loss,
        optimizer=adam["discriminator"],
        side_optimizers={"generator": adam["generator"]},
    )
    Engine(components, RunConfig(epochs=2, seed=None), [gan.GeneratorUpdate(size=16)]).run()
    plain, adam = parts()
    for real in data * 2:
        adam["discriminator"].zero_grad()
        gan.discriminator_loss(plain, real).value.backward()
        adam["discriminator"].step()
        adam["generator"].zero_grad()
        nn.functional.softplus(-plain["discriminator"](gan.invent(plain, 16))).mean().backward()
        adam["generator"].step()
    assert equal(weights(networks), weights(plain))
