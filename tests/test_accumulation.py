"""An update is that of the window's samples as one batch, whatever the steps of the window hold."""

from __future__ import annotations

import copy
import gc
import math
import random
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from builders import CLASSES, FEATURES, STATES, Unsized, equal, small_engine, weights
from heptad import Components, Engine, EngineError, LossOutput, Plugin, Run, RunConfig

EXACT = 1e-12
IGNORED = -100
LENGTH = 6
"""Tokens in a sequence, padding included."""

criterion = nn.CrossEntropyLoss()


def double_network() -> nn.Module:
    """Return a network in float64 in which a sample's gradient depends on no other sample."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(FEATURES, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, CLASSES, dtype=torch.float64)
    )


def batches_of(sizes: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return a batch of (data, target) for each number of samples."""
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(size, FEATURES, generator=generator, dtype=torch.float64),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]


def token_batches(tokens: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return a batch of two padded sequences for each number of tokens; the target of padding is ignored."""
    generator = torch.Generator().manual_seed(5)
    made: list[tuple[torch.Tensor, torch.Tensor]] = []
    for count in tokens:
        data = torch.randn(2, LENGTH, FEATURES, generator=generator, dtype=torch.float64)
        target = torch.randint(0, CLASSES, (2 * LENGTH,), generator=generator)
        target[torch.randperm(2 * LENGTH, generator=generator)[count:]] = IGNORED
        made.append((data, target.reshape(2, LENGTH)))
    return made


def token_loss(network: nn.Module, batch: Any) -> torch.Tensor:
    """The mean loss of all tokens that are not padding."""
    data, target = batch
    return nn.functional.cross_entropy(network(data).flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def tokens_in(batch: Any) -> torch.Tensor:
    return (batch[1] != IGNORED).sum()


def sample_loss(network: nn.Module, batch: Any) -> torch.Tensor:
    data, target = batch
    return criterion(network(data), target)


class AsOneBatch(Plugin):
    """At every update computes the gradient of the window's samples as one batch, beside the one that is there."""

    def __init__(self, loss: Callable[[nn.Module, Any], torch.Tensor] = sample_loss) -> None:
        self.loss = loss
        self.held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.windows: list[list[int]] = []
        self.farthest = 0.0
        self.smallest = math.inf

    def on_enter_before_epoch(self, run: Run) -> None:
        self.held.clear()  # what remainder="drop" left over belongs to no window

    def on_enter_process_batch(self, run: Run) -> None:
        self.held.append(run.batch)

    def on_enter_optimizer_update(self, run: Run) -> None:
        data, target = (torch.cat(parts) for parts in zip(*self.held, strict=True))
        parameters = list(run.network.parameters())
        expected = torch.autograd.grad(self.loss(run.network, (data, target)), parameters)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            self.farthest = max(self.farthest, (parameter.grad - gradient).abs().max().item())
            self.smallest = min(self.smallest, gradient.abs().max().item())
        self.windows.append([len(batch[0]) for batch in self.held])
        self.held.clear()

    def assert_exact(self, windows: list[list[int]]) -> None:
        """The windows held these numbers of samples, and each gradient was that of one batch; none was nothing."""
        assert windows == self.windows
        assert self.farthest <= EXACT
        assert self.smallest > 1e-3


def accumulating_engine(
    loader: Any, plugins: Sequence[Plugin] = (), *, lr: float = 0.1, compute_loss: Any = None, **config: Any
) -> Engine:
    network = double_network()
    components = Components(
        network=network,
        loader=loader,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9),
        **({"compute_loss": compute_loss} if compute_loss else {"criterion": criterion}),
    )
    return Engine(components, RunConfig(**{"epochs": 1, **config}), plugins=plugins)


each_kind = pytest.mark.parametrize("kind", [lambda items: items, Unsized], ids=["sized", "unsized"])


# -- the gradient on entry to optimizer_update


