"""`Runtime`: what a run works with, and the protocols of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Unpack

import torch
from torch import nn
from torch.optim import Optimizer

from heptad.config import Components
from heptad.data.feed import Feed
from heptad.data.placement import Placement
from heptad.data.transfer import Transfer
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.run.peers import NoPeers, Peers
from heptad.run.shards import NoShards, Shards
from heptad.run.state import RunState
from heptad.run.weight import Weight
from heptad.run.window import Window

Place = Callable[[Any], Any]
"""Returns a batch on the device of a run."""


class OptimizerSet(Protocol):
    """The optimizers of a run, as one object. Nobody else walks their parameter groups.

    Attributes:
        side: Those that plugins step, by name.
        where: What messages call each.
    """

    side: Mapping[str, Optimizer]
    where: Sequence[str]

    def __iter__(self) -> Iterator[Optimizer]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Optimizer: ...

    def beside(self) -> OptimizerSet:
        """Return the side optimizers as a set of their own."""
        ...

    def clear(self) -> None:
        """Drop the gradients of all that the optimizers and the side optimizers hold: what opens a window."""
        ...

    def drop(self, network: nn.Module) -> None:
        """Drop the gradients of the network and of all that the optimizers and the side optimizers hold."""
        ...

    def held(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizers hold, each once, in the order of their groups."""
        ...

    def parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """Return the network's parameters in its order, then the others that the optimizers hold, each once."""
        ...

    def cleared(self) -> set[int]:
        """Return the ids of the parameters whose gradients `clear` certainly drops."""
        ...

    def groups(self, of: Optimizer | None = None) -> list[dict[str, Any]]:
        """Return the parameter groups, of all or of one of the optimizers; not copied."""
        ...

    def learning_rates(self, of: Optimizer | None = None) -> dict[str, float | torch.Tensor]:
        """Return the learning rate as `lr`; where there are several groups, as `lr/0`, `lr/1` and so on."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Return the class of each and the plain options of its parameter groups."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what the log says of all of them."""
        ...

    def names(self, names: Mapping[int, str]) -> list[list[list[str]]]:
        """Return the names of the parameters, by optimizer and group."""
        ...

    def state(self, names: Mapping[int, str], built: Sequence[int]) -> list[dict[str, Any]]:
        """Return the state of each, with the names of its parameters by group."""
        ...

    def rehearse(self, states: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Load what `state` returned, and put back what was there."""
        ...

    def restore(self, states: Sequence[Mapping[str, Any]], parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore what `state` returned."""
        ...


class StepFunction(Protocol):
    """What runs the network on one batch: batch to loss, weight, output and samples.

    Attributes:
        giver: Who returns the loss, as messages name it: `"criterion"` or `"compute_loss"`.
    """

    giver: str

    def place(self, batch: Any, place: Place) -> Any:
        """Return a batch placed on the device by `place`. What the host can still read of it, it reads before."""
        ...

    def run(self, at: RunState) -> Mapping[str, float | torch.Tensor] | None:
        """Run the network on `at.batch`, and leave `output`, `loss`, `weight` and `samples_now` in `at`.

        They are left one by one, so that an error message can show the output that a criterion failed on.

        Returns:
            What is to be recorded, by name: `LossOutput.logs`.
        """
        ...

    def weigh(self, at: RunState) -> Weight:
        """Return what the mean of the step was taken over, also where a window of one step needs no weight."""
        ...

    def count(self, at: RunState) -> Weight:
        """Return what a metric of the step is averaged by: what its mean was taken over, each target counted once."""
        ...

    def predict(self, batch: Any) -> Any:
        """Return the network's output for a batch, of which no loss is asked."""
        ...


class Recomputes(Protocol):
    """Computes a window again, from the batches that were kept of it."""

    def update(self, run: Any) -> None:
        """Step the optimizers of a run, with a closure those that need one."""
        ...

    def again(self, run: Any) -> torch.Tensor:
        """Compute the gradients of the window at the present weights, and return its loss."""
        ...


class ScalesLosses(Protocol):
    """Scales the losses of a run in fp16, and un-scales its gradients."""

    def unscale(self, run: Any) -> None:
        """Un-scale the gradients of a window, and skip its update if they are not finite."""
        ...

    def state(self) -> tuple[float, int]:
        """Return the scale, and the number of finite updates since it last changed."""
        ...

    def restore(self, scale: float, growth: int, window: Window) -> None:
        """Restore what `state` returned."""
        ...


class Evaluates(Protocol):
    """Evaluates a network over data; the engine's `Evaluator`.

    Attributes:
        expected: What the names of values to come begin with.
    """

    expected: set[str]

    def prepare(self, data: Any, name: str, records: str = "") -> object:
        """Open data for later evaluations; errors call it `name`, and recorded values begin with `records`."""
        ...

    def attempt(self, data: Any, metrics: Any, name: str, **options: Unpack[EvaluationOptions]) -> None:
        """Try metrics on one batch of data."""
        ...

    def evaluate(
        self,
        data: Any,
        metrics: Any = None,
        ended: Callable[[], bool] | None = None,
        *,
        name: str = "",
        **options: Unpack[EvaluationOptions],
    ) -> Measures:
        """Return what is measured by name; errors call the data `name`.

        `ended` is asked before each batch; where it says True, `Unfinished` is raised.
        """
        ...

    def training_pass(self, seed: int) -> Iterator[Any]:
        """Yield the batches of one pass over the training data, in plain order."""
        ...

    def forward(self, batch: Any) -> Any:
        """Run the network on a placed batch, without gradients, and return its output."""
        ...

    def close(self) -> None:
        """Close the data of all evaluations."""
        ...


@dataclass(slots=True, weakref_slot=True)
class Runtime:
    """What a run works with: built with the engine, completed in `before_loop`, read by the bodies.

    Attributes:
        components: What the user gave.
        feed: Where batches come from.
        device: Where the network is, and batches go.
        optimizers: Empty until `before_loop` has built them.
        place: Returns a batch on the device; by default at once, on its current stream.
        step: The step function; it exists from `before_loop` on.
        recomputation: Computes the window again; `None` where nothing asks for it.
        keeps_window: Whether a plugin asks for it.
        scaling: Scales the losses in fp16; `None` in another precision.
        gradient_changers: The plugins that change gradients on entry to `optimizer_update`, as messages name them.
        requests: What plugins may ask for by `Run.ask`.
        on_loss: What is called in each step before its backward pass, with the run: plugins that ask for it.
        evaluator: Evaluates for `Run.evaluate`; `None` in a run that is itself an evaluation.
        peers: The ranks of the run.
        shards: Which tensors the ranks share.
        frozen: The parameters of the network that took no gradient when the optimizers were built.
        bond: Which parameters the network and the optimizers held when that was last looked at.
        places: Whether batches are moved to the device. On the CPU they are where they are used.
        network: The bare network: what has names and is stored.
        forward: What is called: the network, or what a strategy wrapped around it.
    """

    components: Components
    feed: Feed
    device: torch.device
    optimizers: OptimizerSet
    place: Place = field(default=None)  # pyright: ignore[reportAssignmentType] - set below
    requests: Sequence[str] = ()
    on_loss: tuple[Callable[[Any], object], ...] = ()
    evaluator: Evaluates | None = None
    recomputation: Recomputes | None = None
    keeps_window: bool = False
    scaling: ScalesLosses | None = None
    gradient_changers: Sequence[str] = ()
    frozen: Sequence[str] = ()
    bond: Any = None
    peers: Peers = field(default_factory=NoPeers)
    shards: Shards = field(default_factory=NoShards)
    step: StepFunction = field(init=False)
    places: bool = field(init=False)
    network: nn.Module = field(init=False)
    forward: Any = field(init=False)

    def __post_init__(self) -> None:
        # read in every step, where an attribute of a pydantic model costs five times that of a slot
        self.network = self.forward = self.components.network
        self.places = self.device.type != "cpu" or isinstance(self.place, Transfer)
        if self.place is None:  # pyright: ignore[reportUnnecessaryComparison] - its default
            self.place = Placement(self.device)
