"""What a run is made of (`Components`) and how it is to be run (`RunConfig`): frozen, strict, checked when built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast, get_args

import numpy as np
import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler  # pydantic itself has it from 2.10 on
from torch import nn
from torch.optim import Optimizer

from heptad.config_text import values_of
from heptad.errors import ConfigError, EngineError, a_kind, in_a_line, kind, nearest, summarize


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a `compute_loss` may return.

    Attributes:
        value: The mean loss of the batch, a scalar tensor that requires grad. `None` in an evaluation without one, and
            in a step of weight 0.
        weight: What the mean was taken over (samples, tokens): a number from 0 on, or a 0-dim tensor (one on an
            accelerator is never read). The steps of a window count by it; one of weight 0 adds nothing and has no
            backward pass. `None`: every step weighs the same. In one window all steps give a weight or none does.
        output: What the network gave; metrics and `Run.output` see it.
        logs: Values to record under these names, each a number or a 0-dim tensor.

    Raises:
        EngineError: If `logs` is no mapping, or the loss stands where the weight belongs.
    """

    value: torch.Tensor | None
    weight: float | torch.Tensor | None = None
    output: Any = None
    logs: Mapping[str, float | torch.Tensor] = field(default_factory=dict[str, float | torch.Tensor])

    def __post_init__(self) -> None:
        # made in every step, so the cheapest test comes first
        if self.logs.__class__ is not dict and not isinstance(self.logs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
            raise EngineError(
                f"LossOutput.logs must map names to values, got {a_kind(self.logs)}; write logs={{'name': value}}"
            )
        weight = self.weight
        if isinstance(weight, torch.Tensor) and weight.requires_grad and not weight.dim():
            value: object = self.value
            if not isinstance(value, torch.Tensor) or value.dim():  # pyright: ignore[reportUnnecessaryIsInstance] - as above
                other = "weight" if isinstance(value, int | float) else "output"
                raise EngineError(
                    f"LossOutput.value must be the loss, a scalar tensor, got {summarize(value)}, and "
                    f"LossOutput.weight requires grad as a loss does: they are swapped; "
                    f"write LossOutput(loss, {other}=…)"
                )


if TYPE_CHECKING:
    OneOptimizer = Optimizer | Callable[[nn.Module], Optimizer]
    OptimizerInput = OneOptimizer | Sequence[OneOptimizer]
    SideOptimizers = Mapping[str, OneOptimizer]
else:
    OptimizerInput = SideOptimizers = Any  # checked below, where wrappers of optimizers are taken too

ComputeLoss = Callable[[nn.Module, Any], "torch.Tensor | LossOutput | None"]


def _plain_integer(value: object) -> object:
    """Make numpy's integers plain; the strict check judges all else."""
    return value.item() if isinstance(value, np.integer) else value


Count = Annotated[int, BeforeValidator(_plain_integer), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_plain_integer), Field(ge=1)]
Length = Annotated[int, BeforeValidator(_plain_integer), Field(ge=0, le=10**12)]
"""How long a run is: the updates of so many epochs can still be counted in 64 bits, as files do."""
Seconds = Annotated[float, Field(gt=0)]
Cause = Literal["out_of_memory", "non_finite"]
Seed = Annotated[int, BeforeValidator(_plain_integer), Field(ge=0, le=2**64 - 1)]  # torch takes 64 bits