@each_kind
@pytest.mark.parametrize(
    ("sizes", "k", "remainder", "windows"),
    [
        ([8, 8, 8, 3], 4, "extend", [[8, 8, 8, 3]]),
        ([3, 8, 8, 8], 4, "extend", [[3, 8, 8, 8]]),
        ([8, 8, 8, 3, 8, 1, 8, 8], 4, "extend", [[8, 8, 8, 3], [8, 1, 8, 8]]),
        ([8, 8, 8], 3, "extend", [[8, 8, 8]]),
        ([8, 8, 8, 8, 8, 3], 4, "flush", [[8, 8, 8, 8], [8, 3]]),
        ([8, 8, 8, 8, 3], 4, "flush", [[8, 8, 8, 8], [3]]),
        ([8, 3], 7, "flush", [[8, 3]]),
        ([8, 8, 3], 2, "extend", [[8, 8], [3, 8]]),
        ([8, 3], 5, "extend", [[8, 3, 8, 3, 8]]),
        ([8, 3, 8, 8, 8], 2, "drop", [[8, 3], [8, 8]]),
        ([8, 3], 1, "extend", [[8], [3]]),
    ],
)
def test_the_gradient_of_a_window_is_that_of_its_samples_as_one_batch(sizes, k, remainder, windows, kind):
    """Full, flushed and extended windows of unequal steps: the gradient that is applied is one large batch's."""
    check = AsOneBatch()
    accumulating_engine(kind(batches_of(sizes)), [check], epochs=2, accumulation=k, remainder=remainder).run()
    check.assert_exact(windows * 2)


@pytest.mark.parametrize("seed", range(12))
def test_the_gradient_is_exact_for_any_sizes(seed):
    """Windows and batches of sizes drawn at random, under every `remainder`."""
    draw = random.Random(seed)
    sizes = [draw.randint(1, 9) for _ in range(draw.randint(1, 9))]
    check = AsOneBatch()
    run = accumulating_engine(
        batches_of(sizes), [check], accumulation=draw.randint(1, 6), remainder=draw.choice(["extend", "flush"])
    ).run()
    assert run.samples == sum(map(sum, check.windows))
    check.assert_exact(check.windows)


WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "int": lambda batch: int(tokens_in(batch)),
    "float": lambda batch: float(tokens_in(batch)),
    "int tensor": tokens_in,
    "float32 tensor": lambda batch: tokens_in(batch).float(),
    "a fraction": lambda batch: tokens_in(batch).item() / 7,
    "tensor, then number": lambda batch: tokens_in(batch) if tokens_in(batch) == 12 else int(tokens_in(batch)),
    "number, then tensor": lambda batch: int(tokens_in(batch)) if tokens_in(batch) == 12 else tokens_in(batch),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize(
    ("tokens", "k", "remainder", "windows"),
    [
        ([12, 5, 1, 9], 4, "extend", [[2, 2, 2, 2]]),
        ([12, 5, 1, 9, 12, 3], 4, "flush", [[2, 2, 2, 2], [2, 2]]),
        ([12, 5, 1], 2, "extend", [[2, 2], [2, 2]]),
        ([12, 5], 1, "extend", [[2], [2]]),
    ],
)
def test_steps_count_by_the_weight_that_their_mean_was_taken_over(weight, tokens, k, remainder, windows):
    """With the number of tokens as its weight, a per-token mean loss gives the gradient of all tokens as one batch."""
    check = AsOneBatch(token_loss)
    accumulating_engine(
        token_batches(tokens),
        [check],
        compute_loss=lambda network, batch: LossOutput(token_loss(network, batch), weight=weight(batch)),
        accumulation=k,
        remainder=remainder,
    ).run()
    check.assert_exact(windows)


@pytest.mark.parametrize("wrap", [lambda loss: loss, LossOutput], ids=["bare", "LossOutput"])
def test_without_a_weight_every_step_weighs_the_same(wrap):
    """A bare scalar and a `LossOutput` without weight: the gradient is the mean of the steps' own gradients."""
    data = batches_of([8, 3, 1])
    network = double_network()
    for batch in data:
        (sample_loss(network, batch) / 3).backward()
    expected = [parameter.grad for parameter in network.parameters()]
    seen: list[list[torch.Tensor | None]] = []
    engine = accumulating_engine(data, compute_loss=lambda net, batch: wrap(sample_loss(net, batch)), accumulation=3)
    engine.on_enter("optimizer_update")(lambda run: seen.append([p.grad.clone() for p in run.network.parameters()]))
    engine.run()
    assert [equal(expected, actual) for actual in seen] == [True]


