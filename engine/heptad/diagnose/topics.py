"""What is likely wrong and what to do, in words: one function a topic, called through `heptad.errors.diagnose`."""

from __future__ import annotations

from heptad.diagnose.compilation import compilation
from heptad.diagnose.data import (
    empty_pass,
    iterated_once,
    no_data,
    no_dataset,
    no_loader,
    shuffled_stream,
    too_few_samples,
)
from heptad.diagnose.hooks import HERE
from heptad.diagnose.loss import backward, empty_output, loss, never_returns, own_backward, own_clearing, pair
from heptad.diagnose.optimizers import (
    foreign_parameters,
    lost_parameters,
    mixed_list,
    no_optimizer,
    odd_step,
    optimizer_factory,
    ready_made,
    replaced_parameters,
    shared_closure,
    unfit_state,
    unshared_step,
)
from heptad.diagnose.values import unrecordable, unrecorded

__all__ = [
    "backward",
    "compilation",
    "empty_output",
    "empty_pass",
    "foreign_parameters",
    "handler_name",
    "iterated_once",
    "loss",
    "lost_parameters",
    "mixed_list",
    "never_returns",
    "no_data",
    "no_dataset",
    "no_loader",
    "no_optimizer",
    "odd_step",
    "optimizer_factory",
    "own_backward",
    "own_clearing",
    "pair",
    "ready_made",
    "replaced_parameters",
    "shared_closure",
    "shuffled_stream",
    "too_few_samples",
    "unfit_state",
    "unrecordable",
    "unrecorded",
    "unshared_step",
]


def handler_name(name: str) -> str:
    """Return what a method whose name begins with `on_` is meant to be."""
    known = HERE.get(name)
    other = "give any other method a name that does not begin with 'on_'"
    return f"here it would be {known}" if known else other
