"""`Group`: this process among the ranks, the two planes on which they exchange something, and their bulletin.

Joined once a process, by the first engine that needs it; later engines use the same. Strategies call it, and the rooms
that see it as `Peers`. It is left at the exit of the interpreter, unless a rank has failed: then nobody is waited for.

Tensors of the network travel on the data plane. What the host must know travels on the control plane, always gloo on
the CPU: a sum that meets another operation on one group gives both ranks nonsense, or ends the process.
"""

from __future__ import annotations

import atexit
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, NoReturn
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from heptad.data.generators import derive
from heptad.errors import ConfigError, RankFailed, in_a_line
from heptad.ranks.bulletin import Bulletin

SHORT = 512
"""Bytes that are exchanged at once; what is longer takes a second exchange."""

CONTENT, NUMBERS, FAILED, PLACE = range(4)
"""What a rank exchanges; ranks that exchange different things are at different places of their paths."""

_HEAD = struct.Struct("<Bq")
"""What stands before it: which of these it is, and how many bytes follow."""

_dist: Any = dist
"""The same, of which torch declares stores and rendezvous in part only."""

MEETING = 0.5
"""Seconds after which rank 0 looks whether another process has come in place of one that does not answer."""

JOINING = timedelta(minutes=30)
"""How long the others may take until they are there: as torch waits."""


class _Frame(NamedTuple):
    """What one rank has given: what it is, how many bytes it has, and as many of them as went into the frame."""

    what: int
    size: int
    held: bytes


