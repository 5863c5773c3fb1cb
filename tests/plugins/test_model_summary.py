"""`ModelSummary`: FLOPs against arithmetic, the table, and that the run is the one without it."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.modules import module as hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from builders import Planned, Unsized, batches, small_components, small_config, small_engine, weights
from heptad import Engine, LossOutput, Plugin, PluginError, Run
from heptad_plugins import Evaluate, ModelSummary, Throughput


def summary(**options: Any) -> ModelSummary:
    """Return one that writes where nobody looks, unless a file is given."""
    return ModelSummary(**{"file": io.StringIO(), **options})


def engine_of(network: nn.Module, data: Any, plugins: Any, compute_loss: Any = None, **config: Any) -> Engine:
    """Return an engine over one kind of batch, whose loss is the mean of what the network gives."""

    def mean(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network(batch).float().mean()

    components = small_components(network, loader=data, compute_loss=compute_loss or mean)
    return Engine(components, small_config(**config), plugins)


def flops(network: nn.Module, batch: torch.Tensor, compute_loss: Any = None) -> dict[str, int]:
    """Return those of a step by the names of modules."""
    plugin = summary()
    engine_of(network, [batch], [plugin], compute_loss).run()
    return {part.name: part.flops for part in plugin.parts}


class Attention(nn.Module):
    """Two heads of attention of a sequence with itself."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        n, length, width = data.shape
        parts = self.mix(data).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(*parts).transpose(1, 2).reshape(n, length, width))


# -- FLOPs are those of arithmetic


def test_a_linear_layer_takes_two_for_each_weight_and_row():
    """Bias and activation count as nothing."""
    network = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 3, bias=False))
    first, second = 2 * 5 * 7 * 11, 2 * 5 * 11 * 3
    assert flops(network, torch.randn(5, 7)) == {"": first + second, "0": first, "1": 0, "2": second}