class _Checked(BaseModel):
    """Strict, frozen, unknown keys refused; every mistake is reported, all at once, as a `ConfigError`."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    if not TYPE_CHECKING:  # which know the fields, and that they go by name

        def __new__(cls, *positional: object, **fields: object) -> Self:
            if positional:
                first, second = list(cls.model_fields)[:2]
                raise ConfigError(f"{cls.__name__} takes its fields by name: {cls.__name__}({first}=…, {second}=…)")
            return super().__new__(cls)

        def __setattr__(self, name: str, value: object) -> None:
            raise ConfigError(f"{kind(self)} is frozen, {name} cannot be set; give it when you build the {kind(self)}")

    @model_validator(mode="wrap")
    @classmethod
    def _report(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        given: Mapping[str, object] = cast("Mapping[str, object]", data) if isinstance(data, Mapping) else {}
        mistakes: list[str] = []
        made: Self | None = None
        try:
            made = handler(data)
        except ValidationError as error:
            mistakes = [_line(cls, cast("Mapping[str, Any]", item)) for item in error.errors(include_url=False)]
        mistakes += [f"{cls.__name__}: {text}" for text in cls._contradictions(given)]
        if made is None or mistakes:
            raise ConfigError("\n".join(mistakes)) from None
        return made

    @classmethod
    def _contradictions(cls, given: Mapping[str, object]) -> list[str]:
        """Return what is wrong between fields, as far as it follows from what was given."""
        del given
        return []


def _line(model: type[BaseModel], item: Mapping[str, Any]) -> str:
    """Return one mistake in one line: what was found, what was expected, what to do."""
    name = str(item["loc"][0]) if item["loc"] else "arguments"
    where = f"{model.__name__}.{name}"
    context: Mapping[str, Any] = item.get("ctx", {})
    got = short(item["input"])
    match item["type"]:
        case "extra_forbidden":
            return f"{model.__name__} has no field '{name}'{nearest(name, model.model_fields)}"
        case "missing":
            return f"{where} is required"
        case "greater_than_equal":
            return f"{where} must be at least {context['ge']}, got {got}"
        case "less_than_equal":
            return f"{where} must be at most {context['le']}, got {got}"
        case "int_type" | "int_from_float":
            return f"{where} must be a whole number, got {got}"
        case "bool_type":
            return f"{where} must be True or False, got {got}"
        case "literal_error":
            return f"{where} must be {context['expected']}, got {got}"
        case "is_instance_of":
            return f"{where} must be a {context['class']}, got {got}{_instance(item['input'])}"
        case "value_error":
            said = str(context["error"])
            return f"{where} {said}" if said.startswith("has ") else f"{where} {said}, got {got}"
        case _:
            return f"{where}: {item['msg']}, got {got}"


def _is_plain(value: object) -> bool:
    """Return whether a value is a number, a text or nothing, or a dict of these."""
    if isinstance(value, dict):
        held = cast("dict[object, object]", value)
        return all(isinstance(name, str) and _is_plain(part) for name, part in held.items())
    return value is None or isinstance(value, bool | int | float | str)


def _instance(value: object) -> str:
    """Return a hint for a class where an instance of it is meant."""
    return f"; pass an instance: {value.__name__}(…)" if isinstance(value, type) else ""


def short(value: object) -> str:
    """Return a value's repr where it fits in a line, else its type."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else a_kind(value)


