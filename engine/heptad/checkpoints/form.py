"""The form of a checkpoint of a run: `capture` builds these models, `restore` reads them.

A field is named here and nowhere else; on disk it has the same name, or its alias. Digests say that the files are what
was written, not that a run wrote it, so all of it is validated before anything is used. Fields that came after version
0.1.0 have defaults and unknown ones are ignored, so that every checkpoint can be read.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Annotated, Any, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from heptad.checkpoints.stored_types import (
    MOST,
    ArcRow,
    Count,
    EventRow,
    FilterRow,
    Key,
    Losses,
    Number,
    Plain,
    RandomStates,
    RowOfFormat1,
    Scalar,
    Size,
    State,
    Weighed,
    check_column,
    shown,
)
from heptad.data import generators as seeding
from heptad.errors import CheckpointError, in_a_line
from heptad.record.values import Columns
from heptad.run.snapshot import Snapshot


class Stored(BaseModel):
    """A part of a checkpoint."""

    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True, populate_by_name=True)

    def plain(self) -> dict[str, Any]:
        """Return the fields by their names on disk, models as dicts.

        `model_dump` would go into the values as well: a Counter in the state of a plugin would become a dict.
        """
        fields = type(self).model_fields
        return {field.serialization_alias or name: _plain_value(getattr(self, name)) for name, field in fields.items()}


def _plain_value(value: Any) -> Any:
    """Return a field's value with its models as dicts: one, or a list or dict of them."""
    match value:
        case Stored():
            return value.plain()
        case [Stored(), *_]:
            return [_plain_value(part) for part in cast("list[Any]", value)]
        case dict() if any(isinstance(part, Stored) for part in cast("dict[str, Any]", value).values()):
            return {name: _plain_value(part) for name, part in cast("dict[str, Any]", value).items()}
        case _:
            return value


class StoredSummary(Stored):
    """What is known of a checkpoint without reading its tensors.

    Attributes:
        run: The run's id.
        seq: The number of its next transition.
        state: Where it is, as users see it.
        epoch: Complete epochs; `step` and `update` likewise.
        time: When the checkpoint was taken, in seconds since 1970.
    """

    run: str
    seq: Count
    state: str
    epoch: Count
    step: Count
    update: Count
    time: float


class StoredBeginning(Stored):
    """What a module was before the first turn: its submodules, and the buffers that had no tensor yet."""

    parts: dict[str, str]
    awaited: list[str]


class StoredModule(Stored):
    """A module with state.

    Attributes:
        tensors: Parameters and buffers by name, tied ones under each name.
        not_persistent: The buffers that a state_dict leaves out.
        parts: The class and options of each submodule, as text.
        training: The mode of each submodule.
        requires_grad: By parameter.
        extra: What `get_extra_state` returned, by submodule.
        first: What the module was before the first turn.
        classes: The class of each submodule.
    """

    tensors: dict[str, Tensor]
    not_persistent: list[str] = []
    parts: dict[str, str]
    training: dict[str, bool]
    requires_grad: dict[str, bool]
    extra: dict[str, Any]
    first: StoredBeginning | None = None
    classes: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_its_parts(self) -> Self:
        if not (self.training.keys() | self.extra.keys() | self.classes.keys()) <= self.parts.keys():
            raise ValueError("training and extra speak of parts that there are not")
        if not self.classes:  # written before this field came: the text begins with the class
            self.classes = {name: text.partition("(")[0] for name, text in self.parts.items()}
        return self


class StoredOptimizer(Stored):
    """An optimizer: its class, the names of its parameters by group, and its `state_dict`."""

    kind: str = Field(validation_alias="class", serialization_alias="class")
    parameters: list[list[str]]
    state: State


class StoredOptimizers(Stored):
    """The optimizers, with the parameters that only they hold, and the gradients of the open window.

    Attributes:
        states: In their order.
        side: The side optimizers by name.
        held: Parameters that no module holds.
        gradients: By parameter.
    """

    states: list[StoredOptimizer]
    side: dict[str, StoredOptimizer] = {}
    held: dict[str, Tensor]
    gradients: dict[str, Tensor]


class StoredPlugin(Stored):
    """A plugin that is not detached."""

    kind: str = Field(validation_alias="class", serialization_alias="class")
    observes: Plain
    state: State


