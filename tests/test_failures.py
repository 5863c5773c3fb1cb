"""What happens when something raises: it comes out unchanged, it says where, the log ends in `failed`."""

import pytest
import torch
from torch import nn

import heptad.engine
import heptad.ranks.strategy
import heptad.run.guards
import heptad.step.bodies
from builders import CLASSES, FEATURES, STATES, Unsized, batches, small_components, small_network
from heptad import Detour, Engine, EngineError, LossOutput, Plugin, RunConfig, on_exit

ERRORS = (ValueError, StopIteration, KeyboardInterrupt, SystemExit)
NAMES = ("First", "Middle", "Last")
EVENTS = {"before_loop": 1, "before_epoch": 2, "after_epoch": 2, "after_loop": 1}
"""How often a run of two epochs of two batches is in each state; in the others four times."""
LAST_EVENT = {
    ("enter", "before_loop"): (0, 0, 0, 0),
    ("exit", "before_loop"): (0, 0, 0, 0),
    ("enter", "before_epoch"): (1, 2, 2, 2),
    ("exit", "before_epoch"): (1, 0, 2, 2),
    ("enter", "before_step"): (1, 1, 3, 3),
    ("exit", "before_step"): (1, 1, 3, 3),
    ("enter", "process_batch"): (1, 1, 3, 3),
    ("exit", "process_batch"): (1, 1, 3, 3),
    ("enter", "after_step"): (1, 1, 3, 3),
    ("exit", "after_step"): (1, 2, 4, 3),
    ("enter", "optimizer_update"): (1, 2, 4, 3),
    ("exit", "optimizer_update"): (1, 2, 4, 4),
    ("enter", "after_epoch"): (1, 2, 4, 4),
    ("exit", "after_epoch"): (2, 2, 4, 4),
    ("enter", "after_loop"): (2, 2, 4, 4),
    ("exit", "after_loop"): (2, 2, 4, 4),
}
"""The counters (epoch, batch_index, step, update) at the last event of each moment of that run."""


class Caller(Plugin):
    """Writes its calls on a tape that it shares with others, and raises at one of them."""

    def __init__(self, name, tape, fails_at=None, event=1, error=None):
        self.name = name
        self.tape = tape
        self.fails_at = fails_at
        self.left = event
        self.error = error
        self.closed = 0

    def close(self, run):
        self.closed += 1

    def called(self, moment, state):
        """Write a call down, and raise if it is the one."""
        self.tape.append((self.name, moment, state))
        if self.fails_at == (moment, state):
            self.left -= 1
            if not self.left:
                raise self.error


def _handler(moment, state):
    def call(self, run):
        self.called(moment, state)

    return call


for _state in STATES:
    for _moment in ("enter", "exit"):
        setattr(Caller, f"on_{_moment}_{_state}", _handler(_moment, _state))


def callers(tape, failing=None, **how):
    """Return three plugins on one tape, of which the one of that name fails."""
    return [Caller(name, tape, **(how if name == failing else {})) for name in NAMES]


def raising(error):
    """Return a function that raises, whatever it is called with."""

    def call(*args, **kwargs):
        raise error

    return call


def counters(record):
    """Return the counters of a run or a transition."""
    return (record.epoch, record.batch_index, record.step, record.update)


def at(counts):
    """Return counters as the note on an exception words them."""
    return "(epoch {}, batch {}, step {}, update {})".format(*counts)


def places(error):
    """Return the notes on an exception, except those that describe a step or a sample."""
    return [note for note in error.__notes__ if not note.startswith(("heptad: the ", "heptad: while "))]


def caught(engine, error):
    """Drive an engine, and check that this very object comes out of it."""
    with pytest.raises(type(error)) as info:
        engine.run()
    assert info.value is error
    return engine.current


def check_failed(engine, plugins, state, counts):
    """Check what holds after any failure in a state."""
    run = engine.current
    last = run.log[-1]
    assert run.state == "failed"
    assert (last.source, last.dest) == (state, "failed")
    assert counters(last) == counters(run) == counts
    assert run.log.path().count("failed") == 1
    assert [note.seq for note in run.log.notes("failure")] == [last.seq]
    assert [plugin.closed for plugin in plugins] == [1] * len(plugins)
    for again in (engine.run, engine.advance):
        with pytest.raises(EngineError, match="build a new Engine"):
            again()


# -- handlers