class RunConfig(_Checked):
    """How a run is to be run. `epochs`, `max_updates` or both must be given; whichever is reached first ends it.

    Attributes:
        epochs: Passes over the data, from 0 to 10**12, which is for a run that something else ends.
        max_updates: Optimizer updates of the whole run, from 0 to 10**12.
        batch_size: Samples a step; with `Components.dataset` required, with `loader` refused.
        accumulation: Steps (micro-batches) that make one update.
        remainder: What becomes of an epoch whose steps are no multiple of `accumulation`: `"extend"` continues with a
            further pass until the last window is full, `"flush"` updates with the part that is there, `"drop"` does not
            start a window that the data cannot fill, `"carry"` leaves the window open and fills it in the next epoch
            (as a loop over `cycle(loader)` does) and flushes what is open at the very end.
        limit_batches: Batches that a pass takes at most: a short epoch, for a try or of data that never end. It counts
            for `loader` too, and not for evaluations.
        seed: Seeds the global generators of torch, python and numpy in `before_loop`, and is the root of the data's
            order; below 2**64. `None` leaves the generators alone and takes a root for the data from the operating
            system.
        shuffle: A new order each pass; with a `dataset` that is indexed only, an iterable one has an order of its own.
            Above 10 million samples the order is computed as batches are taken, and never held.
        drop_last: Leaves out the last, smaller batch of a pass; with `dataset` only.
        num_workers: Processes that fetch batches, 0 for none; with `dataset` only. The data do not depend on it, except
            where an iterable dataset does not share itself out: each worker yields all of it then, as in torch.
        persistent_workers: Keeps these processes from pass to pass, with the copy of the dataset that each began with:
            they do not see how it changes. By default each pass starts them anew, with the dataset as it is then, which
            costs tens of milliseconds where processes are forked, seconds where they are spawned. With a `dataset` that
            is indexed only.
        device: Where the network and the batches are placed: `"auto"` (the accelerator if there is one), `"cpu"`,
            `"cuda"`, `"cuda:1"` and so on, or a `torch.device`, of which the name is kept. Of a batch every tensor in
            tuples, lists, mappings, dataclasses and objects of attrs or pydantic is moved, or the object by its `to`.
        precision: What forward and loss are computed in, in training, evaluation and prediction: `"fp32"` as they are;
            `"bf16-mixed"` or `"fp16-mixed"` under `torch.autocast`, while weights and update stay in float32. In fp16
            torch's `GradScaler` scales the losses; an update of which a gradient overflows is skipped, as the first of
            a run may be, and each waits for the device once.
        prefetch: Batches that are copied to the device before their step, while it computes, from pinned memory and on
            a stream of their own; 0 for none. For a dataset that is indexed, and for loaders with workers; batches of
            any other are read when their step begins, as their reading may depend on the step before. On the CPU, and
            on a device without streams (`mps`), nothing is read ahead.
        data_on_device: Keeps a `dataset` of tensors (a tensor, a `TensorDataset`, a `Subset` of one) on the device from
            the first epoch on, and gathers batches there; without workers. The batches are the same to the bit.
        deterministic: Asks torch for deterministic algorithms for as long as the run is being driven.
        compile: Compiles the network in place, block by block (`Components.blocks`), by `torch.compile` with its
            defaults, or with these options of it, such as `{"mode": "max-autotune"}`. Names of parameters stay. It
            changes bits in the seventh digit, and is part of what a checkpoint compares. The first run of a network
            takes seconds to minutes longer; the log says what it took and why torch compiled again. Outside of the
            engine's calls the network is as it was.
        recompute: Keeps only the inputs of each block (`Components.blocks`) for the backward pass, which computes the
            rest again: less memory, about a third more time, the same bits.
        redo: What a window is computed again for, in the state `redo_window`. `"out_of_memory"`: after a
            `torch.OutOfMemoryError` in `process_batch`, with batches cut in halves, down to one sample. `"non_finite"`:
            once, where its loss or a gradient is not finite; the log says whether the second time gave the same bits.
            The batches of the open window are kept for it, and copies of the network's buffers.
        strategy: How several processes work together. `"auto"`: as `"ddp"` where torchrun has started this one (or
            whatever else sets `RANK` and `WORLD_SIZE`), as `"none"` where nothing has. `"ddp"`: each has the whole
            network, and gradients are averaged by torch's `DistributedDataParallel`. `"fsdp"`: each has a part of every
            parameter, and torch's FSDP2 gathers one block (`Components.blocks`) at a time; parameters become DTensors,
            so optimizers are given as functions. `"none"`: alone in any case.
        window: Batches of an update over all processes, in place of `accumulation`, which counts those of one: so a
            script makes the same updates on any number of processes that divides it.
        agree_every: Updates between two agreements of the processes. What one of them asks for (a stop, a pause) waits
            that long, and so does finding that their paths part.
        patience: Seconds after which a process gives up waiting for the others; three times as long up to the first
            update, which may compile and reads data for the first time.
        log_capacity: Transitions that `Run.log` keeps in memory, 10 bytes each; the oldest go first.
        trace_handlers: Keeps for every call of a handler when it was made and how long it took: `explain` and the trace
            show them. Costs about a microsecond and 32 bytes a call.

    Raises:
        ConfigError: With every mistake, one a line.
    """

    epochs: Length | None = None
    max_updates: Length | None = None
    batch_size: Positive | None = None
    accumulation: Positive = 1
    remainder: Literal["extend", "flush", "drop", "carry"] = "extend"
    limit_batches: Positive | None = None
    seed: Seed | None = 0
    shuffle: bool = True
    drop_last: bool = True
    num_workers: Count = 0
    persistent_workers: bool = False
    device: str | torch.device = "auto"
    precision: Literal["fp32", "bf16-mixed", "fp16-mixed"] = "fp32"
    prefetch: Count = 1
    data_on_device: bool = False
    deterministic: bool = False
    compile: bool | dict[str, Any] = False
    recompute: bool = False
    redo: Annotated[tuple[Cause, ...], PlainSerializer(list)] = ()
    strategy: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    window: Positive | None = None
    agree_every: Positive = 1
    patience: Seconds = 600.0
    log_capacity: Positive = 1_000_000
    trace_handlers: bool = False

    @classmethod
    def from_strings(cls, settings: Mapping[str, object] | Iterable[str]) -> Self:
        """Build it from texts, where there is nothing else: the command line, the environment, INI files.

        Only texts are read leniently: `"10"`, `"1e3"` and `"10.0"` are whole numbers; `"true"`, `"yes"`, `"on"` and
        `"false"`, `"no"`, `"off"` truth values in either case; `"none"`, `"null"` and `""` nothing, where a field may
        be None; several words have commas between them or are a JSON list; `compile` takes a JSON object, or
        `compile.mode` for one option. A value that is not a string is checked as strictly as ever.

        Args:
            settings: Values by name, or texts such as `"epochs=10"`, of which the last of a name counts.

        Raises:
            ConfigError: With every mistake, one a line.
        """
        values, mistakes = values_of(cls, settings)
        try:
            made = cls(**cast("dict[str, Any]", values))
        except ConfigError as error:
            mistakes.append(str(error))
        else:
            if not mistakes:
                return made
        raise ConfigError("\n".join(mistakes))

    @field_validator("device", mode="before")
    @classmethod
    def _is_device(cls, device: object) -> str:
        name = str(device) if isinstance(device, str | torch.device) else ""
        if name != "auto":
            try:
                found = torch.device(name)
            except RuntimeError:
                raise ValueError("must be 'auto' or a device that torch knows, such as 'cpu' or 'cuda:0'") from None
            if found.type == "meta":
                raise ValueError("must be a device that computes: tensors on 'meta' have shapes and no values")
        return name

    @field_validator("compile", mode="before")
    @classmethod
    def _are_options_of_torch(cls, options: object) -> object:
        if isinstance(options, bool):
            return options
        if not isinstance(options, dict):
            raise ValueError("must be True, False, or a dict of options of torch.compile")
        given = cast("dict[Any, Any]", options)
        known = [name for name in inspect.signature(cast("Any", torch.compile)).parameters if name != "model"]
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"has {name!r}, which is no option of torch.compile{nearest(str(name), known)}")
            if not _is_plain(value):
                raise ValueError(
                    f"must hold plain values, which a checkpoint can compare, and its {name} is {short(value)}; a "
                    "backend of your own goes by the name that torch._dynamo.register_backend gives it"
                )
        if not isinstance(given.get("backend", ""), str):
            raise ValueError(f"must name its backend, got backend={short(given['backend'])}")
        try:
            torch.compile(lambda: None, **given)  # compiles nothing: it looks at the options
        except Exception as error:
            raise ValueError(f"is refused by torch.compile ({in_a_line(error)})") from None
        return deepcopy(given) or True

    @field_validator("redo", mode="before")
    @classmethod
    def _are_causes(cls, causes: object) -> tuple[Cause, ...]:
        given = list(cast("Sequence[object]", causes)) if isinstance(causes, list | tuple) else [...]
        if not all(one in get_args(Cause) for one in given):
            raise ValueError(f"must be a tuple of causes out of {get_args(Cause)}, such as redo=('out_of_memory',)")
        return tuple(one for one in get_args(Cause) if one in given)

    @classmethod
    def _contradictions(cls, given: Mapping[str, object]) -> list[str]:
        mistakes: list[str] = []
        if given.get("epochs") is None and given.get("max_updates") is None:
            mistakes.append("give epochs, max_updates or both, so that the run has an end")
        if given.get("window") is not None and "accumulation" in given:
            mistakes.append("window and accumulation are both given; window counts the batches of all processes")
        if given.get("persistent_workers") is True and given.get("num_workers", 0) == 0:
            mistakes.append("persistent_workers=True needs num_workers of at least 1")
        if given.get("data_on_device") is True and given.get("num_workers", 0) != 0:
            mistakes.append("data_on_device=True gathers batches on the device, which workers cannot; leave out one")
        return mistakes


