"""Checkpoints that somebody crafted who knows the format: sizes and digests are right, what they say is not."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from heptad.checkpoints.store import Store
from listed import group_of, listing

Change = Callable[[dict[str, Any]], object]
"""Changes what it is given."""


def sign(path: Path, change: Change) -> None:
    """Change the manifest of a checkpoint; its form and its digest are right."""
    content = json.loads((path / "manifest.json").read_text())
    del content["digest"]
    change(content)
    digest = hashlib.sha256(json.dumps(content, indent=1).encode() + b"\n").hexdigest()
    (path / "manifest.json").write_text(json.dumps({**content, "digest": digest}, indent=1) + "\n")


def put(path: Path, name: str, content: bytes) -> None:
    """Put other content in a file of a checkpoint, which may be new, and its size and digest in the manifest."""
    (path / name).write_bytes(content)
    facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    tensors = listing(name, content)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = facts
        if tensors is not None:
            manifest["tensors"][group_of(name)] = tensors

    sign(path, change)


def drop(path: Path, name: str) -> None:
    """Remove a file of a checkpoint, from the manifest too."""
    (path / name).unlink()
    sign(path, lambda manifest: (manifest["files"].pop(name), manifest["tensors"].pop(group_of(name), None)))


def put_state(path: Path, change: Change) -> None:
    """Change `state.json`, as JSON."""
    state = json.loads((path / "state.json").read_text())
    change(state["sections"])
    put(path, "state.json", json.dumps(state, separators=(",", ":")).encode())


def put_tensors(path: Path, section: str, change: Change) -> None:
    """Change the tensors of a section, by name."""
    file = path / f"{section}-00000.safetensors"
    tensors = load(file.read_bytes()) if file.exists() else {}
    change(tensors)
    put(path, file.name, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def resaved(source: Path, directory: Path, change: Change) -> Path:
    """Load a checkpoint, change its sections as values, and save them as the only checkpoint of a directory."""
    snapshot = Store(source.parent).load(source)
    change(snapshot.sections)
    shutil.rmtree(directory, ignore_errors=True)
    return Store(directory).save(snapshot).path


def copied(source: Path, directory: Path) -> Path:
    """Copy a checkpoint into another directory of checkpoints, to be changed there."""
    return Path(shutil.copytree(source, directory / source.name))


def bounded(work: Callable[[], object], megabytes: int = 512, seconds: int = 10) -> str:
    """Call a function in a forked child that may take so much more memory and so much time; return what came of it.

    That is nothing where it returned, class and message of what it raised, or the signal that ended it.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20),) * 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            work()
        except BaseException as error:
            os.write(send, f"{type(error).__name__}: {error}"[:4000].encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answer:
        said = answer.read().decode(errors="replace")
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if ended == 0 else f"ended by {signal.Signals(-ended).name}"


def some_other(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors of other shapes and dtypes than this one."""
    other = torch.float64 if tensor.dtype is torch.float32 else torch.float32
    flat = tensor.reshape(-1)
    return [tensor.to(other), torch.cat([flat, flat[:1]]), tensor[None], flat[:0]]
