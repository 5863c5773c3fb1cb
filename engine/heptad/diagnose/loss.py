"""What is likely wrong with a batch, a loss or its backward pass."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sized
from functools import partial
from typing import Any, cast

import torch

from heptad.errors import a_kind, in_a_line, kind


def pair(batch: Any) -> str:
    """Describe a batch that is not `(data, target)`."""
    size = f" of {len(cast('Sized', batch))}" if isinstance(batch, tuple | list | dict) else ""
    return (
        f"with a criterion a batch must be (data, target), got {a_kind(cast('object', batch))}{size}; "
        "give Components.compute_loss in place of criterion"
    )


def loss(value: Any, giver: str) -> str:
    """Describe a loss that cannot be trained on."""
    if not isinstance(value, torch.Tensor):
        or_output = " or a LossOutput" if giver == "compute_loss" else ""
        return f"{giver} must return a scalar tensor{or_output}, got {kind(value)}{_instead(value)}"
    if value.dim():
        return f"{giver} must return a scalar tensor, got one of shape {tuple(value.shape)}; take its mean"
    off = "" if torch.is_grad_enabled() else "; gradients are switched off: call run() outside of torch.no_grad()"
    return (
        f"the loss that {giver} returned does not require grad: it does not depend on the network's parameters, "
        f"they do not require grad, or it was detached{off}"
    )


def empty_output() -> str:
    """Say what to return in place of a `LossOutput` without a loss."""
    return (
        "compute_loss returned LossOutput(None, …), which has no loss to train on; to leave a step out return None, or "
        "LossOutput(…, weight=0)"
    )


def backward(error: Exception, giver: str) -> str:
    """Say why a backward pass failed, where that can be known; nothing elsewhere."""
    if "backward through the graph a second time" in in_a_line(error):
        return f"the backward pass is the engine's; {giver} returns the loss and calls no backward()"
    if "modified by an inplace operation" in in_a_line(error):
        return (
            f"something that the loss needs was changed before the backward pass, which is the engine's: does {giver} "
            "step an optimizer, or change weights or buffers in place?"
        )
    return ""


def own_clearing(giver: str, names: list[str]) -> str:
    """Say that gradients of the window's earlier steps were dropped."""
    return (
        f"{giver} dropped gradients that the window had gathered: those of {_some(names)}. The engine clears them "
        "where a window opens; call no zero_grad() on what Components.optimizer holds, and take gradients of your own "
        "with torch.autograd.grad(…)"
    )


def _some(names: list[str]) -> str:
    """Name the first of some parameters, and say how many more there are."""
    named = [f"'{name}'" for name in names if name] or ["a parameter outside of the network"]
    return named[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def own_backward(giver: str, names: list[str]) -> str:
    """Say that a parameter has a gradient before the engine's backward pass."""
    return (
        f"{giver} made a backward pass of its own: {_some(names)} got a gradient from it, to which the engine's is "
        "added. Return the loss and call no backward(); take gradients that you need with torch.autograd.grad(…), or "
        "reach only parameters that no optimizer of Components.optimizer holds: loss.backward(inputs=[…]), with "
        "detach() on what comes from the others"
    )


def never_returns(function: Any) -> str:
    """Say that a function has no `return` for its value, if its source says so; nothing elsewhere."""
    function = inspect.unwrap(function)
    if isinstance(function, partial):
        return never_returns(cast("partial[Any]", function).func)
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ""
    if not tree.body or not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return ""  # a lambda has no statement
    return "" if any(map(_returns, tree.body[0].body)) else "it has no return statement"


def _returns(statement: ast.AST) -> bool:
    """Return whether a statement contains a `return` of the function that it stands in."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return False
    return isinstance(statement, ast.Return) or any(map(_returns, ast.iter_child_nodes(statement)))


def _instead(value: object) -> str:
    if value is None:
        return "; does it end without a return?"
    if isinstance(value, Mapping) and "loss" in value:  # a dict, or a model's named outputs
        return "; return LossOutput(value=output['loss'], output=output)"
    if isinstance(value, tuple):
        return "; for the output beside the loss return LossOutput(loss, output=…)"
    return "; leave out .item() and float(), the graph is needed" if isinstance(value, float) else ""
