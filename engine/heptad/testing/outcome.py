"""`RunOutcome`: what a run left behind, by which two runs are compared bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from heptad.checkpoints.encoding import encode
from heptad.data.generators import cpu_states
from heptad.engine import Engine
from heptad.plugin.contract import Plugin
from heptad.plugin.manager import plugin_state
from heptad.record.events import Event, Pause

Encoded = tuple[Any, dict[str, Tensor]]
"""A value as a checkpoint stores it, which can be compared: JSON, and the tensors in it by name."""


@dataclass
class RunOutcome:
    """What a run left behind: its path, events but for pauses and timed ones, values, weights, state and generators."""

    path: list[tuple[Any, ...]]
    events: list[Event]
    values: dict[str, Encoded]
    weights: Encoded
    state: dict[str, Encoded]
    random: Encoded

    @classmethod
    def of(cls, engine: Engine, plugin: Plugin) -> RunOutcome:
        """Take it down, copied.

        Raises:
            CheckpointError: If the plugin's state holds what a checkpoint cannot.
        """
        run, state = engine.current, plugin_state(plugin)
        records = [(r.name, [r.value, r.seq, r.epoch, r.step, r.update]) for r in run.records()]
        return cls(
            [(t.seq, t.source, t.dest, dict(t.guards), t.epoch, t.batch_index, t.step, t.update) for t in run.log],
            [replace(event, time_ns=0) for event in run.log.notes() if not (event.timed or isinstance(event, Pause))],
            {name: encode([row for other, row in records if other == name], "values") for name in run.metrics},
            _with_copies(encode(dict(run.network.state_dict()), "weights")),
            {name: _with_copies(encode(part, f"state_dict()[{name!r}]")) for name, part in state.items()},
            encode(cpu_states(), "random"),
        )

    def differences(self, other: RunOutcome, volatile: frozenset[str]) -> list[str]:
        """Return in what the other differs from this one, in words; values and state of `volatile` names may."""
        found = ["its path parts"] if self.path != other.path else []
        found += ["its notes differ"] if self.events != other.events else []
        found += [] if _all_same(self.values, other.values, volatile) else ["its recorded values differ"]
        found += [] if same(self.weights, other.weights) else ["its weights differ"]
        found += [] if _all_same(self.state, other.state, volatile) else ["its state_dict at the end differs"]
        return found


def same(one: Encoded, other: Encoded) -> bool:
    """Return whether two encoded values are the same, bit for bit; NaN is the same as NaN."""
    (plain, tensors), (other_plain, other_tensors) = one, other
    return (
        plain == other_plain
        and tensors.keys() == other_tensors.keys()
        and all(_same_bits(tensor, other_tensors[name]) for name, tensor in tensors.items())
    )


def _all_same(ours: dict[str, Encoded], theirs: dict[str, Encoded], but_for: frozenset[str]) -> bool:
    names = (ours.keys() | theirs.keys()) - but_for
    return all(name in ours and name in theirs and same(ours[name], theirs[name]) for name in names)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _with_copies(encoded: Encoded) -> Encoded:
    plain, tensors = encoded
    return plain, {name: tensor.clone() for name, tensor in tensors.items()}
