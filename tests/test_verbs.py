"""What a handler can do to a run, and what it can read there."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from builders import STATES, Unsized, batches, small_components, small_config, small_engine, small_network, weights
from heptad import Components, ConfigError, DataError, Engine, EngineError, LossOutput, Plugin, RunConfig
from heptad.plugin import Pause


def on(engine, moment, state, act, event=1):
    """Subscribe a function to the n-th event of a moment, and return the engine."""
    left = [event]

    def handler(run):
        left[0] -= 1
        if left[0] == 0:
            act(run)

    (engine.on_enter if moment == "enter" else engine.on_exit)(state)(handler)
    return engine


def engine_of(compute_loss, count=3, **config):
    """Return an engine whose loss is the function's."""
    return Engine(small_components(compute_loss=compute_loss, loader=batches(count)), small_config(**config))


def at_every_moment(act):
    """Return a plugin that calls a function on every moment."""

    def handler(self, run):
        act(run)

    moments = {f"on_{moment}_{state}": handler for state in STATES for moment in ("enter", "exit")}
    return type("AtEveryMoment", (Plugin,), moments)()


# -- stop


def test_stop_gives_the_reason():
    """The first reason stands in `Run.reason`; every call stands in the log, bound to its turn."""
    engine = small_engine(6, accumulation=3)
    on(engine, "enter", "process_batch", lambda run: run.stop("one"), event=1)
    on(engine, "exit", "process_batch", lambda run: run.stop("two"), event=2)
    run = engine.run()
    assert (run.state, run.reason, run.step, run.update) == ("finished", "one", 3, 1)
    notes = [(note.text, run.log[note.seq].source, run.log[note.seq].dest) for note in run.log.notes("stop")]
    assert notes == [("one", "before_step", "process_batch"), ("two", "process_batch", "after_step")]


def test_stop_before_the_run():
    """A run that is stopped before it began is set up and ended in order."""
    engine = small_engine(3)
    engine.current.stop("never mind")
    run = engine.run()
    assert run.log.path() == ["idle", "before_loop", "after_loop", "finished"]
    assert run.reason == "never mind"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"epochs": 2}, "epochs=2 complete"),
        ({"max_updates": 4}, "max_updates=4 reached"),
        ({"epochs": 2, "max_updates": 4}, "max_updates=4 reached"),
        ({"epochs": 2, "max_updates": 7}, "epochs=2 complete"),
    ],
)
def test_without_a_stop_the_reason_is_the_limit(config, reason):
    """A run that ends by itself says which limit it reached."""
    assert small_engine(3, **config).run().reason == reason


@pytest.mark.parametrize("verb", ["stop", "pause"])
@pytest.mark.parametrize("state", ["finished", "failed"])
def test_verbs_come_too_late(verb, state):
    """`stop` and `pause` on a run that has ended are errors: they could do nothing."""

    def fail(run):
        raise ValueError("oh")

    engine = small_engine(3)
    if state == "failed":
        on(engine, "exit", "after_step", fail)
        with pytest.raises(ValueError, match="oh"):
            engine.run()
    else:
        engine.run()
    with pytest.raises(EngineError, match=rf"{verb}\(\) came too late: the run is {state}"):
        getattr(engine.current, verb)("late")


# -- pause and note


def test_a_pause_stands_in_the_log():
    """It is one event, bound to the turn after which the run paused; it names the turn in which that was requested."""
    engine = on(small_engine(3), "exit", "process_batch", lambda run: run.pause("the disk is full"))
    run = engine.run()
    assert (run.state, run.paused, run.reason) == ("before_step", "the disk is full", None)
    (paused,) = run.log.notes()
    assert isinstance(paused, Pause)
    assert (paused.reason, paused.seq) == ("the disk is full", run.log[-1].seq)
    assert run.log[paused.requested].source == "process_batch"


def test_pause_before_the_run():
    """It pauses at the end of the first turn."""
    engine = small_engine(3)
    engine.current.pause("wait")
    run = engine.run()
    assert (run.state, run.paused) == ("before_loop", "wait")
    assert engine.run().state == "finished"