class StoredIdentity(Stored):
    """What a run must be to be resumed; the number of its ranks came with format 2."""

    world: Count = 1
    config: dict[str, Plain]
    arcs: list[ArcRow]
    data: dict[str, Plain]

    @model_validator(mode="after")
    def _has_limits_that_are_numbers(self) -> Self:
        if not isinstance(self.config.get("max_updates"), int | None):
            raise ValueError("config: max_updates is no number")
        if not isinstance(self.config.get("accumulation", 1), int):
            raise ValueError("config: accumulation is no number")
        return self


class StoredCounters(Stored):
    """The fields of `RunState` that are stored as they are; the last two came later."""

    epoch: Count
    batch_index: Count
    step: Count
    update: Count
    samples: Count
    epoch_open: bool
    pass_index: Count
    remaining: Count
    sized: bool
    extending: bool
    samples_now: Count
    skipped: bool
    skips: Count = 0
    idle: bool = False


class StoredWindow(Stored):
    """The fields of `Window`; the last four came later."""

    steps: Count
    size: Size
    next_size: Size
    resized: bool
    first: Weighed
    total: Weighed
    empty: bool = False
    losses: Losses = None
    closed: Losses = None
    reference: Weighed = None

    @model_validator(mode="after")
    def _holds_its_steps(self) -> Self:
        if self.steps > self.size:
            raise ValueError(f"a window of {self.size} steps holds {self.steps}")
        if self.total is None:
            raise ValueError("the steps of the window have no sum")
        return self


class StoredOptions(Stored):
    """What an optimizer was built with: its class, and the plain options of each parameter group."""

    kind: str = Field(validation_alias="class", serialization_alias="class")
    groups: list[dict[str, Plain]]


class StoredKept(Stored):
    """What was kept of the open window, to compute it again; the fields of `KeptWindow`."""

    batches: list[Any]
    loss: Scalar | None
    idle: list[Count] = []


class StoredRedo(Stored):
    """What a redo of windows needs; the fields of `Redoing`, of the open window where one is.

    Attributes:
        halvings: How often batches are cut in half.
        random: States of the global generators before each step.
        buffers: What those that have changed held when the window opened.
    """

    halvings: Annotated[int, Field(ge=0, le=62)]
    random: list[RandomStates]
    buffers: dict[str, Tensor]


class StoredAgreed(Stored):
    """What the ranks have agreed on, and what one of them has asked for since; the fields of `Agreed`."""

    samples: Count
    names: list[str]
    stop: str | None
    mean_loss: Scalar | None
    epoch: Count | None
    epoch_loss: Scalar | None


class StoredPosition(Stored):
    """Where a run is.

    Attributes:
        id: The run's id.
        seq: The number of the next transition.
        node: The state in the table.
        body_done: The checkpoint was taken in this state's body, which is not run again.
        placed: The counters.
        window: The open window.
        loss: Of the newest step.
        batch: The batch of the step, or nothing.
        kept: What was kept of the open window; `None` where nothing computes it again.
        redo: What a redo needs; `None` where none is asked for.
        stopped: A stop was asked for.
        reason: Why the run ends.
        seed: Of the order of the data.
        optimizers: What each was built with.
        side_optimizers: What each side optimizer was built with.
        visits: The count of each detour when it last ran.
        filters: Plugin and method, moment, state, `every`, `once`, `first` where it was given; events counted, and
            whether `once` is done.
        notes: What format 1 had in place of events: seq, kind, words and time of each.
        events: The events of the next transition, as plain data.
        epoch_loss: The sums that the mean loss of the epoch is taken from.
        asked: What the process asks for, see `Run.ask`.
        agreed: What the ranks have agreed on; `None` of a process alone.
        frozen: Parameters of the network that took no gradient when the optimizers were built; `None` where that was
            not stored.
    """

    id: str
    seq: Count
    node: str
    body_done: bool
    placed: StoredCounters
    window: StoredWindow
    loss: Scalar | None
    batch: Annotated[list[Any], Field(max_length=1)]
    kept: StoredKept | None = None
    redo: StoredRedo | None = None
    stopped: bool
    reason: str | None
    seed: Annotated[int, Field(ge=-MOST * 4, le=MOST * 4)]
    optimizers: list[StoredOptions]
    side_optimizers: dict[str, StoredOptions] = {}
    visits: list[Count]
    filters: list[FilterRow]
    notes: list[RowOfFormat1] = []
    events: list[EventRow] = []
    epoch_loss: Annotated[list[Number], Field(max_length=4)] = []
    asked: list[str] = []
    agreed: StoredAgreed | None = None
    frozen: list[str] | None = None

    @model_validator(mode="after")
    def _counts_what_it_did(self) -> Self:
        placed = self.placed
        if self.agreed is not None and self.agreed.samples > placed.samples:
            raise ValueError(f"a rank counts {placed.samples} samples, and all together {self.agreed.samples}")
        if len(self.epoch_loss) not in (0, 4):
            raise ValueError(f"the loss of the epoch is four sums, got {len(self.epoch_loss)}")
        if placed.update + placed.skips > placed.step or placed.batch_index > placed.step:
            raise ValueError(
                f"{placed.step} steps make neither {placed.update} updates nor {placed.batch_index} batches"
            )
        if self.kept is not None and len(self.kept.batches) > self.window.steps:
            raise ValueError(f"{len(self.kept.batches)} batches were kept of {self.window.steps} steps")
        kept = 0 if self.kept is None else len(self.kept.batches)
        if self.redo is not None and self.redo.random and not len(self.redo.random) == kept == self.window.steps:
            raise ValueError(
                f"of {self.window.steps} steps {kept} batches and {len(self.redo.random)} states were kept"
            )
        return self