class Components(_Checked):
    """What a run works with.

    Attributes:
        network: The module to train. It is placed in `before_loop`, in training mode from then on, in evaluation mode
            at the end.
        dataset: A map-style or iterable dataset of samples, or a tensor of rows; the engine builds the loader. Several
            ranks each read an iterable one whole and keep their own batches; with a method `share(rank, world)` it
            returns the part of one rank, and a run is resumed on as many ranks only.
        loader: An existing `DataLoader`, or any re-iterable of batches, in place of `dataset`. Several ranks each read
            it whole and keep their own batches, unless its sampler is a `DistributedSampler`.
        collate_fn: Makes a batch of a list of samples; with `dataset` only. Default: torch's `default_collate`.
        criterion: `criterion(output, target)`, the mean loss of a batch `(data, target)`. Steps are weighed by
            what torch's criteria take it over (samples, elements, targets that are not ignored, weights of classes); by
            samples with any other, and with a class of your own that has its own `forward`.
        compute_loss: `compute_loss(network, batch)` for any other batch or loss; returns a scalar tensor, a
            `LossOutput`, or `None` for a step that adds nothing. In place of `criterion`.
        optimizer: A torch optimizer, a function of the network that returns one, or a sequence of these; all of them
            step in `optimizer_update`.
        side_optimizers: Further ones, or functions of the network, by name: `Run.side_optimizers` has them for plugins
            that step them (the generator of a GAN, a temperature). Their gradients are dropped where a window opens,
            and a checkpoint holds their state. The engine does not step them, nor correct the gradients of parameters
            that only they hold for the weights of a window.
        init_weights: A function of the network, called in `before_loop` after the seed is set.
        blocks: A function of the network that returns the parts of it that are compiled or recomputed one by one. By
            default the members of each longest `ModuleList`, else the network alone.

    Raises:
        ConfigError: With every mistake, one a line.
    """

    network: nn.Module
    dataset: Any = None
    loader: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    criterion: Callable[[Any, Any], torch.Tensor] | None = None
    compute_loss: ComputeLoss | None = None
    optimizer: OptimizerInput
    side_optimizers: SideOptimizers = Field(default_factory=dict)
    init_weights: Callable[[nn.Module], object] | None = None
    blocks: Callable[[nn.Module], Iterable[nn.Module]] | None = None

    @field_validator("criterion")
    @classmethod
    def _takes_the_mean(cls, criterion: Any) -> Any:
        if isinstance(criterion, type):
            raise ValueError(f"must be a function of (output, target){_instance(criterion)}")
        if criterion is None:
            return None
        function: Any = criterion
        options: dict[str, object] = {}
        if issubclass(type(criterion), partial):  # isinstance would make of `Any` a type that is unknown in part
            function, options = criterion.func, criterion.keywords
        reduction = options.get("reduction", getattr(function, "reduction", "mean"))
        # a subclass may take the mean itself; if it does not, its first loss is refused
        own = reduction == "none" and isinstance(function, nn.Module) and not _is_of_torch(type(function).forward)
        # the mean over a batch of distributions: torch's "mean" of these divides by the number of classes too
        batchmean = isinstance(function, nn.KLDivLoss) or function is nn.functional.kl_div
        if reduction != "mean" and not own and not (batchmean and reduction == "batchmean"):
            raise ValueError(
                f"must take the mean over the batch, but its reduction is {reduction!r}: "
                f"use reduction='{'batchmean' if batchmean else 'mean'}', or compute_loss for a loss of your own"
            )
        # as far as its __call__ says, a module can be called with anything
        called = criterion.forward if type(criterion).__call__ is nn.Module.__call__ else criterion
        _check_call(called, "criterion(output, target)", "a loss of anything else is for compute_loss")
        return criterion

    @field_validator("compute_loss")
    @classmethod
    def _takes_network_and_batch(cls, compute_loss: ComputeLoss | None) -> ComputeLoss | None:
        if compute_loss is not None:
            _check_call(compute_loss, "compute_loss(network, batch)")
        return compute_loss

    @field_validator("optimizer", mode="before")
    @classmethod
    def _are_optimizers(cls, optimizer: object) -> object:
        parts = listed(optimizer)
        classes = [part.__name__ for part in parts if isinstance(part, type)]
        if classes or not parts or not all(is_optimizer(part) or callable(part) for part in parts):
            raise ValueError(
                "must be a torch optimizer, a function of the network that returns one, or several of these"
                + (f"; pass an instance, or lambda network: {classes[0]}(network.parameters())" if classes else "")
            )
        for part in parts:
            if not is_optimizer(part):
                _check_call(part, "optimizer(network)")
        return optimizer

    @field_validator("side_optimizers", mode="before")
    @classmethod
    def _are_side_optimizers(cls, given: object) -> object:
        named = dict(cast("Mapping[Any, Any]", given)) if isinstance(given, Mapping) else None
        if named is None or not all(isinstance(name, str) and name for name in named):
            raise ValueError("must map names to optimizers")
        for name, part in named.items():
            if isinstance(part, type) or not (is_optimizer(part) or callable(part)):
                raise ValueError(
                    f"must map names to torch optimizers, or to functions of the network that return one; {name!r} is "
                    f"{short(part)}"
                )
            if not is_optimizer(part):
                _check_call(part, "optimizer(network)")
        return named

    @classmethod
    def _contradictions(cls, given: Mapping[str, object]) -> list[str]:
        here = {name for name, value in given.items() if value is not None}
        mistakes: list[str] = []
        for one, other in (("dataset", "loader"), ("criterion", "compute_loss")):
            if {one, other} <= here:
                mistakes.append(f"{one} and {other} are both given; give one of them")
            elif not {one, other} & here:
                mistakes.append(f"neither {one} nor {other} is given; give one of them")
        if {"loader", "collate_fn"} <= here:
            mistakes.append("collate_fn goes with dataset; a loader collates its own batches")
        return mistakes