def test_parameters_of_the_optimizer_outside_of_the_network_are_corrected_too():
    """A temperature that only optimizers hold is scaled as well, and once although two of them hold it."""
    data = batches_of([8, 3, 8])
    network, temperature = double_network(), nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def loss(net: nn.Module, batch: Any) -> torch.Tensor:
        return criterion(net(batch[0]) * temperature, batch[1])

    parameters = [*network.parameters(), temperature]
    whole = tuple(torch.cat(parts) for parts in zip(*data, strict=True))
    expected = torch.autograd.grad(loss(network, whole), parameters)
    seen: list[torch.Tensor] = []
    engine = Engine(
        Components(
            network=network,
            loader=data,
            compute_loss=lambda net, batch: LossOutput(loss(net, batch), weight=len(batch[1])),
            optimizer=[torch.optim.SGD(parameters, lr=0.1), torch.optim.SGD(parameters[-2:], lr=0.1)],
        ),
        RunConfig(epochs=1, accumulation=3),
    )
    engine.on_enter("optimizer_update")(lambda run: seen.extend(p.grad.clone() for p in parameters))
    engine.run()
    assert max((a - b).abs().max().item() for a, b in zip(expected, seen, strict=True)) <= EXACT


class Clip(Plugin):
    """Clips the gradient that is about to be applied."""

    LIMIT = 0.01

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_enter_optimizer_update(self, run: Run) -> None:
        self.norms.append(torch.nn.utils.clip_grad_norm_(run.network.parameters(), self.LIMIT).item())


@pytest.mark.parametrize(
    ("sizes", "k", "remainder", "windows"),
    [
        ([8, 8, 8, 3], 4, "extend", [[0, 1, 2, 3]]),
        ([8, 8, 8, 8, 8, 3], 4, "flush", [[0, 1, 2, 3], [4, 5]]),
        ([8, 8, 3], 2, "extend", [[0, 1], [2, 0]]),
    ],
)
def test_a_clipping_handler_clips_the_gradient_of_the_whole_window(sizes, k, remainder, windows):
    """On entry to `optimizer_update` a plugin finds the corrected gradient, and the step applied is the clipped one."""
    data = batches_of(sizes)
    network = double_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    norms: list[float] = []
    for window in windows:
        optimizer.zero_grad()
        inputs, target = (torch.cat(parts) for parts in zip(*(data[index] for index in window), strict=True))
        criterion(network(inputs), target).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), Clip.LIMIT).item())
        optimizer.step()

    clip = Clip()
    run = accumulating_engine(data, [clip], accumulation=k, remainder=remainder).run()
    assert min(norms) > 2 * Clip.LIMIT
    assert pytest.approx(norms, rel=0, abs=EXACT) == clip.norms
    for expected, actual in zip(weights(network), weights(run.network), strict=True):
        assert (expected - actual).abs().max().item() <= EXACT


# -- changing the window in mid-run


class Changes(Plugin):
    """Sets the accumulation on exit of given steps, and writes down what `accumulation` was in each step."""

    def __init__(self, changes: dict[int, int]) -> None:
        self.changes = changes
        self.seen: list[int] = []

    def on_exit_process_batch(self, run: Run) -> None:
        if run.step in self.changes:
            run.set_accumulation(self.changes[run.step])

    def on_exit_after_step(self, run: Run) -> None:
        self.seen.append(run.accumulation)