@pytest.fixture(scope="module")
def straight():
    """The handler calls of a run of two epochs of two batches in which nothing fails."""
    tape = []
    Engine(small_components(loader=batches(2)), RunConfig(epochs=2), callers(tape)).run()
    return tape


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", ["enter", "exit"])
@pytest.mark.parametrize("state", STATES)
def test_a_handler_fails(straight, state, moment, name, kind):
    """At the last event of every moment, whatever is raised by whichever plugin ends the run there and then."""
    error, tape = kind("oh"), []
    event = EVENTS.get(state, 4)
    plugins = callers(tape, name, fails_at=(moment, state), event=event, error=error)
    engine = Engine(small_components(loader=batches(2)), RunConfig(epochs=2), plugins)
    counts = LAST_EVENT[moment, state]

    run = caught(engine, error)

    where = "on entry to" if moment == "enter" else "on exit of"
    place = f"in {name}.on_{moment}_{state} {where} {state} {at(counts)}"
    assert places(error) == [f"heptad: {place}"]
    assert run.reason == f"{kind.__name__}: oh"
    assert [note.text for note in run.log.notes("failure")] == [f"{kind.__name__}: oh {place}"]
    assert tape[-1] == (name, moment, state)
    assert tape.count(tape[-1]) == event
    assert tape == straight[: len(tape)]
    check_failed(engine, plugins, state, counts)


def test_a_function_that_fails_is_named():
    """A function that was subscribed is named by its own name."""
    error, tape = ValueError("oh"), []
    plugins = callers(tape)
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)

    @engine.on_exit("process_batch")
    def breaks(run):
        raise error

    caught(engine, error)
    assert places(error) == [f"heptad: in {breaks.__qualname__} on exit of process_batch {at((0, 0, 0, 0))}"]
    check_failed(engine, plugins, "process_batch", (0, 0, 0, 0))


def test_a_filter_that_fails_is_its_handlers():
    """An exception of a `when=` belongs to the handler that it filters."""
    error = ValueError("oh")

    class Filtered(Plugin):
        @on_exit("after_step", every=2, when=raising(error))
        def report(self, run):
            """Never called."""

    run = caught(Engine(small_components(), RunConfig(epochs=1), [Filtered()]), error)
    assert error.__notes__ == [f"heptad: in Filtered.report on exit of after_step {at((0, 2, 2, 1))}"]
    assert run.log.path()[-2:] == ["after_step", "failed"]


def test_the_engines_own_handler_fails(monkeypatch):
    """Where the engine corrects the gradients, no plugin is named and none is called."""
    error, tape = ValueError("oh"), []
    monkeypatch.setattr(heptad.ranks.strategy, "scale", raising(error))
    plugins = callers(tape)
    uneven = [*batches(1, size=2), *batches(1, size=1)]
    engine = Engine(small_components(loader=uneven), RunConfig(epochs=1, accumulation=2), plugins)
    caught(engine, error)
    assert error.__notes__ == [f"heptad: on entry to optimizer_update {at((0, 2, 2, 0))}"]
    assert tape[-1] == ("Last", "exit", "after_step")
    check_failed(engine, plugins, "optimizer_update", (0, 2, 2, 0))


# -- what the step looked like


class Odd(dict):
    """A batch that cannot be looked at."""

    def __iter__(self):
        raise RuntimeError("not to be walked")


PAIR = "a tuple of 2: float32 of shape (2, 4), int64 of shape (2,)"
BATCHES = {
    "a pair": (batches(1)[0], PAIR),
    "a tensor": (torch.zeros(2, 4, dtype=torch.bfloat16), "bfloat16 of shape (2, 4)"),
    "a dict": (
        {"x": torch.zeros(1), "text": ["a", "b"]},
        "a dict of 2: 'x': float32 of shape (1,), 'text': a list of 2 str",
    ),
    "many": ([torch.zeros(())] * 9, "a list of 9: " + "float32 of shape (), " * 4 + "…"),
    "mixed": ([1, "a", 2], "a list of 3 int or str"),
    "deep": ([[[[torch.zeros(1)]]]], "a list of 1: a list of 1: a list of 1: a list of 1"),
    "nothing": ([], "a list of 0"),
    "an object": (object(), "an object"),
    "odd": (Odd(x=1), "an Odd"),
}