def check_together(components: Components, config: RunConfig, more: Sequence[str]) -> None:
    """Check what depends on both.

    Args:
        components: What the run works with.
        config: How it is to be run.
        more: Further mistakes, found in the optimizers.

    Raises:
        ConfigError: With every mistake, one a line.
    """
    mistakes: list[str] = []
    if next(components.network.parameters(), None) is None:
        mistakes.append(
            f"Components.network ({a_kind(components.network)}) has no parameters to train; layers that are kept in a "
            "list or a dict are found only if that is an nn.ModuleList or an nn.ModuleDict"
        )
    mistakes += more
    if components.dataset is not None and config.batch_size is None:
        mistakes.append("RunConfig.batch_size is required with Components.dataset")
    if components.loader is not None:
        own = {"batch_size", "shuffle", "drop_last", "num_workers", "persistent_workers"} & config.model_fields_set
        own -= {"batch_size"} if config.batch_size is None else set()
        own |= {"data_on_device"} if config.data_on_device else set()
        mistakes += [
            f"RunConfig.{name} goes with Components.dataset; the loader decides it, leave it out"
            for name in sorted(own)
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def is_optimizer(value: object) -> bool:
    """Return whether this is an optimizer: torch's, or a wrapper with its `step`, `zero_grad` and `param_groups`."""
    return isinstance(value, Optimizer) or (
        not isinstance(value, type) and all(hasattr(value, name) for name in ("step", "zero_grad", "param_groups"))
    )


def _is_of_torch(function: object) -> bool:
    """Return whether a function is defined in torch."""
    return str(getattr(function, "__module__", "")).split(".")[0] == "torch"


def _check_call(function: Callable[..., Any], call: str, remedy: str = "") -> None:
    """Raise a `ValueError` if a function cannot be called like this, such as `criterion(output, target)`."""
    if why := refusal(function, *call.split(",")):
        raise ValueError(f"is called as {call}, but {why}" + (f"; {remedy}" if remedy else ""))


def refusal(function: Callable[..., Any], *given: object) -> str | None:
    """Return why a function cannot be called with these, `None` where its signature allows it or cannot be known."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return None  # some callables of C have none; calling is the test then
    try:
        signature.bind(*given)
    except TypeError as error:
        return f"takes {signature}: {error}"
    return None


def listed(optimizer: Any) -> tuple[Any, ...]:
    """Return one optimizer, or several, as a tuple."""
    return tuple(cast("Sequence[Any]", optimizer)) if isinstance(optimizer, list | tuple) else (optimizer,)
