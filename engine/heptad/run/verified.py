"""Which values of `RunConfig` were seen to work on a device: by a run of the tests marked `gpu`, and by nothing else.

That run writes `verified_rows.py`, and `docs/verified.md` from it. When a run begins on an accelerator, the log notes
what has no row there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch

from heptad.config import RunConfig
from heptad.record.events import Unverified
from heptad.run.peers import NoPeers
from heptad.run.run import Run
from heptad.run.verified_rows import ROWS, Row

TRAINING = "training"
"""What every run on a device does; rows and notes call it this."""

FIELDS = ("precision", "compile", "recompute", "prefetch", "data_on_device", "redo")
"""The fields whose values do something of their own on a device."""

_OFF = (None, False, 0, "fp32", ())


def note_unverified(run: Run) -> None:
    """Note in the log which values of a run have no row for its device; each once, also where the run is resumed."""
    device = run.device.type
    if device == "cpu":
        return
    known = {event.text for event in run.log.notes("unverified")}
    shares = "fsdp" if run._runtime.shards.any else "ddp"
    several = () if isinstance(run._runtime.peers, NoPeers) else (shares,)
    for what in unverified(run.config, device, ROWS, several):
        if str(Unverified(0, 0, what, device).text) not in known:
            run.emit(Unverified, what=what, device=device)


def unverified(config: RunConfig, device: str, rows: Sequence[Row], more: Sequence[str] = ()) -> list[str]:
    """Return what of a configuration, and what more, has no row of this version of Heptad for this type of device."""
    here = [row for row in rows if row["device"] == device and row["heptad"] == installed_version()]
    covered = {what for row in here for what in row["covers"]}
    return [what for what in (TRAINING, *_values_on(config), *more) if what not in covered]


def _values_on(config: RunConfig) -> Iterator[str]:
    """Yield the values that are on: a name by itself (`fp16-mixed`), anything else by its field."""
    for field in FIELDS:
        value = getattr(config, field, None)
        if value in _OFF:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple | list):
            yield from (f"{field}={one}" for one in cast("Sequence[Any]", value))
        else:
            yield field


def installed_version() -> str:
    """Return the version of Heptad, `"unknown"` where it is run from a checkout."""
    try:
        return version("heptad")
    except PackageNotFoundError:
        return "unknown"


def card_name(device: torch.device) -> str:
    """Return the name of a device's card, or of its type where torch knows no other."""
    module: Any = torch.get_device_module(device.type)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type