@pytest.mark.parametrize("batch", BATCHES)
def test_a_failure_in_process_batch_describes_the_batch(batch):
    """Types and shapes, no values; what cannot be looked at is named by its type, and hides nothing."""
    given, words = BATCHES[batch]
    error = ValueError("oh")
    caught(Engine(small_components(loader=[given], compute_loss=raising(error)), RunConfig(epochs=1)), error)
    assert error.__notes__ == [
        f"heptad: in the body of process_batch {at((0, 0, 0, 0))}",
        f"heptad: the batch: {words}",
    ]


def test_it_describes_the_output_where_there_is_one():
    """A criterion and a handler on exit fail after the forward pass; a network fails before there is an output."""
    notes = [f"heptad: the batch: {PAIR}", f"heptad: the output: float32 of shape (2, {CLASSES})"]
    error = ValueError("oh")
    caught(Engine(small_components(loader=batches(1), criterion=raising(error)), RunConfig(epochs=1)), error)
    assert error.__notes__[1:] == notes
    engine = Engine(small_components(loader=batches(1)), RunConfig(epochs=1))
    error = ValueError("oh")
    engine.on_exit("process_batch")(lambda run: raising(error)())
    caught(engine, error)
    assert error.__notes__[1:] == notes


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_it_says_nothing_of_the_step_where_nothing_failed(error):
    """KeyboardInterrupt and SystemExit are not caused by a batch."""
    caught(Engine(small_components(criterion=raising(error)), RunConfig(epochs=1)), error)
    assert error.__notes__ == [f"heptad: in the body of process_batch {at((0, 0, 0, 0))}"]


def test_a_failure_in_the_data_says_which_sample_it_was():
    """A dataset that raises gets a note with the sample's number; batches that cannot be made are described."""
    error = ValueError("oh")
    caught(Engine(small_components(dataset=Samples(error)), RunConfig(epochs=1, batch_size=2, shuffle=False)), error)
    place = f"heptad: in the body of before_step {at((0, 0, 0, 0))}"
    assert error.__notes__ == ["heptad: while sample 0 of the Samples was read", place]
    error = ValueError("oh")
    given = small_components(dataset=[1, 2, 3], collate_fn=raising(error))
    caught(Engine(given, RunConfig(epochs=1, batch_size=2, shuffle=False)), error)
    assert error.__notes__ == ["heptad: while a batch was made of a list of 2 int", place]


# -- bodies


class Loader:
    """Three batches, with a length, whose iterator or whose n-th batch (from 0) raises."""

    def __init__(self, error, at=None):
        self.error = error
        self.at = at

    def __len__(self):
        return 3

    def __iter__(self):
        if self.at is None:
            raise self.error
        return self._batches()

    def _batches(self):
        yield from batches(self.at)
        raise self.error


class UnsizedLoader(Loader):
    """The same without a length."""

    __len__ = None


class Samples:
    """A dataset none of whose samples can be read."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 6

    def __getitem__(self, index):
        raise self.error


class Network(nn.Linear):
    """A network of which one method raises."""

    def __init__(self, method, error):
        super().__init__(FEATURES, CLASSES)
        setattr(self, method, raising(error))


class Update(torch.optim.SGD):
    """An optimizer of which one method raises."""

    def __init__(self, network, method, error):
        super().__init__(network.parameters(), lr=0.1)
        setattr(self, method, raising(error))


def failing_backward(error):
    """Return a `compute_loss` through which no gradient flows back."""

    def compute_loss(network, batch):
        loss = network(batch[0]).mean()
        loss.register_hook(raising(error))
        return LossOutput(loss)

    return compute_loss


def failing_update(method, error):
    """Return components whose optimizer raises."""
    network = small_network()
    return small_components(network, optimizer=Update(network, method, error))


BODIES = {
    "placing the network": ("before_loop", (0, 0, 0, 0), lambda e: small_components(Network("to", e))),
    "building the optimizer": ("before_loop", (0, 0, 0, 0), lambda e: small_components(optimizer=raising(e))),
    "initialising weights": ("before_loop", (0, 0, 0, 0), lambda e: small_components(init_weights=raising(e))),
    "training mode": ("before_loop", (0, 0, 0, 0), lambda e: small_components(Network("train", e))),
    "opening a pass": ("before_epoch", (0, 0, 0, 0), lambda e: small_components(loader=Loader(e))),
    "opening an unsized pass": ("before_epoch", (0, 0, 0, 0), lambda e: small_components(loader=UnsizedLoader(e))),
    "fetching a sample": ("before_step", (0, 0, 0, 0), lambda e: small_components(dataset=Samples(e))),
    "collating": ("before_step", (0, 0, 0, 0), lambda e: small_components(dataset=[1, 2, 3, 4], collate_fn=raising(e))),
    "the forward pass": ("process_batch", (0, 0, 0, 0), lambda e: small_components(Network("forward", e))),
    "the criterion": ("process_batch", (0, 0, 0, 0), lambda e: small_components(criterion=raising(e))),
    "the loss": ("process_batch", (0, 0, 0, 0), lambda e: small_components(compute_loss=raising(e))),
    "the backward pass": ("process_batch", (0, 0, 0, 0), lambda e: small_components(compute_loss=failing_backward(e))),
    "the update": ("optimizer_update", (0, 1, 1, 0), lambda e: failing_update("step", e)),
    "evaluation mode": ("after_loop", (1, 3, 3, 3), lambda e: small_components(Network("eval", e))),
}
"""What of the user's can raise in a body: the state, the counters then, and components that do it."""


