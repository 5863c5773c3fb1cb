"""`RunConfig.redo`: a window computed again, in halves where memory ran out, or once where it was not finite."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
import torch
from torch import nn

from builders import (
    CLASSES,
    FEATURES,
    Unsized,
    Witness,
    batches,
    equal,
    records,
    small_components,
    small_config,
    small_network,
    weights,
)
from faulty import Glitch, Memory, Needy
from heptad import (
    Components,
    ConfigError,
    Detour,
    Engine,
    EngineError,
    LossOutput,
    Plugin,
    PluginError,
    Run,
    RunConfig,
    TableError,
)
from heptad.step.bodies import process_batch
from heptad.step.finite import same_bits
from heptad_plugins import (
    EMA,
    SAM,
    Checkpoint,
    GracefulStop,
    GradientClipping,
    ModelSummary,
    NonFiniteGuard,
    Profiler,
    Throughput,
    TrainingMetrics,
)
from stock import StockEngine

F64 = torch.float64
SIZE = 6


def layers(*between: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the two halves of a network, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(FEATURES, 5, dtype=F64), nn.Sequential(*between, nn.Tanh(), nn.Linear(5, CLASSES, dtype=F64))


def data(count: int = 8, size: int = SIZE) -> list[Any]:
    return batches(count, size, F64)


def engine_of(memory: Memory, *between: nn.Module, loader: Any = None, plugins: Any = (), **given: Any) -> Engine:
    """Return an engine whose network needs memory, or has any amount of it where `limit` is large."""
    fields = {
        "criterion": memory.criterion(nn.CrossEntropyLoss()),
        "optimizer": lambda network: torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9),
        **{name: given.pop(name) for name in list(given) if name in Components.model_fields},
    }
    if fields.get("compute_loss"):
        del fields["criterion"]
    components = Components(
        network=Needy(memory, *layers(*between)), loader=data() if loader is None else loader, **fields
    )
    config = {"epochs": 2, "redo": ("out_of_memory",), **given}
    return Engine(components, RunConfig(**config), plugins=plugins)


class Means:
    """A metric that remembers what it found."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def __call__(self, output: torch.Tensor, batch: Any) -> torch.Tensor:
        assert len(output) == len(batch[0])
        self.found.append(float(output[:, 0].mean()))
        return output[:, 0]


def plenty() -> Memory:
    return Memory(10**6)


