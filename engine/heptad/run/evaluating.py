"""What an evaluation takes and gives: `EvaluationOptions` and `Measures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np

from heptad.config import ComputeLoss
from heptad.errors import nearest


class EvaluationOptions(TypedDict, total=False):
    """Options of an evaluation, given by name to `Engine.evaluate`, `Run.evaluate` and `Evaluate`.

    Attributes:
        inputs: What the `update` of metric objects is called with, by default the output and the target of a batch
            `(data, target)`. A function `(output, batch)` that returns a tuple, such as `(preds, target)`, or a mapping
            of arguments by name.
        class_names: A metric of so many values, one a class, is recorded under `name/<class>` in place of `name/0`.
        limit: Stop after so many batches.
        compute_loss: In place of the engine's own criterion or `compute_loss`. It may give an output and no loss,
            `LossOutput(None, output=…)`, as a detector does: then none is measured.
        inference_mode: Evaluate under `torch.inference_mode` in place of `torch.no_grad`, which saves a few
            microseconds an operation. What a network keeps from there cannot be trained on, and nothing in it can take
            gradients.
        preserve_rng: Restore the global random generators afterwards (the default). False: what the evaluation draws
            moves them, as in a plain loop that evaluates.
    """

    inputs: Callable[[Any, Any], Any]
    class_names: Sequence[str]
    limit: int
    compute_loss: ComputeLoss
    inference_mode: bool
    preserve_rng: bool


class Measures(dict[str, float]):
    """What an evaluation measured: numbers by name, `"loss"` among them, in the order in which they are recorded.

    Attributes:
        arrays: What has more than one dimension, such as a confusion matrix, by name; `measures[name]` finds it too.
    """

    def __init__(self, numbers: Mapping[str, float], arrays: Mapping[str, np.ndarray[Any, Any]] | None = None) -> None:
        super().__init__(numbers)
        self.arrays = dict(arrays or {})

    def __missing__(self, name: str) -> Any:
        return self.arrays[name]


class NumberedOutput(NamedTuple):
    """What `predict` yields where batches are numbered.

    Attributes:
        number: The place of the batch in the data, from 0, whichever rank has it.
        output: The network's output for it.
    """

    number: int
    output: Any


def options_mistake(options: EvaluationOptions) -> str | None:
    """Return what is wrong with the options of an evaluation, `None` where nothing is."""
    known = EvaluationOptions.__annotations__
    for name in options:
        if name not in known:
            return f"there is no option {name}{nearest(name, known)}"
    given = cast("Mapping[str, Any]", options)
    for name in ("inputs", "compute_loss"):
        if name in given and (not callable(given[name]) or isinstance(given[name], type)):
            return f"{name} must be a function, got {given[name]!r}"
    for name in ("inference_mode", "preserve_rng"):
        if not isinstance(given.get(name, False), bool):
            return f"{name} must be True or False, got {given[name]!r}"
    limit = given.get("limit", 1)
    if type(limit) is not int or limit < 1:
        return f"limit must be a whole number from 1 on, got {limit!r}"
    names = given.get("class_names", ())
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) and one for one in cast("list[Any]", names)):
        return f"class_names must be a list of names, got {names!r}"
    if len(set(cast("list[str]", names))) != len(cast("list[str]", names)):
        return f"class_names has a name twice: {', '.join(cast('list[str]', names))}"
    return None