def check_body(engine, plugins, error, state, counts):
    """Drive an engine whose body in this state raises, and check what holds then."""
    run = caught(engine, error)
    assert places(error) == [f"heptad: in the body of {state} {at(counts)}"]
    assert plugins[0].tape[-3:] == [(name, "enter", state) for name in NAMES]
    assert run.log[-1].guards == {}
    check_failed(engine, plugins, state, counts)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("place", BODIES)
def test_a_body_fails(place, kind):
    """What the user's network, data, loss or optimizer raises comes out unchanged; no exit handler is called."""
    state, counts, make = BODIES[place]
    error = kind("oh")
    plugins = callers([])
    parts = make(error)
    config = {"batch_size": 2} if parts.dataset is not None else {}
    engine = Engine(parts, RunConfig(epochs=1, **config), plugins)
    check_body(engine, plugins, error, state, counts)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(
    ("state", "counts"),
    [
        ("before_loop", (0, 0, 0, 0)),
        ("before_epoch", (0, 0, 0, 0)),
        ("before_step", (0, 0, 0, 0)),
        ("after_step", (0, 1, 1, 0)),
        ("optimizer_update", (0, 1, 1, 1)),
        ("after_epoch", (1, 3, 3, 3)),
        ("after_loop", (1, 3, 3, 3)),
    ],
)
def test_a_body_fails_when_it_is_half_done(monkeypatch, state, counts, kind):
    """The record holds the counters as they stand, also where the body has counted already."""
    error = kind("oh")
    first = state == "before_loop"  # it needs the strategy, so the engine names it itself
    body = heptad.engine.before_loop if first else heptad.step.bodies.BODIES[state]

    def fails(run, **given):
        body(run, **given)
        raise error

    if first:
        monkeypatch.setattr(heptad.engine, "before_loop", fails)
    else:
        monkeypatch.setitem(heptad.step.bodies.BODIES, state, fails)
    plugins = callers([])
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    check_body(engine, plugins, error, state, counts)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("loader", [Loader, UnsizedLoader])
def test_a_loader_fails_where_a_plain_loop_has_it(loader, kind):
    """The third batch fails in the third `before_step`, also where it was read ahead."""
    error = kind("oh")
    plugins = callers([])
    engine = Engine(small_components(loader=loader(error, at=2)), RunConfig(epochs=1), plugins)
    check_body(engine, plugins, error, "before_step", (0, 2, 2, 2))


def test_a_loader_with_a_length_is_not_asked_beyond_it():
    """So what it would raise after its last batch is not met."""
    engine = Engine(small_components(loader=Loader(ValueError("oh"), at=3)), RunConfig(epochs=1))
    assert engine.run().state == "finished"


# -- guards


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(
    ("guard", "state", "counts"),
    [
        ("epochs_remain", "before_loop", (0, 0, 0, 0)),
        ("batches_remain", "before_epoch", (0, 0, 0, 0)),
        ("update_due", "after_step", (0, 1, 1, 0)),
    ],
)
def test_a_guard_fails(monkeypatch, guard, state, counts, kind):
    """Each of the engine's guards, where it is asked first; the exit handlers have been called by then."""
    error, tape = kind("oh"), []
    monkeypatch.setitem(heptad.run.guards.GUARDS, guard, raising(error))
    plugins = callers(tape)
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    run = caught(engine, error)
    assert error.__notes__ == [f"heptad: in the guard {guard} asked in {state} {at(counts)}"]
    assert tape[-3:] == [(name, "exit", state) for name in NAMES]
    assert run.log[-1].guards == {}
    check_failed(engine, plugins, state, counts)


