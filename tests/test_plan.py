"""`Engine.plan()`: the turns and calls to come, found without touching data or network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Unsized, batches, small_engine
from heptad import Detour, Plugin, on_enter, on_exit


class Calls(Plugin):
    """Handlers with filters; writes down which were called in which turn."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[str] = []

    def detours(self):
        return [
            Detour(
                "side",
                ("after_step", "optimizer_update"),
                lambda run: run.step % 2 == 1,
                self.nothing,
                every=self.every,
                first=2,
            ),
            Detour("other", "after_epoch", lambda run: run.epochs_remain, self.nothing),
        ]

    def nothing(self, run):
        pass

    @on_exit("after_step", every=2, first=3)
    def second(self, run):
        self.seen.append("Calls.second")

    @on_enter("process_batch", once=True, when=lambda run: run.update > 0)
    def single(self, run):
        self.seen.append("Calls.single")

    def on_enter_side(self, run):
        self.seen.append("Calls.on_enter_side")

    def on_exit_optimizer_update(self, run):
        self.seen.append("Calls.on_exit_optimizer_update")


def shared(turns) -> list[tuple]:
    """Return the fields that planned turns and transitions share."""
    return [(t.source, t.dest, t.epoch, t.batch_index, t.step, t.update) for t in turns]


@given(
    n=st.integers(1, 5),
    k=st.integers(1, 4),
    remainder=st.sampled_from(["extend", "flush", "drop", "carry"]),
    epochs=st.integers(0, 3),
    limit=st.none() | st.integers(0, 6),
    every=st.integers(1, 3),
    start=st.integers(0, 30),
)
@settings(max_examples=60)
def test_a_plan_without_conditions_is_what_the_run_then_does(n, k, remainder, epochs, limit, every, start):
    """From the start or from any turn: the same turns, the same counters, the same calls in the same order."""
    plugin = Calls(every)
    engine = small_engine(n, [plugin], accumulation=k, remainder=remainder, epochs=epochs, max_updates=limit)
    done = 0
    while done < start and not engine.current.ended:
        engine.advance()
        done += 1
    if engine.current.ended:
        assert list(engine.plan()) == []
        return
    plugin.seen.clear()
    plan = list(engine.plan())
    assert plugin.seen == []
    run = engine.run()
    assert shared(plan) == shared(run.log[done:])
    assert all(turn.condition is None for turn in plan)
    assert [call.who for turn in plan for call in (*turn.exit_calls, *turn.enter_calls)] == plugin.seen


def test_planning_touches_neither_data_nor_network():
    """The loader is not asked, the network not called, no random number drawn, nothing in the run changed."""

    class Untouchable(list):
        def __iter__(self):
            raise AssertionError("the data were touched")

        __getitem__ = __iter__

    engine = small_engine(Untouchable([0] * 5), epochs=2, accumulation=2)
    state = torch.get_rng_state()
    assert len(list(engine.plan())) > 20
    assert torch.equal(state, torch.get_rng_state())
    assert (engine.current.state, len(engine.current.log), engine.current.step) == ("idle", 0, 0)
    assert all(parameter.grad is None for parameter in engine.current.network.parameters())


@pytest.mark.parametrize(
    "when",
    [
        lambda run: run.metrics.get("x", 0) > 1,
        lambda run: bool(run.history("x")),
        lambda run: run.loss is not None,
        lambda run: run.network.training,
        lambda run: len(run.log) > 3,
    ],
    ids=["metrics", "history", "loss", "network", "log"],
)
def test_a_guard_that_reads_more_than_the_position_is_a_condition(when):
    """The detour is shown as taken, with the name of the guard on which it depends."""

    class Conditional(Plugin):
        def detours(self):
            return [Detour("side", "after_epoch", when, lambda run: None)]

        @on_exit("after_epoch", when=when)
        def maybe(self, run):
            pass

    plan = list(small_engine(1, [Conditional()]).plan())
    last = [(turn.source, turn.dest, turn.condition) for turn in plan[-3:]]
    assert last == [("after_epoch", "side", "side_due"), ("side", "after_loop", None), ("after_loop", "finished", None)]
    (call,) = plan[-3].exit_calls
    assert (call.who, call.conditional) == ("Conditional.maybe", True)
    assert str(plan[-3]) == "after_epoch -> side if side_due: Conditional.maybe (if its when holds)"


def test_the_plan_ends_where_the_length_of_the_data_would_have_to_be_known():
    """Its last turn depends on `batches_remain`."""
    plan = list(small_engine(Unsized(batches(3))).plan())
    assert [(turn.source, turn.dest, turn.condition) for turn in plan] == [
        ("idle", "before_loop", None),
        ("before_loop", "before_epoch", None),
        ("before_epoch", "before_step", "batches_remain"),
    ]


def test_a_plan_is_lazy():
    """A run without an end can be planned as far as anyone wants to look."""
    plan = small_engine(3, max_updates=10**9).plan()
    assert [next(plan).dest for _ in range(4)] == ["before_loop", "before_epoch", "before_step", "process_batch"]


def test_a_guard_that_reads_the_samples_is_a_condition():
    """How many a batch will hold is not known before it is there."""

    class Looks(Plugin):
        def detours(self):
            return [Detour("look", "after_step", lambda run: run.samples >= 4, lambda run: None)]

    turns = list(small_engine(3, [Looks()]).plan())
    assert [turn.condition for turn in turns if turn.dest == "look"] == ["look_due"] * 3
