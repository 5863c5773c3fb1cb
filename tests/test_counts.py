"""How many steps, updates, samples and entries of each state a run has, held against a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from builders import STATES, Unsized, Witness
from heptad import Components, DataError, Engine, Plugin, Run, RunConfig, Transition

MOST = 12
REMAINDERS = ("extend", "flush", "drop")
SIZES = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
"""Samples in the first, second … batch of the data, unequal so that a wrong batch shows in `samples`."""


class Scalar(nn.Module):
    """A network of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


class Idle:
    """An optimizer that has the parameters and does nothing."""

    def __init__(self, network: Scalar) -> None:
        self.param_groups = [{"params": [network.value]}]

    def step(self) -> None:
        pass

    def zero_grad(self) -> None:
        pass


def counting_engine(batches: int, *, sized: bool = True, plugins: tuple[Plugin, ...] = (), **config: Any) -> Engine:
    """Return an engine in which a step costs next to nothing."""
    network = Scalar()
    items = [torch.empty(size) for size in SIZES[:batches]]
    components = Components(
        network=network,
        loader=items if sized else Unsized(items),
        compute_loss=lambda network, batch: network.value,
        optimizer=Idle(network),
    )
    return Engine(components, RunConfig(**config), plugins=plugins)


@dataclass(frozen=True)
class Epoch:
    """What an epoch comes to, computed and not counted."""

    steps: int
    updates: int