@pytest.mark.parametrize("state", STATES)
def test_a_note_is_bound_to_its_turn(state):
    """On entry that is the transition that led there, on exit the one that leads on."""
    engine = small_engine(1)
    on(engine, "enter", state, lambda run: run.note("in"))
    on(engine, "exit", state, lambda run: run.note("out"))
    run = engine.run()
    entry, leave = run.log.notes("note")
    assert (entry.text, run.log[entry.seq].dest) == ("in", state)
    assert (leave.text, run.log[leave.seq].source) == ("out", state)
    assert [note.text for note in run.log.explain(entry.seq).notes] == ["in"]


# -- record, metrics, history


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, 0.1),
        (3, 3.0),
        (-0.0, 0.0),
        (float("inf"), float("inf")),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(7), 7.0),
        (torch.tensor(0.1, dtype=torch.float64), 0.1),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(7), 7.0),
    ],
    ids=repr,
)
def test_numbers_are_recorded(value, expected):
    """A number of python's, of numpy's or in a 0-dim tensor is read as a float."""
    run = small_engine(3).current
    run.record("value", value)
    assert run.history("value") == [expected]
    assert run.metrics == {"value": expected}
    assert type(run.metrics["value"]) is float


@pytest.mark.parametrize(
    "value",
    [
        "0.1",
        None,
        True,
        np.bool_(True),
        [0.1],
        1j,
        torch.zeros(1),
        torch.zeros(2, 2),
        np.zeros(3),
        torch.tensor(True),
        [0.5] * 99,
    ],
    ids=repr,
)
def test_all_else_is_refused(value):
    """What is no number is refused by name, and nothing is recorded."""
    run = small_engine(3).current
    with pytest.raises(EngineError, match=r"record\('value', …\) takes a number or a 0-dim tensor, got ") as caught:
        run.record("value", value)
    assert len(str(caught.value)) < 400
    assert run.history("value") == []
    assert run.metrics == {}


@pytest.mark.parametrize("name", ["", 7, None])
def test_a_value_has_a_name(name):
    """A value is recorded under a non-empty str."""
    with pytest.raises(EngineError, match=r"under a name that is a non-empty str, got "):
        small_engine(3).current.record(name, 1.0)


def test_history_holds_all_and_metrics_the_newest():
    """Values come in the order in which they were recorded, each name for itself."""
    engine = small_engine(3)
    engine.on_exit("after_step")(lambda run: run.record("step", run.step))
    engine.on_exit("after_epoch")(lambda run: run.record("epoch", torch.tensor(float(run.epoch))))
    run = engine.run()
    assert run.history("step") == [1.0, 2.0, 3.0]
    assert run.history("epoch") == [1.0]
    assert run.history("nothing") == []
    assert run.metrics == {"step": 3.0, "epoch": 1.0}


def test_a_recorded_tensor_may_be_written_to_afterwards():
    """The value is that of the moment at which it was recorded."""
    run, running = small_engine(3).current, torch.tensor(1.0)
    run.record("running", running)
    running += 1
    run.record("running", running)
    assert run.history("running") == [1.0, 2.0]


def test_a_history_is_a_copy():
    """What a reader does with it changes nothing."""
    run = small_engine(3).current
    run.record("value", 1.0)
    run.history("value").append(2.0)
    run.metrics["value"] = 3.0
    assert run.history("value") == [1.0]
    assert run.metrics == {"value": 1.0}


def test_a_run_that_has_finished_can_be_recorded_on():
    """A last measurement may come after the end."""
    run = small_engine(3).run()
    run.record("test/accuracy", 0.97)
    assert run.metrics["test/accuracy"] == 0.97


def test_the_logs_of_a_loss_are_recorded():
    """`LossOutput.logs` are values like any others, there on exit of `process_batch`."""

    def compute_loss(network, batch):
        loss = network(batch[0]).square().mean()
        return LossOutput(loss, logs={"double": 2 * loss, "one": 1})

    engine = engine_of(compute_loss)
    losses = []
    engine.on_exit("process_batch")(lambda run: losses.append((run.loss.item(), run.metrics["double"])))
    run = engine.run()
    assert [pytest.approx(2 * loss) for loss, _ in losses] == [double for _, double in losses]
    assert run.history("double") == [double for _, double in losses]
    assert run.history("one") == [1.0, 1.0, 1.0]


# -- set_accumulation


def updates_at(engine):
    """Return after which steps a run makes its updates."""
    seen = []
    engine.on_exit("optimizer_update")(lambda run: seen.append(run.step))
    run = engine.run()
    assert run.state == "finished"
    return seen


