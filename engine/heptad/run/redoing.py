"""`Redoing`: what a redo of the open window needs beside its batches, and how often batches are cut in half.

`step/redo.py` writes it, a checkpoint stores it. It exists only where `RunConfig.redo` asks for a redo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class HeldBuffer:
    """A buffer as it was when the window opened.

    Attributes:
        module: Whose it is.
        attribute: Its name there.
        tensor: The buffer itself.
        values: A copy of what it held. It is made of every buffer: batch norm writes to its own without a trace in
            their versions.
    """

    module: nn.Module
    attribute: str
    tensor: Tensor
    values: Tensor

    def is_changed(self) -> bool:
        """Return whether the buffer was replaced since, or holds something else (waits for the device)."""
        here = getattr(self.module, self.attribute, None)
        return here is not self.tensor or not torch.equal(self.tensor, self.values)

    def restore(self) -> None:
        """Put buffer and values back."""
        with torch.no_grad():
            self.tensor.copy_(self.values)
        if getattr(self.module, self.attribute, None) is not self.tensor:
            setattr(self.module, self.attribute, self.tensor)


@dataclass(slots=True)
class Redoing:
    """What a redo of the open window needs beside its batches.

    Attributes:
        halvings: How often batches are cut in half, in this window and all later ones.
        due: The redo is due: why the guard `redo_due` holds.
        error: The error that ran out of memory, without its traceback, which would keep the graph alive.
        recorded: Whether the step that ran out of memory had recorded values before.
        output_in_part: Some parts of the newest step that was computed in parts gave an output, and others none.
        random: States of the global generators before the forward pass of each step.
        buffers: Those of the modules when the window opened, by name.
    """

    halvings: int = 0
    due: str = ""
    error: Exception | None = None
    recorded: bool = False
    output_in_part: bool = False
    random: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    buffers: dict[str, HeldBuffer] = field(default_factory=dict[str, HeldBuffer])

    def open(self, modules: Mapping[str, nn.Module]) -> None:
        """Begin a window: copy the buffers, into the memory of the last copy where that fits (no device sync)."""
        self.random.clear()
        held = self.buffers
        self.buffers = {}
        for name, module, attribute, tensor in _buffers_of(modules):
            known = held.get(name)
            if (
                known is not None
                and known.tensor is tensor
                and _kind_of_memory(known.values) == _kind_of_memory(tensor)
            ):
                known.values.copy_(tensor.detach())
            else:
                known = HeldBuffer(module, attribute, tensor, tensor.detach().clone())
            self.buffers[name] = known

    def is_whole(self, steps: int) -> bool:
        """Return whether what a redo needs was kept of all steps of the window, `steps` of which are complete.

        It was not in one that was resumed from a checkpoint of a run without redo.
        """
        return len(self.random) == steps

    def changed(self) -> dict[str, Tensor]:
        """Return what the buffers held that have changed since the window opened, for a checkpoint."""
        return {name: one.values for name, one in self.buffers.items() if one.is_changed()}

    def reopen(self, modules: Mapping[str, nn.Module], changed: Mapping[str, Tensor]) -> None:
        """Take back what `changed` returned, for buffers that hold what they held then."""
        random = list(self.random)
        self.open(modules)
        self.random[:] = random
        for name, values in changed.items():
            self.buffers[name].values.copy_(values)

    def misfits(self, modules: Mapping[str, nn.Module], changed: Mapping[str, Tensor]) -> list[str]:
        """Return the names of buffers that `reopen` could not take."""
        here = {name: tensor for name, _, _, tensor in _buffers_of(modules)}
        return [
            name
            for name, values in changed.items()
            if name not in here or _kind_of_memory(here[name]) != _kind_of_memory(values)
        ]


def _buffers_of(modules: Mapping[str, nn.Module]) -> list[tuple[str, nn.Module, str, Tensor]]:
    """Return each buffer once, with its name, its module and its name there."""
    parts = [(section, *part) for section, root in modules.items() for part in _submodules_of(root)]
    return [
        (f"{section}.{path}.{attribute}", module, attribute, tensor)
        for section, path, module in parts
        for attribute, tensor in module.named_buffers(recurse=False)
    ]


def _submodules_of(root: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(cast("Iterator[tuple[str, nn.Module]]", root.named_modules()))


def _kind_of_memory(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
