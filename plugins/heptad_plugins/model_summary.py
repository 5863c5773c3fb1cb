"""`ModelSummary` observes the run: it prints the parts of the network with their parameters, buffers and FLOPs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heptad import Plugin, Run
from heptad_plugins._flops import StepFlops
from heptad_plugins._options import text_file, whole_number

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A module of the network, all that it holds included.

    Attributes:
        name: Its name; that of the network is empty.
        kind: Its class's name.
        parameters: Elements of its parameters, each counted once.
        trained: Those of them that require a gradient.
        buffers: Elements of its buffers.
        flops: Floating-point operations of its forward passes in the step that was counted, all samples of it together;
            `None` where not known.
    """

    name: str
    kind: str
    parameters: int
    trained: int
    buffers: int
    flops: int | None


class ModelSummary(Plugin):
    """Print a table of the network after the first step that is driven, and once a run.

    A row holds a module's parameters, how many of them are trained, buffers, and the FLOPs of its forward pass for one
    sample of that step; a product of matrices has two for each of its multiplications, as torch counts them. They are
    counted while the step is made, which runs as it does without: no forward pass is added, and batch norms, random
    generators, modes and the data stay where they are. That step takes longer; a later one costs two calls (no device
    sync). If the first step fails, the table is printed without FLOPs; if `RunConfig.redo` computes it again after it
    ran out of memory, the next step is the one that is counted.

    FLOPs are those of operations that torch's `FlopCounterMode` has a formula for: products of matrices, convolutions,
    attention. What is compiled runs compiled and is not seen: of a network with compiled modules none are known.

    Args:
        depth: How far below the network rows go: 1 shows its own modules, `None` all.
        file: Where to write, an open text file; by default the standard error stream.
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Attributes:
        parts: The rows, the network itself first, to any depth; empty until the table is printed, and on other ranks
            than the first.

    Raises:
        PluginError: If `depth` is no whole number from 0 on, or `file` is no open text file.
        ImportError: If rich is not installed; it names the extra.
    """

    observes = True
    ranks = "first"  # the network is the same on all

    def __init__(
        self,
        depth: int | None = 2,
        file: TextIO | None = None,
        *,
        on_error: Literal["raise", "detach"] = "raise",
    ) -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise ImportError("ModelSummary needs rich: pip install 'heptad[rich]'") from error
        self.on_error = on_error
        self._depth = None if depth is None else whole_number("ModelSummary", "depth", depth, least=0)
        self._console = Console(file=text_file("ModelSummary", file), stderr=file is None)
        self._forget()

    def _forget(self) -> None:
        self.parts: tuple[SummaryRow, ...] = ()
        self._count = StepFlops()
        self._begun = False

    def on_begin(self, run: Run) -> None:
        """Forget the network of an earlier run."""
        self._forget()

    def open(self, run: Run) -> None:
        """Go on counting, if the run was paused within the step."""
        self._count.resume(run)

    def close(self, run: Run) -> None:
        """Stop counting; if no step was completed, print what is known."""
        self._count.pause()
        if run.ended and not self.parts:
            self._count.unknown = self._count.unknown or "no step was completed"
            self._print(run)

    def on_enter_process_batch(self, run: Run) -> None:
        """Begin to count, in the first step."""
        if not self._begun:
            self._begun = True
            self._count.begin(run)

    def on_enter_redo_window(self, run: Run) -> None:
        """Count another step, if this one ran out of memory."""
        if self._count.drop(run):
            self._begun = False

    def on_exit_after_step(self, run: Run) -> None:
        """Print the table, after the first step."""
        if not self.parts and self._count.end(run):
            self._print(run)

    def _print(self, run: Run) -> None:
        count = self._count
        flops = None if count.unknown else {**count.by_module, "": count.total}
        self.parts = tuple(_parts_of_network(run.network, flops))
        self._console.print(self._table())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        network = self.parts[0]
        counted = network.flops is not None
        table = Table(title=f"{network.kind}: {_short(network.parameters)} parameters")
        table.add_column("module", overflow="fold")
        table.add_column("class", overflow="fold")
        for name in ("parameters", "trained", "buffers", *(["FLOPs a sample"] if counted else [])):
            table.add_column(name, justify="right")
        for part in self.parts:
            level = part.name.count(".") + 1 if part.name else 0
            if self._depth is not None and level > self._depth:
                continue
            name = Text(part.name or "(network)")  # not markup, whatever is in it
            figures = [f"{part.parameters:,}", f"{part.trained:,}", f"{part.buffers:,}"]
            if counted:
                figures.append(_short((part.flops or 0) / max(1, self._count.samples)))
            table.add_row(name, Text(part.kind), *figures)
        if not counted:
            table.caption = Text(f"FLOPs are not known: {self._count.unknown}")
        return table


def _parts_of_network(network: nn.Module, flops: dict[str, int] | None) -> Iterable[SummaryRow]:
    """Yield the network and all its modules, each once."""
    for name, module in cast("Iterable[tuple[str, nn.Module]]", network.named_modules()):
        parameters = list(module.parameters())
        yield SummaryRow(
            name,
            _class_of(module).__name__,
            _elements(parameters),
            _elements(parameter for parameter in parameters if parameter.requires_grad),
            _elements(module.buffers()),
            None if flops is None else flops.get(name, 0),
        )


def _class_of(module: nn.Module) -> type:
    """Return the class of a module; that of one which FSDP2 shards is made of this and a class of its own."""
    return next(one for one in type(module).__mro__ if not one.__module__.startswith("torch.distributed.fsdp"))


def _elements(tensors: Iterable[Tensor]) -> int:
    """Return how many elements tensors have together; one whose shape is not known yet has none."""
    return sum(0 if is_lazy(tensor) else tensor.numel() for tensor in tensors)


def _short(number: float) -> str:
    """Return a number with three digits and the letter of its thousands."""
    letters = ["P", "T", "G", "M", "k", ""]
    while number >= 999.5 and len(letters) > 1:
        number /= 1000
        letters.pop()
    return f"{number:.3g} {letters[-1]}".rstrip()