class Group:
    """The ranks of this process's runs.

    Args:
        rank: The number of this process.
        world: How many there are.
        store: Where they leave what others read, under names that no earlier attempt has used.
        before: The sockets that this process had before it began to join.

    Attributes:
        rank: See above.
        world: See above.
        bulletin: What a rank that fails leaves for the others.
        failed: Whether a rank has failed: nothing more can be exchanged.
        where: Returns where the run of this process is, in words.
    """

    def __init__(self, rank: int, world: int, store: Any, before: set[int]) -> None:
        self.rank, self.world, self.failed = rank, world, False
        self.where: Callable[[], str] = str
        of_the_store = _sockets()
        self._owns = not dist.is_initialized()  # else the script has joined the ranks, and leaves them
        if self._owns:
            dist.init_process_group(_backends(), store=store, rank=rank, world_size=world, timeout=JOINING)
        atexit.register(self._leave)
        self.data: Any = dist.group.WORLD
        self.control: Any = dist.new_group(backend="gloo", timeout=JOINING)
        self._sockets, self._opened = _sockets() - of_the_store, _sockets() - before
        os.register_at_fork(after_in_child=self._forget_in_child)
        _warn_no_more()
        self.bulletin = Bulletin(store, rank, world)

    def be_patient(self, seconds: float) -> None:
        """Give up waiting for others after so many seconds, on both planes."""
        timeout = timedelta(seconds=seconds)
        for plane in (self.data, self.control):
            _dist.distributed_c10d._set_pg_timeout(timeout, plane)

    # -- the control plane

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the whole numbers of each rank, by rank; all give equally many, 60 at most.

        Raises:
            RankFailed: If another rank does not take part, or exchanges something else.
        """
        form = struct.Struct(f"<{len(numbers)}q")
        rows = self._frames(form.pack(*numbers), NUMBERS, SHORT)
        self._refuse_other_things(rows)
        return [list(form.unpack(row.held[: form.size])) for row in rows]

    def gather(self, content: bytes) -> list[bytes]:
        """Return what each rank gave, by rank; one exchange, and a second where something is long.

        Raises:
            RankFailed: If another rank does not take part, or has failed in place of giving something.
        """
        rows = self._gather_all(content, CONTENT)
        if failed := [row.held.decode() for row in rows if row.what == FAILED]:
            raise RankFailed("; ".join(failed))
        return [row.held for row in rows]

    def add(self, sums: torch.Tensor) -> torch.Tensor:
        """Return the sum of a float64 tensor over the ranks, added in their order: the same bits on all.

        Raises:
            RankFailed: If another rank does not take part.
        """
        mine = sums.detach().to("cpu", torch.float64).contiguous()
        rows = [torch.frombuffer(bytearray(row), dtype=torch.float64) for row in self.gather(mine.numpy().tobytes())]
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total.reshape(mine.shape)

    def fail_together(self, error: BaseException, where: str = "") -> None:
        """Give an error in place of what the others gather next: they raise a `RankFailed`, and all can go on.

        Args:
            error: The error, which this rank raises.
            where: Where it was raised, such as `"in run.evaluate(data)"`.
        """
        if self.failed:
            return  # nobody gathers any more
        text = " ".join(filter(None, (f"rank {self.rank} failed", where)))
        with suppress(RankFailed):  # its own error says more
            self._gather_all(f"{text}: {in_a_line(error):.2000}".encode(), FAILED)

    def _gather_all(self, content: bytes, what: int) -> list[_Frame]:
        rows = self._frames(content, what, SHORT)
        if not any(row.what == FAILED for row in rows):
            self._refuse_other_things(rows)
        longest = max(row.size for row in rows)
        if longest > SHORT:
            rows = self._frames(content, what, longest)
        return [_Frame(row.what, row.size, row.held[: row.size]) for row in rows]

    def _refuse_other_things(self, rows: Sequence[_Frame]) -> None:
        """Say where each rank is, if they do not exchange the same: their paths part. All of them see it here."""
        if len({row.what for row in rows}) > 1:
            places = self._frames(self.where().encode()[:SHORT], PLACE, SHORT)
            where = [f"rank {rank} is {row.held[: row.size].decode()}" for rank, row in enumerate(places)]
            raise RankFailed(f"the ranks part: {'; '.join(where)}, and each waits for the others to be there too")

    def _frames(self, content: bytes, what: int, room: int) -> list[_Frame]:
        """Exchange one frame of a size that all know: gloo ends the process where sizes differ."""
        padded = _HEAD.pack(what, len(content)) + content[:room].ljust(room, b"\0")
        rows = torch.empty((self.world, len(padded)), dtype=torch.uint8)
        mine = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
        try:
            dist.all_gather(list(rows.unbind()), mine, group=self.control)
        except RuntimeError as error:
            self.explain(error)
        found = [row.numpy().tobytes() for row in rows]
        heads = [_HEAD.unpack_from(row) for row in found]
        return [_Frame(head[0], head[1], row[_HEAD.size :]) for head, row in zip(heads, found, strict=True)]

    # -- failures

    def explain(self, error: BaseException) -> NoReturn:
        """Raise, from what an exchange has failed with, which rank is why."""
        self.failed = True
        try:
            text = self.bulletin.read(self.where(), in_a_line(error))
        finally:
            self.hang_up()
        raise RankFailed(text) from error

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks that this one has failed, and wait until they have read it, 2 s at most.

        Where all of them fail at this place, nobody waits for anybody, and what comes next may use the group again.
        """
        if self.failed:
            return
        place = self.where()
        self.bulletin.post(place, error)
        if self.bulletin.all_fail(place):
            self.bulletin.turn_page()
            return
        self.failed = True
        self.hang_up()
        self.bulletin.wait_for_readers()

    def hang_up(self) -> None:
        """Shut the connections of the planes, so that a rank that waits for this one fails now.

        Torch has no call that does: an aborted group of gloo keeps its connections until the process ends.
        """
        for number in self._sockets:
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
                one.getpeername()  # raises for the one that listens, which gloo does not survive
                one.shutdown(socket.SHUT_RDWR)

    def _forget_in_child(self) -> None:
        """Close what a forked process has inherited.

        While a worker process holds them, the connections of a rank that was killed stay open, and the others wait.
        """
        self.failed = True
        atexit.unregister(self._leave)
        for number in self._opened:
            with suppress(OSError):
                os.close(number)

    def _leave(self) -> None:
        """Leave at the exit of the interpreter; nobody is waited for.

        Gloo's threads drop the tensors of an exchange when it is over, for which they need the interpreter: one that
        does so while that exits ends the process by SIGABRT. A plane that nobody else holds joins them here; one that
        FSDP2 or the script holds is given some time.
        """
        if self._owns and dist.is_initialized():
            dist.destroy_process_group()
        self.data = self.control = None
        sleep(0.05)


