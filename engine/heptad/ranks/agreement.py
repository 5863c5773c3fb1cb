"""`Agreement`: one exchange of a few whole numbers a rank, by which all ranks act alike and know that they did.

The strategy puts it last on exit of `optimizer_update`, of `after_epoch` and of detours after these: behind all
handlers, so that what they ask for counts at once, and before the guards. Requests become facts in the same turn on all
ranks, and a rank whose path is another one is found and named.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from heptad.errors import RankFailed
from heptad.ranks.equal_weights import checksum_of, refuse_unequal
from heptad.ranks.group import Group
from heptad.ranks.requests import RanksRun
from heptad.ranks.window import RanksWindow
from heptad.run.run import Run

SHOWN = 64
"""Turns that are compared one by one where the paths part."""

_STOP, _PAUSE, _FIRST = 1, 2, 4
_VERBS = {"stop": _STOP, "pause": _PAUSE}


MIXED = (
    "in a window of all ranks some steps had a weight and some had none, so nothing says how their losses are "
    "averaged; give LossOutput.weight in every step or in none"
)


class _Said(NamedTuple):
    """What a rank says in an agreement.

    Attributes:
        path: 64 bits of the turns since the last one.
        seq: The number of the transition under way.
        update: Complete updates.
        requests: What it asks for, a bit each.
        samples: What it has had since the last one.
        checksum: That of its weights at the end of an epoch, else 0.
        kinds: See `RanksWindow.kinds`.
    """

    path: int
    seq: int
    update: int
    requests: int
    samples: int
    checksum: int
    kinds: int


class Agreement:
    """What the ranks of a run exchange between its windows.

    Args:
        group: The ranks.
        run: The run of this one.
        every: Updates between two agreements.
        patience: Seconds after which an exchange is given up, from the first agreement on.
        names: What may be asked for by name, in an order that is the same on all ranks.
    """

    def __init__(self, group: Group, run: RanksRun, every: int, patience: float, names: Sequence[str]) -> None:
        self._group, self._run, self._every, self._patience = group, run, every, patience
        self._flags = {name: _FIRST << number for number, name in enumerate(names)}
        self._seen = run._buffer.seq  # turns before it are agreed
        self._first = True

    def handlers(self) -> list[tuple[str, Callable[[Run], None]]]:
        """Return what is called on exit of which states."""
        table = self._run.table
        after = ("optimizer_update", "after_epoch")
        detours = {state.shown for state in table.states if state.kind == "detour" and state.after in after}
        return [
            ("optimizer_update", self.after_update),
            ("after_epoch", self.after_epoch),
            *((name, self.after_detour) for name in sorted(detours)),
        ]

    def after_update(self, run: Run) -> None:
        """Agree after every n-th update, skipped ones counted: after the same ones in a run that was resumed."""
        at = run._position
        if (at.update + at.skips) % self._every == 0:
            self.agree(run)

    def after_detour(self, run: Run) -> None:
        """Agree, where the detour is one after an update or an epoch."""
        if run.table.states[run._position.node].after in ("optimizer_update", "after_epoch"):
            self.agree(run)

    def after_epoch(self, run: Run) -> None:
        """Agree, and see whether the weights of all ranks are equal."""
        self.agree(run, checksum_of(run))

    def agree(self, run: Run, checksum: int = 0) -> None:
        """Compare the paths, and make facts of what any rank asks for.

        Raises:
            RankFailed: If the ranks part, or one does not come.
        """
        agreed, at, buffer = self._run._agreed, run._position, run._buffer
        seq = buffer.seq
        samples = at.samples - agreed.samples
        own = _Said(self._hash(), seq, at.update, self._wanted(), samples, checksum, _kinds(run))
        rows = [_Said(*row) for row in self._group.exchange(own)]
        if len({(row.path, row.seq, row.update) for row in rows}) > 1:
            self._part()
        if len({row.checksum for row in rows}) > 1:
            refuse_unequal(run)
        if {1, 2} <= {kind for row in rows for kind in (row.kinds & 1, row.kinds & 2)}:
            raise RankFailed(MIXED)
        self._seen = seq
        agreed.number += 1
        at.samples = agreed.samples = agreed.samples + sum(row.samples for row in rows)
        for rank, row in enumerate(rows):
            self._group.bulletin.last[rank] = f"after update {row.update}"
        if self._first:
            self._first = False
            self._group.be_patient(self._patience)
        flags = 0
        for row in rows:
            flags |= row.requests
        if flags:
            agreed.names.clear()
            agreed.names.update(name for name, flag in self._flags.items() if flags & flag)
            if not self._may_pause():
                flags &= ~_PAUSE
            if flags & (_STOP | _PAUSE):
                self._settle(flags)
        elif agreed.names:
            agreed.names.clear()

    def _wanted(self) -> int:
        flags = 0
        for name in tuple(self._run._agreed.wanted):  # copied at once: the handler of a signal may add to them
            flags |= _VERBS[name]
        for name in tuple(self._run._position.asked):
            flags |= self._flags[name]
        return flags

    def _may_pause(self) -> bool:
        """Return whether a pause can be taken here: no checkpoint can hold the gradients that FSDP2 adds up.

        With remainder="carry" an epoch may end with an open window. The request stays, and is agreed on when that has
        closed.
        """
        return not (self._run._runtime.shards.any and self._run._position.window.steps)

    def _settle(self, flags: int) -> None:
        """End or pause the run on all ranks, for the reasons that were given; these take an exchange of their own."""
        own = self._run
        given = [json.loads(text) for text in self._group.gather(json.dumps(dict(own._agreed.wanted)).encode())]
        for verb, flag in _VERBS.items():
            if flags & flag:
                own._agreed.wanted.pop(verb, None)
                reason = _joint_reason([reasons.get(verb) for reasons in given])
                getattr(super(RanksRun, own), verb)(reason)

    def _hash(self) -> int:
        """Return 64 bits of the turns since the last agreement, the place, and what counts."""
        digest = blake2b(array("H", self._arcs(self._seen)), digest_size=8)
        digest.update(repr(self._counts()).encode())
        return int.from_bytes(digest.digest(), "little", signed=True)

    def _counts(self) -> list[Any]:
        at = self._run._position
        return [at.node, at.epoch, at.batch_index, at.step, at.update, at.skips, at.window.size, at.window.next_size]

    def _arcs(self, since: int) -> list[int]:
        """Return the numbers of the arcs taken from a transition on, as far as they are kept."""
        buffer = self._run._buffer
        arcs = buffer.arcs
        begins = buffer.seq - len(arcs)
        if since >= begins:
            return arcs[since - begins :]
        found: list[int] = []
        for chunk in buffer.view().chunks:  # packed since
            found += chunk.arcs()[max(since - chunk.seq, 0) :].tolist()
        return found

    def _part(self) -> None:
        """Raise that the ranks part, and where: all of them do, in the same turn."""
        since = max(self._run._buffer.seq - SHOWN, 0)
        mine = {
            "since": since,
            "arcs": self._arcs(since)[-SHOWN:],
            "counts": self._counts(),
            "skipped": self._run._position.skipped,
        }
        told = [json.loads(text) for text in self._group.gather(json.dumps(mine).encode())]
        raise RankFailed(f"the ranks part: {self._odd(told)}")

    def _odd(self, told: list[dict[str, Any]]) -> str:
        names = ("node", "epoch", "batch", "step", "update", "skips", "window", "next window")
        states = self._run.table.states
        lines = [
            f"rank {rank} is in {states[one['counts'][0]].name} with "
            + ", ".join(f"{name} {value}" for name, value in zip(names[1:], one["counts"][1:], strict=True))
            + f", skipped {one['skipped']}"
            for rank, one in enumerate(told)
        ]
        return "; ".join([*self._first_turns(told), *lines])

    def _first_turns(self, told: list[dict[str, Any]]) -> list[str]:
        """Return the first turn in which they differ, for each rank."""
        arcs = self._run.table.arcs
        paths = [{one["since"] + place: arc for place, arc in enumerate(one["arcs"])} for one in told]
        for seq in sorted(paths[0]):
            if len({path.get(seq, arc) for path in paths for arc in [paths[0][seq]]}) > 1:
                return [
                    f"rank {rank} took {_arc_in_words(arcs, path[seq])} in turn #{seq}"
                    for rank, path in enumerate(paths)
                ]
        return []


def _kinds(run: Run) -> int:
    """Return whether the steps of the newest window had weights, see `RanksWindow.kinds`."""
    window = cast("RanksWindow", run._position.window)
    return 1 if window.losses is None else window.kinds


def _arc_in_words(arcs: Sequence[Any], number: int) -> str:
    arc = arcs[number]
    return f"{arc.source} -> {arc.dest}" + (f" ({arc.guard})" if arc.guard else "")


def _joint_reason(reasons: list[str | None]) -> str:
    """Return why, and which ranks say so where not all do."""
    first = next(reason for reason in reasons if reason is not None)
    ranks = [str(rank) for rank, reason in enumerate(reasons) if reason is not None]
    if len(ranks) == len(reasons):
        return first
    return f"{first} (rank {', '.join(ranks)})"
