"""`RunConfig.compile`: in place, block by block, told in the log; the run is otherwise the one without it.

Most tests compile with a backend that runs what torch has traced as it is: the logic is the same and the bits too.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders import sgd
from heptad import CheckpointError, Components, ConfigError, Engine, EngineError, Run, RunConfig, load_weights
from heptad.blocks.compilation import recomputes_inside
from heptad.plugin import Compilation, Recompilation, Uncompiled
from heptad_plugins import EMA, Checkpoint, Evaluate, Journal

WIDTH = 4
TRACED = {"backend": "eager"}
"""Options with which torch traces, and runs what it traced as it is."""


class Block(nn.Module):
    """A residual block with what a forward can draw from and write to."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.factor = factor
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of input and branch."""
        return x + self.factor * self.dropout(torch.relu(self.norm(self.linear(x))))


class Stack(nn.Module):
    """Blocks and a layer behind them."""

    def __init__(self, *factors: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(factor) for factor in factors or (1, 1))
        self.head = nn.Linear(WIDTH, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        self.calls += 1
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Counting(torch.utils.data.Dataset[Any]):
    """Samples that count how often one was taken, and draw from the generator."""

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.taken += 1
        return torch.rand(WIDTH) + index, torch.tensor(index % 3)


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Have torch forget what it compiled in other tests."""
    torch._dynamo.reset()


def stack(*factors: int) -> Stack:
    """Return the network with the same weights in every test."""
    torch.manual_seed(5)
    return Stack(*factors)