@pytest.mark.parametrize(
    ("moment", "state", "event", "expected"),
    [
        ("enter", "before_loop", 1, [3, 6, 9, 12]),
        ("exit", "before_epoch", 1, [3, 6, 9, 12]),
        ("enter", "before_step", 1, [3, 6, 9, 12]),
        ("exit", "before_step", 1, [2, 5, 8, 11, 14]),
        ("exit", "after_step", 1, [2, 5, 8, 11, 14]),
        ("exit", "after_step", 2, [2, 5, 8, 11, 14]),
        ("exit", "optimizer_update", 1, [2, 5, 8, 11, 14]),
        ("enter", "before_step", 3, [2, 5, 8, 11, 14]),
        ("enter", "before_step", 4, [2, 4, 7, 10, 13]),
        ("exit", "after_epoch", 1, [2, 4, 6, 9, 12]),
    ],
)
def test_a_new_accumulation_holds_from_the_next_window_on(moment, state, event, expected):
    """Of two epochs of six batches, k = 2: an open window keeps its size, the next one holds three steps."""
    engine = small_engine(6, epochs=2, accumulation=2)
    on(engine, moment, state, lambda run: run.set_accumulation(3), event)
    assert updates_at(engine) == expected


def test_the_live_accumulation():
    """`Run.accumulation` is that of the open window, and of the next one where none is open."""
    seen = []
    engine = small_engine(5, accumulation=2)
    engine.on_exit("before_step")(lambda run: run.set_accumulation(3))
    engine.on_exit("after_step")(lambda run: seen.append((run.step, run.accumulation)))
    engine.on_exit("optimizer_update")(lambda run: seen.append(("closed", run.accumulation)))
    run = engine.run()
    assert seen == [(1, 2), (2, 2), ("closed", 3), (3, 3), (4, 3), (5, 3), ("closed", 3)]
    assert [note.text for note in run.log.notes("accumulation")] == ["2 -> 3 from the next window on"]


@pytest.mark.parametrize("k", [0, -1, 2.0, "2", True, None, float("nan")])
def test_a_wrong_accumulation_is_refused(k):
    """Only a whole number from 1 on is one, and nothing changes."""
    run = small_engine(3, accumulation=2).current
    with pytest.raises(EngineError, match="set_accumulation takes a whole number from 1 on, got "):
        run.set_accumulation(k)
    assert run.accumulation == 2
    assert run.log.notes() == []


def test_the_gradient_of_a_resized_window():
    """After a change the update is still that of the window's mean loss."""
    data = batches(3)
    engine = small_engine(data, remainder="extend", accumulation=1)
    on(engine, "enter", "before_step", lambda run: run.set_accumulation(2), event=2)
    gradients = []

    def keep(run):
        gradients.append([p.grad.clone() for p in run.network.parameters()])
        before.append([p.detach().clone() for p in run.network.parameters()])

    before = []
    engine.on_enter("optimizer_update")(keep)
    engine.run()
    assert len(gradients) == 2
    network = small_network()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), before[1], strict=True):
            parameter.copy_(value)
    criterion = nn.CrossEntropyLoss()
    for inputs, target in data[1:]:
        (criterion(network(inputs), target) / 2).backward()
    assert [g.tolist() for g in gradients[1]] == [p.grad.tolist() for p in network.parameters()]


# -- total_updates


@pytest.mark.parametrize(
    ("loader", "config", "expected"),
    [
        (6, {"epochs": 3}, 18),
        (7, {"epochs": 3, "accumulation": 2}, 12),
        (7, {"epochs": 3, "accumulation": 2, "remainder": "flush"}, 12),
        (7, {"epochs": 3, "accumulation": 2, "remainder": "drop"}, 9),
        (2, {"epochs": 3, "accumulation": 4, "remainder": "drop"}, 0),
        (6, {"epochs": 0}, 0),
        (6, {"max_updates": 5}, 5),
        (6, {"epochs": 3, "max_updates": 5}, 5),
        (6, {"epochs": 3, "max_updates": 50}, 18),
        (Unsized(batches(6)), {"epochs": 3}, None),
        (Unsized(batches(6)), {"epochs": 3, "max_updates": 50}, None),
        (Unsized(batches(6)), {"max_updates": 5}, 5),
    ],
)
def test_the_updates_of_a_run_are_known_ahead(loader, config, expected):
    """Before the start, at every moment and at the end the number is the same, and it is how many there are."""
    seen = []
    engine = small_engine(loader, [at_every_moment(lambda run: seen.append(run.total_updates))], **config)
    assert engine.current.total_updates == expected
    run = engine.run()
    assert set(seen) == {expected}
    assert expected in (None, run.update)


