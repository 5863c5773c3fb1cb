"""`Blocks`: the blocks of a run's network, compiled and recomputed while the run is driven."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from heptad.blocks.compilation import (
    CompilationWatch,
    CompiledCall,
    compile_block,
    is_of_compiler,
    recomputes_inside,
    use_call,
)
from heptad.blocks.finding import find_blocks
from heptad.blocks.recomputation import WrittenBuffers, recompute, recompute_no_more, recomputed
from heptad.config import Components, RunConfig
from heptad.errors import ConfigError, add_note, diagnose


class Blocks:
    """What `RunConfig.compile` and `RunConfig.recompute` do to the network, and undo.

    The network is the user's: it is compiled and recomputed within `in_use`, where the engine drives a run or
    evaluates, and bare outside. What stays is what torch has compiled, in this process and in its cache on disk.

    Args:
        components: Whose network it is.
        config: What is to be done.

    Attributes:
        compiles: Whether anything is compiled.

    Raises:
        ConfigError: If the blocks cannot be found, or are compiled already in a way that cannot be undone.
    """

    def __init__(self, components: Components, config: RunConfig) -> None:
        self._components = components
        self._options = config.compile
        self._recomputes = config.recompute
        self.compiles = bool(self._options)
        self._users = 0
        """The contexts of `in_use` that are open: a run, an evaluation, predictions that are not all taken."""
        self._undo = ExitStack()
        self._calls: dict[int, tuple[nn.Module, CompiledCall]] = {}
        """Compiled calls by the id of their block, which is held so that its id stays its own."""
        if self.compiles and hasattr(components.network, "_orig_mod"):
            raise ConfigError(
                "RunConfig.compile: Components.network is what torch.compile returned, whose parameters have other "
                "names; pass the network itself, or leave RunConfig.compile out"
            )
        if self.compiles or self._recomputes:
            self._refuse_scripts(self._find())
        elif components.blocks is not None:
            self._find()  # which says what is wrong with them

    def watch(self) -> CompilationWatch:
        """Return what notes compilations."""
        return CompilationWatch(len(self._find()))

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Have the blocks compiled and recomputed: from the first of these contexts to enter until the last to leave.

        Raises:
            Exception: What the block raised, unchanged but for a note where the compiler failed.
        """
        if not (self.compiles or self._recomputes):
            yield
            return
        self._users += 1
        try:
            if self._users == 1:
                self._put_on()
            yield
        except Exception as error:
            if self.compiles and is_of_compiler(error):
                add_note(error, diagnose("compilation", [*self._find()], self._options))
            raise
        finally:
            self._users -= 1
            if not self._users:
                self._undo.close()

    def _refuse_scripts(self, blocks: dict[str, nn.Module]) -> None:
        for name, block in blocks.items():
            if isinstance(block, torch.jit.ScriptModule):
                option = "compile" if self.compiles else "recompute"
                raise ConfigError(
                    f"RunConfig.{option}: {repr(name) if name else 'the network'} is a ScriptModule, which TorchScript "
                    "has compiled; pass the module that it was made of, or leave the option out"
                )

    def _put_on(self) -> None:
        for block in self._find().values():
            if self._recomputes and self._is_inside(block) and recompute(block):
                self._undo.callback(recompute_no_more, block)
            if self.compiles:
                self._undo.callback(use_call, block, use_call(block, self._call(block)))

    def _find(self) -> dict[str, nn.Module]:
        return find_blocks(self._components.network, self._components.blocks)

    def _call(self, block: nn.Module) -> CompiledCall:
        if id(block) not in self._calls:
            self._calls[id(block)] = block, self._compiled(block)
        return self._calls[id(block)][1]

    def _compiled(self, block: nn.Module) -> CompiledCall:
        call, written = compile_block(block, self._options), WrittenBuffers()
        if not self._recomputes or self._is_inside(block):
            return call

        def around(*args: Any, **options: Any) -> Any:
            return recomputed(block, partial(call, **options), args, written)

        return around

    def _is_inside(self, block: nn.Module) -> bool:
        """Return whether recomputation is a part of the block's forward, compiled with it."""
        return not self.compiles or recomputes_inside(block, self._options)