def samples(count: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Return different samples of (data, target)."""
    generator = torch.Generator().manual_seed(count)
    return [(torch.randn(WIDTH, generator=generator), torch.tensor(index % 3)) for index in range(count)]


def components(network: nn.Module, **given: Any) -> Components:
    """Return components over the samples."""
    fields: dict[str, Any] = {"dataset": samples(), "optimizer": sgd, "criterion": nn.CrossEntropyLoss(), **given}
    return Components(network=network, **{name: value for name, value in fields.items() if value is not None})


def engine(network: nn.Module, plugins: Any = (), given: Any = None, **config: Any) -> Engine:
    """Return an engine over the samples, two epochs long, that compiles with TRACED unless told otherwise."""
    config = {"epochs": 2, "batch_size": 4, "compile": TRACED, **config}
    return Engine(components(network, **(given or {})), RunConfig(**config), plugins)


def outcome(network: nn.Module) -> dict[str, Tensor]:
    """Return all that a run leaves behind: weights, buffers, and the state of the generator."""
    return {**network.state_dict(), "generator": torch.random.get_rng_state()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def plain(**config: Any) -> dict[str, Tensor]:
    """Return the outcome of a run that compiles nothing."""
    network = stack()
    engine(network, compile=False, **config).run()
    return outcome(network)


# -- in place


@pytest.mark.parametrize(("recomputed", "backend"), [(False, "eager"), (True, "eager"), (True, "aot_eager")])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_compiled_run_is_the_plain_one(recomputed: bool, backend: str, accumulation: int):
    """Weights, buffers and generator: nothing that compiles ahead of the first step leaves a trace."""
    expected, network = plain(accumulation=accumulation), stack()
    engine(network, compile={"backend": backend}, recompute=recomputed, accumulation=accumulation).run()
    assert_same(outcome(network), expected)
    assert network.calls == (4 if accumulation == 1 else 8)


def of_pairs(network: nn.Module, batch: Any) -> Tensor:
    """Return the loss of a batch, for which the network is called twice."""
    return nn.functional.cross_entropy(network(batch[0]) + network(-batch[0]), batch[1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_recomputed_block_with_buffers_may_be_called_twice_in_a_step(backend: str):
    given = {"criterion": None, "compute_loss": of_pairs}
    bare, network = stack(), stack()
    engine(bare, given=given, compile=False).run()
    expected = outcome(bare)
    engine(network, given=given, compile={"backend": backend}, recompute=True).run()
    assert_same(outcome(network), expected)


@pytest.mark.parametrize(
    "options", [{"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}, {"backend": "cudagraphs"}]
)
def test_with_cuda_graphs_blocks_with_buffers_are_recomputed_in_the_compiled_code(options: dict[str, Any]):
    assert recomputes_inside(Block(), options)
    assert not recomputes_inside(Block(), {**options, "backend": "eager"})


def in_bf16(network: nn.Module, batch: Any) -> Tensor:
    """Return the loss of a batch, computed in bfloat16 where torch does that."""
    with torch.autocast("cpu", torch.bfloat16):
        return nn.functional.cross_entropy(network(batch[0]), batch[1])


@pytest.mark.parametrize(("compiled", "recomputed"), [(False, True), ({"backend": "aot_eager"}, True), (TRACED, False)])
def test_under_autocast_too(compiled: Any, recomputed: bool):
    given = {"criterion": None, "compute_loss": in_bf16}
    bare, network = stack(), stack()
    engine(bare, given=given, compile=False, accumulation=2).run()
    expected = outcome(bare)
    engine(network, given=given, compile=compiled, recompute=recomputed, accumulation=2).run()
    assert_same(outcome(network), expected)


def test_names_are_those_of_the_bare_network_and_nothing_stays_behind(tmp_path: Path):
    network, bare = stack(), stack()
    seen: list[Any] = []
    trainer = engine(network, [Checkpoint(tmp_path, every=1)])
    trainer.on_exit("process_batch", once=True)(
        lambda run: seen.extend([[*run.network.state_dict()], [*dict(run.network.named_modules())]])
    )
    trainer.run(until="optimizer_update")
    assert seen == [[*bare.state_dict()], [*dict(bare.named_modules())]]
    assert [vars(part).keys() for part in network.modules()] == [vars(part).keys() for part in bare.modules()]
    trainer.run()
    load_weights(tmp_path, bare)
    assert_same(bare.state_dict(), network.state_dict())


def test_copies_and_pickles_are_bare():
    network, found = stack(), []
    trainer = engine(network, max_updates=1, recompute=True)

    @trainer.on_exit("after_loop")
    def copy_it(run: Run) -> None:
        found.extend([copy.deepcopy(run.network), pickle.loads(pickle.dumps(run.network))])

    trainer.run()
    expected = network(torch.ones(2, WIDTH))
    for other in found:
        assert all("_compiled_call_impl" not in vars(part) for part in other.modules())
        torch.testing.assert_close(other(torch.ones(2, WIDTH)), expected)


def test_only_the_blocks_that_are_named_are_compiled():
    network = stack()
    compiled: list[list[str]] = []
    trainer = engine(network, given={"blocks": lambda network: [network.head]}, max_updates=1)

    @trainer.on_enter("process_batch", once=True)
    def look(run: Run) -> None:
        named = run.network.named_modules()
        compiled.append([name for name, part in named if vars(part).get("_compiled_call_impl") is not None])

    trainer.run()
    assert compiled == [["head"]]


def test_evaluations_within_and_after_a_run_are_those_of_the_plain_network():
    def measured(**config: Any) -> list[Any]:
        trainer = engine(stack(), [EMA(0.5), Evaluate(samples(6))], **config)
        run = trainer.run()
        return [run.history("valid/loss"), trainer.evaluate(samples(6)), *trainer.predict(samples(6))]

    torch.testing.assert_close(measured(recompute=True), measured(compile=False), rtol=0, atol=0)


def test_a_smoke_run_leaves_everything_as_it_was():
    expected, network = plain(), stack()
    trainer = engine(network)
    assert trainer.smoke().update == 2
    assert all("_compiled_call_impl" not in vars(part) for part in network.modules())
    trainer.run()
    assert_same(outcome(network), expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_run_that_is_advanced_turn_by_turn_compiles_once(recompute: bool):
    expected, network = plain(), stack()
    trainer = engine(network, compile={"backend": "aot_eager"}, recompute=recompute)
    while not trainer.current.ended:
        trainer.advance()
    assert_same(outcome(network), expected)
    assert [type(event) for event in trainer.current.log.notes("compile")] == [Compilation]


class OfLists(nn.Module):
    """Two lists of blocks, of torch's own classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 8) for _ in range(9))
        self.mixer = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(9))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        for layer in (*self.encoder, *self.mixer):
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("recompute", [False, True])
def test_blocks_of_one_class_share_what_is_compiled_and_those_of_torch_are_compiled(recompute: bool):
    """Two for the first blocks, the first of which has an input without gradient; one for the others."""
    run = engine(OfLists(), compile={"backend": "aot_eager"}, recompute=recompute, max_updates=1).run()
    (event,) = run.log.notes("compile")
    assert isinstance(event, Compilation)
    assert (event.blocks, event.graphs) == (18, 3)


# -- what the log says


def test_before_loop_shows_what_compilation_took():
    run = engine(stack()).run()
    (event,) = run.log.notes("compile")
    assert isinstance(event, Compilation)
    transition = run.log[event.seq]
    assert (transition.source, event.blocks) == ("before_loop", 2)
    assert event.graphs >= 1
    assert 0 < event.seconds * 1e9 < transition.duration_ns
    assert transition.duration_ns > run.log.durations()["process_batch"].max_ns


def test_the_step_ahead_leaves_data_and_attributes_alone():
    data, network = Counting(), stack()
    engine(network, given={"dataset": data}, epochs=1).run(until="before_epoch")
    assert (data.taken, network.calls) == (0, 0)
    assert_same(network.state_dict(), stack().state_dict())


