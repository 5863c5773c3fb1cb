"""The form of what a checkpoint of a run holds: checked whole before anything of it is used.

Digests say that the files are what was written, not that a run wrote it. Fields that came after version 0.1.0 have
defaults, and further ones are left alone, so that every checkpoint of the format can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from heptad.data import generators as seeding
from heptad.errors import CheckpointError
from heptad.record.event_codec import from_plain
from heptad.run.snapshot import Snapshot

Whole = Annotated[int, Field(ge=0)]
Key = Annotated[list[int], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)


class _Summary(_Part):
    seq: Whole


class _First(_Part):
    parts: dict[str, str]
    awaited: list[str]


class _Module(_Part):
    tensors: dict[str, Tensor]
    parts: dict[str, str]
    training: dict[str, bool]
    requires_grad: dict[str, bool]
    extra: dict[str, Any]
    first: _First | None = None

    @model_validator(mode="after")
    def _speaks_of_its_parts(self) -> Self:
        if not (self.training.keys() | self.extra.keys()) <= self.parts.keys():
            raise ValueError("training and extra speak of parts that there are not")
        return self


class _Optimizer(_Part):
    parameters: list[list[str]]
    state: Any
    kind: str = Field(alias="class")


class _Optimizers(_Part):
    states: list[_Optimizer]
    held: dict[str, Tensor]
    gradients: dict[str, Tensor]


class _Plugin(_Part):
    observes: Any
    state: Any
    kind: str = Field(alias="class")


class _Identity(_Part):
    config: dict[str, Any]
    arcs: list[Annotated[list[str | None], Field(min_length=3, max_length=3)]]
    data: dict[str, Any]


class _Placed(_Part):
    epoch: Whole
    batch_index: Whole
    step: Whole
    update: Whole
    samples: Whole
    epoch_open: bool
    pass_index: Whole
    remaining: Whole
    sized: bool
    extending: bool
    samples_now: Whole
    skipped: bool


class _Window(_Part):
    steps: Whole
    size: Annotated[int, Field(ge=1)]
    next_size: Annotated[int, Field(ge=1)]
    resized: bool
    first: Any
    total: Any


class _Built(_Part):
    groups: list[dict[str, Any]]
    kind: str = Field(alias="class")


def _row_of_format_1(row: list[Any]) -> list[Any]:
    """Check a row that stands for an event: its transition, kind, words and time."""
    if list(map(type, row)) != [int, str, str, int]:
        raise ValueError("an event of format 1 has a number, two texts and a number")
    return row


class _Position(_Part):
    id: str
    seq: Whole
    node: str
    body_done: bool
    placed: _Placed
    window: _Window
    loss: Tensor | None
    batch: Annotated[list[Any], Field(max_length=1)]
    stopped: bool
    reason: str | None
    seed: int
    optimizers: list[_Built]
    visits: list[int]
    filters: list[Annotated[list[Any], Field(min_length=7, max_length=7)]]
    notes: list[Annotated[list[Any], AfterValidator(_row_of_format_1)]] = []
    events: list[Annotated[dict[str, Any], AfterValidator(from_plain)]] = []


class _Values(_Part):
    names: list[str]
    name: Tensor
    value: Tensor
    place: Tensor

    @model_validator(mode="after")
    def _are_columns(self) -> Self:
        rows = self.name.numel()
        if self.value.numel() != rows or self.place.numel() != 4 * rows:
            raise ValueError("the columns of recorded values differ in length")
        if rows and not 0 <= int(self.name.min()) <= int(self.name.max()) < len(self.names):
            raise ValueError("a recorded value has no name")
        return self


class _Walk(_Part):
    """Of a loader, or of an iterable dataset."""

    walks: Whole
    taken: Whole
    open: bool
    began: list[Any] = []
    generators: list[Any] = []
    samplers: list[Any] | None = None


class _OfDataset(_Part):
    open: bool
    key: Key
    next: Whole
    stop: Whole
    generators: list[Any]

    @model_validator(mode="after")
    def _lies_in_the_pass(self) -> Self:
        if self.next > self.stop:
            raise ValueError(f"the next batch is {self.next}, behind the last of the pass, {self.stop}")
        return self


class _OfLoader(_Walk):
    own: Any


class _OfStream(_Part):
    key: Key
    taken: Whole
    walk: _Walk
    waits: bool
    ahead: Annotated[list[Any], Field(max_length=1)]
    failed: bool


class _Run(_Part):
    identity: _Identity
    environment: dict[str, Any]
    position: _Position
    detached: list[str] = []
    data: dict[str, Any]
    values: _Values
    random: dict[str, Any]

    @model_validator(mode="after")
    def _fits_its_data(self) -> Self:
        batches = self.identity.data.get("batches")
        if "samples" not in self.identity.data:
            (_OfStream if batches is None else _OfLoader).model_validate(self.data)
        elif not isinstance(batches, int) or _OfDataset.model_validate(self.data).stop > batches:
            raise ValueError("the pass is longer than the data")
        return self


class _Sections(_Part):
    network: _Module | None = None
    criterion: _Module | None = None
    compute_loss: _Module | None = None
    optimizers: _Optimizers
    plugins: dict[str, _Plugin]
    run: _Run


def check_form(path: Path, snapshot: Snapshot) -> None:
    """Checks that a snapshot has the form of one of a run.

    Raises:
        CheckpointError: If it has not, with the path and the first thing that is wrong.
    """
    try:
        _Summary.model_validate(snapshot.summary)
        _Sections.model_validate(snapshot.sections)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"])) or "the whole"
        raise _refusal(path, f"{place}: {found['msg']}, got {found['input']!r:.60}") from error
    random: dict[str, Any] = snapshot.sections["run"]["random"]
    try:
        with seeding.preserved():  # only the generators themselves know which states they take
            seeding.restore({name: state for name, state in random.items() if name != "cuda"})
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _refusal(path, f"run.random: {type(error).__name__}: {error}") from error


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is sound, but not what a run stores: {what}; nothing was changed. Go on from another checkpoint, or "
        "take the weights with load_weights"
    )
