"""`StepFlops`: counts the floating-point operations of a network's forward passes in one step of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _python_dispatch, flop_counter
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from heptad import Run

BACKWARD = 2
"""A backward pass counts as this many forward passes, one for each of the two gradients of a matrix product: appendix B
of PaLM (https://arxiv.org/abs/2204.02311), where what is recomputed does not count."""

_ATTENTION, *_LIKE_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
"""Kernels of scaled dot-product attention: one that torch's counter has a formula for, and those that it lacks."""


class _Mode(flop_counter._FlopCounterMode):  # pyright: ignore[reportPrivateUsage] - the public one has no way to say this
    """Torch's counter, under which what is compiled stays compiled; its operations are not seen.

    It has torch's formulas and those that lack there, each made to raise nothing: a count is not worth a run.

    Attributes:
        failed: What a formula raised, in words, or nothing.
    """

    def __init__(self) -> None:
        super().__init__(FlopCounterMode(display=False))
        self.failed = ""
        known = dict(flop_registry)
        for name in _LIKE_ATTENTION:
            if (kernel := getattr(torch.ops.aten, name, None)) is not None:
                known.setdefault(kernel, flop_registry[getattr(torch.ops.aten, _ATTENTION)])
        self.counter.flop_registry = {kernel: self._guarded(formula) for kernel, formula in known.items()}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Return True: torch would run compiled functions uncompiled under the counter, and bits would differ."""
        return True

    @property
    def total(self) -> int:
        """What was counted so far."""
        return self.counter.get_total_flops()

    def _guarded(self, formula: Callable[..., int]) -> Callable[..., int]:
        def count(*args: Any, **kwargs: Any) -> int:
            try:
                return formula(*args, **kwargs)
            except Exception as error:
                self.failed = f"{type(error).__name__} in a formula of torch.utils.flop_counter: {error}"
                return 0

        return count


class StepFlops:
    """Counts in the forward passes that one step itself makes: no pass of its own is needed.

    What runs stays as it is: the counter looks at shapes alone. It is called by hooks that belong to no module, so that
    the network can be copied and stored meanwhile. It counts from the call of one of the network's modules until that
    returns, so what a loss computes outside of them is left out, and so is a forward pass that `recompute` repeats in
    the backward pass. Operations without a formula (sums, activations, norms) count as nothing, as in torch's counter.

    What is compiled runs compiled, and its operations are not seen: of a network with compiled modules none is known.

    Attributes:
        by_module: Of each module that was called, by its name (the network's is empty), those that it took.
        total: Of all forward passes together.
        training: Those of a training step: a forward pass that is trained through also has its backward pass.
        samples: Samples of the step.
        unknown: Why nothing can be known, in words, or nothing.
    """

    def __init__(self) -> None:
        self._clear()
        self._since: tuple[int, int] | None = None
        """Steps and samples before the step; `None` before it has begun and after its end."""
        self._hooks: list[Any] = []
        self._open: list[tuple[nn.Module, int]] = []
        """The modules under way, outermost first, each with the count at which it was called."""
        self._mode: _Mode | None = None
        self._enters = False

    def _clear(self) -> None:
        self.by_module: dict[str, int] = {}
        self.total = self.training = self.samples = 0
        self.unknown = ""

    def begin(self, run: Run) -> None:
        """Count in the step that comes: to be called on exit of `before_step` or on entry to `process_batch`."""
        self._clear()
        self._since = run.step, run.samples
        self.resume(run)

    def end(self, run: Run) -> bool:
        """Count no more, once the step is complete; return whether it is, which is so once."""
        if self._since is None:
            return False
        self.pause()
        self.samples, self._since = run.samples - self._since[1], None
        if not self.by_module:
            self.unknown = self.unknown or "no module of the network was called, but for compiled code"
        elif not self.samples:
            self.unknown = "the step has no samples"
        return True

    def drop(self, run: Run) -> bool:
        """Forget the count of a step that ran out of memory, on entry to `redo_window`; return whether it did.

        What ran until then is no whole step, so a later one is to be counted. A step that is complete keeps its count.
        """
        if self._since is None or run.step != self._since[0]:
            return False
        self.pause()
        self._clear()
        self._since, self.unknown = None, "no step was completed at the first attempt"
        return True

    def pause(self) -> None:
        """Count nothing until `resume`: the run pauses, or has ended."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._leave()
        self._open = []

    def resume(self, run: Run) -> None:
        """Count in what is left of the step, if one is under way."""
        if self._since is None or self._hooks:
            return
        if any(is_compiled(module) for module in run.network.modules()):
            self.unknown = "the network is compiled"
            return
        modules = cast("Iterable[tuple[str, nn.Module]]", run.network.named_modules())
        names = {id(module): name for name, module in modules}
        tracker = ModuleTracker()  # only asked whether a backward pass is under way

        def before(module: nn.Module, args: object) -> None:
            if torch.compiler.is_compiling():
                return  # so that nothing of this hook is compiled
            # the user of a paused run may call the network too; a backward pass repeats what is recomputed
            driven = run.state == "process_batch" and run.paused is None and not tracker.is_bw
            if driven and id(module) in names:
                self._begin(module)

        def after(module: nn.Module, args: object, output: object) -> None:
            if not torch.compiler.is_compiling() and self._mode is not None and self._open[-1][0] is module:
                self._end(names[id(module)], self._mode)

        self._hooks = [
            register_module_forward_pre_hook(before),
            register_module_forward_hook(after, always_call=True),
        ]

    def _begin(self, module: nn.Module) -> None:
        if self._mode is None:
            # Modes are left in the reverse order, which hooks of two plugins cannot keep: the second uses the first's.
            other = _python_dispatch._get_current_dispatch_mode()  # pyright: ignore[reportPrivateUsage]
            self._enters = not isinstance(other, _Mode)
            self._mode = other if isinstance(other, _Mode) else _Mode()
            if self._enters:
                self._mode.__enter__()
        self._open.append((module, self._mode.total))

    def _end(self, name: str, mode: _Mode) -> None:
        count = mode.total - self._open.pop()[1]
        self.by_module[name] = self.by_module.get(name, 0) + count
        if not self._open:
            self.total += count
            self.training += count * (1 + BACKWARD) if torch.is_grad_enabled() else count
            self.unknown = self.unknown or mode.failed
            self._leave()

    def _leave(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None and self._enters:
            mode.__exit__(None, None, None)


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module runs compiled: by its own `compile`, or wrapped by `torch.compile`."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
