"""`IteratorCursor`: a place in a pass over anything that is iterated, a loader or an iterable dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from heptad.data.cursor import NOTHING, PassKey
from heptad.errors import CheckpointError, DataError, counted, diagnose


class PassSource(Protocol):
    """What is iterated, and what its passes draw at random.

    Attributes:
        data: The user's object.
        drained: Whether a pass that was taken whole is run to its end. What happens there may decide the next pass.
    """

    data: Any
    drained: bool

    def length(self) -> int | None:
        """Return how many batches the next pass has, `None` where nobody can know."""
        ...

    def iterate(self, key: PassKey) -> Iterator[Any]:
        """Begin a pass."""
        ...

    def before_pass(self) -> list[Any]:
        """Return the random states that a pass which is about to begin depends on."""
        ...

    def before_first(self, began: list[Any]) -> list[Any]:
        """Add those that are drawn from when the first batch is taken: some loaders draw their order only then."""
        ...

    def own(self) -> dict[str, Any]:
        """Return what the source carries from pass to pass."""
        ...

    def doubt(self) -> str:
        """Return what may keep a run that is resumed in a later pass from the same data, or nothing."""
        ...

    def go_to(self, state: Mapping[str, Any], key: PassKey) -> tuple[Iterator[Any] | None, str | None]:
        """Return an iterator at a place, and what is to be said of it. See `Cursor.restore`."""
        ...


class IteratorCursor:
    """A place in a pass: an iterator, and how many batches were taken from it.

    Beyond its length a source is not asked unless it is `drained`: one that never ends, or whose last item is slow to
    come, is not waited for.

    Args:
        source: What is iterated.
        limit: Batches in a pass at most, `None` for all that the source has.

    Attributes:
        batches: Batches in the pass that is open, or in the last one; `None` where nobody can know.
        varies: Whether a pass had another number of batches than the one before it.
        taken: Batches taken from the open pass.
    """

    idle = taken_early = False

    def __init__(self, source: PassSource, limit: int | None = None) -> None:
        self._source = source
        self._limit = limit
        self.batches = self._built = self._length()
        self.varies = False
        self.taken = 0
        self._passes = 0
        self._iterator: Iterator[Any] | None = None
        self._began: list[Any] = []
        """Random states: when the pass was begun, and when its first batch was about to be taken."""
        self._restored: Mapping[str, Any] | None = None
        """A place that `take` returns to: in a pass of another length than the source has before plugins are open."""

    def steps_in(self, epochs: range) -> int:
        """Return how many batches these epochs have."""
        return len(epochs) * (self.batches or 0)

    def begin(self, key: PassKey, limit: int | None) -> None:
        """Begin a pass.

        Raises:
            DataError: If the source can be iterated once, and was.
        """
        del limit  # what is not taken is left
        self._iterator = self._restored = None  # before iterate(): old workers end before new ones start
        if self._passes:
            refuse_second_pass(self._source.data)
        before, self.batches = self.batches, self._length()
        self.varies = self.varies or self.batches != before
        # twice: some loaders draw their order in iter(), others when the first batch is taken, and the network or a
        # handler may draw in between
        self._began = self._source.before_pass()
        self._iterator = self._source.iterate(key)
        self._passes += 1
        self.taken = 0

    def take(self) -> Any:
        """Return the next batch, or `NOTHING` where a pass of unknown length is over."""
        iterator = self._iterator
        if iterator is None:
            if self.batches is None:
                return NOTHING
            iterator = self._resume()
        if not self.taken:
            self._began = self._source.before_first(self._began)
        elif self.taken == self._limit:
            self._iterator = None
            return NOTHING
        batch = next(iterator, NOTHING)
        if batch is NOTHING:
            self._iterator = None
            if self.batches is not None:
                raise DataError(
                    f"the loader says that it has {self._source.length()} batches, but it ended after {self.taken}; "
                    "correct its __len__, or pass a loader without one"
                )
            return NOTHING
        self.taken += 1
        return batch

    def end(self) -> None:
        """End the pass."""
        iterator, self._iterator, self._restored = self._iterator, None, None
        if iterator is not None and self._source.drained and self.taken == self._source.length():
            next(iterator, NOTHING)

    def identity(self) -> dict[str, Any]:
        """Return the number of batches that the run was built with, and beside it another one that it has now."""
        now = {} if self.batches == self._built else {"batches now": self.batches}
        return {"batches": self._built, **now}

    def state(self) -> dict[str, Any]:
        """Return the place, and what the source carries from pass to pass."""
        if self._restored is not None:
            return dict(self._restored)
        place = {"walks": self._passes, "open": self._iterator is not None, "taken": self.taken, "began": self._began}
        return {**place, "batches": self.batches, "varies": self.varies, **self._source.own()}

    def restore(self, state: Mapping[str, Any], key: PassKey) -> str | None:
        """Return to a place. A source without a state of its own is iterated up to it."""
        self._passes, self.taken, self._began = state["walks"], state["taken"], list(state.get("began", ()))
        self.batches, self.varies = state.get("batches", self.batches), state.get("varies", False)  # None is older
        if state["open"] and self.batches != self._length():
            self._restored = state
            return None
        self._iterator, remarks = self._source.go_to(state, key)
        return remarks

    def doubt(self) -> str:
        """Return what may keep a run that is resumed in a later pass from the same data, or nothing."""
        return self._source.doubt()

    def _resume(self) -> Iterator[Any]:
        """Return to a place that was restored, with the source as it is now that plugins are open."""
        if self._restored is None:
            raise DataError("no pass is open")
        if (batches := self._length()) != self.batches:
            raise DataError(
                f"the loader has {batches} batches, and had {self.batches} in the pass that is resumed; the plugin "
                "that changes its length must do so in its open(run) too"
            )
        iterator, _ = self._source.go_to(self._restored, PassKey(0, 0, 0))
        self._iterator, self._restored = iterator, None
        return iterator if iterator is not None else iter(())

    def _length(self) -> int | None:
        """Return how many batches the next pass has, `None` where nobody can know."""
        batches = self._source.length()
        return batches if batches is None or self._limit is None else min(batches, self._limit)

    def rest(self) -> None:
        """Keep the iterator: what it has drawn could not be drawn again."""

    def close(self) -> None:
        """Drop the iterator, and its worker processes with it."""
        self._iterator = None


class NoPlaceError(DataError, CheckpointError):
    """The data end before the place in them that a checkpoint names: one of the two is not what it should be."""


def walk_to(iterator: Iterator[Any], batches: int) -> str | None:
    """Take this many batches and drop them; return what is to be said of it.

    Raises:
        NoPlaceError: If there are fewer.
    """
    for number in range(batches):
        if next(iterator, NOTHING) is NOTHING:
            raise NoPlaceError(
                f"the data ended after {counted(number, 'batch')}, but the checkpoint was taken after {batches} of "
                "this pass; resume with the data that the run was begun with"
            )
    return f"the data were walked to their place, {counted(batches, 'batch')} into the pass" if batches else None


def refuse_second_pass(data: Any) -> None:
    """Raise a `DataError` for what can be iterated only once."""
    if isinstance(data, Iterator):
        raise DataError(diagnose("iterated_once", data))