def hooked(network: nn.Module) -> dict[str, Any]:
    network.get_submodule("head").register_forward_hook(lambda *_: None)
    return {}


UNREPEATABLE: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "compute_loss": lambda network: {
        "criterion": None,
        "compute_loss": lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1]),
    },
    "hooks": hooked,
    "a stream": lambda network: {
        "dataset": None,
        "loader": Stream([(torch.ones(4, WIDTH), torch.zeros(4, dtype=torch.long))]),
    },
}


class Stream:
    """A re-iterable of batches of which nothing more is known."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.mark.parametrize("what", UNREPEATABLE)
def test_where_no_step_can_be_put_back_the_first_one_shows_it(what: str):
    network = stack()
    given = UNREPEATABLE[what](network)
    run = engine(network, given=given, **({"batch_size": None} if "loader" in given else {})).run()
    (event,) = run.log.notes("compile")
    assert isinstance(event, Compilation)
    assert run.log[event.seq].source == "process_batch"
    assert run.log[event.seq].step == 0


def test_what_a_handler_compiles_before_the_first_step_is_no_recompilation():
    given = {"criterion": None, "compute_loss": UNREPEATABLE["compute_loss"](stack())["compute_loss"]}
    trainer = engine(stack(), given=given, max_updates=1)
    trainer.on_enter("before_epoch")(lambda run: torch.compile(torch.sin, backend="eager")(torch.ones(2)))
    (event,) = trainer.run().log.notes("compile")
    assert isinstance(event, Compilation)
    assert trainer.current.log[event.seq].source == "process_batch"


def test_recompilations_are_counted_and_say_why():
    """The smaller last batch, then the evaluation."""
    run = engine(stack(), [Evaluate(samples(4))], drop_last=False).run()
    first, *later = run.log.notes("compile")
    assert isinstance(first, Compilation)
    assert all(isinstance(event, Recompilation) for event in later)
    assert [run.log[event.seq].source for event in later] == ["process_batch", "evaluate"]
    assert "size mismatch" in later[0].reason
    assert "grad_mode" in later[1].reason
    assert [event.total for event in later] == [later[0].graphs, later[0].graphs + later[1].graphs]


def test_what_torch_gives_up_compiling_is_said():
    run = engine(stack(1, 2, 3), compile={**TRACED, "recompile_limit": 1}).run()
    events = run.log.notes("compile")
    assert any(isinstance(event, Uncompiled) and "limit" in event.reason for event in events)


def test_journal_and_checkpoint_hold_the_options_and_the_events(tmp_path: Path):
    path, options = tmp_path / "a.journal", {**TRACED, "options": {"mine": 1.5}, "dynamic": None}
    if "mine" not in torch._dynamo.list_backends(None):
        torch._dynamo.register_backend(name="mine")(lambda graph, inputs, **given: graph)
    options["backend"] = "mine"
    plugins = [Journal(path), Checkpoint(tmp_path / "a")]
    run = engine(stack(), plugins, compile=options, epochs=1).run()
    engine(stack(), plugins[1:], compile=options).run(resume=tmp_path / "a")
    read = type(run.log).load(path)
    assert read.notes("compile") == run.log.notes("compile")


def test_diff_does_not_compare_how_long_compiling_took():
    logs = [engine(stack()).run().log for _ in range(2)]
    assert not logs[0].diff(logs[1])


# -- what cannot be compiled


class Breaks(nn.Module):
    """A network that torch cannot compile in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, after something that cannot be traced."""
        torch._dynamo.graph_break()
        return self.linear(x)


def test_a_network_that_cannot_be_compiled_gives_the_reason_and_the_way_out():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break") as caught:
        engine(Breaks(), compile={**TRACED, "fullgraph": True}).run()
    (note,) = (note for note in caught.value.__notes__ if "RunConfig.compile" in note)
    assert "leave RunConfig.compile out" in note
    assert "Components.blocks" in note
    assert "fullgraph" in note


class Penalised(nn.Linear):
    """A network whose loss needs the derivative of a derivative."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits, with a slope that is a part of them."""
        return super().forward(input).pow(3)


def penalty(network: nn.Module, batch: Any) -> Tensor:
    """Return the squared slope of the network."""
    data = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(network(data).sum(), data, create_graph=True)
    return slope.square().sum()


def test_what_compiled_code_cannot_do_gives_the_way_out_too():
    given = {"compute_loss": penalty, "criterion": None}
    assert engine(Penalised(WIDTH, 3), given=given, compile=False, recompute=True).run().state == "finished"
    with pytest.raises(RuntimeError, match="double backward") as caught:
        engine(Penalised(WIDTH, 3), given=given, compile={"backend": "aot_eager"}).run()
    assert any("leave RunConfig.compile out" in note for note in caught.value.__notes__)


