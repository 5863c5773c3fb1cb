"""What the log says of checkpoints: that a run was resumed from one, that one was written, what became of its copies.

Emitted by `checkpoints` and by the plugin `Checkpoint`; the other events stand in `events.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from heptad.errors import counted
from heptad.record.events import Event


@dataclass(frozen=True, slots=True)
class Resume(Event):
    """The run was asked to resume. Its next transition is that of `seq`.

    Attributes:
        checkpoint: The name of the checkpoint; `None` where there was none yet, so that the run begins at its start.
        state: The state that the run is in.
    """

    kind = "resume"
    of_session = True

    checkpoint: str | None
    state: str

    @property
    def text(self) -> str:
        """From where."""
        if self.checkpoint is None:
            return "there is no checkpoint yet: the run begins at its start"
        return f"resumed from {self.checkpoint}, before #{self.seq} in {self.state}"


@dataclass(frozen=True, slots=True)
class StillDetached(Event):
    """A plugin was detached before the checkpoint was taken from which the run is resumed. It stays detached.

    Attributes:
        plugin: Its name.
    """

    kind = "resume"
    of_session = True

    plugin: str

    @property
    def text(self) -> str:
        """Which plugin."""
        return f"the plugin {self.plugin} was detached before the checkpoint was taken: it is called no more"


@dataclass(frozen=True, slots=True)
class OptionChange(Event):
    """An option of an optimizer is another one than in the checkpoint, as `allow_changes` permits.

    Attributes:
        optimizer: Which one: `optimizers[0]`, or `side/<name>`.
        group: The number of its parameter group.
        option: The name of the option.
        before: The value that the optimizer was built with in the run of the checkpoint, as text.
        after: The value that holds from now on, as text.
    """

    kind = "resume"

    optimizer: str
    group: int
    option: str
    before: str
    after: str

    @property
    def text(self) -> str:
        """Both values, in the words of the error that would refuse them."""
        return f"{self.optimizer}, group {self.group}: {self.option} {self.before} in the checkpoint, {self.after} here"


@dataclass(frozen=True, slots=True)
class Remark(Event):
    """What else is worth knowing of a run that is resumed, in words: damage passed over, what may change bits.

    Attributes:
        text: The words. Nothing is derived from them.
    """

    kind = "resume"
    of_session = True

    text: str = field()  # pyright: ignore[reportIncompatibleMethodOverride] - stored here, derived in the others


@dataclass(frozen=True, slots=True)
class Written(Event):
    """A checkpoint was written in the background; it is durable from `time_ns` on.

    Bound to the last transition before the run noticed it.

    Attributes:
        checkpoint: Its name.
        duration_ns: How long that took from the start of the thread, of several ranks until all had written and agreed;
            the removal of older checkpoints not included.
    """

    kind = "written"
    timed = True

    checkpoint: str
    duration_ns: int

    @property
    def text(self) -> str:
        """Which one, and how long it took."""
        return f"{self.checkpoint} was written in the background in {self.duration_ns / 1e9:.3f} s"


@dataclass(frozen=True, slots=True)
class MirrorFailed(Event):
    """The mirror of a directory of checkpoints failed; the run continues. Said once until it works again.

    Attributes:
        error: What failed, without credentials.
        missing: How many checkpoints are to be there and are not.
    """

    kind = "mirror"
    timed = True

    error: str
    missing: int

    @property
    def text(self) -> str:
        """What failed, and what follows."""
        return (
            f"the mirror failed, and the run continues: {self.error}; it lacks {counted(self.missing, 'checkpoint')}, "
            "and is tried again at later saves"
        )


@dataclass(frozen=True, slots=True)
class MirrorRestored(Event):
    """A mirror that had failed works again, and holds what it is to hold."""

    kind = "mirror"
    timed = True

    @property
    def text(self) -> str:
        """That."""
        return "the mirror works again, and lacks no checkpoint"


@dataclass(frozen=True, slots=True)
class NotMirrored(Event):
    """A run ended or paused, and checkpoints are in its directory alone.

    Attributes:
        error: Why: what failed last.
        missing: How many.
    """

    kind = "mirror"
    timed = True

    error: str
    missing: int

    @property
    def text(self) -> str:
        """How many, and why."""
        return f"{counted(self.missing, 'checkpoint')} not mirrored, kept in the directory alone: {self.error}"