@pytest.mark.parametrize("remainder", ["extend", "flush", "drop"])
@pytest.mark.parametrize(
    ("moment", "state"),
    [("enter", "before_loop"), ("exit", "after_step"), ("exit", "optimizer_update"), ("exit", "after_epoch")],
)
def test_total_updates_follows_a_new_accumulation(remainder, moment, state):
    """From the change on it says at every moment how many updates there are at the end."""
    wrong = [
        (count, before, after, seen, updates)
        for count, before, after in product(range(1, 8), (1, 3), range(1, 5))
        for seen, updates in [
            said_after_a_change(count, before, after, remainder=remainder, moment=moment, state=state)
        ]
        if {total for *_, total in seen} - {updates}
    ]
    assert wrong == []


def said_after_a_change(count, before, after, *, remainder, moment, state):
    """Change k at the first event of a moment; return what was said at each moment from then on, and what came."""
    seen, changed = [], []

    def change(run):
        changed.append(True)
        run.set_accumulation(after)

    def look(run):
        if changed:
            seen.append((run.state, run.step, run.total_updates))

    engine = on(small_engine(count, epochs=2, accumulation=before, remainder=remainder), moment, state, change)
    for each in STATES:
        engine.on_enter(each)(look)
        engine.on_exit(each)(look)
    return seen, engine.run().update


# -- skip_update


def test_a_skipped_update_leaves_the_weights_alone():
    """Weights and `update` stand still, the gradients are dropped, and `update_skipped` says so on exit."""
    engine = small_engine(3)
    seen = []

    def skip(run):
        run.skip_update("a gradient is not finite")
        seen.append(weights(run.network))

    def look(run):
        seen.append(weights(run.network))
        seen.append((run.update, run.update_skipped, [p.grad for p in run.network.parameters()]))

    on(engine, "enter", "optimizer_update", skip, event=2)
    on(engine, "exit", "optimizer_update", look, event=2)
    skipped = []
    engine.on_exit("optimizer_update")(lambda run: skipped.append(run.update_skipped))
    run = engine.run()
    assert [t.tolist() for t in seen[0]] == [t.tolist() for t in seen[1]]
    assert seen[2] == (1, True, [None, None])
    assert skipped == [False, True, False]
    assert (run.step, run.update) == (3, 2)
    (note,) = run.log.notes("skip")
    assert (note.text, run.log[note.seq].dest) == ("a gradient is not finite", "optimizer_update")


@pytest.mark.parametrize(
    ("moment", "state"),
    [
        (moment, state)
        for state in STATES
        for moment in ("enter", "exit")
        if (moment, state) != ("enter", "optimizer_update")
    ],
)
def test_an_update_can_be_skipped_on_entry_to_it_only(moment, state):
    """Anywhere else the call is an error, and the update is made."""
    engine = small_engine(1)

    def skip(run):
        with pytest.raises(EngineError, match=f"on entry to optimizer_update only, the run is in {state}"):
            run.skip_update("too early or too late")

    on(engine, moment, state, skip)
    assert engine.run().update == 1


# -- what is read


def test_a_batch_can_be_replaced_on_entry_to_process_batch():
    """The step is that of the batch that was put in place, its samples counted."""
    ours, theirs = batches(3, size=2), batches(3, size=5)
    engine = small_engine(ours)

    def replace(run):
        run.batch = theirs[run.step]

    engine.on_enter("process_batch")(replace)
    run, expected = engine.run(), small_engine(theirs).run()
    assert [t.tolist() for t in weights(run.network)] == [t.tolist() for t in weights(expected.network)]
    assert run.samples == expected.samples == 15


def test_the_batch_is_there_during_its_step():
    """It can be read from exit of `before_step` to entry to `after_step`, and is None between steps."""
    data, seen = batches(2), {}
    engine = small_engine(data)
    for state in STATES:
        engine.on_enter(state)(lambda run, state=state: seen.setdefault(("enter", state), run.batch))
        engine.on_exit(state)(lambda run, state=state: seen.setdefault(("exit", state), run.batch))
    engine.run()
    during = [("exit", "before_step"), ("enter", "process_batch"), ("exit", "process_batch"), ("enter", "after_step")]
    assert [place for place, batch in seen.items() if batch is data[0]] == during
    assert {batch for place, batch in seen.items() if place not in during} == {None}