@pytest.mark.parametrize(
    ("guard", "call", "place", "answered"),
    [
        ("epochs_remain", 2, ("after_epoch", (1, 3, 3, 1)), {}),
        ("batches_remain", 2, ("after_step", (0, 1, 1, 0)), {"update_due": False}),
        ("batches_remain", 4, ("optimizer_update", (0, 3, 3, 1)), {}),
        ("update_due", 3, ("after_step", (0, 3, 3, 0)), {}),
    ],
)
def test_a_guard_fails_later(monkeypatch, guard, call, place, answered):
    """Each guard in each other state that asks it; what guards before it had answered stands in the log."""
    error = ValueError("oh")
    state, counts = place
    real, left = heptad.run.guards.GUARDS[guard], [call]

    def fails(run):
        left[0] -= 1
        if not left[0]:
            raise error
        return real(run)

    monkeypatch.setitem(heptad.run.guards.GUARDS, guard, fails)
    plugins = callers([])
    engine = Engine(small_components(), RunConfig(epochs=1, accumulation=3), plugins)
    run = caught(engine, error)
    assert error.__notes__ == [f"heptad: in the guard {guard} asked in {state} {at(counts)}"]
    assert run.log[-1].guards == answered
    check_failed(engine, plugins, state, counts)


class Side(Plugin):
    """A detour from two states."""

    def __init__(self, when=lambda run: True, body=lambda run: None):
        self.detour = Detour("side", ("after_step", "after_epoch"), when, body)
        self.closed = 0

    def close(self, run):
        self.closed += 1

    def detours(self):
        return [self.detour]


@pytest.mark.parametrize("kind", ERRORS)
def test_the_guard_of_a_detour_fails(kind):
    """The note names the guard, and the plugin that it is of."""
    error, tape = kind("oh"), []
    plugins = [*callers(tape), Side(when=raising(error))]
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    caught(engine, error)
    assert error.__notes__ == [f"heptad: in Side in the guard side_due asked in after_step {at((0, 1, 1, 0))}"]
    assert tape[-3:] == [(name, "exit", "after_step") for name in NAMES]
    check_failed(engine, plugins, "after_step", (0, 1, 1, 0))


@pytest.mark.parametrize("kind", ERRORS)
def test_the_body_of_a_detour_fails(kind):
    """The run fails in the detour's state, and the note names the plugin that brought it."""
    error, tape = kind("oh"), []
    plugins = [*callers(tape), Side(body=raising(error))]
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    caught(engine, error)
    assert error.__notes__ == [f"heptad: in Side in the body of side {at((0, 1, 1, 0))}"]
    check_failed(engine, plugins, "side", (0, 1, 1, 0))


# -- plugins that fail to open or to close


class Doors(Plugin):
    """Counts how often it is opened and closed, and fails at one or both if asked to."""

    def __init__(self, name, open_error=None, close_error=None):
        self.name = name
        self.open_error = open_error
        self.close_error = close_error
        self.opened = self.closed = 0

    def open(self, run):
        self.opened += 1
        if self.open_error is not None:
            raise self.open_error

    def close(self, run):
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


@pytest.mark.parametrize("verb", ["run", "advance"])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_fails_to_open(name, kind, verb):
    """Nothing has run then, and every plugin is closed once."""
    error = kind("oh")
    plugins = [Doors(each, open_error=error if each == name else None) for each in NAMES]
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    with pytest.raises(kind) as info:
        getattr(engine, verb)()
    assert info.value is error
    assert error.__notes__ == [f"heptad: in {name}.open; the run has not gone on"]
    assert [plugin.closed for plugin in plugins] == [1, 1, 1]
    assert [plugin.opened for plugin in plugins] == [int(NAMES.index(each) <= NAMES.index(name)) for each in NAMES]
    assert (engine.current.state, engine.current.log.path()) == ("idle", [])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_did_not_open_can_be_started_again(name):
    """Once the plugin opens, the run is made, and every plugin closed once more."""
    plugins = [Doors(each, open_error=ValueError("oh") if each == name else None) for each in NAMES]
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    with pytest.raises(ValueError, match="oh"):
        engine.run()
    plugins[NAMES.index(name)].open_error = None
    assert engine.run().state == "finished"
    assert [plugin.closed for plugin in plugins] == [2, 2, 2]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_fails_to_close(name, kind):
    """The others are closed all the same; the run, which has finished, stays finished."""
    error = kind("oh")
    plugins = [Doors(each, close_error=error if each == name else None) for each in NAMES]
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    run = caught(engine, error)
    assert error.__notes__ == [f"heptad: in {name}.close"]
    assert [plugin.closed for plugin in plugins] == [1, 1, 1]
    assert run.state == "finished"