@each_kind
@pytest.mark.parametrize(
    ("changes", "remainder", "windows", "seen"),
    [
        ({0: 3}, "extend", [[8, 1], [7, 2, 6], [3, 5, 4]], [2, 2, 3, 3, 3, 3, 3, 3]),
        ({1: 3}, "extend", [[8, 1], [7, 2, 6], [3, 5, 4]], [2, 2, 3, 3, 3, 3, 3, 3]),
        ({2: 1}, "extend", [[8, 1], [7, 2], [6], [3], [5], [4]], [2, 2, 2, 2, 1, 1, 1, 1]),
        ({2: 3}, "flush", [[8, 1], [7, 2], [6, 3, 5], [4]], [2, 2, 2, 2, 3, 3, 3, 3]),
        ({2: 3}, "extend", [[8, 1], [7, 2], [6, 3, 5], [4, 8, 1]], [2, 2, 2, 2, 3, 3, 3, 3, 3, 3]),
        ({1: 5, 3: 1}, "extend", [[8, 1], [7, 2, 6, 3, 5], [4]], [2, 2, 5, 5, 5, 5, 5, 1]),
        ({1: 5, 2: 2}, "flush", [[8, 1], [7, 2, 6, 3, 5], [4]], [2, 2, 5, 5, 5, 5, 5, 2]),
    ],
)
def test_set_accumulation_counts_from_the_next_window_on(changes, remainder, windows, seen, kind):
    """The open window keeps its size, those after it have the new one, and each is exact."""
    check, change = AsOneBatch(), Changes(changes)
    loader = kind(batches_of([8, 1, 7, 2, 6, 3, 5, 4]))
    run = accumulating_engine(loader, [check, change], accumulation=2, remainder=remainder).run()
    check.assert_exact(windows)
    # on exit of after_step the last step of a window belongs to it still
    assert seen == change.seen
    assert len(changes) == len(run.log.notes("accumulation"))


def test_a_window_that_the_data_cannot_fill_any_more_is_not_started_after_set_accumulation():
    """With `remainder="drop"` and a length the new size decides whether one more window fits."""
    check = AsOneBatch()
    accumulating_engine(
        batches_of([8, 1, 7, 2, 6, 3, 5]), [check, Changes({2: 4})], epochs=2, accumulation=2, remainder="drop"
    ).run()
    check.assert_exact([[8, 1], [7, 2], [8, 1, 7, 2]])


@pytest.mark.parametrize("k", [0, -1, 2.0, "2", True, None])
def test_set_accumulation_takes_a_whole_number_from_1_on(k):
    """Anything else is an `EngineError` that says what it got, and the window stays as it is."""
    engine = accumulating_engine(batches_of([8]), accumulation=3)
    with pytest.raises(EngineError, match="whole number from 1 on, got"):
        engine.current.set_accumulation(k)
    assert engine.current.accumulation == 3


# -- skipping an update


class Skips(Plugin):
    """Skips the updates of given windows, and writes down what stands before and after each."""

    def __init__(self, *windows: int) -> None:
        self.windows = windows
        self.before: list[tuple[list[torch.Tensor], int, dict[str, Any]]] = []
        self.after: list[tuple[list[torch.Tensor], int, dict[str, Any]]] = []
        self.skipped: list[bool] = []
        self.gradients: list[bool] = []

    def on_enter_optimizer_update(self, run: Run) -> None:
        self.before.append((weights(run.network), run.update, copy.deepcopy(run.optimizer.state_dict())))
        if len(self.before) - 1 in self.windows:
            run.skip_update("not this one")

    def on_exit_optimizer_update(self, run: Run) -> None:
        self.after.append((weights(run.network), run.update, copy.deepcopy(run.optimizer.state_dict())))
        self.skipped.append(run.update_skipped)
        self.gradients.append(any(p.grad is not None for p in run.network.parameters()))