def test_the_loss_is_detached_and_not_scaled():
    """What is read has no graph; it is the mean loss of the micro-batch, whatever k is."""
    data, seen = batches(2), []
    engine = small_engine(data, accumulation=2)
    assert engine.current.loss is None
    engine.on_exit("process_batch")(lambda run: seen.append((run.loss, run.output)))
    run = engine.run()
    network = small_network()
    expected = [nn.functional.cross_entropy(network(inputs), target) for inputs, target in data]
    assert [loss.item() for loss, _ in seen] == [loss.item() for loss in expected]
    assert [output.tolist() for _, output in seen] == [network(inputs).tolist() for inputs, _ in data]
    assert not any(tensor.requires_grad for pair in seen for tensor in pair)
    assert run.loss.item() == expected[-1].item()
    assert not run.loss.requires_grad


class Pair(NamedTuple):
    """An output of a class of one's own."""

    scores: torch.Tensor
    hidden: dict[str, torch.Tensor]


def test_an_output_of_several_tensors_is_detached():
    """Containers keep their kind; what is no tensor stays as it is."""
    seen = []

    def compute_loss(network, batch):
        scores = network(batch[0])
        return LossOutput(scores.mean(), output=[Pair(scores, {"twice": 2 * scores}), "text", (scores, None)])

    engine = engine_of(compute_loss, count=1)
    engine.on_exit("process_batch")(lambda run: seen.append(run.output))
    engine.run()
    ((pair, text, (scores, nothing)),) = seen
    assert isinstance(pair, Pair)
    assert (text, nothing) == ("text", None)
    assert not any(tensor.requires_grad for tensor in (pair.scores, pair.hidden["twice"], scores))
    assert pair.hidden["twice"].tolist() == (2 * pair.scores).tolist()


def test_the_output_is_gone_after_its_step():
    """From exit of `after_step` on there is no output, so that nothing of the step stays in memory."""
    seen = []
    engine = small_engine(1)
    engine.on_enter("after_step")(lambda run: seen.append(run.output is None))
    engine.on_exit("after_step")(lambda run: seen.append(run.output is None))
    assert engine.run().output is None
    assert seen == [False, True]


def test_the_optimizer_is_there_from_before_loop_on():
    """Before the body that builds it, asking for it is an error that says where to ask."""
    engine = small_engine(1)
    message = "run.optimizer exists from the body of before_loop on; subscribe to its exit or later"

    def early(run):
        with pytest.raises(EngineError, match=message):
            _ = run.optimizer

    seen = []
    engine.on_enter("before_loop")(early)
    engine.on_exit("before_loop")(lambda run: seen.append(run.optimizer))
    early(engine.current)
    run = engine.run()
    assert seen == [run.optimizer]
    assert isinstance(run.optimizer, torch.optim.SGD)
    assert run.optimizers == (run.optimizer,)


def test_a_run_reads_as_a_line():
    """Its repr says where it is."""
    engine = small_engine(3)
    run = engine.run(until="after_step")
    assert repr(run) == "<Run in after_step (paused: until after_step): epoch 0, batch 0, step 0, update 0>"


@pytest.mark.parametrize("verb", ["stop", "pause", "note"])
@pytest.mark.parametrize("given", [None, 3, {"a": 1}, torch.ones(())])
def test_what_is_to_be_said_is_a_text(verb, given):
    """Refused where it is said: the log could not keep it, and would find out much later."""
    engine = on(small_engine(2), "exit", "after_step", lambda run: getattr(run, verb)(given))
    with pytest.raises(EngineError, match=rf"run\.{verb}\(…\) takes a text, got .*; values go to run\.record"):
        engine.run()


def test_the_reason_of_a_skipped_update_is_a_text():
    """As for the other verbs."""
    engine = on(small_engine(2), "enter", "optimizer_update", lambda run: run.skip_update(None))
    with pytest.raises(EngineError, match=r"run\.skip_update\(…\) takes a text, got None"):
        engine.run()


