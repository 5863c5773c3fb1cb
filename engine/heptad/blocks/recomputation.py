"""Activation checkpointing: a block keeps its inputs alone, and computes the rest again in the backward pass.

`torch.utils.checkpoint` around the block's forward, set on the instance, so that names of parameters stay. Gradients,
generators and buffers have the bits that they have without it. What torch cannot repeat is computed anew with other
numbers: what a forward draws from a generator that is not torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint

from heptad.blocks.frames import give_own_code

FORWARD_BEFORE = "_forward_before_recomputation"
"""Where an instance keeps a forward of its own that it had, if it had one: copies of the module must find theirs."""

Kept = tuple[int, Tensor]
"""The version of a buffer before a forward, and a copy of it."""

_MARK = "recomputes"

_checkpoint: Callable[..., Any] = cast("Any", torch_checkpoint).checkpoint


class WrittenBuffers:
    """Which buffers the forward of a block writes to, such as the running means of a `BatchNorm`.

    They are found in the first forward in each mode, where they are compared (which waits for the device), and copied
    before each later one. A part of which one is written to has all of its buffers copied: those that a first forward
    happens to leave equal too.
    """

    def __init__(self) -> None:
        self._names: dict[bool, set[str]] = {}

    def kept(self, block: nn.Module) -> dict[str, Kept]:
        """Return copies of the buffers that a forward is about to write to, or may."""
        known = self._names.get(block.training)
        if known is not None and not known:
            return {}
        buffers = _buffers(block).items()
        return {name: (_version(one), one.clone()) for name, one in buffers if known is None or name in known}

    def learn(self, block: nn.Module, kept: dict[str, Kept]) -> None:
        """Drop the copies of buffers that are not written to, after the first forward."""
        if block.training in self._names:
            return
        now = _buffers(block)
        same = {name for name in kept if name in now and _is_unwritten(now[name], *kept[name])}
        written = {name.rpartition(".")[0] for name in kept if name not in same}
        for name in [name for name in kept if name.rpartition(".")[0] not in written]:
            del kept[name]
        self._names[block.training] = set(kept)


def _is_unwritten(buffer: Tensor, version: int, before: Tensor) -> bool:
    # both: kernels of torch write to the running means of a BatchNorm without a new version
    return _version(buffer) == version and torch.equal(buffer, before)


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


class _Found:
    """Has a block find its buffers as they were before the forward that is repeated; they are put back afterwards.

    The buffers themselves are exchanged: to write to one would look to autograd like a change of what it has saved.
    """

    def __init__(self, block: nn.Module, kept: dict[str, Kept]) -> None:
        self._block = block
        self._kept = kept
        self._now: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        now = _buffers(self._block)
        self._now = {name: now[name] for name in self._kept if name in now}
        # once more a copy: a backward that keeps its graph may come again
        _exchange(self._block, {name: self._kept[name][1].clone() for name in self._now})

    def __exit__(self, *_: object) -> None:
        _exchange(self._block, self._now)


def _buffers(block: nn.Module) -> dict[str, Tensor]:
    return dict(block.named_buffers())


def _exchange(block: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        path, _, own = name.rpartition(".")
        setattr(block.get_submodule(path), own, buffer)


def recompute(block: nn.Module) -> bool:
    """Have a block recomputed, by a forward of its own. Return False where it is recomputed already.

    A copy of the block (`deepcopy`) is recomputed as well, with its own weights. One that is pickled has the forward of
    its class: a method is pickled by its name.
    """
    own = vars(block)
    if "forward" in own:
        if hasattr(own["forward"], _MARK):
            return False
        setattr(block, FORWARD_BEFORE, own["forward"])
    block.forward = MethodType(_recomputing(block), block)
    return True


def recompute_no_more(block: nn.Module) -> None:
    """Give a block back the forward that it had."""
    own = vars(block)
    own.pop("forward", None)
    if FORWARD_BEFORE in own:
        block.forward = own.pop(FORWARD_BEFORE)


def _recomputing(block: nn.Module) -> Callable[..., Any]:
    """Return a forward for one block."""
    written = WrittenBuffers()

    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        before = getattr(self, FORWARD_BEFORE, None)
        # options are bound, lest one of them has the name of an option of checkpoint
        call = partial(type(self).forward, self, **options) if before is None else partial(before, **options)
        return recomputed(self, call, args, written)

    give_own_code(forward, type(block))
    setattr(forward, _MARK, True)
    return forward


def recomputed(block: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], written: WrittenBuffers) -> Any:
    """Call a block, of which only the inputs are kept."""
    if not torch.is_grad_enabled():
        return call(*args)
    if torch.compiler.is_compiling():  # the compiled code writes to buffers once, and what it cannot trace is left out
        return _checkpoint(call, *args, use_reentrant=False)
    kept = written.kept(block)
    if not kept:
        return _checkpoint(call, *args, use_reentrant=False)
    again = _Found(block, kept)
    output = _checkpoint(call, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again))
    written.learn(block, kept)
    return output