def test_a_skipped_update_leaves_weights_counter_and_optimizer_as_they_were():
    """`update_skipped` says so on exit and no longer after the next update; the next window starts without gradient."""
    skips, check = Skips(1, 2), AsOneBatch()
    run = accumulating_engine(batches_of([8, 3] * 4), [check, skips], accumulation=2).run()
    assert skips.skipped == [False, True, True, False]
    still = [
        equal(before[0], after[0]) and before[1] == after[1] and str(before[2]) == str(after[2])
        for before, after in zip(skips.before, skips.after, strict=True)
    ]
    assert still == [False, True, True, False]
    assert [update for _, update, _ in skips.after] == [1, 1, 1, 2]
    assert skips.gradients == [True, False, False, True]
    assert (run.step, run.update) == (8, 2)
    assert len(run.log.notes("skip")) == 2
    assert run.log[-1].update == 2
    check.assert_exact([[8, 3]] * 4)


@pytest.mark.parametrize("k", [1, 2])
def test_a_run_that_skips_an_update_has_the_bits_of_a_loop_that_skips_it(k):
    """What remains is the run of the other windows, bit for bit."""
    data = batches_of([4] * 4 * k)
    network = double_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for index, batch in enumerate(data):
        if index % k == 0:
            optimizer.zero_grad()
        (sample_loss(network, batch) / k).backward()
        if (index + 1) % k == 0 and index // k != 1:
            optimizer.step()
    run = accumulating_engine(data, [Skips(1)], accumulation=k).run()
    assert equal(weights(network), weights(run.network))
    assert optimizer.state_dict()["state"].keys() == run.optimizer.state_dict()["state"].keys()
    for number, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], run.optimizer.state_dict()["state"][number]["momentum_buffer"])


def test_max_updates_counts_only_updates_that_were_made():
    """A skipped update brings a run no nearer to `max_updates`."""
    run = accumulating_engine(batches_of([4] * 8), [Skips(0, 2)], epochs=None, max_updates=3, accumulation=2).run()
    assert (run.update, run.step) == (3, 10)


MOMENTS = [(moment, state) for state in STATES for moment in ("enter", "exit")]
MOMENTS.remove(("enter", "optimizer_update"))


@pytest.mark.parametrize(("moment", "state"), MOMENTS)
def test_skip_update_is_legal_on_entry_to_optimizer_update_only(moment, state):
    """On every other moment it is an `EngineError` that says where the run is, and nothing is skipped."""
    refused: list[str] = []
    engine = small_engine(2)

    def handler(run: Run) -> None:
        with pytest.raises(EngineError, match="on entry to optimizer_update only") as caught:
            run.skip_update("elsewhere")
        refused.append(str(caught.value))

    getattr(engine, f"on_{moment}")(state)(handler)
    run = engine.run()
    assert refused
    assert all(f"the run is in {state}" in text for text in refused)
    assert (run.update, run.update_skipped) == (2, False)


def test_skip_update_is_refused_between_two_turns():
    """Paused in `optimizer_update`, before the start and after the end: the entry is over, or never came."""
    engine = small_engine(1)
    for until in (None, "optimizer_update"):
        if until:
            engine.run(until=until)
        with pytest.raises(EngineError, match="on entry to optimizer_update only"):
            engine.current.skip_update("too late")
    run = engine.run()
    with pytest.raises(EngineError, match="on entry to optimizer_update only"):
        run.skip_update("too late")
    assert run.update == 1


# -- weights that cannot be


@pytest.mark.parametrize("first", [True, False], ids=["weight first", "weight later"])
def test_a_window_with_and_without_weights_is_an_error(first):
    """All steps of a window give a weight or none does; windows may differ."""
    given = iter([first, first, not first, not first, first, not first])

    def loss(network: nn.Module, batch: Any) -> LossOutput:
        return LossOutput(sample_loss(network, batch), weight=8 if next(given) else None)

    engine = accumulating_engine(batches_of([8] * 6), compute_loss=loss, accumulation=2)
    with pytest.raises(EngineError, match="in every step of a window or in none"):
        engine.run()
    assert (engine.current.step, engine.current.update) == (5, 2)