def close(one: Engine, other: Engine) -> None:
    """Assert that two runs made the same updates, but for rounding in float64."""
    for a, b in zip(weights(one.current.network), weights(other.current.network), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for name in ("epoch", "step", "update", "samples", "windows", "batch_index"):
        assert getattr(one.current, name) == getattr(other.current, name), name


def events(engine: Engine) -> list[Any]:
    return engine.current.log.notes("redo")


class RecordsMeans(Plugin):
    """Records the losses of windows and epochs."""

    needs_epoch_loss = True

    def on_exit_after_epoch(self, run: Any) -> None:
        run.record("epoch", run.epoch_loss)

    def on_exit_optimizer_update(self, run: Any) -> None:
        run.record("window", run.mean_loss)


class TestOutOfMemory:
    @pytest.mark.parametrize("place", ["forward", "loss", "backward"])
    @pytest.mark.parametrize(("k", "first"), [(1, 0), (1, 3), (4, 0), (4, 1), (4, 2), (4, 3), (4, 6)])
    def test_the_updates_are_those_of_whole_batches(self, place, k, first):
        memory = Memory(3, place, first)
        tight, whole = engine_of(memory, accumulation=k), engine_of(plenty(), accumulation=k, redo=())
        tight.run(), whole.run()
        assert memory.failed == [6]
        close(tight, whole)

    @pytest.mark.parametrize("limit", [1, 2, 3, 4])
    def test_halves_are_taken_down_to_one_sample(self, limit):
        memory = Memory(limit, "backward")
        tight, whole = engine_of(memory, accumulation=2), engine_of(plenty(), accumulation=2)
        tight.run(), whole.run()
        assert memory.failed == {1: [6, 3, 2], 2: [6, 3], 3: [6], 4: [6]}[limit]
        assert events(tight)[0].halvings == {1: 3, 2: 2, 3: 1, 4: 1}[limit]
        close(tight, whole)

    @pytest.mark.parametrize("remainder", ["extend", "flush", "drop", "carry"])
    @pytest.mark.parametrize("sized", [True, False])
    def test_with_each_remainder_and_batches_of_unequal_sizes(self, remainder, sized):
        rows = [*data(4), *data(2, 3), *data(1, 5)]
        loader = rows if sized else Unsized(rows)
        options = {"accumulation": 3, "remainder": remainder, "loader": loader}
        tight, whole = engine_of(Memory(3, "backward", 4), **options), engine_of(plenty(), **options)
        tight.run(), whole.run()
        assert len(events(tight)) == 1
        close(tight, whole)

    def test_the_update_is_that_of_a_loop_by_hand(self):
        first, second = layers()
        parameters = [*first.parameters(), *second.parameters()]
        for (x, y), (u, v) in zip(data()[::2], data()[1::2], strict=True):
            loss = nn.functional.cross_entropy(second(first(torch.cat([x, u]))), torch.cat([y, v]))
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data -= 0.1 * gradient
        engine = engine_of(
            Memory(2), accumulation=2, epochs=1, optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.1)
        )
        engine.run()
        for mine, expected in zip(engine.current.network.parameters(), parameters, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("k", [1, 3])
    def test_weights_of_tokens(self, k):
        def loss(network: nn.Module, batch: Any) -> LossOutput:
            output = network(batch["x"])
            rows = nn.functional.cross_entropy(output, batch["y"], reduction="none")
            total = batch["tokens"].sum()
            value = (rows * batch["tokens"]).sum() / total.clamp(min=1)
            return LossOutput(value, weight=total, output=output, logs={"tokens/loss": value})

        tokens = torch.arange(SIZE, dtype=F64)
        rows = [{"x": x, "y": y, "tokens": (tokens * n) % 4, "name": "a"} for n, (x, y) in enumerate(data(7))]
        options = {"accumulation": k, "compute_loss": loss, "loader": rows, "remainder": "flush"}
        tight, whole = engine_of(Memory(2, "backward", 1), **options), engine_of(plenty(), **options)
        tight.run(), whole.run()
        close(tight, whole)
        close_values(tight, whole, "tokens/loss")

    def test_classes_that_are_ignored_or_weigh_more(self):
        criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=F64))
        rows = data(6)
        for number, (_, y) in enumerate(rows):
            y[: number + 1] = -100
        for k in (1, 3):
            options = {"accumulation": k, "criterion": criterion, "loader": rows}
            tight, whole = engine_of(Memory(2), **options), engine_of(plenty(), **options)
            tight.run(), whole.run()
            close(tight, whole)

    def test_it_has_a_state_of_its_own_and_a_step_counts_once(self):
        engine = engine_of(Memory(3, "backward", 1), accumulation=2, epochs=1, loader=data(4))
        engine.run()
        assert [t.dest for t in engine.current.log][2:12] == [
            "before_step",
            "process_batch",
            "after_step",
            "before_step",
            "process_batch",
            "redo_window",
            "after_step",
            "optimizer_update",
            "before_step",
            "process_batch",
        ]
        asked = next(t for t in engine.current.log if t.dest == "redo_window")
        assert asked.guards == {"redo_due": True}
        assert (engine.current.step, engine.current.update, engine.current.samples) == (4, 2, 24)

    def test_a_run_without_the_field_keeps_nothing(self):
        engine = engine_of(plenty(), redo=())
        engine.run()
        assert engine.current._position.kept is None
        assert engine.current._position.redo is None
        assert engine._machine.node("process_batch")[0] is process_batch

    def test_without_the_field_the_table_has_no_such_state(self):
        assert "redo_window" not in engine_of(plenty(), redo=()).diagram()
        assert "redo_window" in engine_of(plenty()).diagram()

    def test_handlers_are_called_as_if_nothing_had_failed(self):
        one, other = Witness(), Witness()
        engine_of(Memory(3, "backward", 1), accumulation=2, plugins=[one]).run()
        engine_of(plenty(), accumulation=2, plugins=[other], redo=()).run()
        assert one.seen == other.seen
        assert one.counters == other.counters

    def test_a_handler_on_exit_sees_the_whole_batch_its_loss_and_its_output(self):
        class Looks(Plugin):
            def __init__(self) -> None:
                self.seen: list[Any] = []

            def on_exit_process_batch(self, run: Any) -> None:
                self.seen.append((run.loss, run.output, run.batch[0], torch.as_tensor(run.weight)))

        one, other = Looks(), Looks()
        engine_of(Memory(4), accumulation=2, plugins=[one]).run()
        engine_of(plenty(), accumulation=2, plugins=[other]).run()
        torch.testing.assert_close(one.seen, other.seen, rtol=1e-12, atol=1e-12, check_dtype=False)

    def test_a_filter_counts_each_step_once(self):
        counts = []
        for memory in (Memory(3, "forward", 1), plenty()):
            seen: list[int] = []
            engine = engine_of(memory, accumulation=2)
            engine.on_exit("process_batch", every=3)(lambda run, seen=seen: seen.append(run.step))
            engine.run()
            counts.append(seen)
        assert counts[0] == counts[1] == [2, 5, 8, 11, 14]

    def test_values_are_recorded_once_a_step(self):
        made = []
        for memory in (Memory(2, "backward", 1), plenty()):
            engine = engine_of(memory, accumulation=2, plugins=[TrainingMetrics({"mean": spread})])
            engine.run()
            made.append(engine)
        for name in ("train/mean", "train/loss"):
            if made[1].current.history(name):
                close_values(*made, name)

    @pytest.mark.parametrize("place", ["forward", "loss", "backward"])
    @pytest.mark.parametrize(("k", "first"), [(1, 0), (2, 0), (2, 1), (1, 1)])
    def test_flops_are_those_of_a_step_that_is_complete(self, place, k, first):
        def counted(memory: Memory) -> tuple[Any, float]:
            summary = ModelSummary(file=StringIO())
            run = engine_of(memory, accumulation=k, plugins=[summary, Throughput(peak_flops=1e9)]).run()
            of_a_sample = run.history("mfu")[-1] * 1e9 / run.history("samples_per_second")[-1]
            return summary.parts, of_a_sample

        tight, whole = counted(Memory(3, place, first)), counted(plenty())
        assert tight[0] == whole[0]
        assert whole[0][0].flops
        assert tight[1] == pytest.approx(whole[1], rel=1e-9)

    @pytest.mark.parametrize("within", [slice(3), slice(3, 6)])
    def test_a_step_with_an_output_of_one_half_is_not_measured(self, within):
        def loss(network: nn.Module, batch: Any) -> LossOutput | None:
            output, known = network(batch[0]), batch[1] >= 0
            if not known.any():
                return None
            value = nn.functional.cross_entropy(output[known], batch[1][known])
            return LossOutput(value, weight=int(known.sum()), output=output)

        rows = data(4)
        rows[1][1][within] = -1
        first = Means()
        options: dict[str, Any] = {"compute_loss": loss, "loader": rows, "epochs": 1}
        engine = engine_of(Memory(3), plugins=[TrainingMetrics({"first": first})], **options)
        assert engine.run().history("train/first") == pytest.approx([sum(first.found) / 3])
        assert len(first.found) == 3
        whole = engine_of(plenty(), **options)
        whole.run()
        close(engine, whole)

    def test_an_output_of_no_half_is_missed(self):
        def loss(network: nn.Module, batch: Any) -> LossOutput:
            return LossOutput(nn.functional.cross_entropy(network(batch[0]), batch[1]), weight=len(batch[1]))

        engine = engine_of(Memory(3), plugins=[TrainingMetrics({"first": Means()})], compute_loss=loss)
        with pytest.raises(PluginError, match="there is no output to measure"):
            engine.run()

    @pytest.mark.parametrize("pauses", [False, True])
    def test_a_trace_has_a_range_for_it(self, pauses, tmp_path):
        path = tmp_path / "trace.json"
        engine = engine_of(Memory(3, "backward", 1), epochs=1, plugins=[Profiler(path, range(1, 2), memory=False)])
        if pauses:
            engine.run(until="redo_window")
        engine.run()
        traces = [json.loads(file.read_text())["traceEvents"] for file in sorted(tmp_path.iterdir(), reverse=True)]
        named = [
            event["name"]
            for trace in traces
            for event in sorted(trace, key=lambda event: event.get("ts", 0))
            if event.get("cat") == "user_annotation" and not event["name"].startswith("Optimizer.")
        ]
        assert named == [
            *("before_step", "process_batch"), *["redo_window"] * (1 + pauses), *("after_step", "optimizer_update")
        ]  # fmt: skip

    def test_a_repeat_keeps_the_flops_of_its_step(self):
        summary = ModelSummary(file=StringIO())
        engine = engine_of(plenty(), loader=data(1), epochs=1, redo=("non_finite",), plugins=[summary])
        engine.on_exit("process_batch")(lambda run: next(run.network.parameters()).grad.fill_(float("nan")))
        engine.run()
        assert len(events(engine)) == 1
        assert summary.parts[0].flops

    def test_the_losses_of_window_and_epoch(self):
        for remainder in ("extend", "carry"):
            made = []
            for memory in (Memory(2, "backward", 4), plenty()):
                options = {"accumulation": 3, "remainder": remainder, "loader": data(5), "epochs": 3}
                made.append(engine_of(memory, plugins=[RecordsMeans()], **options))
                made[-1].run()
            close_values(*made, "epoch")
            close_values(*made, "window")

    def test_a_window_has_one_loss_a_step(self):
        engine = engine_of(Memory(2, "backward", 1), accumulation=3)
        counts: list[int] = []
        engine.on_enter("optimizer_update")(lambda run: counts.append(len(run._position.window.losses)))
        engine.run()
        assert set(counts) == {3}

    def test_the_log_says_how_often_batches_are_halved_and_later_windows_keep_it(self):
        memory = Memory(2, "backward", 2)
        engine = engine_of(memory, accumulation=2)
        engine.run()
        (event,) = events(engine)
        assert (event.step, event.before, event.halvings, event.samples, event.unequal) == (2, 0, 2, 2, "")
        assert "no memory for 3 samples in backward" in event.text
        assert memory.failed == [6, 3]

    @pytest.mark.parametrize(
        ("layer", "why"), [(nn.Dropout(0.5), "dropout"), (nn.BatchNorm1d(5, dtype=F64), "BatchNorm"), (nn.Tanh(), "")]
    )
    def test_what_makes_halves_unequal_is_told(self, layer, why):
        engine = engine_of(Memory(3), layer)
        engine.run()
        (event,) = events(engine)
        assert bool(event.unequal) == bool(why)
        assert why in event.unequal

    def test_what_draws_at_random_is_as_if_nothing_had_failed_where_the_batch_has_one_sample(self):
        """Every attempt begins with the states of the generators that the step began with."""
        options = {"accumulation": 4, "loader": data(8, 1)}
        memory = Memory(0, "backward", 2)
        memory.limit = 1
        engines = [engine_of(m, nn.Dropout(0.5), **options) for m in (memory, plenty())]
        for engine in engines:
            engine.on_exit("before_step")(lambda run: torch.rand(1))
            engine.run()
        close(*engines)

    @pytest.mark.parametrize("k", [1, 3])
    def test_weights_on_a_device_are_not_read(self, k, monkeypatch):
        """They stay tensors, also those of 0."""
        monkeypatch.setattr("heptad.step.function.known_weight", lambda weight: weight.double())

        def loss(network: nn.Module, batch: Any) -> LossOutput:
            x, y, keep = batch
            rows = nn.functional.cross_entropy(network(x), y, reduction="none")
            return LossOutput((rows * keep).sum() / keep.sum().clamp(min=1), weight=keep.sum())

        rows = [(x, y, torch.arange(SIZE) < n) for n, (x, y) in enumerate(data(7))]
        options = {"accumulation": k, "compute_loss": loss, "loader": rows, "remainder": "flush"}
        tight = engine_of(Memory(2, "backward", 1), redo=("out_of_memory", "non_finite"), **options)
        whole = engine_of(plenty(), redo=(), **options)
        tight.run(), whole.run()
        close(tight, whole)
        assert len(events(tight)) == 1

    def test_a_batch_that_a_handler_replaced(self):
        made = []
        for memory in (Memory(2, "backward", 2), plenty()):
            engine = engine_of(memory, accumulation=4)

            def mix(run: Any) -> None:
                run.batch = (run.batch[0] * torch.rand(1, dtype=F64), run.batch[1])

            engine.on_enter("process_batch")(mix)
            engine.run()
            made.append(engine)
        close(*made)

    def test_turn_by_turn_and_by_the_stock_dispatch(self):
        made = [engine_of(Memory(2, "backward", 2), accumulation=4) for _ in range(2)]
        components = Components(
            network=Needy(Memory(2, "backward", 2), *layers()),
            loader=data(),
            criterion=nn.CrossEntropyLoss(),
            optimizer=lambda network: torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9),
        )
        made.append(StockEngine(components, RunConfig(epochs=2, accumulation=4, redo=("out_of_memory",))))
        made[0].run(), made[2].run()
        while not made[1].current.ended:
            made[1].advance()
        assert records(made[0].current.log) == records(made[1].current.log) == records(made[2].current.log)
        for one in made[1:]:
            assert all(map(torch.equal, weights(one.current.network), weights(made[0].current.network)))

    def test_a_plan_has_no_redo(self):
        one, other = engine_of(plenty(), accumulation=2), engine_of(plenty(), accumulation=2, redo=())
        assert list(map(str, one.plan())) == list(map(str, other.plan()))

    def test_a_smoke_run(self):
        engine = engine_of(Memory(2, "backward", 0), accumulation=2)
        before = weights(engine.current.network)
        assert engine.smoke().log.counts()["redo_window"] == 1
        assert all(map(torch.equal, before, weights(engine.current.network)))

    def test_given_up_with_the_sizes_tried(self):
        engine = engine_of(Memory(0, "backward"))
        with pytest.raises(torch.OutOfMemoryError, match="no memory for 1 samples") as caught:
            engine.run()
        notes = "\n".join(caught.value.__notes__)
        assert "tried with 6, 3, 2, 1 samples at a time" in notes
        assert "redo_window" in notes
        assert engine.current.state == "failed"

    def test_batch_norm_is_not_given_a_single_sample(self):
        engine = engine_of(Memory(1, "backward"), nn.BatchNorm1d(5, dtype=F64))
        with pytest.raises(torch.OutOfMemoryError) as caught:
            engine.run()
        assert "tried with 6, 3, 2 samples at a time; BatchNorm needs two" in "\n".join(caught.value.__notes__)

    def test_a_loss_without_a_weight_cannot_be_halved(self):
        def loss(network: nn.Module, batch: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(network(batch[0]), batch[1])

        with pytest.raises(torch.OutOfMemoryError) as caught:
            engine_of(Memory(3), compute_loss=loss).run()
        assert "return LossOutput(loss, weight=number of samples)" in "\n".join(caught.value.__notes__)

    def test_a_batch_that_cannot_be_cut_is_named(self):
        rows = [(x, y, torch.ones(7)) for x, y in data(2)]

        def loss(network: nn.Module, batch: Any) -> LossOutput:
            return LossOutput(nn.functional.cross_entropy(network(batch[0]), batch[1]), weight=len(batch[0]))

        with pytest.raises(torch.OutOfMemoryError) as caught:
            engine_of(Memory(3), compute_loss=loss, loader=rows).run()
        assert "it holds float32 of shape (7,) beside 6 samples" in "\n".join(caught.value.__notes__)

    def test_another_error_is_raised_as_ever(self):
        def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("another")

        engine = engine_of(plenty(), criterion=criterion)
        with pytest.raises(RuntimeError, match="another"):
            engine.run()
        assert engine.current.log[-1].source == "process_batch"

    def test_memory_that_runs_out_without_the_field_ends_the_run(self):
        for redo in ((), ("non_finite",)):
            engine = engine_of(Memory(3), redo=redo)
            with pytest.raises(torch.OutOfMemoryError):
                engine.run()
            assert engine.current.log[-1].source == "process_batch"

    def test_nothing_of_the_failed_attempt_stays_alive(self):
        import gc
        import weakref

        alive: list[Any] = []
        engine = engine_of(Memory(3, "backward"))
        engine.current.network.second.register_forward_hook(lambda m, a, out: alive.append(weakref.ref(out)))
        gc.disable()
        try:
            engine.run(until="redo_window")
            assert [ref() for ref in alive] == [None]
        finally:
            gc.enable()

    def test_plugins_that_work_on_the_update(self):
        made = []
        for memory in (Memory(2, "backward", 1), plenty()):
            plugins = [GradientClipping(max_norm=0.1), EMA(decay=0.5), NonFiniteGuard()]
            made.append((engine_of(memory, accumulation=2, plugins=plugins), plugins[1]))
            made[-1][0].run()
        close(made[0][0], made[1][0])
        for a, b in zip(tensors(made[0][1].state_dict()), tensors(made[1][1].state_dict()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_a_step_that_a_plugin_leaves_out_stays_out(self):
        """In the first part of a batch, in a later one, and in a step before the one that ran out of memory."""
        rows = data(8)
        for number, place in ((1, 0), (4, 5), (6, 3)):
            rows[number][0][place] = float("nan")
        made = []
        for memory in (Memory(2, "backward", 3), plenty()):
            guard = NonFiniteGuard(action="skip_batch")
            made.append(engine_of(memory, accumulation=4, plugins=[guard], loader=rows))
            made[-1].run()
            assert len(made[-1].current.log.notes("skip_batch")) == 6
        close(*made)

    def test_an_optimizer_that_needs_a_closure(self):
        made = []
        for memory in (Memory(2, "backward", 1), plenty()):
            optimizer = lambda net: torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)  # noqa: E731
            made.append(engine_of(memory, accumulation=2, optimizer=optimizer))
            made[-1].run()
        for a, b in zip(*(weights(one.current.network) for one in made), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)

    def test_a_plugin_that_computes_the_window_again(self):
        made = [engine_of(m, accumulation=2, plugins=[SAM()]) for m in (Memory(2, "backward", 1), plenty())]
        for engine in made:
            engine.run()
        close(*made)

    def test_side_optimizers(self):
        """Gradients that a plugin made stay; where the loss reaches them too, it is not known what is whose."""

        class Tilts(Plugin):
            def on_enter_process_batch(self, run: Any) -> None:
                (tilt,) = run.side_optimizers["tilt"].param_groups[0]["params"]
                (tilt * (run.step + 1)).backward()

            def on_exit_optimizer_update(self, run: Any) -> None:
                run.side_optimizers["tilt"].step()

        def tilted(tilt: nn.Parameter, reached: bool):
            def loss(network: nn.Module, batch: Any) -> LossOutput:
                output = network(batch[0]) * (tilt if reached else 1)
                return LossOutput(nn.functional.cross_entropy(output, batch[1]), weight=len(batch[0]))

            return loss

        for k in (1, 2):
            made = []
            for memory in (Memory(2, "backward", 1), plenty()):
                tilt = nn.Parameter(torch.ones((), dtype=F64))
                side = {"tilt": torch.optim.SGD([tilt], lr=0.01)}
                options = {"side_optimizers": side, "compute_loss": tilted(tilt, False), "plugins": [Tilts()]}
                engine = engine_of(memory, accumulation=k, **options)
                engine.run()
                made.append((engine, tilt))
            close(made[0][0], made[1][0])
            torch.testing.assert_close(made[0][1], made[1][1], rtol=0, atol=0)
        for plugins in ([Tilts()], []):
            tilt = nn.Parameter(torch.ones((), dtype=F64))
            side = {"tilt": torch.optim.SGD([tilt], lr=0.01)}
            engine = engine_of(
                Memory(2, "backward"), side_optimizers=side, compute_loss=tilted(tilt, True), plugins=plugins
            )
            if plugins:
                with pytest.raises(torch.OutOfMemoryError) as caught:
                    engine.run()
                assert "only a side optimizer holds" in "\n".join(caught.value.__notes__)
            else:
                engine.run()

    def test_a_pause_waits_for_the_step_and_then_the_run_continues(self, tmp_path):
        made = []
        for memory in (Memory(2, "backward", 1), plenty()):
            engine = engine_of(memory, accumulation=2, plugins=[Checkpoint(tmp_path / str(memory.limit))])
            engine.on_enter("process_batch", every=2)(lambda run: run.pause("asked"))
            while not engine.current.ended:
                engine.run()
                assert engine.current.state not in ("process_batch", "redo_window", "after_step")
            made.append(engine)
        close(*made)

    def test_a_stop_ends_the_window_first(self):
        made = []
        for memory in (Memory(2, "backward", 1), plenty()):
            engine = engine_of(memory, accumulation=4, plugins=[GracefulStop()])
            engine.on_enter("process_batch", once=True, every=2)(lambda run: run.stop("enough"))
            engine.run()
            made.append(engine)
        close(*made)
        assert made[0].current.update == 1


def spread(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return output.std(dim=1)


def close_values(one: Engine, other: Engine, name: str) -> None:
    values = [torch.tensor(engine.current.history(name), dtype=F64) for engine in (one, other)]
    assert len(values[0])
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


class TestNonFinite:
    def glitching(self, *at: int, between: tuple[nn.Module, ...] = (), plugins: Any = (), **config: Any) -> Engine:
        network = Glitch(nn.Sequential(*layers(*between)), *at)
        components = Components(
            network=network,
            loader=config.pop("loader", None) or data(),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9),
        )
        return Engine(components, RunConfig(**{"epochs": 1, "redo": ("non_finite",), **config}), plugins=plugins)

    @pytest.mark.parametrize(("k", "at"), [(1, 0), (1, 3), (4, 0), (4, 2), (4, 7)])
    def test_a_transient_fault_leaves_no_trace(self, k, at):
        """Weights, buffers and generators are, bit for bit, those of a run without the fault."""
        parts = (nn.BatchNorm1d(5, dtype=F64), nn.Dropout(0.5))
        faulty = self.glitching(at, between=parts, accumulation=k)
        faulty.run()
        ended = torch.get_rng_state()
        sound = self.glitching(between=(nn.BatchNorm1d(5, dtype=F64), nn.Dropout(0.5)), accumulation=k)
        sound.run()
        assert torch.equal(ended, torch.get_rng_state())
        for a, b in zip(weights(faulty.current.network), weights(sound.current.network), strict=True):
            assert torch.equal(a, b)
        (event,) = events(faulty)
        assert event.outcome == "finite"
        assert "transient" in event.text
        assert events(sound) == []

    def test_handlers_that_draw_do_not_matter(self):
        made = []
        for at in ((2,), ()):
            engine = self.glitching(*at, between=(nn.Dropout(0.5),), accumulation=4)
            engine.on_enter("process_batch")(lambda run: torch.rand(3))
            engine.on_exit("after_step")(lambda run: torch.rand(2))
            engine.run()
            made.append((weights(engine.current.network), torch.get_rng_state()))
        assert all(map(torch.equal, made[0][0], made[1][0]))
        assert torch.equal(made[0][1], made[1][1])

    def test_equal_bits_mean_the_data_or_the_network(self):
        rows = data(8)
        rows[5][0][2] = float("inf")
        engine = self.glitching(accumulation=4, loader=rows, plugins=[NonFiniteGuard(action="skip")])
        engine.run()
        (event,) = events(engine)
        assert (event.outcome, event.micro_batch, event.step) == ("equal", 1, 5)
        assert "micro-batch 1 of the window, step 5" in event.text
        assert (engine.current.update, engine.current.windows) == (1, 2)

    def test_equal_bits_of_single_steps_in_float32(self):
        rows = [(x.float(), y) for x, y in data(3)]
        rows[1][0][2] = float("nan")
        network = nn.Linear(FEATURES, CLASSES)
        components = Components(
            network=network,
            loader=rows,
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(network.parameters(), lr=0.3),
        )
        engine = Engine(components, RunConfig(epochs=1, redo=("non_finite",)), [NonFiniteGuard(action="skip")])
        engine.run()
        assert [(event.outcome, event.step) for event in events(engine)] == [("equal", 1)]

    def test_other_bits_that_are_not_finite_either(self):
        engine = self.glitching(1, 4 + 2, accumulation=4, plugins=[NonFiniteGuard(action="skip")])
        # the second time another micro-batch is not finite, in one gradient only
        engine.current.network.inner[1][-1].weight.register_hook(
            lambda g: g if engine.current.network.calls < 7 else g.nan_to_num()
        )
        engine.run()
        assert events(engine)[0].outcome == "unequal"

    def test_it_is_asked_once_a_window_and_the_path_shows_it(self):
        rows = data(4)
        rows[0][0][0] = float("nan")
        engine = self.glitching(accumulation=2, loader=rows, plugins=[NonFiniteGuard(action="skip")])
        engine.run()
        assert engine.current.log.counts()["redo_window"] == 1
        row = next(t for t in engine.current.log if t.dest == "redo_window")
        assert (row.source, row.guards) == ("after_step", {"redo_due": True})
        assert engine.current.step == 4

    @pytest.mark.parametrize("remainder", ["extend", "flush", "drop", "carry"])
    @pytest.mark.parametrize("sized", [True, False])
    def test_with_each_remainder(self, remainder, sized):
        made = []
        for at in ((3,), ()):
            loader = data(5) if sized else Unsized(data(5))
            engine = self.glitching(*at, accumulation=3, remainder=remainder, loader=loader, epochs=2)
            engine.run()
            made.append(engine)
        assert all(map(torch.equal, *(weights(one.current.network) for one in made)))

    def test_losses_and_values_are_those_of_the_second_time(self):
        made = []
        for at in ((2,), ()):
            engine = self.glitching(*at, accumulation=4, plugins=[RecordsMeans()])
            engine.run()
            made.append([engine.current.history(name) for name in ("epoch", "window")])
        assert made[0] == made[1]

    def test_a_window_of_which_nothing_counts_is_not_asked(self):
        rows = data(4)
        for _, y in rows:
            y[:] = -100
        engine = self.glitching(accumulation=2, loader=rows)
        engine.run()
        assert events(engine) == []

    def test_both_causes_in_one_window(self):
        memory = Memory(3, "backward", 1)
        glitch = Glitch(Needy(memory, *layers()), 1)
        components = Components(
            network=glitch,
            loader=data(4),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(glitch.parameters(), lr=0.3),
        )
        engine = Engine(components, RunConfig(epochs=1, accumulation=4, redo=["non_finite", "out_of_memory"]))
        engine.run()
        assert engine.current.config.redo == ("out_of_memory", "non_finite")
        assert [event.kind for event in events(engine)] == ["redo"]
        assert all(torch.isfinite(one).all() for one in weights(glitch))


class TestMistakes:
    @pytest.mark.parametrize("given", ["out_of_memory", ("oom",), None, 3, (1,), True])
    def test_what_is_no_tuple_of_causes(self, given):
        with pytest.raises(ConfigError, match=r"RunConfig.redo must be a tuple of causes .*redo=\('out_of_memory',\)"):
            RunConfig(epochs=1, redo=given)

    @pytest.mark.parametrize("state", ["redo_window", "redo"])
    def test_a_detour_of_that_name(self, state):
        class Side(Plugin):
            def detours(self) -> list[Detour]:
                return [Detour(state, "after_step", lambda run: False, lambda run: None)]

        with pytest.raises(TableError, match=r"RunConfig\.redo adds"):
            engine_of(plenty(), plugins=[Side()])
        engine_of(plenty(), plugins=[Side()], redo=())

    def test_several_ranks(self):
        from heptad.ranks.strategy import Alone

        class Two(Alone):
            def share(self) -> tuple[int, int]:
                return 0, 2

        class TwoRanks(Engine):
            strategy_class = staticmethod(lambda config: Two())

        with pytest.raises(ConfigError, match="2 ranks"):
            components = engine_of(plenty()).current.components
            TwoRanks(components, RunConfig(epochs=1, redo=("non_finite",)))

    def test_a_snapshot_in_the_redo(self):
        engine = engine_of(Memory(3))
        engine.on_enter("redo_window")(lambda run: run.snapshot())
        with pytest.raises(EngineError, match="not on a moment"):
            engine.run()


class TestCheckpoints:
    """A run that is resumed in mid-window, and then runs out of memory, is the run that was never interrupted."""

    def parts(self) -> tuple[nn.Module, ...]:
        return nn.BatchNorm1d(5, dtype=F64), nn.Dropout(0.5)

    @pytest.mark.parametrize("at", [1, 2, 3, 5, 6, 8])
    @pytest.mark.parametrize("first", [3, 6])
    def test_resumed_before_and_after_memory_ran_out(self, tmp_path, at, first):
        lived = engine_of(Memory(3, "backward", first), *self.parts(), accumulation=4, epochs=1)
        lived.run()
        options = {"accumulation": 4, "epochs": 1}
        saves = Checkpoint(tmp_path, at="after_step")
        killed = engine_of(Memory(3, "backward", first), *self.parts(), plugins=[saves], **options)
        killed.run(until=lambda run: run.step == at and run.state not in ("process_batch", "after_step", "checkpoint"))
        killed.close()
        memory = Memory(3, "backward", max(0, first - at))
        resumed = engine_of(memory, *self.parts(), plugins=[Checkpoint(tmp_path, at="after_step")], **options)
        resumed.run(resume="auto")
        assert all(map(torch.equal, weights(lived.current.network), weights(resumed.current.network)))
        assert lived.current.samples == resumed.current.samples
        halved = lived.current._position.redo
        assert halved is not None
        assert halved.halvings == resumed.current._position.redo.halvings == 1

    def test_steps_that_weigh_nothing_are_kept_too(self, tmp_path):
        rows = data(4)
        rows[1][0][0] = float("nan")
        made = []
        for resumes in (False, True):
            directory = tmp_path / str(resumes)
            memory = Memory(3, "backward", 2)
            guard, saves = NonFiniteGuard(action="skip_batch"), Checkpoint(directory, at="after_step")
            options = {"accumulation": 4, "epochs": 1, "loader": rows}
            engine = engine_of(memory, *self.parts(), plugins=[guard, saves], **options)
            if resumes:
                engine.run(until=lambda run: run.step == 2 and run.state == "before_step")
                engine.close()
                memory = Memory(3, "backward", 0)
                guard, saves = NonFiniteGuard(action="skip_batch"), Checkpoint(directory, at="after_step")
                engine = engine_of(memory, *self.parts(), plugins=[guard, saves], **options)
            engine.run(resume="auto" if resumes else None)
            made.append(weights(engine.current.network))
        assert all(map(same_bits, *made))

    @pytest.mark.parametrize("at", [2, 4, 5])
    def test_a_run_that_failed_for_want_of_memory_is_resumed_with_redo(self, tmp_path, at):
        """Also in mid-window: that window was not kept, and the ones after it are."""
        options = {"accumulation": 4, "loader": data(8)}
        whole = engine_of(plenty(), **options)
        whole.run()
        failed = engine_of(
            Memory(3, "backward", at), redo=(), plugins=[Checkpoint(tmp_path, at="after_step")], **options
        )
        with pytest.raises(torch.OutOfMemoryError):
            failed.run()
        for first, redone in ((0, at == 4), (4 - at % 4, True)):
            saves = Checkpoint(tmp_path / f"{first}", at="after_step")
            resumed = engine_of(Memory(3, "backward", first), plugins=[saves], **options)
            if redone:
                resumed.run(resume=tmp_path)
                close(resumed, whole)
                assert events(resumed)
            else:
                with pytest.raises(torch.OutOfMemoryError) as caught:
                    resumed.run(resume=tmp_path)
                assert any("resume from a checkpoint between two windows" in note for note in caught.value.__notes__)

    def test_a_window_that_was_not_kept_is_stored_and_resumed_again(self, tmp_path):
        options = {"accumulation": 4, "loader": data(8), "epochs": 1}
        whole = engine_of(plenty(), **options)
        whole.run()
        for redo, until in (
            ((), 1),
            (("out_of_memory",), 3),
            (("non_finite",), 5),
            ((), 6),
            (("out_of_memory",), None),
        ):
            engine = engine_of(plenty(), redo=redo, plugins=[Checkpoint(tmp_path, at="after_step")], **options)
            reached = (
                None if until is None else lambda run, until=until: run.step == until and run.state == "before_step"
            )
            engine.run(until=reached, resume="auto")
            engine.close()
        close(engine, whole)
        assert all(map(torch.equal, weights(engine.current.network), weights(whole.current.network)))


@pytest.mark.parametrize("k", [1, 2])
def test_an_overflow_in_fp16_is_no_fault(k):
    """The update is skipped at the scale where it overflows, and not computed twice."""

    def trained(redo: tuple[str, ...]) -> Run:
        config: dict[str, Any] = {"precision": "fp16-mixed", "accumulation": k, "device": "cpu"}
        components = small_components(small_network(), loader=batches(8), compute_loss=loud, criterion=...)
        return Engine(components, small_config(redo=redo, **config), []).run()

    def loud(network: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(network(batch[0]), batch[1]) * 100.0

    run, plain = trained(("non_finite",)), trained(())
    assert run.log.notes("skip")
    assert run.log.notes("redo") == []
    assert equal(weights(run.network), weights(plain.network))
