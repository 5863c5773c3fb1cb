"""`RunConfig.recompute`: less is kept for the backward pass, and every bit is what it is without it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders import sgd, small_components
from heptad import Components, Engine, Run, RunConfig, load_weights
from heptad.blocks.recomputation import recompute, recompute_no_more
from heptad_plugins import EMA, SAM, Checkpoint, Evaluate

WIDTH = 4


class Block(nn.Module):
    """A residual block with what a forward can draw from and write to."""

    def __init__(self, *, spectral: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        if spectral:
            nn.utils.parametrizations.spectral_norm(self.linear)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return the sum of input and branch."""
        self.calls += 1
        return x + scale * self.dropout(torch.relu(self.norm(self.linear(x))))


class Stack(nn.Module):
    """Three blocks, called with an option, and a layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        for layer in self.layers:
            x = layer(x, scale=2.0)
        return self.head(x)


def stack() -> Stack:
    """Return the network with the same weights in every test."""
    torch.manual_seed(5)
    return Stack()


def samples(count: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Return different samples of (data, target)."""
    generator = torch.Generator().manual_seed(count)
    return [(torch.randn(WIDTH, generator=generator), torch.tensor(index % 3)) for index in range(count)]


def engine(network: nn.Module, plugins: Any = (), *, optimizer: Any = sgd, blocks: Any = None, **config: Any) -> Engine:
    """Return an engine over the samples, two epochs long."""
    components = Components(
        network=network, dataset=samples(), criterion=nn.CrossEntropyLoss(), optimizer=optimizer, blocks=blocks
    )
    return Engine(components, RunConfig(**{"epochs": 2, "batch_size": 4, **config}), plugins)


def outcome(network: nn.Module) -> dict[str, Tensor]:
    """Return all that a run leaves behind: weights, buffers, and the state of the generator."""
    return {**network.state_dict(), "generator": torch.random.get_rng_state()}


