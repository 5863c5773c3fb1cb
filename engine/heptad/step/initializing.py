"""When `Components.init_weights` is called: the network is whole then, also where ranks share it afterwards.

The body of `before_loop` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from heptad.errors import ConfigError
from heptad.ranks.strategy import Strategy
from heptad.run.runtime import Runtime
from heptad.step.optimizers import apply_init_weights


def build_initialized(runtime: Runtime, strategy: Strategy, build: Callable[[], object]) -> None:
    """Place the network and build the optimizers; initialise the weights, if asked.

    After that, where the network is on its device; before it, where placing leaves each rank a part of the parameters.

    Args:
        runtime: What is built.
        strategy: How the ranks work together.
        build: Places the network and builds the optimizers.

    Raises:
        ConfigError: If `init_weights` has replaced what an optimizer holds, or the network is shared already.
    """
    init_weights = runtime.components.init_weights
    if init_weights is not None and strategy.shares:
        _init_whole(runtime, init_weights)
    build()
    if init_weights is not None and not strategy.shares:
        apply_init_weights(runtime.network, init_weights, runtime.optimizers)


def _init_whole(runtime: Runtime, init_weights: Callable[[nn.Module], object]) -> None:
    """Initialise the weights of a network that is about to be sharded.

    Raises:
        ConfigError: If an earlier engine has sharded it: each rank would draw the same numbers for its part.
    """
    if any(runtime.shards.part(parameter) is not None for parameter in runtime.network.parameters()):
        raise ConfigError(
            "Components.init_weights: the network is sharded already, by an earlier engine with strategy='fsdp', and "
            "ranks cannot draw the numbers of their parts as one process would; build the network anew, or leave "
            "init_weights out"
        )
    init_weights(runtime.network)
