"""What is stored against the live objects: names, shapes, dtypes and counts, before the first of them changes.

`identity` compares what a user may have built otherwise. Here is what no run stores for the objects that it has, and
what only somebody who knows the format could have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from heptad.checkpoints.form import (
    DatasetPlace,
    GroupPlace,
    LoaderPlace,
    StoredModule,
    StoredRun,
    StoredSections,
    StreamPlace,
)
from heptad.checkpoints.identity import refuse
from heptad.checkpoints.modules import describe_tensor, equal_in_bits, has_extra_state, modules_of, parts_of, tied_names
from heptad.checkpoints.parameters import named_parameters
from heptad.errors import kind
from heptad.run.run import Run
from heptad.run.shards import Shards

_IN_AN_EPOCH = {
    "before_loop": False,
    "before_epoch": False,
    "before_step": True,
    "process_batch": True,
    "after_step": True,
    "optimizer_update": True,
    "after_epoch": True,
    "after_loop": False,
}
"""Whether the run is between the bodies of `before_epoch` and `after_epoch` when it enters a state."""

_CHANGED_BY = {"before_epoch": True, "after_epoch": False}
"""The states whose body changes that, and to what: in a detour from there it has been run."""


def check_fit(run: Run, sections: StoredSections) -> None:
    """Compare modules, data and counters with the run; the table and the configuration are equal.

    Raises:
        CheckpointError: With every difference, one a line.
    """
    wrong: list[str] = []
    for name, module in modules_of(run).items():
        if (stored := sections.module(name)) is not None:
            wrong += _module_misfits(name, stored, module, run._runtime.shards)
    wrong += _window_misfits(run, sections.run)
    wrong += _place_misfits(run, sections)
    if sections.run.position.kept is not None:
        wrong += _kept_misfits(run, sections.run.position.kept.batches)
    refuse(wrong)


def check_tensors_of_optimizers(run: Run, sections: StoredSections) -> None:
    """Compare the gradients with the parameters; the optimizers are built if they are in the checkpoint.

    Raises:
        CheckpointError: With every difference, one a line.
    """
    stored, optimizers = sections.optimizers, run._runtime.optimizers
    parameters = dict(named_parameters(run))
    wrong = _names("optimizers.held", stored.held, (name for name in parameters if name.startswith("held.")))
    if len(stored.states) != len(optimizers) or len(sections.run.position.optimizers) != len(optimizers):
        wrong.append(f"optimizers: {len(stored.states)} in the checkpoint, {len(optimizers)} here")
    for name, gradient in stored.gradients.items():
        if name not in parameters:
            wrong.append(f"gradient of {name}: in the checkpoint, and no such parameter here")
        elif not _takes(parameters[name], gradient):
            found, expected = describe_tensor(gradient), describe_tensor(parameters[name])
            wrong.append(f"gradient of {name}: {found} in the checkpoint, the parameter is {expected} here")
    refuse(wrong)


def _takes(parameter: Tensor, gradient: Tensor) -> bool:
    """Return whether torch takes a gradient for a parameter."""
    dtype = getattr(parameter, "grad_dtype", parameter.dtype)  # torch 2.13 has it: None takes any
    return gradient.shape == parameter.shape and dtype in (None, gradient.dtype)


def _names(what: str, stored: Iterable[str], here: Iterable[str]) -> list[str]:
    """Return how two sets of names differ."""
    then, now = set(stored), set(here)
    wrong = [f"{what}: {name or 'the whole'} is in the checkpoint only" for name in sorted(then - now)]
    return wrong + [f"{what}: {name or 'the whole'} is here only" for name in sorted(now - then)]


def _module_misfits(name: str, stored: StoredModule, module: nn.Module, shards: Shards) -> list[str]:
    parts, parameters = parts_of(module), dict(module.named_parameters())
    extra = {part for part, submodule in parts.items() if has_extra_state(submodule)}
    wrong = _names(f"{name}.training", stored.training, parts)
    wrong += _names(f"{name}.requires_grad", stored.requires_grad, parameters)
    wrong += [f"{name}.{part}: an extra state in the checkpoint, and none here" for part in stored.extra.keys() - extra]
    wrong += [
        f"{name}.{key}: takes a gradient in the checkpoint, and {describe_tensor(parameter)} has none"
        for key, parameter in parameters.items()
        if stored.requires_grad.get(key) and not (parameter.is_floating_point() or parameter.is_complex())
    ]
    wrong += [
        f"{name}: {first} and {other} are one tensor here, and two that differ in the checkpoint"
        for first, *rest in tied_names(module)
        for other in rest
        if not _is_one(stored.tensors, first, other, shards)
    ]
    return wrong


def _is_one(tensors: Mapping[str, Tensor], first: str, other: str, shards: Shards) -> bool:
    if first not in tensors or other not in tensors:
        return True  # said already
    parts = [shards.part(tensors[name]) for name in (first, other)]
    one, two = (tensors[name] if part is None else part.local for name, part in zip((first, other), parts, strict=True))
    return equal_in_bits(one, two)


def _window_misfits(run: Run, stored: StoredRun) -> list[str]:
    """Return how the window differs from one that this run could have, on the ranks of the checkpoint."""
    position, window = stored.position, stored.position.window
    own = run.config.accumulation * run.world // stored.identity.world
    if not window.resized and (window.size, window.next_size) != (own, own):
        return [f"window: of {window.size} steps in the checkpoint, accumulation is {own} here"]
    if window.steps and window.steps > position.placed.step:
        return [f"window: {window.steps} steps in it, of {position.placed.step}"]
    weighed = run._runtime.components.criterion is not None and window.size > 1 and "empty" in window.model_fields_set
    if weighed and window.steps and window.first is None and not window.empty:
        return ["window: steps without a weight in the checkpoint, and the criterion weighs each"]
    return []


def _kept_misfits(run: Run, batches: Sequence[Any]) -> list[str]:
    """Return how the kept batches of a window differ from each other in form; sizes may differ."""
    pairs = run._runtime.components.criterion is not None
    if pairs and not all(isinstance(batch, list | tuple) and len(cast("list[Any]", batch)) == 2 for batch in batches):
        return ["the batches that were kept of the open window are not (data, target), which the criterion takes"]
    forms = {tuple(map(_form_of, batch)) if pairs else _form_of(batch) for batch in batches}
    return ["the batches that were kept of the open window differ in form"] if len(forms) > 1 else []


def _form_of(value: Any) -> str:
    match value:
        case Tensor():
            return f"{value.dtype} of {value.dim()} dimensions, {value.layout}"
        case list() | tuple():
            name = kind(cast("object", value))
            return f"{name} of {sorted({_form_of(part) for part in cast('list[Any]', value)})}"
        case dict():
            return str({name: _form_of(part) for name, part in cast("dict[Any, Any]", value).items()})
        case _:
            return kind(value)


def _place_misfits(run: Run, sections: StoredSections) -> list[str]:
    """Return how the place in the data contradicts the counters."""
    position, placed = sections.run.position, sections.run.position.placed
    state, _, source = position.node.partition("@")
    expected = _CHANGED_BY.get(source, _IN_AN_EPOCH.get(source or state))
    if expected is not None and placed.epoch_open is not expected:
        where = "in an epoch" if placed.epoch_open else "between two epochs"
        return [f"position: {where} in the checkpoint, where {position.node} never is"]
    if not placed.epoch_open:
        return []
    sized = run._runtime.feed.batches is not None
    if placed.sized is not sized:
        return [f"position: data of {'a' if placed.sized else 'no'} known length in the checkpoint"]
    return _pass_misfits(sections, "samples" in run._runtime.feed.identity())


def _pass_misfits(sections: StoredSections, indexed: bool) -> list[str]:
    data, position, placed = sections.run.data, sections.run.position, sections.run.position.placed
    key = [position.seed, placed.epoch, placed.pass_index]
    read = data if placed.sized else data.get("walk", {})
    if not indexed and (group := read.get("group")) is not None:
        place = GroupPlace.model_validate(group)
        taken, right = place.taken, place.key == key
    elif indexed:
        place = DatasetPlace.model_validate(data)
        taken, right = place.next, place.open and place.key == key and place.next + placed.remaining == place.stop
    elif placed.sized:
        walk = LoaderPlace.model_validate(data)
        left = placed.remaining if walk.batches < 0 else walk.batches - walk.taken
        taken, right = walk.taken, (walk.open or not placed.remaining) and placed.remaining <= left
    else:
        stream = StreamPlace.model_validate(data)
        taken, walk = stream.taken, stream.walk
        right = placed.remaining <= 1 and stream.key == key and walk.taken == taken + stream.waits
        right = right and (walk.open or not placed.remaining)
    least = 0 if placed.pass_index else placed.batch_index
    right = right and least <= taken <= placed.batch_index + 1  # one may have been taken, and not yet counted
    return [] if right else ["data: the place in the pass is not the one that the counters speak of"]
