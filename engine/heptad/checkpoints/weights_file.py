"""`write_weights`: the weights of a checkpoint as one plain safetensors file, for programs that know nothing of Heptad.

The command `heptad weights` calls it. The names are those of the network's `state_dict`, so that
`network.load_state_dict(safetensors.torch.load_file(path))` loads all of it, and so do the readers of `transformers`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from heptad.checkpoints import tensors
from heptad.checkpoints.encoding import refused_tensor
from heptad.checkpoints.files import Files, os_errors_explained
from heptad.checkpoints.held_weights import HeldWeights, read_weights, refuse_file
from heptad.checkpoints.layout import SUFFIX, is_checkpoint, named_path
from heptad.checkpoints.writing import write_file
from heptad.errors import CheckpointError, kind

_METADATA = {"format": "pt"}
"""What transformers asks of a file: the framework whose tensors it holds."""

_EXTRA = "_extra_state"
"""The name under which a state_dict has what `get_extra_state` of a module returned."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights that was written.

    Attributes:
        path: The file.
        checkpoint: The checkpoint that they were read from.
        tensors: How many there are.
        size: Bytes of the file.
        left_out: The names in the state_dict of what is no tensor, which the format cannot hold.
        damage: What is wrong with each checkpoint that was passed over.
        stale: What is not up to date in what was read, in words; empty if nothing.
    """

    path: Path
    checkpoint: Path
    tensors: int
    size: int
    left_out: Sequence[str]
    damage: Sequence[str]
    stale: str


def write_weights(
    directory: str | os.PathLike[str],
    target: str | os.PathLike[str],
    which: str = "newest",
    *,
    average: bool | str = False,
    overwrite: bool = False,
    files: Files | None = None,
) -> WeightsFile:
    """Write the weights of a checkpoint to a safetensors file, which is whole or not there.

    Parameters and persistent buffers are written, each under its name; of tied weights an equal copy under every name,
    since a reader that knows no ties asks for all of them. What `torch.compile` adds to names is left out.

    Args:
        directory: Of checkpoints, or one checkpoint.
        target: The file; its name ends in `.safetensors`. Missing directories above it are made.
        which: `"newest"`, `"best"` or `"ema"`, see `load_weights`.
        average: Whether an average is written in place of the weights, see `load_weights`.
        overwrite: Whether a file of this name is replaced.
        files: The operations on files.

    Raises:
        CheckpointError: If there is no such checkpoint, the file is there already, or it cannot be written.
    """
    refuse_file(named_path(directory), "heptad weights")
    path = _checked_target(target, overwrite)
    held = read_weights(directory, which, average=average)
    kept, left_out = _state_dict_of(held)
    size, pieces = tensors.pieces(kept, f"{held.path}: the network", _METADATA)
    files = Files() if files is None else files
    with os_errors_explained("making", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".heptad-{secrets.token_hex(8)}.new")
    try:
        write_file(files, beside, size, pieces)
        _refuse_existing(path, overwrite)  # somebody may have made it meanwhile
        with os_errors_explained("renaming the finished file to", path):
            files.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            files.remove(beside)
        raise
    with os_errors_explained("syncing", path.parent):
        files.sync_directory(path.parent)
    return WeightsFile(Path(target), held.path, len(kept), size, left_out, held.damage, held.stale)


def _checked_target(target: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return where the file is written: where a link points to, if the name is one."""
    name = os.fspath(target)
    if not name.endswith(SUFFIX):
        raise CheckpointError(f"weights are written to a file whose name ends in {SUFFIX}; got {name!r:.200}")
    with os_errors_explained("looking for", Path(target)):
        path = Path(os.path.realpath(target))
        if is_checkpoint(path.parent):
            raise CheckpointError(f"{target} lies in a checkpoint, to which nothing is added; name another place")
        _refuse_existing(path, overwrite)
    return path


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_file():
        raise CheckpointError(f"{path} is there and is not a file; name another one")
    if not overwrite:
        raise CheckpointError(f"{path} is there already; name another file, or say --overwrite")


def _state_dict_of(held: HeldWeights) -> tuple[Mapping[str, Tensor], Sequence[str]]:
    """Return what a state_dict of the network holds, and the names of what is left out since it is no tensor.

    Raises:
        CheckpointError: If the format cannot hold a tensor.
    """
    found = {name: tensor for name, tensor in held.tensors.items() if name not in held.not_persistent}
    left_out: list[str] = []
    for part, state in held.extra.items():
        name = f"{part}.{_EXTRA}" if part else _EXTRA
        if isinstance(state, Tensor):
            found[name] = state
        else:
            left_out.append(f"{name} ({kind(state)})")
    for name, tensor in found.items():
        why = "the name means something else in the format" if name == tensors.RESERVED else refused_tensor(tensor)
        if why:
            raise CheckpointError(f"{held.path}: {name!r:.200} cannot be written as safetensors: {why}")
    return found, left_out