@cache  # the groups belong to the process, as torch's own do
def join_group() -> Group:
    """Return the group of this process; join the others if that was not done yet.

    Raises:
        ConfigError: If torchrun has not said which rank this process is.
        RankFailed: If the others do not come.
    """
    before = _sockets()
    if dist.is_initialized():  # by the script
        rank, world = dist.get_rank(), dist.get_world_size()
        store = _dist.PrefixStore("heptad", _dist.distributed_c10d._get_default_store())
        return Group(rank, world, store, before)
    try:
        store, rank, world = next(_dist.rendezvous("env://", timeout=JOINING))
    except (ValueError, KeyError) as error:
        raise ConfigError(
            "RunConfig.strategy 'ddp' and 'fsdp' take their ranks from torchrun, which has not started this process "
            f"({error}); run the script as torchrun --nproc-per-node 2 SCRIPT.py, or say strategy='auto'"
        ) from error
    except RuntimeError as error:
        raise RankFailed(f"the ranks could not meet at MASTER_ADDR and MASTER_PORT: {in_a_line(error)}") from error
    try:
        return Group(rank, world, _of_this_attempt(store, rank, world), before)
    except RuntimeError as error:
        raise RankFailed(f"rank {rank} of {world} could not join the others: {in_a_line(error)}") from error


def _of_this_attempt(store: Any, rank: int, world: int) -> Any:
    """Return the store under names of this attempt alone.

    Torchrun may keep its store over restarts, where new processes would read the addresses of dead ones. So each rank
    posts a word that it has drawn just now, and all meet under a name that rank 0 makes of the newest words. As long as
    one of these is that of a dead process nobody answers there, and rank 0 looks again.

    Raises:
        RankFailed: If they do not meet in time.
    """
    attempt = "/".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"))
    store = _dist.PrefixStore(f"heptad/{attempt}", store)
    word = uuid4().hex
    store.set(f"word/{rank}", word)
    deadline = monotonic() + JOINING.total_seconds()
    while monotonic() < deadline:
        if rank == 0:
            words = [store.get(f"word/{other}").decode() for other in range(world)]  # waits for each
            for one in words:
                store.set(f"name/{one}", derive("attempt", *words).to_bytes(8, "big").hex())
        own = _dist.PrefixStore(store.get(f"name/{word}").decode(), store)
        own.set(f"here/{rank}", "")
        look_again = monotonic() + MEETING
        while monotonic() < look_again:
            if own.check([f"here/{other}" for other in range(world)]):
                return own
            sleep(0.01)
    raise RankFailed(f"the {world} ranks did not meet within {JOINING.total_seconds():.0f} s")


def _backends() -> str:
    """Return what tensors travel by: NCCL those on CUDA, gloo all others."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _warn_no_more() -> None:
    """Let DDP say now, and to nobody, that find_unused_parameters may be slow: it says so once a process.

    The warning does not pass through Python; and this engine has a reason, see `Ddp.place`.
    """
    wrapped = DistributedDataParallel(nn.Linear(1, 1), find_unused_parameters=True)
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
            wrapped(torch.zeros(1, 1))
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _sockets() -> set[int]:
    """Return the numbers of this process's open sockets; none where the system does not show them."""
    found: set[int] = set()
    with suppress(OSError):
        for path in Path("/dev/fd").iterdir():
            with suppress(OSError, ValueError):
                if stat.S_ISSOCK(os.fstat(int(path.name)).st_mode):
                    found.add(int(path.name))
    return found