def test_several_plugins_fail_to_close():
    """Their exceptions come as a group, in the order in which plugins are closed: the last first."""
    errors = {"First": ValueError("one"), "Last": KeyError("two")}
    plugins = [Doors(name, close_error=errors.get(name)) for name in NAMES]
    engine = Engine(small_components(), RunConfig(epochs=1), plugins)
    with pytest.raises(ExceptionGroup, match="several plugins failed to close") as info:
        engine.run()
    assert info.value.exceptions == (errors["Last"], errors["First"])
    assert [plugin.closed for plugin in plugins] == [1, 1, 1]
    assert engine.current.state == "finished"


def test_a_keyboard_interrupt_among_several_that_fail_to_close():
    """A group that holds a KeyboardInterrupt is not caught by `except Exception`."""
    errors = {"First": ValueError("one"), "Last": KeyboardInterrupt("two")}
    plugins = [Doors(name, close_error=errors.get(name)) for name in NAMES]
    with pytest.raises(BaseExceptionGroup) as info:
        Engine(small_components(), RunConfig(epochs=1), plugins).run()
    assert not isinstance(info.value, Exception)
    assert info.value.exceptions == (errors["Last"], errors["First"])


@pytest.mark.parametrize("verb", ["run", "advance"])
def test_a_plugin_fails_to_close_after_a_failure(verb):
    """The first exception is the one that is raised; it carries the second in a note and as its context."""
    error, other = ValueError("oh"), KeyError("door")
    plugins = [Doors("First"), Doors("Middle", close_error=other), Doors("Last")]
    engine = Engine(small_components(init_weights=raising(error)), RunConfig(epochs=1), plugins)
    with pytest.raises(ValueError) as info:
        while True:
            getattr(engine, verb)()
    assert info.value is error
    assert error.__context__ is other
    assert error.__notes__ == [
        f"heptad: in the body of before_loop {at((0, 0, 0, 0))}",
        "heptad: and closing the plugins raised: KeyError: 'door'",
    ]
    assert [plugin.closed for plugin in plugins] == [1, 1, 1]


def test_a_failure_while_turning_one_by_one():
    """A turn of `advance()` that fails closes the plugins, once; leaving the engine's `with` does not again."""
    error, tape = ValueError("oh"), []
    plugins = callers(tape)
    with Engine(small_components(criterion=raising(error)), RunConfig(epochs=1), plugins) as engine:
        with pytest.raises(ValueError) as info:
            while True:
                engine.advance()
        assert info.value is error
        assert places(error) == [f"heptad: in the body of process_batch {at((0, 0, 0, 0))}"]
        check_failed(engine, plugins, "process_batch", (0, 0, 0, 0))
    assert [plugin.closed for plugin in plugins] == [1, 1, 1]


def test_a_failure_after_pausing():
    """A run that was paused and fails when it continues has its plugins closed once for each call of `run()`."""
    error, tape = ValueError("oh"), []
    plugins = callers(tape)
    engine = Engine(small_components(criterion=raising(error)), RunConfig(epochs=1), plugins)
    engine.run(until="process_batch")
    run = caught(engine, error)
    assert [plugin.closed for plugin in plugins] == [2, 2, 2]
    assert (run.state, run.paused) == ("failed", None)


def test_the_data_read_ahead_fail_only_if_they_are_taken():
    """A stop before the step that would take a broken batch ends the run in order."""
    engine = Engine(small_components(loader=UnsizedLoader(ValueError("oh"), at=1)), RunConfig(epochs=1))

    @engine.on_exit("after_step")
    def stop(run):
        run.stop("enough")

    assert engine.run().state == "finished"


def test_an_unsized_loader_may_be_read_to_its_end():
    """A StopIteration of the iterator is the end of the data, not a failure."""
    assert Engine(small_components(loader=Unsized(batches(2))), RunConfig(epochs=2)).run().update == 4