def epoch_of(n: int, k: int, remainder: str, *, sized: bool) -> Epoch:
    """The closed form for an epoch of n batches with k steps in a window."""
    if remainder == "extend":
        return Epoch(steps=-(-n // k) * k, updates=-(-n // k))
    if remainder == "flush":
        return Epoch(steps=n, updates=-(-n // k))
    return Epoch(steps=n // k * k if sized else n, updates=n // k)


def samples_of(n: int, steps: int) -> int:
    """Samples in the first steps of an epoch whose further passes begin again at the first batch."""
    return sum(SIZES[:n]) * (steps // n) + sum(SIZES[: steps % n])


def entries_of(epochs: int, steps: int, updates: int) -> dict[str, int]:
    """Entries of every state of a run with these totals."""
    return {
        "idle": 0,
        "before_loop": 1,
        "before_epoch": epochs,
        "before_step": steps,
        "process_batch": steps,
        "after_step": steps,
        "optimizer_update": updates,
        "after_epoch": epochs,
        "after_loop": 1,
        "finished": 1,
        "failed": 0,
    }


def totals(run: Run) -> tuple[int, int, int, int]:
    return run.epoch, run.step, run.update, run.samples


def entries(run: Run) -> dict[str, int]:
    counts = run.log.counts()
    return {state: counts[state] for state in ("idle", *STATES, "finished", "failed")}


@dataclass(frozen=True)
class Driven:
    """A finished run with what it was given and what was seen."""

    n: int
    k: int
    epochs: int
    remainder: str
    sized: bool
    run: Run
    witness: Witness

    @property
    def name(self) -> str:
        return f"n={self.n} k={self.k}"


CASES = list(product(REMAINDERS, (1, 2, 3), (True, False)))


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1]} epochs-{'sized' if c[2] else 'unsized'}")
def driven(request):
    """Every run of 1 to 12 batches with windows of 1 to 12, for one remainder, number of epochs and kind of loader."""
    remainder, epochs, sized = request.param
    runs: list[Driven] = []
    for n, k in product(range(1, MOST + 1), repeat=2):
        witness = Witness()
        engine = counting_engine(
            n, sized=sized, plugins=(witness,), epochs=epochs, accumulation=k, remainder=remainder, seed=None
        )
        runs.append(Driven(n, k, epochs, remainder, sized, engine.run(), witness))
    return runs


def test_steps_updates_and_samples_equal_the_closed_form(driven):
    """An epoch has ⌈n/k⌉·k, n or ⌊n/k⌋·k steps and ⌈n/k⌉ or ⌊n/k⌋ updates, as `remainder` says, and no other."""
    for case in driven:
        epoch = epoch_of(case.n, case.k, case.remainder, sized=case.sized)
        expected = (
            case.epochs,
            case.epochs * epoch.steps,
            case.epochs * epoch.updates,
            case.epochs * samples_of(case.n, epoch.steps),
        )
        assert expected == totals(case.run), case.name


def test_entries_of_every_state_equal_the_closed_form(driven):
    """The log counts one entry of a state for each step, update or epoch of the closed form, and none of `failed`."""
    for case in driven:
        epoch = epoch_of(case.n, case.k, case.remainder, sized=case.sized)
        expected = entries_of(case.epochs, case.epochs * epoch.steps, case.epochs * epoch.updates)
        assert expected == entries(case.run), case.name
        assert sum(expected.values()) == len(case.run.log), case.name


def moments_of(log: list[Transition]) -> list[tuple[str, str, int, int, int, int]]:
    """What a handler on every moment of a body's state must have seen by the log: the moment and the counters there."""
    return [
        (moment, state, turn.epoch, turn.batch_index, turn.step, turn.update)
        for turn in log
        for moment, state in (("exit", turn.source), ("enter", turn.dest))
        if state in STATES
    ]


def test_live_counters_equal_those_of_the_log_at_every_moment(driven):
    """On exit of a turn's source and on entry to its destination a handler reads what the log later says of it."""
    for case in driven:
        witness = case.witness
        seen = [(*moment, *counters) for moment, counters in zip(witness.seen, witness.counters, strict=True)]
        assert moments_of(list(case.run.log)) == seen, case.name


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
def test_a_run_ends_with_the_window_that_reaches_max_updates(remainder, sized):
    """With `max_updates` a run ends when that update is made or the epochs are over, whichever comes first."""
    for n, k, most, epochs in product((1, 4, 7), (1, 2, 3), (0, 1, 2, 5), (None, 2)):
        epoch = epoch_of(n, k, remainder, sized=sized)
        if epoch.updates == 0 and epochs is None:
            continue  # never reached: a matter of its own, below
        engine = counting_engine(n, sized=sized, max_updates=most, epochs=epochs, accumulation=k, remainder=remainder)
        name = f"n={n} k={k} max_updates={most} epochs={epochs}"
        run = engine.run()
        if most == 0:
            expected = (0, 0, 0, 0)
        elif epochs is not None and most > epochs * epoch.updates:
            whole = (epochs, epochs * epoch.steps, epochs * epoch.updates)
            expected = (*whole, epochs * samples_of(n, epoch.steps))
        else:
            whole = (most - 1) // epoch.updates  # epochs before the one in which the last update falls
            steps = min((most - whole * epoch.updates) * k, epoch.steps)
            samples = whole * samples_of(n, epoch.steps) + samples_of(n, steps)
            expected = (whole + 1, whole * epoch.steps + steps, most, samples)
        assert expected == totals(run), name
        assert entries_of(*expected[:3]) == entries(run), name


def test_max_updates_that_no_epoch_can_come_nearer_to_is_refused():
    """Where no window can be filled and `remainder="drop"`, the run would never end, and the engine is not built."""
    with pytest.raises(DataError, match="max_updates would never be reached"):
        counting_engine(3, max_updates=1, accumulation=4, remainder="drop")


class Totals(Plugin):
    """Records at every moment of a step and of an epoch what the run predicts."""

    def __init__(self) -> None:
        self.predicted: set[tuple[int | None, int | None]] = set()

    def look(self, run: Run) -> None:
        self.predicted.add((run.total_updates, run.steps_per_epoch))

    on_exit_before_loop = on_enter_before_epoch = on_exit_before_step = on_exit_process_batch = look
    on_exit_after_step = on_enter_optimizer_update = on_exit_optimizer_update = on_enter_after_epoch = look
    on_exit_after_epoch = on_exit_after_loop = look


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(("epochs", "most"), [(1, None), (3, None), (2, 4), (2, 1), (None, 5)])
def test_total_updates_and_steps_per_epoch_are_predicted_from_the_first_to_the_last_moment(remainder, epochs, most):
    """Where the data have a length, both equal the closed form at every moment, and the updates that were made."""
    for n, k in product((1, 2, 5, 6), (1, 2, 4)):
        epoch = epoch_of(n, k, remainder, sized=True)
        if epoch.updates == 0 and epochs is None:
            continue
        updates = [epochs * epoch.updates] if epochs is not None else []
        expected = (min(updates + ([most] if most is not None else [])), epoch.steps)
        watch = Totals()
        engine = counting_engine(
            n, plugins=(watch,), epochs=epochs, max_updates=most, accumulation=k, remainder=remainder
        )
        assert expected == (engine.current.total_updates, engine.current.steps_per_epoch), f"n={n} k={k}"
        run = engine.run()
        assert {expected} == watch.predicted, f"n={n} k={k}"
        assert expected[0] == run.update, f"n={n} k={k}"


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_what_cannot_be_known_of_data_without_a_length_is_none(remainder):
    """Without a length neither the steps of an epoch nor the updates of some epochs are known, `max_updates` is."""
    by_epochs = counting_engine(3, sized=False, epochs=2, accumulation=2, remainder=remainder).run()
    by_updates = counting_engine(3, sized=False, max_updates=2, accumulation=2, remainder=remainder).run()
    seen = [(run.total_updates, run.steps_per_epoch) for run in (by_epochs, by_updates)]
    expected = [(None, None), (2, None)]
    assert expected == seen


class Changes(Totals):
    """Sets the accumulation after given steps, and writes down what the run predicts from the last change on."""

    def __init__(self, changes: dict[int, int]) -> None:
        super().__init__()
        self.changes = changes

    def on_exit_after_step(self, run: Run) -> None:
        if run.step in self.changes:
            run.set_accumulation(self.changes[run.step])
        if run.step == max(self.changes):
            self.predicted.clear()
        self.look(run)


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize(
    "changes",
    [{1: 3}, {2: 3}, {5: 1}, {8: 3}, {9: 4}, {2: 3, 8: 1}, {2: 1, 5: 2}, {2: 3, 8: 2}],
    ids=lambda changes: ", ".join(f"{k} after step {step}" for step, k in changes.items()),
)
def test_total_updates_is_what_the_run_comes_to_after_set_accumulation_too(remainder, changes):
    """From the last change of the window on, `total_updates` is the number of updates that the run ends with."""
    watch = Changes(changes)
    run = counting_engine(8, plugins=(watch,), epochs=2, accumulation=2, remainder=remainder).run()
    assert run.step > max(changes)
    assert {run.update} == {updates for updates, _ in watch.predicted}
