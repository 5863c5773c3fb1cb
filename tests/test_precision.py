"""Mixed precision: bit for bit the loop that is written by hand, with autocast and torch's GradScaler."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from builders import CLASSES, FEATURES, batches, equal, sgd, small_components, small_network, weights
from heptad import CheckpointError, Components, ConfigError, Engine, EngineError, LossOutput, Plugin, Run, RunConfig
from heptad.checkpoints.store import Store
from heptad_plugins import EMA, SAM, Checkpoint, Evaluate, GradientClipping, LRSchedule, NonFiniteGuard

DTYPES = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
WORDS, WIDTH, LENGTH = 11, 8, 6
LOUD = 60.0
"""What the loss of a window is multiplied by, so that its gradients overflow until the scale was halved six times."""


class SmallGPT(nn.Module):
    """A block of nanoGPT with its embedding, tied to its head, and its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH), nn.Dropout(0.1))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words)
        q, k, v = self.attention(self.before(x)).split(WIDTH, dim=2)
        x = x + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.inner(self.behind(x)))


def small_gpt() -> SmallGPT:
    torch.manual_seed(2)
    return SmallGPT()


def text(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(8)
    rows = [torch.randint(0, WORDS, (3, LENGTH + 1), generator=generator) for _ in range(count)]
    return [(row[:, :-1], row[:, 1:]) for row in rows]


def loud(k: int) -> Any:
    """Return the loss of a step in a window of k, by which it will be divided."""

    def loss_of(network: nn.Module, batch: Any) -> torch.Tensor:
        words, following = batch
        return functional.cross_entropy(network(words).flatten(0, 1), following.flatten()) * (LOUD * k)

    return loss_of


def adamw(network: nn.Module) -> Optimizer:
    return AdamW(network.parameters(), lr=3e-3, weight_decay=0.1)


def rate(update: int) -> float:
    return 1.0 / (1 + update)


class Loop:
    """nanoGPT's loop, by hand: autocast, accumulation, the scaler, clipping, a rate that follows the updates made.

    There the rate follows the windows; an update that overflows does not move it here.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.network = network
        self.optimizer = adamw(network)
        self.schedule = LambdaLR(self.optimizer, rate)
        self.scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16-mixed")
        self.dtype = DTYPES[precision]
        self.overflows = 0

    def train(self, rows: list[Any], k: int) -> None:
        self.network.train()
        for start in range(0, len(rows), k):
            for row in rows[start : start + k]:
                with torch.autocast("cpu", self.dtype):
                    loss = loud(k)(self.network, row) / k
                self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.scaler.get_scale() < before:
                self.overflows += 1
            else:
                self.schedule.step()


def engine_of(precision: str, k: int, count: int, directory: Path | None = None, plugins: Any = ()) -> Engine:
    network = small_gpt()
    parts = Components(network=network, loader=text(count), compute_loss=loud(k), optimizer=adamw)
    members = [GradientClipping(max_norm=1.0), LRSchedule(lambda optimizer: LambdaLR(optimizer, rate)), *plugins]
    if directory is not None:
        members.append(Checkpoint(directory, at="after_epoch"))
    return Engine(parts, RunConfig(epochs=1, accumulation=k, seed=3, precision=precision), members)


def trained(precision: str, k: int, count: int) -> Loop:
    torch.manual_seed(3)  # the dropout draws what that of the engine draws
    loop = Loop(small_gpt(), precision)
    torch.manual_seed(3)
    loop.train(text(count), k)
    return loop


def skips(run: Run) -> list[str]:
    return [note.text for note in run.log.notes() if note.kind == "skip"]


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("precision", DTYPES)
def test_a_run_is_the_loop_by_hand(precision, k):
    """Of a small GPT: weights, moments, rate, and the random numbers that its dropout has drawn."""
    run = engine_of(precision, k, 12 * k).run()
    drawn = torch.rand(2)
    loop = trained(precision, k, 12 * k)
    assert torch.equal(drawn, torch.rand(2))
    assert equal(weights(run.network), weights(loop.network))
    assert run.parameter_groups()[0]["lr"] == loop.optimizer.param_groups[0]["lr"]
    assert loop.overflows == (6 if precision == "fp16-mixed" else 0)
    assert (run.windows, run.update) == (12, 12 - loop.overflows)
    for one, other in zip(run.optimizer.state.values(), loop.optimizer.state.values(), strict=True):
        assert equal(list(one.values()), list(other.values()))


def test_each_overflow_is_a_skipped_update_that_says_its_scale():
    """Schedule and average stand still; plugins that come later find an update that is skipped."""
    found: list[tuple[bool, bool]] = []

    class Looks(Plugin):
        def on_enter_optimizer_update(self, run: Run) -> None:
            finite = all(bool(p.grad.isfinite().all()) for p in run.network.parameters() if p.grad is not None)
            found.append((run.update_skipped, finite))

    average = EMA(decay=0.5)
    run = engine_of("fp16-mixed", 4, 32, plugins=[Looks(), average, NonFiniteGuard()]).run()
    scales = [2**n for n in range(16, 9, -1)]
    assert skips(run) == [f"fp16: a gradient is not finite at scale {a} -> {b}" for a, b in pairwise(scales)]
    assert found == [(True, False)] * 6 + [(False, True)] * 2
    assert run.history("lr") == [3e-3, 3e-3 / 2]
    assert int(average.state_dict()["n_averaged"]) == 2


@pytest.mark.parametrize("precision", DTYPES)
def test_resumed_wherever_it_paused_it_is_the_run_that_never_was(precision, tmp_path):
    """In the middle of windows too, among them one that overflows: with gradients that are scaled."""
    straight = engine_of(precision, 4, 32).run()
    engine = engine_of(precision, 4, 32)
    store, places = Store(tmp_path), set()
    while not engine.current.ended:
        engine.advance()
        with contextlib.suppress(EngineError):  # in mid-step
            store.save(engine.current.snapshot())
            places.add(engine.current.state)
    assert places >= {"before_epoch", "before_step", "after_epoch", "after_loop"}
    entries = store.entries()
    assert len(entries) == 32 + 4
    for entry in entries[::3]:
        run = engine_of(precision, 4, 32).run(resume=entry.path)
        assert equal(weights(run.network), weights(straight.network)), entry.path
        assert (run.windows, run.update) == (straight.windows, straight.update)


@pytest.mark.parametrize("precision", DTYPES)
def test_a_second_micro_batch_adds_exactly_the_same_gradient(precision):
    """The cache of cast weights is one step long: half of one batch, twice, is that batch."""
    (row,) = batches(1, 4)
    gradients: list[list[torch.Tensor]] = []
    for k, rows in ((1, [row]), (2, [row, row])):
        engine = Engine(small_components(loader=rows), RunConfig(epochs=1, accumulation=k, precision=precision))

        @engine.on_enter("optimizer_update")
        def look(run: Run) -> None:
            gradients.append([p.grad.clone() for p in run.parameters() if p.grad is not None])

        engine.run()
    assert equal(*gradients)


def test_cast_weights_do_not_outlive_an_update_within_another_autocast():
    engine, losses = Engine(small_components(loader=batches(1) * 3), RunConfig(epochs=1, precision="bf16-mixed")), set()
    engine.on_exit("process_batch")(lambda run: losses.add(float(run.loss)))
    with torch.autocast("cpu", torch.bfloat16):
        engine.run()
    assert len(losses) == 3


@pytest.mark.parametrize("k", [1, 4])
def test_the_scale_is_in_what_the_backward_pass_is_handed(k, monkeypatch):
    """No operation multiplies a loss."""
    handed: list[Any] = []
    backward = torch.Tensor.backward

    def recording(self: torch.Tensor, gradient: Any = None, *args: Any, **options: Any) -> None:
        handed.append(gradient)
        backward(self, gradient, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", recording)
    Engine(small_components(loader=batches(4, 8)), RunConfig(epochs=1, accumulation=k, precision="fp16-mixed")).run()
    assert [float(one) for one in handed] == [2**16 / k] * 4
    assert len({id(one) for one in handed}) == 1, "it is made once"


def test_half_of_a_loss_may_be_halves():
    """A loss in float16 cannot take the first scales, as in the loop by hand."""

    def deviation(network: nn.Module, batch: Any) -> torch.Tensor:
        return (network(batch[0]) - 1).square().mean()

    rows, network = batches(8), small_network()
    optimizer, scaler = sgd(network), torch.amp.GradScaler("cpu")
    for start in range(0, 8, 2):
        for row in rows[start : start + 2]:
            with torch.autocast("cpu", torch.float16):
                loss = deviation(network, row) / 2
            assert loss.dtype is torch.float16
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    parts = small_components(criterion=..., compute_loss=deviation, loader=rows)
    run = Engine(parts, RunConfig(epochs=1, accumulation=2, precision="fp16-mixed")).run()
    assert equal(weights(run.network), weights(network))
    assert 0 < run.update < run.windows


def test_the_scale_doubles_after_2000_updates_and_the_count_is_resumed(tmp_path):
    rows = batches(1) * 2010
    engine = Engine(small_components(loader=rows), RunConfig(epochs=1, precision="fp16-mixed"))
    run = engine.run(until=lambda run: run.update == 1990 and run.state == "before_step")
    entry = Store(tmp_path).save(run.snapshot())
    resumed = Engine(small_components(loader=rows), RunConfig(epochs=1, precision="fp16-mixed")).run(resume=entry.path)
    engine.run()
    for one in (run, resumed):
        assert one._runtime.scaling is not None
        assert one._runtime.scaling.state() == (2.0**17, 10)
    assert equal(weights(run.network), weights(resumed.network))


def test_only_forward_and_loss_are_under_autocast():
    """No handler is, nor what looks at a loss, nor a metric."""
    found: dict[str, bool] = {}

    def note(where: str) -> None:
        found[where] = torch.is_autocast_enabled("cpu")

    class Looks(Plugin):
        def on_loss(self, run: Run) -> None:
            note("on_loss")

        def on_exit_process_batch(self, run: Run) -> None:
            note("exit of process_batch")

        def on_enter_optimizer_update(self, run: Run) -> None:
            note("entry to optimizer_update")

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        note("criterion")
        return functional.cross_entropy(output, target)

    def metric(output: torch.Tensor, batch: Any) -> torch.Tensor:
        note("metric")
        assert output.dtype is torch.bfloat16
        return output.float().mean()

    network = small_network()
    network.register_forward_hook(lambda *_: note("forward"))
    parts = small_components(network, criterion=criterion)
    plugins = [Looks(), Evaluate(batches(2), {"one": metric}, trial=False)]
    Engine(parts, RunConfig(epochs=1, precision="bf16-mixed"), plugins).run()
    under = {name for name, enabled in found.items() if enabled}
    assert under == {"forward", "criterion"}
    assert found.keys() - under == {"on_loss", "exit of process_batch", "entry to optimizer_update", "metric"}


@pytest.mark.parametrize("precision", DTYPES)
def test_evaluation_and_prediction_are_in_the_precision_of_the_run(precision):
    network, rows = small_network(), batches(3, 4)
    engine = Engine(small_components(network, loader=rows), RunConfig(epochs=1, precision=precision))
    with torch.no_grad(), torch.autocast("cpu", DTYPES[precision]):
        outputs = [network(data) for data, _ in rows]
        losses = [functional.cross_entropy(output, row[1]) for output, row in zip(outputs, rows, strict=True)]
    assert equal(list(engine.predict(rows)), outputs)
    assert outputs[0].dtype is DTYPES[precision]
    measured = engine.evaluate(rows, {})["loss"]
    assert measured == pytest.approx(float(sum(loss.double() for loss in losses) / 3), abs=1e-12)
    own = engine.evaluate(rows, {}, compute_loss=lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1]))
    assert own["loss"] == pytest.approx(measured, abs=1e-12)


# -- what un-scaling reaches


def seen_gradients(parts: Components, **config: Any) -> list[dict[str, torch.Tensor]]:
    """Return what plugins see on entry to `optimizer_update`, by name."""
    engine, found = Engine(parts, RunConfig(epochs=1, **config)), []

    @engine.on_enter("optimizer_update")
    def look(run: Run) -> None:
        found.append({n: p.grad.clone() for n, p in run.network.named_parameters() if p.grad is not None})

    engine.run()
    return found


def two_layers() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def test_parameters_that_no_optimizer_holds_are_unscaled_too():
    """Clipping and checks take all parameters together."""

    def last_only(network: Any) -> Optimizer:
        return SGD(network[2].parameters(), lr=0.1)

    given: Any = {"loader": batches(2, 4), "optimizer": last_only}
    (scaled, *_), (plain, *_) = (
        seen_gradients(small_components(two_layers(), **given), precision=precision)
        for precision in ("fp16-mixed", "fp32")
    )
    assert scaled.keys() == plain.keys()
    for name, gradient in scaled.items():
        torch.testing.assert_close(gradient, plain[name], rtol=0.02, atol=0.002)


def test_a_parameter_of_two_optimizers_is_unscaled_once():
    def both(network: nn.Module) -> Optimizer:
        return SGD(network.parameters(), lr=0.05)

    given: Any = {"loader": batches(1, 4)}
    (two,) = seen_gradients(small_components(two_layers(), optimizer=[both, both], **given), precision="fp16-mixed")
    (one,) = seen_gradients(small_components(two_layers(), optimizer=both, **given), precision="fp16-mixed")
    assert equal(list(two.values()), list(one.values()))


def test_several_optimizers_step_together_or_not_at_all():
    """As one scaler that is asked for each, where one that overflows holds back its own alone: here the update."""

    def halves(network: Any) -> list[Any]:
        return [lambda n: SGD(n[0].parameters(), lr=0.1), lambda n: SGD(n[2].parameters(), lr=0.1)]

    network = two_layers()
    network[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(network)
    parts = small_components(network, loader=batches(2), optimizer=halves(network))
    run = Engine(parts, RunConfig(epochs=1, precision="fp16-mixed")).run()
    assert (run.windows, run.update) == (2, 0)
    assert equal(weights(network), before)


def test_sparse_gradients_are_unscaled():
    torch.manual_seed(4)
    embedding = nn.EmbeddingBag(9, CLASSES, sparse=True)
    rows = [(torch.randint(0, 9, (4, 2)), torch.randint(0, CLASSES, (4,))) for _ in range(3)]
    by_hand = nn.EmbeddingBag(9, CLASSES, sparse=True)
    by_hand.load_state_dict(embedding.state_dict())
    optimizer, scaler = sgd(by_hand), torch.amp.GradScaler("cpu")
    for data, target in rows:
        with torch.autocast("cpu", torch.float16):
            loss = functional.cross_entropy(by_hand(data), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    run = Engine(small_components(embedding, loader=rows), RunConfig(epochs=1, precision="fp16-mixed")).run()
    assert equal(weights(run.network), weights(by_hand))


def test_a_window_that_weighs_nothing_leaves_the_scale_alone():
    rows = batches(3, 4)
    rows[1][1].fill_(-100)
    run = Engine(small_components(loader=rows), RunConfig(epochs=1, precision="fp16-mixed")).run()
    assert (run.windows, run.update) == (3, 2)
    assert run._runtime.scaling is not None
    assert run._runtime.scaling.state() == (2.0**16, 2)


def test_a_flushed_window_is_that_of_the_loop_by_hand():
    """Of two steps in place of four, whose factors are powers of two."""
    rows, network = batches(6), small_network()
    optimizer, scaler = sgd(network), torch.amp.GradScaler("cpu")
    for window in (rows[:4], rows[4:]):
        for data, target in window:
            with torch.autocast("cpu", torch.float16):
                loss = functional.cross_entropy(network(data), target) / len(window)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    config = RunConfig(epochs=1, accumulation=4, remainder="flush", precision="fp16-mixed")
    run = Engine(small_components(loader=rows), config).run()
    assert equal(weights(run.network), weights(network))


def test_gradients_that_are_finite_at_no_scale_end_the_run():
    """A hand-written loop goes on for ever, with a scale of 0."""
    network = small_network()
    network.register_forward_hook(lambda module, args, output: output * float("nan"))
    engine = Engine(small_components(network), RunConfig(max_updates=5, precision="fp16-mixed"))
    with pytest.raises(EngineError, match=r"finite at no scale.*NonFiniteGuard") as caught:
        engine.run()
    assert engine.current.windows < 200
    assert "optimizer_update" in str(caught.value.__notes__)


# -- weights


def weighed(network: nn.Module, batch: Any) -> LossOutput:
    data, target, weight = batch
    return LossOutput(functional.cross_entropy(network(data), target), weight=weight)


def test_weights_are_related_to_the_mean_of_the_window_before():
    """So a first step of one token among thousands does not scale the others up until they overflow."""
    tokens = [900, 1000, 1, 900, 1, 1100, 2, 1000]
    rows = [(*row, weight) for row, weight in zip(batches(8, 4), tokens, strict=True)]

    def run_of(precision: str, rows: list[Any]) -> Run:
        parts = small_components(criterion=..., compute_loss=weighed, loader=rows)
        return Engine(parts, RunConfig(epochs=1, accumulation=2, precision=precision)).run()

    run = run_of("fp16-mixed", rows)
    assert (run.windows, run.update) == (4, 4)
    assert run._position.window.first == pytest.approx((1 + 1100) / 2)
    assert run._position.window.reference == pytest.approx((2 + 1000) / 2)
    for one, other in zip(weights(run.network), weights(run_of("fp32", rows).network), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.002)
    of_tensors = run_of("fp16-mixed", [(*row, torch.tensor(weight)) for *row, weight in rows])
    assert equal(weights(of_tensors.network), weights(run.network))


def test_weights_in_one_window_and_none_in_the_next_are_no_mixture():
    rows = [(*row, weight) for row, weight in zip(batches(6, 4), [3, 5, None, None, 4, 4], strict=True)]
    parts = small_components(criterion=..., compute_loss=weighed, loader=rows)
    assert Engine(parts, RunConfig(epochs=1, accumulation=2, precision="fp16-mixed")).run().update == 3
    rows[3] = (*rows[3][:2], 7)
    parts = small_components(criterion=..., compute_loss=weighed, loader=rows)
    with pytest.raises(EngineError, match=r"give LossOutput.weight in every step"):
        Engine(parts, RunConfig(epochs=1, accumulation=2, precision="fp16-mixed")).run()


def test_windows_of_one_step_are_related_to_nothing():
    """Also after longer ones."""
    rows = [(*row, weight) for row, weight in zip(batches(4, 4), [10, 30, 7, 900], strict=True)]
    parts = small_components(criterion=..., compute_loss=weighed, loader=rows)
    engine = Engine(parts, RunConfig(epochs=1, accumulation=2, precision="fp16-mixed"))
    engine.on_exit("optimizer_update")(lambda run: run.set_accumulation(1))
    network = small_network()
    optimizer, scaler = sgd(network), torch.amp.GradScaler("cpu")
    for window in (rows[:2], rows[2:3], rows[3:]):
        first, total = window[0][2], sum(row[2] / window[0][2] for row in window)
        for data, target, weight in window:
            with torch.autocast("cpu", torch.float16):
                loss = functional.cross_entropy(network(data), target) * (weight / first / len(window))
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(len(window) / total)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert equal(weights(engine.run().network), weights(network))


# -- a second pass


@pytest.mark.parametrize("precision", DTYPES)
def test_the_second_pass_of_sam_is_scaled_and_unscaled(precision):
    """As its authors do with a scaler that is updated after each pass."""
    rows, network = batches(4, 4), small_network()
    optimizer = sgd(network)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16-mixed")

    def gradients(window: list[Any]) -> None:
        optimizer.zero_grad()
        for data, target in window:
            with torch.autocast("cpu", DTYPES[precision]):
                loss = functional.cross_entropy(network(data), target) / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)

    for window in (rows[:2], rows[2:]):
        gradients(window)
        if precision == "fp16-mixed":
            scaler.update()
        old = weights(network)
        with torch.no_grad():
            norm = torch.stack([p.grad.norm(p=2) for p in network.parameters()]).norm(p=2)
            for p in network.parameters():
                p.add_(p.grad * (0.05 / (norm + 1e-12)))
        gradients(window)
        with torch.no_grad():
            for p, weight in zip(network.parameters(), old, strict=True):
                p.copy_(weight)
        scaler.step(optimizer)
        scaler.update()
    config = RunConfig(epochs=1, accumulation=2, precision=precision)
    run = Engine(small_components(loader=rows), config, [SAM(0.05)]).run()
    assert equal(weights(run.network), weights(network))


def test_a_second_pass_that_overflows_skips_the_update():
    """The weights are those before it, and the next window is scaled by what it is un-scaled by."""
    network, calls = small_network(), []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(gradient)
        return gradient * (float("inf") if len(calls) == 2 else 1.0)

    network.weight.register_hook(spoil)
    before = weights(network)
    engine = Engine(small_components(network, loader=batches(2)), RunConfig(epochs=1, precision="fp16-mixed"), [SAM()])
    run = engine.run(until=lambda run: run.windows == 1)
    assert equal(weights(network), before)
    assert skips(run) == ["fp16: a gradient is not finite at scale 65536 -> 32768"]
    assert engine.run().update == 1
    rows = batches(2)[1:]
    alone = Engine(small_components(loader=rows), RunConfig(epochs=1, precision="fp16-mixed"), [SAM()]).run()
    assert equal(weights(network), weights(alone.network)), "at another scale, which is a power of two"


# -- what is refused


def third_step(run: Run) -> bool:
    return run.step == 2 and run.state == "before_step"


@pytest.mark.parametrize("precision", ["bf16", "fp16", 16, None, "BF16-mixed"])
def test_another_precision_is_named(precision):
    with pytest.raises(ConfigError, match=r"RunConfig.precision must be 'fp32', 'bf16-mixed' or 'fp16-mixed', got"):
        RunConfig(epochs=1, precision=precision)


@pytest.mark.parametrize("made", [True, False])
def test_a_closure_is_refused_in_fp16_and_taken_in_bf16(made):
    """As torch's scaler refuses it: found when the engine is built, or when a function has made the optimizer."""
    network = small_network()
    given: Any = LBFGS(network.parameters()) if made else lambda network: LBFGS(network.parameters())
    parts = small_components(network, optimizer=given)
    with pytest.raises(ConfigError, match=r"fp16-mixed.*LBFGS needs a closure.*'bf16-mixed' or 'fp32'"):
        Engine(parts, RunConfig(epochs=1, precision="fp16-mixed")).run()
    assert Engine(parts, RunConfig(epochs=1, precision="bf16-mixed")).run().update == 3


def test_a_network_of_halves_is_refused_in_fp16():
    network = small_network().half()
    parts = small_components(network, optimizer=SGD(network.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match=r"2 of the 2 parameters of the optimizers are float16.*half"):
        Engine(parts, RunConfig(epochs=1, precision="fp16-mixed"))


def test_a_device_without_autocast_is_named(monkeypatch):
    def unsupported(*args: Any) -> None:
        raise RuntimeError("User specified an unsupported autocast device_type 'odd'")

    monkeypatch.setattr(torch, "autocast", unsupported)
    with pytest.raises(ConfigError, match="precision is 'bf16-mixed', which torch does not have on 'cpu'"):
        Engine(small_components(), RunConfig(epochs=1, precision="bf16-mixed"))


@pytest.mark.parametrize(
    ("before", "after"), [("fp32", "bf16-mixed"), ("fp16-mixed", "fp32"), ("fp16-mixed", "bf16-mixed")]
)
def test_a_checkpoint_is_resumed_in_its_own_precision(before, after, tmp_path):
    run = Engine(small_components(), RunConfig(epochs=1, precision=before)).run(until=third_step)
    entry = Store(tmp_path).save(run.snapshot())
    other = Engine(small_components(), RunConfig(epochs=1, precision=after))
    if before == after:
        assert other.run(resume=entry.path).update == 3
        return
    with pytest.raises(CheckpointError, match=rf"RunConfig.precision: '{before}' in the checkpoint, '{after}' here"):
        other.run(resume=entry.path)


@pytest.mark.parametrize("scaler", [None, {"scale": 0.0, "growth": 1}, {"scale": -2.0, "growth": 1}, {"scale": 2.0}])
def test_a_checkpoint_of_fp16_without_a_sound_scale_is_refused(scaler, tmp_path):
    engine = Engine(small_components(), RunConfig(epochs=1, precision="fp16-mixed"))
    snapshot = engine.run(until=third_step).snapshot()
    snapshot.sections["run"]["scaler"] = scaler
    entry = Store(tmp_path).save(snapshot)
    with pytest.raises(CheckpointError, match="not the checkpoint of a run"):
        Engine(small_components(), RunConfig(epochs=1, precision="fp16-mixed")).run(resume=entry.path)
