"""Look, once an epoch, whether the updates still train the network: a handler may have put other parameters in place.

What a step costs is not touched: the gradients are looked at in the first update of the run and in the last of each
pass, where it is known to be the last, and the parameters at the end of each epoch. Since an epoch may be long, and a
stream endless, both are looked at in every 4,096th update as well, and in the one that `max_updates` ends with.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from heptad.errors import EngineError, diagnose
from heptad.record.events import Untrained
from heptad.run.run import Run
from heptad.run.runtime import Runtime

LOOKS = 4095
"""The updates whose number has none of these bits are looked at."""


class Bond:
    """Which parameters the network and the optimizers held when this was made.

    They are held here too, so that no other can have the id of one of them.
    """

    __slots__ = ("held", "main", "own", "same")

    def __init__(self, runtime: Runtime) -> None:
        self.own = dict(runtime.network.named_parameters())
        self.main = runtime.optimizers.held()
        self.held = [*self.main, *runtime.optimizers.beside().held()]
        self.same = _ids_now(runtime)


def find_untrained(run: Run) -> None:
    """Report an update that finds no gradient: it changes nothing, and the next one will be like it."""
    done = run._position.update
    for one in run._runtime.optimizers.held():
        if one.grad is not None:
            if done and not done & LOOKS:
                look_after_parameters(run)
            return
    if not look_after_parameters(run):
        _say(run, "")


def look_after_parameters(run: Run) -> bool:
    """Report the parameters of the network that updates do not reach any more, because they are other objects.

    Returns:
        Whether there were any.

    Raises:
        EngineError: If the updates reach none of them.
    """
    runtime, before = run._runtime, run._runtime.bond
    if before is None or before.same == _ids_now(runtime):
        return False
    now = runtime.bond = Bond(runtime)
    new, loose, gone = _lost(before, now)
    if not (new or loose or gone) and now.main:
        return False
    nothing = not _ids(now.main) & _ids(now.own.values()) and all(one.grad is None for one in now.main)
    found = diagnose("lost_parameters", new, loose, gone, nothing)
    _say(run, found)
    if nothing:
        raise EngineError(found)
    return True


def _lost(before: Bond, now: Bond) -> tuple[list[str], list[str], list[str]]:
    """Return names: what came into the network and is not held, is not held any more, is held and not in there."""
    own, known, held = _ids(now.own.values()), _ids(before.own.values()), _ids(now.held)
    dropped = _ids(before.held) - held
    trainable = [(name, id(one)) for name, one in now.own.items() if one.requires_grad]
    new = [name for name, one in trainable if one not in known | held]
    loose = [name for name, one in trainable if one in known & dropped]
    gone = [name for name, one in before.own.items() if id(one) in (held & _ids(before.held)) - own]
    # one that was replaced is no loss where the optimizer holds what stands there now
    return new, loose, [name for name in gone if name not in now.own or id(now.own[name]) not in held]


def _say(run: Run, found: str) -> None:
    """Emit an event, once for each finding."""
    if not any(isinstance(event, Untrained) and event.found == found for event in run._buffer.events(0)):
        run.emit(Untrained, found)


def _ids_now(runtime: Runtime) -> list[int]:
    """Return the ids of all parameters of the network and of the optimizers."""
    optimizers = runtime.optimizers
    beside = optimizers.beside().held() if optimizers.side else ()
    return list(map(id, (*runtime.network.parameters(), *optimizers.held(), *beside)))


def _ids(parameters: Iterable[Tensor]) -> set[int]:
    return set(map(id, parameters))