def test_a_network_that_breaks_is_run_all_the_same():
    network = Breaks()
    run = engine(network).run()
    assert run.state == "finished"


def test_an_error_of_the_network_itself_gets_no_advice_on_compiling():
    class Wrong(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        engine(Wrong(WIDTH, 3)).run()
    assert not any("RunConfig.compile" in note for note in caught.value.__notes__)


# -- options and identity


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("yes", "must be True, False, or a dict of options of torch.compile, got 'yes'"),
        ({"fulgraph": True}, "has 'fulgraph', which is no option of torch.compile; did you mean 'fullgraph'?"),
        ({"backend": print}, "register_backend"),
        ({"backend": 3}, "must name its backend, got backend=3"),
        ({"backend": "nosuch"}, "is refused by torch.compile (InvalidBackend"),
        ({"mode": "quick"}, "is refused by torch.compile"),
        ({"mode": "default", "options": {}}, "is refused by torch.compile"),
    ],
)
def test_options_that_torch_would_refuse_are_refused_at_once(options: Any, text: str):
    with pytest.raises(ConfigError) as caught:
        RunConfig(epochs=1, compile=options)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("RunConfig.compile ")
    assert text in line


def test_no_options_are_the_default_ones():
    assert RunConfig(epochs=1, compile={}).compile is True


def test_what_torch_compile_returned_is_refused():
    with pytest.raises(ConfigError, match="pass the network itself"):
        engine(torch.compile(stack(), backend="eager"))


def test_a_script_is_refused():
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        script = torch.jit.script(nn.Linear(WIDTH, 3))
    for option in ("compile", "recompute"):
        with pytest.raises(ConfigError, match=rf"RunConfig\.{option}: the network is a ScriptModule"):
            engine(script, **{"compile": False, option: True})


def test_predictions_that_are_not_all_taken_leave_a_run_compiled():
    network = stack()
    trainer = engine(network)
    predictions = trainer.predict(samples())
    next(predictions)
    trainer.on_enter("after_step", once=True)(lambda run: predictions.close())
    trainer.on_enter("after_loop")(
        lambda run: compiled.append(vars(run.network.get_submodule("layers.0")).get("_compiled_call_impl"))
    )
    compiled: list[Any] = []
    trainer.run()
    assert compiled != [None]
    assert "_compiled_call_impl" not in vars(network.layers[0])


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_run_resumed_within_an_epoch_is_bit_equal(accumulation: int, tmp_path: Path):
    config = {"accumulation": accumulation, "compile": {"backend": "aot_eager"}, "recompute": True}
    expected = plain(accumulation=accumulation)
    keeps = {"at": "after_step", "every": 1}
    engine(stack(), [Checkpoint(tmp_path, **keeps)], **config).run(until=lambda run: run.step == 3)
    network = stack()
    run = engine(network, [Checkpoint(tmp_path, **keeps)], **config).run(resume=tmp_path)
    assert_same(outcome(network), expected)
    assert any(isinstance(event, Compilation) for event in run.log.notes("compile"))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"compile": False}, "RunConfig.compile: {'backend': 'eager'} in the checkpoint, False here"),
        ({"recompute": True}, "RunConfig.recompute: False in the checkpoint, True here"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused_by_name(config: dict[str, Any], text: str, tmp_path: Path):
    engine(stack(), [Checkpoint(tmp_path)], epochs=1).run()
    with pytest.raises(CheckpointError) as caught:
        engine(stack(), [Checkpoint(tmp_path)], **config).run(resume=tmp_path)
    assert text in str(caught.value)


def test_a_run_inside_a_handler_gives_the_network_back_as_it_found_it():
    network, inner = stack(), []
    trainer = engine(network, max_updates=2)

    @trainer.on_exit("optimizer_update", once=True)
    def train_another(run: Run) -> None:
        before = vars(network.layers[0])["_compiled_call_impl"]
        engine(network, compile={"backend": "aot_eager"}, max_updates=1).run()
        inner.append(vars(network.layers[0])["_compiled_call_impl"] is before)

    trainer.run()
    assert inner == [True]
    assert "_compiled_call_impl" not in vars(network.layers[0])


# -- with torch's own compiler


def test_compiled_code_is_within_1e_5_of_a_plain_loop():
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    twin = copy.deepcopy(network)
    optimizer = sgd(twin)
    for epoch in range(2):
        del epoch
        for part in (slice(0, 4), slice(4, 8)):
            data, target = (torch.stack(rows) for rows in zip(*samples()[part], strict=True))
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(data), target).backward()
            optimizer.step()
    run = engine(network, compile=True, shuffle=False).run()
    torch.testing.assert_close(network.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-5)
    (event,) = run.log.notes("compile")
    assert isinstance(event, Compilation)
    assert event.graphs == 1


def test_the_engine_error_is_importable():
    assert issubclass(ConfigError, EngineError)
