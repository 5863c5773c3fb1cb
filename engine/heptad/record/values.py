"""`RecordedValues`: what `Run.record` was given, in order, each value on its device until somebody reads it."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from heptad.errors import EngineError, diagnose, is_tensor_class, kind
from heptad.record.counters import Counters
from heptad.record.host import host_number

_NAN = float("nan")
_LONG = 60
"""Characters of a value that a message shows."""
_PENDING = 4096
"""Device tensors that wait at most. With that many all are read, and the device is synced; most are long computed."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A value that was recorded.

    Attributes:
        name: Its name.
        value: The value.
        seq: The transition in whose turn it was recorded.
        epoch: Complete epochs at that moment; so are the next two.
        step: Complete steps.
        update: Complete optimizer updates.
        rank: The process that recorded it.
    """

    name: str
    value: float
    seq: int
    epoch: int
    step: int
    update: int
    rank: int = field(default=0, repr=False)


@dataclass(frozen=True, slots=True)
class Columns:
    """Recorded values by column: a tenth of the memory of as many `Recorded`.

    Attributes:
        names: All names, in the order of their numbers. The list grows while names are recorded.
        name: For each value the place of its name among them.
        value: The values.
        place: For each value four numbers: seq, epoch, step, update.
    """

    names: list[str]
    name: array[int]
    value: array[float]
    place: array[int]

    @classmethod
    def of(cls, rows: Sequence[Recorded]) -> Columns:
        """Return these values by column."""
        known = {name: number for number, name in enumerate(dict.fromkeys(row.name for row in rows))}
        place = array("q", (part for row in rows for part in (row.seq, row.epoch, row.step, row.update)))
        return cls(
            list(known), array("I", (known[row.name] for row in rows)), array("d", (row.value for row in rows)), place
        )

    def __len__(self) -> int:
        return len(self.name)


def read_each(tensors: Sequence[Any]) -> list[float]:
    """Read 0-dim tensors one by one: a device sync each."""
    return [float(tensor.item()) for tensor in tensors]


class RecordedValues:
    """All recorded values: 44 bytes each once they are read, however many names.

    One thread records, any thread may read. A value counts once its place is there, which is appended last.

    Args:
        read: Returns the numbers in 0-dim tensors that are not on the CPU. This room knows no torch; who builds the
            log knows how to read them with one sync.
    """

    def __init__(self, read: Callable[[Sequence[Any]], list[float]] = read_each) -> None:
        self._read_tensors = read
        self._names: dict[str, int] = {}
        self._listed: list[str] = []  # the names by number; other threads read it, so it is only appended to
        self._newest: dict[str, int] = {}
        self._name = array("I")  # four bytes wherever torch runs: more names than memory holds
        self._value = array("d")
        self._place = array("q")  # seq, epoch, step, update of each
        self._pending: deque[tuple[int, Any]] = deque()  # row, tensor on its device
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._place) // 4

    def record(self, name: str, value: Any, seq: int, at: Counters) -> None:
        """Add a value.

        Raises:
            EngineError: If the name is empty or the value is neither a number nor a 0-dim tensor.
        """
        known = self._names.get(name)
        if known is None:
            known = self._known(name)
        number = value if type(value) is float else _number(name, value)
        row = len(self._value)
        # Name, value, tensor, then the place, by which rows are counted: without a lock, another thread sees whole
        # rows only, and finds each tensor among those to be read.
        self._name.append(known)
        if type(number) is float:
            self._value.append(number)
        else:
            self._value.append(_NAN)
            self._pending.append((row, number))
        self._place.extend((seq, at.epoch, at.step, at.update))
        self._newest[name] = row
        if len(self._pending) >= _PENDING:
            self._fetch()

    def _known(self, name: Any) -> int:
        """Return the number of a name, which may be new."""
        if not isinstance(name, str) or not name:
            raise EngineError(f"a value is recorded under a name that is a non-empty str, got {name!r}")
        number = len(self._listed)
        self._listed.append(name)
        self._names[name] = number
        return number

    def history(self, name: str) -> list[float]:
        """Return all values of a name, oldest first; none for a name that was never recorded."""
        if name not in self._names:
            return []
        self._fetch()
        # Slices are copies: an array whose memory numpy reads cannot grow, and the training thread would raise.
        end = len(self)
        mine = np.array(self._name[:end]) == self._names[name]
        return cast("list[float]", np.array(self._value[:end])[mine].tolist())

    def newest(self) -> dict[str, float]:
        """Return the newest value of every name."""
        self._fetch()
        return {name: self._value[row] for name, row in self._newest.copy().items()}

    def newest_of(self, name: str) -> Recorded | None:
        """Return the newest value of a name with its place; `None` for a name that was never recorded."""
        row = self._newest.get(name)
        return None if row is None else self._read(range(row, row + 1))[0]

    def since(self, first: int) -> list[Recorded]:
        """Return all values from the one of that number on, oldest first."""
        end = len(self)
        return self._read(range(max(first, 0), end)) if first < end else []  # most often nothing is new to a logger

    def between(self, first: int, end: int) -> list[Recorded]:
        """Return those recorded in the turns of the transitions from `first` to before `end`."""
        rows = range(len(self))
        places = (bisect_left(rows, seq, key=lambda row: self._place[4 * row]) for seq in (first, end))
        return self._read(range(*places))

    def _read(self, rows: range) -> list[Recorded]:
        self._fetch()
        names = self._listed
        return [Recorded(names[self._name[row]], self._value[row], *self._place[4 * row : 4 * row + 4]) for row in rows]

    def columns(self, first: int, before: int | None = None) -> Columns:
        """Return them by column, from the one of that number on, up to those of the turn of transition `before`."""
        end = len(self)
        if before is not None:
            end = first + bisect_left(range(first, end), before, key=lambda row: self._place[4 * row])
        self._fetch()
        name, value, place = self._name[first:end], self._value[first:end], self._place[4 * first : 4 * end]
        return Columns(self._listed, name, value, place)

    def block(self, first: int, most: int) -> Columns:
        """Return them by column, from the one of that number on, at most so many."""
        end = min(first + most, len(self))
        self._fetch()
        return Columns(self._listed, self._name[first:end], self._value[first:end], self._place[4 * first : 4 * end])

    def names(self, first: int) -> set[str]:
        """Return the names that were recorded from the value of that number on (no device sync)."""
        if len(self._name) <= first:
            return set()
        return {self._listed[number] for number in self._name[first:]}

    def restore(self, columns: Columns) -> None:
        """Replace what is here by columns that `columns(0)` returned."""
        self._listed = list(columns.names)
        self._names = {name: number for number, name in enumerate(self._listed)}
        self._name, self._value, self._place = columns.name, columns.value, columns.place
        self._newest = {self._listed[number]: row for row, number in enumerate(self._name)}

    def _fetch(self) -> None:
        """Read the values that are still on their device, with one device sync."""
        with self._lock:  # so that a second reader waits until they are there
            items = [self._pending.popleft() for _ in range(len(self._pending))]
            if items:
                read = self._read_tensors([tensor for _, tensor in items])
                for (row, _), value in zip(items, read, strict=True):
                    self._value[row] = value


def _number(name: str, value: Any) -> Any:
    """Return a float, or a copy of a tensor that is not on the CPU (no device sync)."""
    if is_tensor_class(type(value)):  # pyright: ignore[reportUnknownArgumentType] - a cast is a call
        if value.dim():
            raise EngineError(_no_number(name, value))
        if not value.is_cpu:
            return value.detach().clone()  # a copy: the caller may write into it later
        value = host_number(value)
        if type(value) is float:
            return value
    elif isinstance(value, np.generic):
        value = cast("Any", value.item())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EngineError(_no_number(name, value))
    return float(value)


def _no_number(name: str, value: Any) -> str:
    """Return the message for something that is no number."""
    shape = getattr(value, "shape", None)
    got = repr(value) if shape is None else f"shape {tuple(shape)}"
    got = got if len(got) <= _LONG else f"a {kind(value)}"
    return f"record('{name}', …) takes a number or a 0-dim tensor, got {got}; {diagnose('unrecordable', name)}"