@pytest.mark.parametrize("name", ["should_stop", "step", "state", "loss"])
def test_nothing_else_of_a_run_can_be_set(name):
    """Habits from other libraries would do nothing, silently; the message names the verbs."""
    engine = on(small_engine(2), "exit", "after_step", lambda run: setattr(run, name, True))
    with pytest.raises(AttributeError, match=rf"run\.{name} cannot be set: a handler acts through the run's verbs"):
        engine.run()


@pytest.mark.parametrize("given", [0.5, torch.ones(2, requires_grad=True), torch.ones(())])
def test_an_invalid_loss_in_a_later_step_is_reported_as_in_the_first(given):
    """A `compute_loss` may return something else only now and then."""
    calls = []

    def compute_loss(network, batch):
        calls.append(batch)
        return nn.functional.cross_entropy(network(batch[0]), batch[1]) if len(calls) < 3 else given

    with pytest.raises(EngineError, match=r"compute_loss (must return a scalar tensor|returned does not require grad)"):
        engine_of(compute_loss).run()
    assert len(calls) == 3


def test_a_batch_that_is_no_pair_in_a_later_step_is_reported_as_in_the_first():
    """A loader may yield something else only now and then."""
    data, target = batches(1)[0]
    with pytest.raises(DataError, match=r"a batch must be \(data, target\), got a tuple of 3"):
        small_engine([(data, target), (data, target, target)]).run()


def test_a_backward_pass_of_the_users_own_is_reported():
    """Torch's advice to retain the graph would double the gradient. (In the first step it is an error of its own.)"""
    calls = []

    def compute_loss(network, batch):
        calls.append(batch)
        loss = nn.functional.cross_entropy(network(batch[0]).tanh(), batch[1])
        if len(calls) > 1:
            loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="a second time") as caught:
        engine_of(compute_loss).run()
    assert "heptad: the backward pass is the engine's; compute_loss returns the loss and calls no backward()" in (
        caught.value.__notes__
    )


def test_without_gradients_the_loss_says_why():
    """`torch.no_grad` around `run()` is named."""
    engine = small_engine(2)
    with torch.no_grad(), pytest.raises(EngineError, match=r"call run\(\) outside of torch\.no_grad\(\)"):
        engine.run()


def test_an_update_without_any_gradient_is_noted():
    """The loss is that of a network that the run does not train."""
    other = small_network()
    run = engine_of(lambda network, batch: nn.functional.cross_entropy(other(batch[0]), batch[1])).run()
    (note,) = run.log.notes("untrained")
    assert "does compute_loss use the network that it is given" in note.text
    assert not engine_of(lambda network, batch: network(batch[0]).sum()).run().log.notes("untrained")


def test_layers_that_init_weights_replaces_are_held_by_no_optimizer():
    """The optimizer was built before: training would change nothing."""
    network = nn.Sequential(small_network())

    def replace(network):
        network[0] = small_network()

    parts = Components(
        network=network,
        loader=batches(2),
        criterion=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        init_weights=replace,
    )
    with pytest.raises(ConfigError, match="holds none of the network's parameters"):
        Engine(parts, RunConfig(epochs=1)).run()


def test_an_epoch_that_fills_no_window_is_noted():
    """With `remainder="drop"` nothing is trained; the log says so in each epoch."""
    run = small_engine(3, epochs=2, accumulation=4, remainder="drop").run()
    assert (run.step, run.update) == (0, 0)
    assert [note.text for note in run.log.notes("drop")] == [
        f"epoch {epoch} makes no update: 3 of 4 batches of a window" for epoch in range(2)
    ]


def test_a_window_that_was_begun_keeps_its_size_where_the_data_cannot_fill_another():
    """Asked for on entry to `before_step` the new size counts from the next window on, if there is one."""
    engine = small_engine(4, accumulation=2, remainder="drop")
    on(engine, "enter", "before_step", lambda run: run.set_accumulation(4), event=3)
    run = engine.run()
    assert (run.step, run.update) == (4, 2)


def test_a_backward_pass_that_fails_in_a_way_that_cannot_be_described_comes_out_as_it_is():
    """What is looked for in its message must not hide it."""

    class Unprintable(Exception):
        def __str__(self):
            raise ValueError("in __str__")

    raised = Unprintable()

    def fail(gradient):
        raise raised

    def compute_loss(network, batch):
        loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
        loss.register_hook(fail)
        return loss

    with pytest.raises(Unprintable) as caught:
        engine_of(compute_loss).run()
    assert caught.value is raised