@pytest.mark.parametrize(("groups", "stride", "padding"), [(1, 1, 0), (2, 1, 1), (4, 2, 1)])
def test_a_convolution_takes_two_for_each_weight_and_place(groups, stride, padding):
    """Of the output, whatever stride, padding and groups are."""
    network = nn.Conv2d(4, 8, 3, stride=stride, padding=padding, groups=groups)
    side = (10 + 2 * padding - 3) // stride + 1
    assert flops(network, torch.randn(2, 4, 10, 10)) == {"": 2 * 2 * 8 * (4 // groups) * 9 * side**2}


def test_attention_takes_two_products_of_the_sequence_with_itself():
    """The kernel of the CPU too, which torch's own counter passes over."""
    n, length, width = 3, 6, 8
    mix, out, both = 2 * n * length * width * 3 * width, 2 * n * length * width * width, 2 * 2 * n * length**2 * width
    found = flops(Attention(), torch.randn(n, length, width))
    assert found == {"": mix + both + out, "mix": mix, "out": out}


def test_a_transformer_takes_what_torch_counts_and_its_attention():
    """Layers with dropout, where attention is the plain one or torch's kernel."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    data = torch.randn(3, 6, 8)
    products = 2 * 3 * 6 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    assert flops(layer, data)[""] == products + 2 * 2 * 3 * 6**2 * 8


def test_a_module_that_is_called_twice_counts_twice_and_once_in_its_parameters():
    """As shared layers are."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.same = self.inner

        def forward(self, data: torch.Tensor) -> torch.Tensor:
            return self.same(self.inner(data))

    plugin = summary()
    engine_of(Twice(), [torch.randn(5, 4)], [plugin]).run()
    assert [(part.name, part.parameters, part.flops) for part in plugin.parts] == [("", 20, 320), ("inner", 20, 320)]


def test_a_loss_that_calls_the_parts_of_the_network_is_counted():
    """Each of them once for each call; the network's own row is their sum."""
    network = nn.ModuleDict({"one": nn.Linear(4, 8), "two": nn.Linear(8, 2)})

    def loss(network: Any, batch: torch.Tensor) -> torch.Tensor:
        return network["two"](network["one"](batch)).mean() + network["one"](batch).mean()

    assert flops(network, torch.randn(5, 4), loss) == {"": 2 * 320 + 160, "one": 640, "two": 160}


def test_what_is_recomputed_in_the_backward_pass_counts_once():
    """With torch's own checkpointing around a part."""

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, data: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, data, use_reentrant=False)

    assert flops(Recomputed(), torch.randn(5, 4)) == {"": 160, "inner": 160}


# -- the run is the one without it


class Counted(nn.Module):
    """Counts its calls, draws, and keeps running statistics; its norm is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), Attention(), nn.Linear(8, 3))
        self.frozen = nn.BatchNorm1d(4)
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.training, self.frozen.training))
        data = self.frozen(data + torch.rand(()))
        for layer in self.body:
            data = layer(data[None])[0] if isinstance(layer, Attention) else layer(data)
        return data


class Freeze(Plugin):
    """Keeps a part of the network in evaluation mode."""

    def on_exit_before_loop(self, run: Run) -> None:
        run.network.frozen.eval()


class Asked(Unsized):
    """A stream that counts what is asked of it."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.asked: list[int] = []

    def __iter__(self):
        for number, item in enumerate(self.items):
            self.asked.append(number)
            yield item


@pytest.mark.parametrize("data", [list, Asked])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_nothing_is_moved_by_it(accumulation, data):
    """Calls and modes of the network, weights, buffers, generators, path and data position, with and without."""
    left = []
    for plugins in ([], [summary()]):
        network, loader = Counted(), data(batches(5, 4))
        evaluate = Evaluate(batches(2), at=("before_loop", "optimizer_update"))
        engine = small_engine(
            loader, [*plugins, Freeze(), evaluate], network=network, accumulation=accumulation, epochs=2, seed=3
        )
        run = engine.run()
        position = run.step, run.update, run.samples, getattr(loader, "asked", None)
        bits = [tensor.numpy().tobytes() for tensor in [*weights(network), torch.get_rng_state()]]
        left.append((network.calls, position, run.log.path(), bits))
    assert left[0] == left[1]


def hooks_left() -> int:
    """Return how many global hooks and modes torch has."""
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    inside = torch.utils._python_dispatch.is_in_torch_dispatch_mode()
    return len(hooks._global_forward_hooks) + len(hooks._global_forward_pre_hooks) + len(modes) + inside


@pytest.mark.parametrize("throughput_first", [False, True])
def test_two_plugins_count_the_same_step(throughput_first):
    """Each sees all of it, and nothing is left."""
    plugins = [summary(), Throughput(peak_flops=1.0)]
    engine = small_engine(4, plugins[::-1] if throughput_first else plugins)
    engine.on_exit("process_batch", once=True)(lambda run: seen.append(len(modes())))
    modes, seen = torch.utils._python_dispatch._get_current_dispatch_mode_stack, []
    run = engine.run()
    assert plugins[0].parts[0].flops == 2 * 2 * 4 * 3
    assert run.metrics["mfu"] == pytest.approx(3 * 2 * 4 * 3 * run.metrics["samples_per_second"], rel=1e-9)
    assert seen == [0]
    assert hooks_left() == 0


def test_nothing_is_left_after_the_first_step():
    """No hook, no mode: later steps run as they did."""
    seen: list[int] = []
    engine = small_engine(4, [summary()])
    engine.on_exit("after_step")(lambda run: seen.append(hooks_left()))
    engine.run()
    assert seen == [0] * 4


@pytest.mark.parametrize("error", [Planned, KeyboardInterrupt])
def test_nothing_is_left_after_a_step_that_fails(error):
    """The error is that of the run, and the table says what is known: no FLOPs."""

    class Fails(nn.Linear):
        def forward(self, data: torch.Tensor) -> torch.Tensor:
            super().forward(data)
            raise error

    out = io.StringIO()
    plugin = summary(file=out)
    with pytest.raises(error):
        engine_of(nn.Sequential(Fails(4, 3)), [torch.randn(2, 4)], [plugin]).run()
    assert hooks_left() == 0
    assert [(part.parameters, part.flops) for part in plugin.parts] == [(15, None), (15, None)]
    assert "FLOPs are not known: no step was completed" in " ".join(out.getvalue().split())


@pytest.mark.parametrize("until", ["before_loop", "before_step", "process_batch", "after_step", "optimizer_update"])
@pytest.mark.parametrize("by_advance", [False, True])
def test_what_is_computed_while_the_run_is_paused_is_not_counted(until, by_advance):
    """Wherever it is paused, and after every turn; nothing is printed before the first step is complete."""
    network = nn.Linear(4, 3)
    out = io.StringIO()
    plugin = summary(file=out)
    engine = engine_of(network, [torch.randn(5, 4)] * 2, [plugin])
    while not engine.current.ended:
        if by_advance:
            engine.advance()
        else:
            engine.run(until=until)
        network(torch.randn(100, 4))
        assert bool(out.getvalue()) is (engine.current.step > 0)
    engine.close()
    assert [part.flops for part in plugin.parts] == [2 * 5 * 4 * 3]
    assert out.getvalue().count("Linear") == 2
    assert hooks_left() == 0


def test_a_compiled_network_runs_as_it_would_and_is_not_counted():
    """Neither with a part compiled in place nor wrapped: what is compiled cannot be seen."""
    for compiled in (lambda network: network[0].compile(backend="eager"), None):
        network: Any = nn.Sequential(nn.Linear(4, 3))
        if compiled is not None:
            compiled(network)
        else:
            network = torch.compile(network, backend="eager")
        out = io.StringIO()
        plugin = summary(file=out)
        engine_of(network, [torch.randn(5, 4)], [plugin]).run()
        assert plugin.parts[0].flops is None
        assert "FLOPs are not known: the network is compiled" in " ".join(out.getvalue().split())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_compiled_within_the_step_stays_compiled(whole):
    """A function that the network calls is not seen; a loss compiled as a whole leaves nothing to count."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    product = torch.compile(lambda data: data @ data.T, backend=backend)

    class Mixed(nn.Linear):
        def forward(self, data: torch.Tensor) -> torch.Tensor:
            data = super().forward(data)
            return data if whole else product(data)

    def loss(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network(batch).mean()

    compute_loss = torch.compile(loss, backend=backend) if whole else loss
    assert flops(Mixed(4, 3), torch.randn(5, 4), compute_loss) == {"": None if whole else 2 * 5 * 4 * 3 + 2 * 5 * 5 * 3}
    assert len(graphs) == 1


def test_a_formula_that_fails_fails_nothing(monkeypatch):
    """FLOPs are unknown then, and the table says why."""

    def fails(*args: Any, **kwargs: Any) -> int:
        raise AssertionError("of these shapes it knows nothing")

    monkeypatch.setitem(flop_registry, torch.ops.aten.addmm, fails)
    out = io.StringIO()
    engine_of(nn.Linear(4, 3), [torch.randn(5, 4)], [summary(file=out)]).run()
    assert "of these shapes it knows nothing" in " ".join(out.getvalue().split())


def test_a_network_can_be_stored_while_it_is_counted(tmp_path):
    """The hooks are none of its own: pickling it in the middle of the first step works."""
    engine = small_engine(2, [summary()])
    engine.on_exit("process_batch")(lambda run: torch.save(run.network, tmp_path / "network.pt"))
    engine.run()


def test_another_counter_in_the_step_counts_what_it_counts():
    """A mode of the user's own, around the call of the network, is left as it is."""
    counted: list[int] = []

    def loss(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with FlopCounterMode(display=False) as counter:
            value = network(batch).mean()
        counted.append(counter.get_total_flops())
        return value

    assert flops(nn.Linear(4, 3), torch.randn(5, 4), loss) == {"": 120}
    assert counted == [120]


# -- the table


class Nested(nn.Module):
    """Two levels, a frozen part, buffers, and a layer whose shape is known after its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 1000), nn.BatchNorm1d(1000))
        self.block[0].bias.requires_grad_(False)
        self.head = nn.LazyLinear(3)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(data))


def lines(depth: int | None) -> list[list[str]]:
    """Return the cells of the table of `Nested` over two samples."""
    out = io.StringIO()
    network = Nested()
    components = small_components(
        network,
        loader=batches(1),
        optimizer=lambda network: torch.optim.SGD(
            [parameter for parameter in network.block.parameters() if parameter.requires_grad]
        ),
    )
    Engine(components, small_config(), [ModelSummary(depth, out)]).run()
    return [
        [cell.strip() for cell in line.strip("│\n").split("│")] for line in out.getvalue().splitlines() if "│" in line
    ]


def test_a_row_holds_parameters_buffers_and_flops():
    """Those of all that a module holds; FLOPs for one sample."""
    assert lines(None) == [
        ["(network)", "Nested", "10,003", "9,003", "2,001", "14 k"],
        ["block", "Sequential", "7,000", "6,000", "2,001", "8 k"],
        ["block.0", "Linear", "5,000", "4,000", "0", "8 k"],
        ["block.1", "BatchNorm1d", "2,000", "2,000", "2,001", "0"],
        ["head", "Linear", "3,003", "3,003", "0", "6 k"],
    ]


@pytest.mark.parametrize(("depth", "rows"), [(0, 1), (1, 3), (2, 5), (9, 5)])
def test_depth_says_how_far_down_rows_go(depth, rows):
    """From the network itself on."""
    assert len(lines(depth)) == rows


def test_it_is_printed_once_a_run_and_again_in_the_next():
    """To the standard error stream by default; a second engine has a table of its own."""
    error, sys.stderr = sys.stderr, io.StringIO()
    try:
        plugin = ModelSummary()
        for _ in range(2):
            small_engine(3, [plugin], epochs=2).run()
        assert sys.stderr.getvalue().count("Linear: 15 parameters") == 2
    finally:
        sys.stderr = error


def test_a_run_without_a_step_prints_what_is_known():
    """And one whose steps weigh nothing too."""
    for config, loss in (
        ({"epochs": 0}, None),
        ({}, lambda network, batch: LossOutput(network(batch).sum(), weight=0)),
    ):
        plugin = summary()
        engine_of(nn.Linear(4, 3), [torch.randn(5, 4)], [plugin], loss, **config).run()
        assert [part.parameters for part in plugin.parts] == [15]


@pytest.mark.parametrize("option", [{"depth": -1}, {"depth": 1.0}, {"depth": True}, {"file": "out.txt"}])
def test_what_does_not_fit_is_refused_when_it_is_built(option):
    """The message names the option and what it must be."""
    ((name, value),) = option.items()
    with pytest.raises(PluginError, match=rf"ModelSummary\({name}=…\) must be .* got {value!r}"):
        ModelSummary(**option)
