"""`EvaluationOptions`: how an evaluation is done, for `Engine.evaluate`, `Run.evaluate` and the plugin `Evaluate`."""

from __future__ import annotations

from typing import TypedDict

from heptad.errors import nearest


class EvaluationOptions(TypedDict, total=False):
    """Options of an evaluation, given by name to `Engine.evaluate`, `Run.evaluate` and `Evaluate`.

    Attributes:
        inference_mode: Evaluate under `torch.inference_mode` in place of `torch.no_grad`, which saves a few
            microseconds an operation. What a network keeps from there cannot be trained on, and nothing in it can take
            gradients.
    """

    inference_mode: bool


def options_mistake(options: EvaluationOptions) -> str | None:
    """Return what is wrong with the options of an evaluation, `None` where nothing is."""
    known = EvaluationOptions.__annotations__
    for name in options:
        if name not in known:
            return f"there is no option {name}{nearest(name, known)}"
    if not isinstance(options.get("inference_mode", False), bool):
        return f"inference_mode must be True or False, got {options.get('inference_mode')!r}"
    return None
