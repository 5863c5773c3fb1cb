"""`Together`: how the ranks of a run act on one directory of checkpoints: all of them succeed, or all raise the same.

The store and the resumption of a run use it. All ranks call its methods in the same order; each call is one exchange on
the control plane, of JSON. One process calls what it is given and exchanges nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from heptad.checkpoints.damage import AnotherRunError, DamagedError, NewerFormatError
from heptad.errors import CheckpointError, DataError, EngineError, in_a_line
from heptad.run.peers import Peers

T = TypeVar("T")

SIGN = 1.0
"""Seconds between two exchanges of ranks that wait for the first."""

_KINDS = {
    kind.__name__: kind
    for kind in (CheckpointError, DamagedError, NewerFormatError, AnotherRunError, DataError, EngineError)
}
"""The errors that are raised as what they are on the other ranks too."""


class Together(Protocol):
    """The ranks of a run, at their checkpoints.

    Attributes:
        rank: The number of this process.
        world: How many there are.
        others: Whether there are others than this one.
    """

    rank: int
    world: int
    others: bool

    def each(self, call: Callable[[], Any]) -> list[Any]:
        """Call a function on every rank, and return what it returned, plain data, by rank.

        Raises:
            CheckpointError: On all ranks, with the text of the first on which the function raised, and its number.
        """
        ...

    def first(self, call: Callable[[], Any]) -> Any:
        """Call a function on rank 0, and return there and on the others what it returned, plain data.

        Within the call, rank 0 acts alone.

        Raises:
            CheckpointError: On all ranks, if it raised.
        """
        ...

    def succeed(self, call: Callable[[], T]) -> T:
        """Call a function on every rank, and return what it returned here, if it raised on none.

        Raises:
            CheckpointError: As `each`.
        """
        ...

    def await_first(self, ended: threading.Event) -> None:
        """Wait until an event of rank 0 is set, however long that takes: the ranks exchange a sign of life meanwhile.

        Args:
            ended: The event; on other ranks any.
        """
        ...


class OneRank:
    """One process: what it calls raises as it does."""

    rank = 0
    world = 1
    others = False

    def each(self, call: Callable[[], Any]) -> list[Any]:
        """Return what the function returns."""
        return [call()]

    def first(self, call: Callable[[], Any]) -> Any:
        """Return what the function returns."""
        return call()

    def succeed(self, call: Callable[[], T]) -> T:
        """Return what the function returns."""
        return call()

    def await_first(self, ended: threading.Event) -> None:
        """Wait for the event."""
        ended.wait()


class ManyRanks:
    """Several ranks, which exchange what they did.

    Args:
        peers: The ranks.
    """

    others = True

    def __init__(self, peers: Peers) -> None:
        self.rank = peers.rank
        self.world = peers.world
        self._peers = peers
        self._acts_alone = False

    def each(self, call: Callable[[], Any]) -> list[Any]:
        """See `Together`."""
        if self._acts_alone:
            return [call()]
        error: BaseException | None = None
        answer: dict[str, Any] = {}
        try:
            answer["found"] = call()
        except BaseException as raised:  # of every kind: the others wait for an answer
            error = raised
            answer["failed"] = [type(raised).__name__, str(raised) if isinstance(raised, CheckpointError) else ""]
            answer["line"] = in_a_line(raised)
        answers = [json.loads(content) for content in self._peers.gather(json.dumps(answer).encode())]
        if error is not None and not isinstance(error, Exception):
            raise error
        for rank, other in enumerate(answers):
            if "failed" in other:
                kind, text = other["failed"]
                raise _failure_of(rank, kind, text or other["line"]) from (error and (error.__cause__ or error))
        return [other["found"] for other in answers]

    def first(self, call: Callable[[], Any]) -> Any:
        """See `Together`."""
        return self.each(lambda: self._alone(call) if not self.rank else None)[0]

    def succeed(self, call: Callable[[], T]) -> T:
        """See `Together`."""
        found: list[T] = []
        self.each(lambda: found.append(call()))
        return found[0]

    def await_first(self, ended: threading.Event) -> None:
        """See `Together`."""
        while not self.first(partial(ended.wait, SIGN)):
            pass

    def _alone(self, call: Callable[[], T]) -> T:
        before, self._acts_alone = self._acts_alone, True
        try:
            return call()
        finally:
            self._acts_alone = before


def _failure_of(rank: int, kind: str, text: str) -> Exception:
    """Return the error that all ranks raise where one has failed."""
    return _KINDS.get(kind, CheckpointError)(f"rank {rank}: {text}")


def together(peers: Peers) -> Together:
    """Return how these ranks act."""
    return OneRank() if peers.world == 1 else cast("Together", ManyRanks(peers))
