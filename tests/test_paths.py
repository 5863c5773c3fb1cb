"""The path that a run takes, written out literally: which states it was in, in order."""

import pytest

from builders import Unsized, batches, small_engine

# The paths are long lists that repeat themselves; a line holds what belongs together, a step or an update.
# fmt: off
STRAIGHT = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
NO_EPOCH = ["idle", "before_loop", "after_loop", "finished"]
EXTENDED = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
FLUSHED = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
DROPPED = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
DROPPED_UNSIZED = [  # the last step was run before anybody could know that none follows: it makes no update
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step",
    "after_epoch", "after_loop", "finished",
]
ONE_WINDOW_OF_SEVEN = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
ONE_WINDOW_OF_THREE = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
EMPTY_EPOCH = ["idle", "before_loop", "before_epoch", "after_epoch", "after_loop", "finished"]
TWO_UPDATES = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
ONE_STEP = [
    "idle", "before_loop", "before_epoch",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
TWO_EPOCHS = [
    "idle", "before_loop",
    "before_epoch",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "before_epoch",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "before_step", "process_batch", "after_step", "optimizer_update",
    "after_epoch", "after_loop", "finished",
]
# fmt: on


def stopping(engine, moment, state, event=1):
    """Subscribe a stop at the n-th event of a moment, and return the engine."""
    left = [event]

    def stop(run):
        left[0] -= 1
        if left[0] == 0:
            run.stop("enough")

    (engine.on_enter if moment == "enter" else engine.on_exit)(state)(stop)
    return engine


def sized(count):
    """Return so many batches as a list."""
    return batches(count)


def unsized(count):
    """Return so many batches as an iterable without a length."""
    return Unsized(batches(count))


@pytest.mark.parametrize("data", [sized, unsized])
class TestPath:
    def test_one_epoch_of_three_batches(self, data):
        """Each batch is a step, and with k = 1 each step an update."""
        assert small_engine(data(3)).run().log.path() == STRAIGHT

    def test_two_epochs_of_two_batches(self, data):
        """An epoch leads to the next, the last to the end."""
        assert small_engine(data(2), epochs=2).run().log.path() == TWO_EPOCHS

    def test_zero_epochs(self, data):
        """Without an epoch the run is set up and ended in order."""
        assert small_engine(data(3), epochs=0).run().log.path() == NO_EPOCH

    def test_zero_updates(self, data):
        """Without an update to make no epoch is opened."""
        assert small_engine(data(3), max_updates=0).run().log.path() == NO_EPOCH

    @pytest.mark.parametrize(("remainder", "expected"), [("extend", EXTENDED), ("flush", FLUSHED)])
    def test_two_steps_an_update_and_three_batches(self, data, remainder, expected):
        """The third batch is filled up to a window by a further pass, or makes an update by itself."""
        assert small_engine(data(3), accumulation=2, remainder=remainder).run().log.path() == expected

    def test_a_window_filled_by_further_passes(self, data):
        """Two batches and k = 7: the epoch begins three further passes, without entering an epoch state for them."""
        run = small_engine(data(2), accumulation=7).run()
        assert run.log.path() == ONE_WINDOW_OF_SEVEN
        assert [note.text for note in run.log.notes("extend")] == [
            "epoch 0 is extended by 5 steps to fill its last window"
        ]

    def test_a_stop_in_mid_window(self, data):
        """The open window is completed, and no other is begun: no gradient is dropped."""
        engine = stopping(small_engine(data(6), epochs=2, accumulation=3), "exit", "after_step")
        assert engine.run().log.path() == ONE_WINDOW_OF_THREE

    def test_a_stop_in_mid_window_at_the_end_of_the_data(self, data):
        """A window that a stop finds open is filled by a further pass where the data end within it."""
        engine = stopping(small_engine(data(2), epochs=2, accumulation=3), "exit", "after_step")
        assert engine.run().log.path() == ONE_WINDOW_OF_THREE

    def test_a_stop_in_the_last_step_of_a_window(self, data):
        """On exit of the step that fills the window the update is still made."""
        engine = stopping(small_engine(data(6), epochs=2, accumulation=3), "exit", "after_step", event=3)
        assert engine.run().log.path() == ONE_WINDOW_OF_THREE

    def test_a_stop_on_entry_to_before_epoch(self, data):
        """The epoch is opened and closed without a step."""
        engine = stopping(small_engine(data(3), epochs=2), "enter", "before_epoch")
        assert engine.run().log.path() == EMPTY_EPOCH

    def test_a_stop_on_exit_of_before_epoch(self, data):
        """Where to is decided after the exit handlers, so a stop asked for by one counts at once."""
        engine = stopping(small_engine(data(3), epochs=2), "exit", "before_epoch")
        assert engine.run().log.path() == EMPTY_EPOCH

    def test_a_stop_on_exit_of_before_loop(self, data):
        """Before the first epoch a stop leaves none."""
        engine = stopping(small_engine(data(3), epochs=2), "exit", "before_loop")
        assert engine.run().log.path() == NO_EPOCH

    def test_a_stop_on_exit_of_after_epoch(self, data):
        """Early stopping at the end of an epoch begins no further one."""
        engine = stopping(small_engine(data(1), epochs=2), "exit", "after_epoch")
        assert engine.run().log.path() == ONE_STEP

    def test_a_stop_while_a_step_is_under_way(self, data):
        """The step and its update are completed."""
        engine = stopping(small_engine(data(3), epochs=2), "enter", "process_batch")
        assert engine.run().log.path() == ONE_STEP

    def test_max_updates_in_mid_epoch(self, data):
        """The update that reaches the limit is the last step of the run; its epoch is closed."""
        assert small_engine(data(3), max_updates=2).run().log.path() == TWO_UPDATES

    def test_max_updates_before_the_last_epoch(self, data):
        """Of `epochs` and `max_updates` the one that is reached first ends the run."""
        assert small_engine(data(3), epochs=5, max_updates=2).run().log.path() == TWO_UPDATES

    def test_max_updates_of_several_steps(self, data):
        """The limit counts updates and not steps."""
        engine = small_engine(data(8), max_updates=1, accumulation=3)
        assert engine.run().log.path() == ONE_WINDOW_OF_THREE

    def test_max_updates_over_several_epochs(self, data):
        """Without a number of epochs, epochs follow each other until the limit is reached."""
        assert small_engine(data(2), max_updates=4).run().log.path() == TWO_EPOCHS


def test_dropping_what_fills_no_window():
    """A window that the data cannot fill is not started."""
    assert small_engine(sized(3), accumulation=2, remainder="drop").run().log.path() == DROPPED


def test_dropping_without_a_length():
    """Where nobody can know that the window stays open, its steps are run and left out of the update."""
    assert small_engine(unsized(3), accumulation=2, remainder="drop").run().log.path() == DROPPED_UNSIZED


def test_dropping_all():
    """Data that fill no window at all make an epoch without a step."""
    assert small_engine(sized(3), accumulation=4, remainder="drop").run().log.path() == EMPTY_EPOCH