class StoredValues(Stored):
    """The recorded values, by column; `place` has four numbers for each."""

    names: list[str]
    name: Tensor
    value: Tensor
    place: Tensor

    @classmethod
    def of(cls, values: Columns) -> Self:
        """Return columns as tensors, which a checkpoint stores whole."""
        return cls(
            names=values.names,
            name=torch.tensor(values.name, dtype=torch.int64),
            value=torch.tensor(values.value, dtype=torch.float64),
            place=torch.tensor(values.place, dtype=torch.int64),
        )

    def columns(self) -> Columns:
        """Return what `of` was given."""
        name, value, place = (cast("list[Any]", column.tolist()) for column in (self.name, self.value, self.place))
        return Columns(self.names, array("I", name), array("d", value), array("q", place))

    @model_validator(mode="after")
    def _are_columns(self) -> Self:
        for column, dtype in (("name", torch.int64), ("value", torch.float64), ("place", torch.int64)):
            check_column(getattr(self, column), dtype, column)
        rows = self.name.numel()
        if self.value.numel() != rows or self.place.numel() != 4 * rows:
            raise ValueError("the columns of recorded values differ in length")
        if rows and not 0 <= int(self.name.min()) <= int(self.name.max()) < len(self.names):
            raise ValueError("a recorded value has no name")
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise ValueError("recorded values have one name twice, or an empty one")
        place = self.place.view(-1, 4)
        if rows and (int(self.place.min()) < 0 or int(self.place.max()) > MOST or not _is_sorted(place[:, 0])):
            raise ValueError("the places of recorded values are in no order")
        return self


def _is_sorted(column: Tensor) -> bool:
    return bool((column[1:] >= column[:-1]).all())


class GroupPlace(Stored):
    """The step of a pass that several ranks are at, each of which reads all batches, or a part of its own.

    Attributes:
        world: How many they are.
        key: The pass of steps.
        taken: Steps made in it.
        reads: The pass over the data that is read, which a step may have begun early.
        crossed: A step has.
        states: Of the generators under which all ranks read; `None` where nothing draws, or nothing was read.
        walked: Of parts: epoch, pass and steps of each pass of steps that is to be made again.
    """

    world: Size
    key: Key
    taken: Count
    reads: Annotated[list[int], Field(min_length=3, max_length=3)]
    crossed: bool = False
    states: dict[str, Any] | None = None
    walked: list[Annotated[list[Count], Field(min_length=3, max_length=3)]] = []


class IteratorPlace(Stored):
    """A place in an iterator: the data room writes it, and so the two below."""

    walks: Count
    taken: Count
    open: bool
    began: list[Any] = []
    generators: list[Any] = []
    samplers: list[Any] | None = None
    varies: bool = False
    group: GroupPlace | None = None


class WalkPlace(IteratorPlace):
    """A place in an iterator of unknown length."""

    batches: None = None


class LoaderPlace(IteratorPlace):
    """A place in a loader with a length; `own` is what its `state_dict` returned. Older ones lack `batches`: -1."""

    own: Any
    batches: Count = -1


class DatasetPlace(Stored):
    """A place in the engine's own order of a dataset. Older ones lack `samples`: -1."""

    open: bool
    key: Key
    next: Count
    stop: Count
    generators: list[Any]
    samples: Count = -1
    varies: bool = False
    world: Size = 1

    @model_validator(mode="after")
    def _lies_in_the_pass(self) -> Self:
        if self.next > self.stop:
            raise ValueError(f"the next batch is {self.next}, behind the last of the pass, {self.stop}")
        return self