def refused(weight: Any, k: int, good: int) -> Run:
    """Drive a run whose first step, or second, gives an impossible weight."""
    given = iter([8] * good + [weight] * 4)
    engine = accumulating_engine(
        batches_of([8] * 4),
        compute_loss=lambda network, batch: LossOutput(sample_loss(network, batch), weight=next(given)),
        accumulation=k,
    )
    with pytest.raises(
        EngineError, match=r"LossOutput\.weight must be a number from 0 on, or a 0-dim tensor of one; got"
    ):
        engine.run()
    return engine.current


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize(
    "weight",
    [
        -1,
        -0.5,
        math.nan,
        math.inf,
        True,
        "8",
        [8],
        torch.tensor(-1.0),
        torch.tensor(math.nan),
        torch.tensor(math.inf),
        torch.tensor(True),
        torch.tensor([8.0]),
    ],
    ids=str,
)
def test_a_weight_that_is_no_number_from_0_on_is_an_error(weight, good, k):
    """Found in the step that gives it, at the first as at a later one, and before a gradient of it is applied."""
    run = refused(weight, k, good)
    assert ("failed", good, good // k) == (run.state, run.step, run.update)


def test_a_batch_without_samples_adds_nothing():
    """A criterion's mean over no samples weighs nothing: the update is that of the other batch."""
    empty = (torch.empty(0, FEATURES, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    expected = accumulating_engine(batches_of([8])).run()
    for k in (1, 2):
        run = accumulating_engine([empty, *batches_of([8])], accumulation=k).run()
        assert (run.step, run.update, run.windows) == (2, 1, 2 // k)
        for ours, theirs in zip(weights(run.network), weights(expected.network), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# -- memory


class Token:
    """Lives as long as the graph that it was put into."""


class Marked(torch.autograd.Function):
    """The identity. Its node in the graph holds a token."""

    @staticmethod
    def forward(ctx: Any, data: torch.Tensor, token: Token) -> torch.Tensor:
        ctx.token = token
        ctx.save_for_backward(data)
        return data.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class Counting(nn.Module):
    """A network that counts at each forward how many graphs and outputs of steps before are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = double_network()
        self.graphs: list[weakref.ref[Token]] = []
        self.outputs: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[tuple[int, int]] = []

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.alive.append(tuple(sum(ref() is not None for ref in refs) for refs in (self.graphs, self.outputs)))
        token = Token()
        self.graphs.append(weakref.ref(token))
        output = Marked.apply(self.inner(data), token)
        self.outputs.append(weakref.ref(output))
        return output


@pytest.fixture
def no_collector():
    """Turn the cycle collector off, so that only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def with_output(network: nn.Module, batch: Any) -> LossOutput:
    output = network(batch[0])
    loss = criterion(output, batch[1])
    return LossOutput(loss, weight=torch.tensor(float(len(batch[1]))), output=output, logs={"loss": loss})


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "loss", [{"criterion": criterion}, {"compute_loss": sample_loss}, {"compute_loss": with_output}]
)
@pytest.mark.parametrize(("k", "remainder"), [(1, "extend"), (4, "extend"), (4, "flush"), (4, "drop")])
def test_one_steps_graph_is_alive_at_a_time(loss, k, remainder):
    """When a step's forward begins, graph and output of every step before are freed, without the cycle collector."""
    network = Counting()
    losses: list[Any] = []
    components = Components(
        network=network, loader=batches_of([8] * 7), optimizer=torch.optim.SGD(network.parameters(), lr=0.1), **loss
    )
    engine = Engine(components, RunConfig(epochs=2, accumulation=k, remainder=remainder))
    engine.on_exit("process_batch")(lambda run: losses.append((run.loss, run.output)))  # detached: kept for nothing
    run = engine.run()
    assert [(0, 0)] * run.step == network.alive
    assert run.step == len(losses) > 7
    assert [None] * run.step == [graph() for graph in network.graphs]


@pytest.mark.usefixtures("no_collector")
def test_the_count_of_live_graphs_sees_one_that_is_kept():
    """The measure itself: a loop that keeps its losses keeps their graphs."""
    network = Counting()
    kept = [criterion(network(data), target) for data, target in batches_of([8] * 3)]
    assert network.alive == [(0, 0), (1, 0), (2, 0)]
    del kept
    assert [graph() for graph in network.graphs] == [None] * 3
