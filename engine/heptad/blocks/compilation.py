"""`torch.compile` of blocks, in place, and what torch has compiled since it was last asked, as events.

`nn.Module.compile` gives a module a compiled call beside its own: no module wraps another, so that names of parameters,
checkpoints and copies know nothing of it. Torch compiles when a block is first called with such shapes, modes and
types; it keeps the code by the source it is made of, for the length of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn

from heptad.blocks.frames import give_own_code
from heptad.errors import in_a_line
from heptad.record.events import Compilation, Recompilation, Uncompiled
from heptad.run.run import Run

CompiledCall = Callable[..., Any]

_MOST_REASONS = 4
"""Reasons that one event gives."""

_BY_AOT_AUTOGRAD = ("inductor", "cudagraphs", "aot_")
"""What the names of backends begin with that go through AOTAutograd: only with it does what is recomputed inside
compiled code draw the same random numbers again. With others recomputation goes around the compiled code."""


def compile_block(block: nn.Module, options: bool | dict[str, Any]) -> CompiledCall:
    """Return what calls a block by compiled code; torch compiles when it is first called.

    Raises:
        Exception: What torch raises where it cannot compile on this platform.
    """
    given = options if isinstance(options, dict) else {}
    if str(type(block).forward.__module__).startswith("torch.") and "forward" not in vars(block):
        return torch.compile(_outer_frame(block), **given)
    before = use_call(block, None)
    try:
        block.compile(**given)
    finally:
        made = use_call(block, before)
    assert made is not None
    return made


def _outer_frame(block: nn.Module) -> CompiledCall:
    """Return a call of a block with a frame around it: torch begins to compile in no frame of its own modules.

    `nn.Module.compile` compiles nothing of a `Sequential` or a `TransformerEncoderLayer`.
    """

    def call(self: Any, *args: Any, **options: Any) -> Any:
        return self._call_impl(*args, **options)

    give_own_code(call, type(block))
    return MethodType(call, block)


def use_call(block: nn.Module, call: CompiledCall | None) -> CompiledCall | None:
    """Have a block called by compiled code, or by its own where that is `None`; return what it was called by."""
    own = vars(block)
    before: CompiledCall | None = own.pop("_compiled_call_impl", None)
    if call is not None:
        own["_compiled_call_impl"] = call
    return before


def recomputes_inside(block: nn.Module, options: bool | dict[str, Any]) -> bool:
    """Return whether what is recomputed may be a part of what is compiled."""
    given = options if isinstance(options, dict) else {}
    if not str(given.get("backend", "inductor")).startswith(_BY_AOT_AUTOGRAD):
        return False
    # what is recomputed in compiled code saves the buffers themselves: a second call in one step, which writes to them,
    # changes what the first has saved; recomputation around it exchanges them
    return next(block.buffers(), None) is None or _has_cuda_graphs(given)


def _has_cuda_graphs(given: dict[str, Any]) -> bool:
    """Return whether CUDA graphs are made: a forward within the backward pass may overwrite what they have returned."""
    options: dict[str, Any] = given.get("options") or {}
    by_name = given.get("backend") == "cudagraphs" or given.get("mode") in ("reduce-overhead", "max-autotune")
    return by_name or bool(options.get("triton.cudagraphs"))


def is_of_compiler(error: BaseException) -> bool:
    """Return whether it is the compiler that failed, and not what was compiled."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - it takes seconds to import

    # a platform that cannot compile, and a second derivative, raise a RuntimeError
    return isinstance(error, TorchDynamoException) or "torch.compile" in in_a_line(error)


class CompilationWatch:
    """Notes in the log of a run what torch compiles while it is driven.

    Torch keeps figures of its last 64 compilations; whatever is compiled in this process counts, the user's own parts
    too. Asking costs less than a microsecond.

    Args:
        blocks: How many blocks are compiled one by one.
    """

    def __init__(self, blocks: int) -> None:
        from torch._dynamo.utils import get_compilation_metrics, guard_failures  # noqa: PLC0415 - seconds to import

        self._figures: Callable[[], list[Any]] = get_compilation_metrics
        self._failures: Mapping[Any, Sequence[str]] = guard_failures
        self._reported = self._lengths()
        self._blocks = blocks
        self._last = self._newest()
        self._began = False
        self._again = 0

    def look(self, run: Run, *, first: bool = False) -> None:
        """Note what was compiled since the last call.

        Args:
            run: The run, of which a transition is under way.
            first: Whether the blocks have just been run: what was compiled until the first time is one event.
        """
        if not (first or self._began):
            return  # what is compiled before the first step is noted with it
        figures = self._figures()
        if figures and figures[-1] is not self._last:
            self._note(run, self._new(figures))
        elif not self._began:
            self._note(run, [])

    def _newest(self) -> Any:
        figures = self._figures()
        return figures[-1] if figures else None

    def _new(self, figures: list[Any]) -> list[Any]:
        news: list[Any] = []
        for one in reversed(figures):
            if one is self._last:
                break
            news.append(one)
        self._last = figures[-1]
        return news[::-1]

    def _note(self, run: Run, news: list[Any]) -> None:
        seconds = sum(one.duration_us or 0 for one in news) / 1e6
        made = [one for one in news if one.has_guarded_code]
        reasons = self._new_reasons()
        if not self._began:
            self._began = True
            run.emit(Compilation, blocks=self._blocks, graphs=len(made), seconds=seconds)
        elif made:
            self._again += len(made)
            run.emit(Recompilation, graphs=len(made), seconds=seconds, total=self._again, reason="; ".join(reasons))
        for one in news:
            if one.fail_type is not None:
                words = map(_in_torchs_words, (one.fail_reason, one.recompile_reason))
                run.emit(Uncompiled, reason="; ".join(filter(None, words)))

    def _lengths(self) -> dict[Any, int]:
        return {code: len(failures) for code, failures in self._failures.items()}

    def _new_reasons(self) -> list[str]:
        """Return why torch compiled again since the last call, each reason once."""
        reported, self._reported = self._reported, self._lengths()
        new = (one for code, failures in self._failures.items() for one in failures[reported.get(code, 0) :])
        words = (_in_torchs_words(one).partition(": ") for one in new)  # "0/1: " is the number of a compilation
        reasons = list(dict.fromkeys(reason.rstrip(". ") for _, _, reason in words if reason))
        return reasons[:_MOST_REASONS] or ["code that had not been run before"]


def _in_torchs_words(text: str | None) -> str:
    """Return the first line of what torch says, without the source that it shows at its end."""
    first = (text or "").strip().partition("\n")[0]
    return first.partition("  #")[0].strip()