class StreamPlace(Stored):
    """A place in data of unknown length, and the batch that was read ahead."""

    key: Key
    taken: Count
    walk: WalkPlace
    waits: bool
    ahead: Annotated[list[Any], Field(max_length=1)]
    failed: bool

    @model_validator(mode="after")
    def _holds_the_batch_that_waits(self) -> Self:
        if self.ahead and not self.waits:
            raise ValueError("a batch was read ahead, and none waits")
        return self


class StoredScaler(Stored):
    """The loss scale of a run in fp16, and the number of finite updates since it last changed."""

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    growth: Count


class StoredRun(Stored):
    """The section `run`: what is neither a module nor an optimizer nor a plugin."""

    identity: StoredIdentity
    environment: dict[str, Plain]
    position: StoredPosition
    detached: list[str] = []
    data: dict[str, Any]
    values: StoredValues
    random: RandomStates
    scaler: StoredScaler | None = None

    @model_validator(mode="after")
    def _scales_in_fp16_alone(self) -> Self:
        fp16 = self.identity.config.get("precision") == "fp16-mixed" and self.position.node != "before_loop"
        if fp16 is not (self.scaler is not None):
            raise ValueError("a run in fp16-mixed, and no other, has a loss scale from before_loop on")
        return self

    @model_validator(mode="after")
    def _fits_its_data(self) -> Self:
        now = {name.removesuffix(" now"): number for name, number in self.identity.data.items()}  # these come last
        batches = now.get("batches")
        if batches is None and "samples" not in now:
            StreamPlace.model_validate(self.data)
        elif "samples" not in now:
            if LoaderPlace.model_validate(self.data).batches not in (-1, batches):
                raise ValueError("the pass is not as long as the data")
        else:
            place = DatasetPlace.model_validate(self.data)
            if not isinstance(batches, int) or place.stop > batches or place.samples not in (-1, now["samples"]):
                raise ValueError("the pass is longer than the data")
        return self


class StoredSections(Stored):
    """All sections. A module that a run has not has no section."""

    network: StoredModule | None = None
    criterion: StoredModule | None = None
    compute_loss: StoredModule | None = None
    optimizers: StoredOptimizers
    plugins: dict[str, StoredPlugin]
    run: StoredRun

    @model_validator(mode="after")
    def _says_what_side_optimizers_were_built_with(self) -> Self:
        if self.optimizers.side.keys() != self.run.position.side_optimizers.keys():
            raise ValueError("the side optimizers are not those whose options are stored")
        return self

    def module(self, name: str) -> StoredModule | None:
        """Return the module of a section."""
        return {"network": self.network, "criterion": self.criterion, "compute_loss": self.compute_loss}[name]

    def plain(self) -> dict[str, Any]:
        """Return the sections that there are."""
        return {name: section for name, section in super().plain().items() if section is not None}


def read_form(path: Path, snapshot: Snapshot) -> tuple[StoredSummary, StoredSections]:
    """Return the summary and the sections of a snapshot as models.

    Raises:
        CheckpointError: If it is not the snapshot of a run, with the path and the first thing that is wrong.
    """
    try:
        summary = StoredSummary.model_validate(snapshot.summary)
        sections = StoredSections.model_validate(snapshot.sections)
        if sections.run.identity.world != snapshot.world:
            raise ValueError(f"{snapshot.world} ranks wrote it, and the run had {sections.run.identity.world}")
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"])) or "the whole"
        raise _refusal(path, f"{place[:200]}: {found['msg']}, got {shown(found['input'])}") from error
    except Exception as error:  # a validator met a value that it was not made for
        raise _refusal(path, in_a_line(error)) from error
    try:
        # Only a generator knows which states it accepts, so each is set, and then put back. An accelerator's are not
        # tried: `preserved` puts back those of the CPU only.
        with seeding.preserved():
            redo, tried = sections.run.position.redo, seeding.CPU_GENERATORS
            for states in (sections.run.random, *(() if redo is None else redo.random)):
                seeding.check_states(states)
                seeding.restore_states({name: state for name, state in states.items() if name in tried})
    except Exception as error:
        raise _refusal(path, f"run.random: {in_a_line(error)}") from error
    return summary, sections


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is sound, but it is not the checkpoint of a run: {what}; nothing was changed. Resume from another "
        "checkpoint, or load the weights with load_weights"
    )
