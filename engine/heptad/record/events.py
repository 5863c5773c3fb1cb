"""Events: the rare facts of a run, each bound to a transition. They are data, and words only when shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from heptad.errors import counted
from heptad.record.arrays import unpack_array
from heptad.record.chunk import Failure

_SHOWN = 100
"""Numbers in an array that is shown in words."""


@dataclass(frozen=True, slots=True)
class Event(ABC):
    """A rare fact, bound to the transition in whose turn it came.

    Attributes:
        kind: What `TransitionLog.notes(kind)` selects by.
        seq: The number of that transition.
        time_ns: When, on the clock of `Transition.time_ns`.
        timed: Whether its place in the log depends on the clock, so that two equal runs may differ in it.
        of_session: Whether it is about the process that drives the run and not about the run: it was paused, or
            resumed. A run that was killed and resumed equals one that nothing disturbed in all other events.
        rank: The process in whose log it stands; set where a log is asked, stored nowhere.
    """

    kind: ClassVar[str]
    timed: ClassVar[bool] = False
    of_session: ClassVar[bool] = False

    seq: int
    time_ns: int
    rank: int = field(default=0, kw_only=True, repr=False)

    @property
    @abstractmethod
    def text(self) -> str:
        """The event in words, for people. No answer is derived from them."""

    def __str__(self) -> str:
        return f"#{self.seq} {f'rank {self.rank} ' if self.rank else ''}{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Stop(Event):
    """A stop was asked for: the run ends in order when its window closes.

    Attributes:
        reason: What `Run.stop` was given.
    """

    kind = "stop"

    reason: str

    @property
    def text(self) -> str:
        """The reason."""
        return self.reason


@dataclass(frozen=True, slots=True)
class Pause(Event):
    """The run paused at the end of this turn.

    Attributes:
        reason: What `Run.pause` was given, or what `until=` or `advance` paused for.
        requested: The transition in whose turn `Run.pause` was called; `None` for `until=` and `advance`, and in a log
            of format 1, which does not say.
    """

    kind = "pause"
    of_session = True

    reason: str
    requested: int | None = None

    @property
    def text(self) -> str:
        """The reason."""
        return self.reason


@dataclass(frozen=True, slots=True)
class Extend(Event):
    """An epoch began a further pass over the data.

    Attributes:
        epoch: The number of the epoch, from 0.
        steps: Steps that its last window lacked.
    """

    kind = "extend"

    epoch: int
    steps: int

    @property
    def text(self) -> str:
        """How far the epoch is extended, and why."""
        return f"epoch {self.epoch} is extended by {counted(self.steps, 'step')} to fill its last window"


@dataclass(frozen=True, slots=True)
class Skip(Event):
    """The update that was just entered is skipped.

    Attributes:
        reason: What `Run.skip_update` was given first.
    """

    kind = "skip"

    reason: str

    @property
    def text(self) -> str:
        """The reason."""
        return self.reason


@dataclass(frozen=True, slots=True)
class SkipBatch(Event):
    """The step under way is left out of its window.

    Attributes:
        reason: What `Run.skip_batch` was given first.
    """

    kind = "skip_batch"

    reason: str

    @property
    def text(self) -> str:
        """The reason."""
        return self.reason


@dataclass(frozen=True, slots=True)
class Halved(Event):
    """Memory ran out in a step, and its window was computed again with smaller parts of each batch.

    Attributes:
        step: The number of the step, from 0.
        before: How often batches were cut in half until then.
        halvings: How often they are from now on.
        samples: Samples in the largest part.
        error: What ran out of memory, in a line.
        unequal: Why the update is not that of whole batches, but for rounding; empty where it is.
    """

    kind = "redo"

    step: int
    before: int
    halvings: int
    samples: int
    error: str
    unequal: str = ""

    @property
    def text(self) -> str:
        """What was done, and what it changes."""
        caution = f"; the update is not that of whole batches: {self.unequal}" if self.unequal else ""
        return (
            f"out of memory in step {self.step}: the window was computed again, with batches cut in half "
            f"{counted(self.halvings, 'time')}, {counted(self.samples, 'sample')} at most, as from now on{caution} "
            f"({self.error})"
        )


@dataclass(frozen=True, slots=True)
class Repeated(Event):
    """The loss or a gradient of a window was not finite, and it was computed again.

    Attributes:
        outcome: `"finite"`: the fault was transient, and the second gradients are used; `"equal"`: the same bits, so it
            is the data or the network; `"unequal"`: not finite again, in other bits.
        micro_batch: The first step of the window, from 0, after which something was not finite the second time.
        step: The number of that step in the run, from 0.
    """

    kind = "redo"

    outcome: str
    micro_batch: int | None = None
    step: int | None = None

    @property
    def text(self) -> str:
        """What that means, and what to look at."""
        begin = "loss or gradients of the window were not finite; computed again, they are "
        if self.outcome == "finite":
            return f"{begin}finite: the fault was transient, of the device or of a kernel, and they are used"
        where = f"first in micro-batch {self.micro_batch} of the window, step {self.step}"
        if self.outcome == "equal":
            return f"{begin}the same, bit for bit, {where}: look at its data and at the network"
        return (
            f"{begin}not finite either, but other bits, {where}: a kernel is not deterministic "
            "(RunConfig.deterministic=True) or the device is faulty"
        )


@dataclass(frozen=True, slots=True)
class Drop(Event):
    """An epoch makes no update, because `remainder="drop"` leaves all of its batches out.

    Attributes:
        epoch: The number of the epoch, from 0.
        batches: How many batches it has.
        window: How many a window takes.
    """

    kind = "drop"

    epoch: int
    batches: int
    window: int

    @property
    def text(self) -> str:
        """Both numbers."""
        return f"epoch {self.epoch} makes no update: {self.batches} of {self.window} batches of a window"


@dataclass(frozen=True, slots=True)
class Detach(Event):
    """A plugin with `on_error="detach"` raised an exception. It is not called again, but for its `close`.

    Attributes:
        plugin: Its name.
        handler: What raised: plugin and method, the body of its detour, or its guard.
        error: The exception in a line.
        moment: `"enter"` or `"exit"` for a handler, `"body"`, `"guard"`; empty for another method of the plugin.
    """

    kind = "detach"

    plugin: str
    handler: str
    error: str
    moment: str = ""

    @property
    def text(self) -> str:
        """What raised which exception."""
        return f"{self.handler} raised {self.error}; {self.plugin} is called no more"


@dataclass(frozen=True, slots=True)
class Untrained(Event):
    """Updates train nothing, or not all that they did.

    Attributes:
        found: Which parameters the updates do not reach any more; empty where no parameter that the optimizers hold has
            a gradient, in the first update of the run or the last one of a pass.
    """

    kind = "untrained"

    found: str = ""

    @property
    def text(self) -> str:
        """What that means, and what to look at."""
        return self.found or (
            "no parameter that the optimizer holds has a gradient, the loss does not depend on them: does compute_loss "
            "use the network that it is given, and does the optimizer hold the layers that this has now?"
        )


@dataclass(frozen=True, slots=True)
class Unverified(Event):
    """Something that this run does on its device was never seen to work there by a run of the GPU tests.

    Attributes:
        what: A value of `RunConfig`, or the field if its value has no name; `"training"` for what every run does.
        device: The type of the device.
    """

    kind = "unverified"

    what: str
    device: str

    @property
    def text(self) -> str:
        """What, and where."""
        return f"{self.what} on {self.device}: not verified by this version"


@dataclass(frozen=True, slots=True)
class Behind(Event):
    """The file of the log is as far behind the run as it may be: from here on the run waits for it to be written.

    Attributes:
        transitions: How many wait.
    """

    kind = "behind"
    timed = True

    transitions: int

    @property
    def text(self) -> str:
        """What waits, and what to do."""
        return (
            f"{self.transitions:,} transitions wait to be written to the journal, which is as many as may: the run now "
            "waits for its disk; put the journal on a faster one, or record less"
        )


@dataclass(frozen=True, slots=True)
class Compilation(Event):
    """What `RunConfig.compile` took, up to the first step of the network.

    Attributes:
        blocks: How many parts of the network are compiled one by one.
        graphs: How many graphs torch compiled for them: blocks of one class share one where torch can tell them equal.
        seconds: How long it took, the backward pass included.
    """

    kind = "compile"
    timed = True

    blocks: int
    graphs: int
    seconds: float

    @property
    def text(self) -> str:
        """What was compiled, and how long it took."""
        if not self.graphs:
            return (
                f"torch compiled nothing for {counted(self.blocks, 'block')}: it had in this process already, or the "
                "loss does not call them"
            )
        blocks, graphs = counted(self.blocks, "block"), counted(self.graphs, "compilation")
        return f"{blocks} took {graphs} and {self.seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class Recompilation(Event):
    """Torch compiled again while the run was driven: for other shapes, another mode, other types.

    Attributes:
        graphs: How many graphs, since the event before.
        seconds: How long it took.
        total: Graphs that were compiled again since the run began, or was resumed.
        reason: Why, in torch's words: how what it met differs from what it had compiled for.
    """

    kind = "compile"
    timed = True

    graphs: int
    seconds: float
    total: int
    reason: str

    @property
    def text(self) -> str:
        """What was compiled again, and why."""
        graphs = counted(self.graphs, "recompilation")
        return f"{graphs} in {self.seconds:.3g} s, {self.total} so far: {self.reason}"


@dataclass(frozen=True, slots=True)
class Uncompiled(Event):
    """Torch gave up compiling a part, which is run as it is from here on.

    Attributes:
        reason: Why, in torch's words.
    """

    kind = "compile"
    timed = True

    reason: str

    @property
    def text(self) -> str:
        """What that means, and why."""
        return f"torch runs a part of the network as it is, not compiled: {self.reason}"


@dataclass(frozen=True, slots=True)
class NoUpdate(Event):
    """Windows were closed, and none of them made an update; after a thousand of these, and where the run ends.

    Attributes:
        windows: How many.
    """

    kind = "untrained"

    windows: int

    @property
    def text(self) -> str:
        """What that means, and what to look at."""
        return (
            f"{counted(self.windows, 'window')} closed, and no update made: each step weighs 0 or gives no loss, or "
            "each update is skipped; does compute_loss ever return a loss, are all targets ignored?"
        )


@dataclass(frozen=True, slots=True)
class SharedGenerators(Event):
    """Another engine drove a run, or evaluated in another thread, in this process at the same time.

    Attributes:
        thread: Which thread did, in words.
    """

    kind = "shared"

    thread: str

    @property
    def text(self) -> str:
        """What promise does not hold."""
        return (
            f"another engine drives a run or evaluates in this process at the same time, in {self.thread}: both seed, "
            "draw from and restore the global random generators, so that what this run draws at random (dropout, "
            "random transforms, the order of a loader) is no function of its seed, and resuming it is not bit-exact; "
            "give each run a process of its own"
        )


@dataclass(frozen=True, slots=True)
class Note(Event):
    """What a handler noted.

    Attributes:
        text: What `Run.note` was given.
    """

    kind = "note"

    text: str = field()  # pyright: ignore[reportIncompatibleMethodOverride] - as in Remark


@dataclass(frozen=True, slots=True)
class RecordedArray(Event):
    """An array was recorded under a name, such as a confusion matrix.

    Attributes:
        name: The name.
        data: The array in NumPy's `.npy` format, deflated, as base64: exact, and plain text in a file.
    """

    kind = "array"

    name: str
    data: str

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The array."""
        return unpack_array(self.data)

    @property
    def text(self) -> str:
        """The name, with the numbers where they are few."""
        array = self.array
        return f"{self.name} is {array.tolist() if array.size <= _SHOWN else f'an array of shape {array.shape}'}"


@dataclass(frozen=True, slots=True)
class Accumulation(Event):
    """Windows hold another number of steps, from the next one on.

    Attributes:
        before: Steps in a window until then.
        after: Steps in a window from then on.
    """

    kind = "accumulation"

    before: int
    after: int

    @property
    def text(self) -> str:
        """Both numbers."""
        return f"{self.before} -> {self.after} from the next window on"


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The run failed.

    Attributes:
        failure: Where, and with which exception.
    """

    kind = "failure"

    failure: Failure

    @property
    def text(self) -> str:
        """The exception and where it was raised."""
        return f"{self.failure.error} {self.failure}"