def assert_same(network: nn.Module, other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(outcome(network), other, rtol=0, atol=0)


@pytest.mark.parametrize(("accumulation", "remainder"), [(1, "extend"), (4, "extend"), (4, "flush"), (5, "carry")])
def test_weights_buffers_and_generator_are_those_of_a_run_without(accumulation: int, remainder: str):
    config = {"accumulation": accumulation, "remainder": remainder}
    plain, network = stack(), stack()
    engine(plain, **config).run()
    expected = outcome(plain)
    engine(network, recompute=True, **config).run()
    assert_same(network, expected)


def test_gradients_are_those_of_a_plain_loop():
    """A window of two, the second backward adding to the first, in torch's own words."""
    plain, network = stack(), stack()
    torch.manual_seed(1)
    for part in (slice(0, 4), slice(4, 8)):
        data, target = (torch.stack(rows) for rows in zip(*samples()[part], strict=True))
        (nn.functional.cross_entropy(plain(data), target) * 0.5).backward()
    expected = [parameter.grad for parameter in plain.parameters()]
    found: list[Tensor | None] = []

    def keep(run: Run) -> None:
        found.extend(parameter.grad for parameter in run.network.parameters())
        run.stop("seen")

    trainer = engine(network, recompute=True, accumulation=2, shuffle=False, seed=1)
    trainer.on_enter("optimizer_update")(keep)
    trainer.run()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_each_block_is_run_twice_a_step_and_once_where_no_gradient_is_asked_for():
    network = stack()
    trainer = engine(network, recompute=True)
    trainer.run()
    steps = trainer.current.step
    assert [layer.calls for layer in network.layers] == [2 * steps] * 3
    trainer.evaluate(samples(8))
    assert [layer.calls for layer in network.layers] == [2 * steps + 2] * 3


def test_what_a_block_saves_for_the_backward_pass_is_not_kept():
    kept: dict[bool, int] = {}
    for recomputed in (False, True):
        network, trainer = stack(), None

        def count(run: Run, recomputed: bool = recomputed) -> None:
            sizes: list[int] = []

            def pack(tensor: Tensor) -> Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                run.network(run.batch[0])
            kept[recomputed] = len(sizes)

        trainer = engine(network, recompute=recomputed, max_updates=1)
        trainer.on_enter("process_batch")(count)
        trainer.run()
    assert kept[True] < kept[False] / 4


def test_names_are_unchanged_while_it_is_driven_and_nothing_stays_behind():
    network, bare = stack(), stack()
    seen: list[list[str]] = []
    trainer = engine(network, recompute=True)
    trainer.on_exit("process_batch", once=True)(
        lambda run: seen.append([*run.network.state_dict(), *dict(run.network.named_modules())])
    )
    trainer.run(until="optimizer_update")
    assert seen == [[*bare.state_dict(), *dict(bare.named_modules())]]
    assert [vars(part).keys() for part in network.modules()] == [vars(part).keys() for part in bare.modules()]


def test_a_forward_of_the_instance_is_called_and_comes_back():
    network = stack()
    calls: list[int] = []
    block = network.layers[0]

    def forward(x: Tensor, *, scale: float) -> Tensor:
        calls.append(1)
        return Block.forward(block, x, scale=scale)

    block.forward = forward
    engine(network, recompute=True, max_updates=1).run()
    assert len(calls) == 2
    assert block.forward is forward


def test_a_copy_is_run_with_its_own_weights_and_a_pickle_is_bare():
    block = Block(spectral=False).eval()  # what is parametrized cannot be pickled
    recompute(block)
    twin, read = copy.deepcopy(block), pickle.loads(pickle.dumps(block))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    x = torch.ones(2, WIDTH)
    expected = Block.forward(twin, x)
    assert not torch.equal(block(x), expected)
    for other in (twin, read):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    calls = read.calls
    read(x).sum().backward()
    assert read.calls == calls + 1
    recompute_no_more(block)
    assert "forward" not in vars(block)


@pytest.mark.parametrize("plugins", [lambda: [EMA(0.5), Evaluate(samples(6))], lambda: [SAM(rho=0.1)]])
def test_plugins_that_copy_or_recompute_see_the_same_bits(plugins: Any):
    plain, network = stack(), stack()
    one = engine(plain, plugins()).run()
    expected = outcome(plain)
    other = engine(network, plugins(), recompute=True).run()
    assert_same(network, expected)
    assert one.metrics == other.metrics


def test_a_closure_optimizer_sees_the_same_bits():
    def lbfgs(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(network.parameters(), lr=0.1, max_iter=2)

    plain, network = stack(), stack()
    engine(plain, optimizer=lbfgs, accumulation=2).run()
    expected = outcome(plain)
    engine(network, optimizer=lbfgs, accumulation=2, recompute=True).run()
    assert_same(network, expected)


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_resumed_within_a_window_is_bit_equal(step: int, tmp_path: Path):
    config = {"accumulation": 4, "recompute": True}
    plain = stack()
    engine(plain, **config).run()
    expected = outcome(plain)
    first = engine(stack(), [Checkpoint(tmp_path, at="after_step", every=1)], **config)
    first.run(until=lambda run: run.step == step and run.state == "before_step")
    network = stack()
    engine(network, [Checkpoint(tmp_path, at="after_step", every=1)], **config).run(resume=tmp_path)
    assert_same(network, expected)


def test_a_checkpoint_loads_into_a_bare_network(tmp_path: Path):
    network, bare = stack(), stack()
    engine(network, [Checkpoint(tmp_path)], recompute=True).run()
    load_weights(tmp_path, bare)
    torch.testing.assert_close(bare.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_a_backward_that_keeps_its_graph_may_come_twice():
    plain, block = (stack().layers[0] for _ in range(2))
    recompute(block)
    x = torch.randn(3, WIDTH)
    for one in (plain, block):
        torch.manual_seed(3)
        for _ in range(2):
            loss = one(x).square().sum()
            loss.backward(retain_graph=True)
            loss.backward()
    torch.testing.assert_close(
        [p.grad for p in block.parameters()], [p.grad for p in plain.parameters()], rtol=0, atol=0
    )
    torch.testing.assert_close(dict(block.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


def test_a_network_without_a_list_is_one_block():
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    plain = copy.deepcopy(network)
    Engine(small_components(plain), RunConfig(epochs=1)).run()
    expected = outcome(plain)
    Engine(small_components(network), RunConfig(epochs=1, recompute=True)).run()
    assert_same(network, expected)
