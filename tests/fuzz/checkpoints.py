"""Checkpoints as inputs: originals, what damage and strangers make of them, and those who read them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fuzz.damage import damaged
from fuzz.values import dumped, expanded, mutated, odd
from fuzz.verdict import Outcome, WrongAnswer, expect_equal
from heptad import CheckpointError, Engine, EngineError, load_weights
from heptad.checkpoints.layout import MANIFEST, STATE, SUFFIX, rank_file
from heptad.checkpoints.store import Store
from heptad.data.generators import global_states
from heptad_plugins import Checkpoint
from listed import group_of, listing
from scenario import digest, full_engine, network, outcome

OWN = rank_file(0)
"""What is the rank's own."""

Parts = dict[str, bytes]
"""The files of a checkpoint by name."""

VARIANTS: dict[str, dict[str, Any]] = {
    "dataset": {},
    "stream": {"feed": "stream"},
    "loader": {"feed": "loader"},
    "again": {"again": True},
    "odd": {"odd": True},
    "closure": {"closure": True, "schedule": False},
}
"""Runs of the scenario whose checkpoints differ in form."""

LAST_STEPS = {"odd": 7}
"""At which step a run is stored, where not at the thirteenth: late, for what follows is run again for each input."""


class Original(NamedTuple):
    """A checkpoint as a run wrote it.

    Attributes:
        parts: Its files.
        ends: What becomes of the run if it is resumed from it, as digests by name.
        weights: The digest of what `load_weights` gives, by the value of `which`.
        batches: The digest of the batches that it holds.
    """

    parts: Parts
    ends: dict[str, str]
    weights: dict[str, str]
    batches: str


def engine_of(variant: str, directory: Path) -> Engine:
    """Return the engine of a variant, which itself writes no checkpoint."""
    store = Checkpoint(directory, at="after_step", every=1000)
    return full_engine(directory, checkpoint=store, **VARIANTS[variant])


@cache
def original(variant: str) -> Original:
    """Return the checkpoint of a variant: in the middle of a window, near the end of the run."""
    with tempfile.TemporaryDirectory() as name:
        engine = engine_of(variant, Path(name) / "run")
        with engine:
            run = engine.run(until=lambda run: run.step == LAST_STEPS.get(variant, 13))
            path = Store(Path(name) / "stored").save(run.snapshot()).path
        parts = {file.name: file.read_bytes() for file in path.iterdir()}
        with engine_of(variant, Path(name) / "again") as engine:
            engine.run(resume=path)
            ends = outcome(engine)
        weights = {}
        for which in ("newest", "ema"):
            model = network()
            load_weights(path, model, which)
            weights[which] = digest(model.state_dict())
        batches = _batches_of(path)
    return Original(parts, ends, weights, batches)


def prepare() -> None:
    """Write all originals, before processes are forked."""
    for variant in VARIANTS:
        original(variant)


# -- inputs


def variant_of(number: int) -> str:
    """Return the variant that an input is made from."""
    return [*VARIANTS][number % len(VARIANTS)]


def make_damaged(folder: Path, number: int, draw: Random) -> None:
    """Write a checkpoint with damage in one of its files."""
    parts = dict(original(variant_of(number)).parts)
    name = draw.choice(sorted(parts))
    if draw.random() < 0.05:
        del parts[name]
    else:
        parts[name] = damaged(parts[name], draw)
    _write(folder, parts)


def make_crafted(folder: Path, number: int, draw: Random) -> None:
    """Write a checkpoint of which one or two things were changed, with right sizes and digests."""
    parts = dict(original(variant_of(number)).parts)
    sign = draw.choice(CRAFTS)(parts, draw) is not False
    if sign and draw.random() < 0.25:
        with suppress(Exception):  # what the first change has left may be of another form
            sign = draw.choice(CRAFTS)(parts, draw) is not False
    _write(folder, signed(parts) if sign else parts)
    if draw.random() < 0.03:
        _make_special(folder / CHECKPOINT / draw.choice(sorted(parts)), draw)


CHECKPOINT = "checkpoint-00000001"


def _write(folder: Path, parts: Parts) -> None:
    path = folder / CHECKPOINT
    path.mkdir(parents=True)
    for name, content in parts.items():
        (path / name).write_bytes(content)


def signed(parts: Parts) -> Parts:
    """Return parts whose manifest has the sizes and digests of the other files, their tensors, and its own digest."""
    parts = {**parts, **{name: expanded(parts[name]) for name in (STATE, OWN) if name in parts}}
    manifest = json.loads(parts[MANIFEST])
    manifest["files"] = {name: _facts(content) for name, content in sorted(parts.items()) if name != MANIFEST}
    for name, content in parts.items():
        if (tensors := listing(name, content)) is not None:
            manifest["tensors"][group_of(name)] = tensors
    return {**parts, MANIFEST: _with_digest(manifest)}


def _facts(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _with_digest(manifest: dict[str, Any]) -> bytes:
    """Return the content of a manifest with its own digest."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    digest = hashlib.sha256(dumped(rest, indent=1) + b"\n").hexdigest()
    return dumped({**rest, "digest": digest}, indent=1) + b"\n"


def _json(value: Any) -> bytes:
    """Return a value as JSON that can still be changed: `signed` expands it."""
    return json.dumps(value, separators=(",", ":")).encode()


def _change_state(parts: Parts, draw: Random) -> None:
    """Change a place in what is not a tensor."""
    parts[STATE] = _json(mutated(json.loads(parts[STATE]), draw))


def _change_section(parts: Parts, draw: Random) -> None:
    """Change a place in one section, so that the small ones have their share."""
    state = json.loads(parts[STATE])
    name = draw.choice(sorted(state["sections"]))
    state["sections"][name] = mutated(state["sections"][name], draw)
    parts[STATE] = _json(state)


def _change_own(parts: Parts, draw: Random) -> None:
    """Change a place in what is the rank's own."""
    parts[OWN] = _json(mutated(json.loads(parts[OWN]), draw))


def _change_generators(parts: Parts, draw: Random) -> None:
    """Change a place in the states of random generators, or in the place in the data, which holds some too."""
    own = json.loads(parts[OWN])
    name = draw.choice(["random", "data"])
    for pair in own["own"]:
        if pair[0] == ["run", name]:
            pair[1] = mutated(pair[1], draw)
    parts[OWN] = _json(own)


def _change_pieces(parts: Parts, draw: Random) -> bool:
    """Change what the manifest says of a tensor, which is not signed again afterwards."""
    parts.update(signed(parts))
    manifest = json.loads(parts[MANIFEST])
    group = draw.choice(sorted(manifest["tensors"]))
    name = draw.choice(sorted(manifest["tensors"][group]))
    line = bytearray(manifest["tensors"][group][name].encode())
    other = line.decode()[line.index(b"]") + 1 :]
    changed = draw.choice([line.decode() + other, damaged(bytes(line), draw).decode(errors="replace")])
    manifest["tensors"][group][name] = changed
    parts[MANIFEST] = _with_digest(manifest)
    return False


def _take_section(parts: Parts, draw: Random) -> None:
    """Take a section of another run."""
    other = original(draw.choice([*VARIANTS])).parts
    state, theirs = json.loads(parts[STATE]), json.loads(other[STATE])
    name = draw.choice(sorted(theirs["sections"]))
    state["sections"][name] = theirs["sections"][name]
    parts[STATE] = _json(state)
    parts.pop(f"{name}-00000{SUFFIX}", None)
    parts.update({file: content for file, content in other.items() if file == f"{name}-00000{SUFFIX}"})


def _change_summary(parts: Parts, draw: Random) -> None:
    """Change a place in the summary."""
    manifest = json.loads(parts[MANIFEST])
    parts[MANIFEST] = _json({**manifest, "summary": mutated(manifest["summary"], draw)})


def _change_manifest(parts: Parts, draw: Random) -> bool:
    """Change any place in the manifest, which is not signed again afterwards."""
    manifest = mutated(json.loads(signed(parts)[MANIFEST]), draw)
    parts[MANIFEST] = _with_digest(manifest) if isinstance(manifest, dict) else dumped(manifest)
    return False


def _tensor_file(parts: Parts, draw: Random) -> str:
    return draw.choice(sorted(name for name in parts if name.endswith(SUFFIX)))


def _change_header(parts: Parts, draw: Random) -> None:
    """Change names, dtypes, shapes or places of tensors."""
    name = _tensor_file(parts, draw)
    content = parts[name]
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = dumped(draw.choice([mutated, _other_dtype, _other_names, _other_shape])(header, draw))
    text += b" " * (-(8 + len(text)) % 64)
    parts[name] = len(text).to_bytes(8, "little") + text + content[end:]


def _other_dtype(header: Any, draw: Random) -> Any:
    of = {8: ["F64", "I64", "U64", "C64"], 4: ["F32", "I32", "U32"], 2: ["F16", "BF16", "I16"], 1: ["U8", "I8", "BOOL"]}
    facts = header[draw.choice(sorted(header))]
    facts["dtype"] = draw.choice(next((names for names in of.values() if facts["dtype"] in names), ["F32"]))
    return header


def _other_names(header: Any, draw: Random) -> Any:
    one, other = draw.choice(sorted(header)), draw.choice(sorted(header))
    header[one], header[other] = header[other], header[one]
    return header


def _other_shape(header: Any, draw: Random) -> Any:
    facts = header[draw.choice(sorted(header))]
    shape = facts["shape"]
    facts["shape"] = draw.choice([shape[::-1], [1, *shape], [*shape, 1], [*shape, 0], shape[1:], [2**62, *shape]])
    return header


def _change_elements(parts: Parts, draw: Random) -> None:
    """Overwrite elements of tensors."""
    name = _tensor_file(parts, draw)
    content = bytearray(parts[name])
    start = draw.randrange(8 + int.from_bytes(content[:8], "little"), len(content))
    size = min(draw.choice([1, 8, 64]), len(content) - start)
    content[start : start + size] = draw.choice([b"\xff" * size, b"\x00" * size, draw.randbytes(size)])
    parts[name] = bytes(content)


def _exchange_files(parts: Parts, draw: Random) -> None:
    """Put the tensors of one section, or of another run, in place of those of another section."""
    other = original(draw.choice([*VARIANTS])).parts
    parts[_tensor_file(parts, draw)] = other[_tensor_file(other, draw)]


def _other_files(parts: Parts, draw: Random) -> None:
    """Leave a file out, or add one."""
    names = sorted(name for name in parts if name != MANIFEST)
    if draw.random() < 0.5:
        del parts[draw.choice(names)]
    else:
        parts[
            draw.choice(["stray-00000.safetensors", "a" * 64 + SUFFIX, "rank-00001.json", "x.txt", "X.safetensors"])
        ] = dumped(odd(draw))


CRAFTS: list[Callable[[Parts, Random], object]] = [
    _change_state,
    _change_section,
    _change_section,
    _change_section,
    _change_own,
    _change_own,
    _change_generators,
    _change_pieces,
    _take_section,
    _change_summary,
    _change_manifest,
    _change_header,
    _change_header,
    _change_elements,
    _exchange_files,
    _other_files,
]


def _make_special(path: Path, draw: Random) -> None:
    """Put something in place of a file that is no file."""
    path.unlink(missing_ok=True)
    draw.choice([os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)])(
        path
    )


# -- readers


def ask_damaged(folder: Path, number: int, draw: Random) -> Outcome:
    """Read a damaged checkpoint: it is refused, or the damage changed nothing."""
    variant = variant_of(number)
    return draw.choice(READERS)(folder, variant, original(variant), draw)


def ask_crafted(folder: Path, number: int, draw: Random) -> Outcome:
    """Read a crafted checkpoint: it is refused, or the run that it describes is driven to its end."""
    return draw.choice(READERS)(folder, variant_of(number), None, draw)


def _resume(folder: Path, variant: str, expected: Original | None, draw: Random) -> Outcome:
    """Resume a run, by the path of the checkpoint or of its directory, and drive it to its end."""
    path = draw.choice([folder / CHECKPOINT, folder])
    with engine_of(variant, folder / "own") as engine:
        before = _live(engine)
        try:
            engine.run(resume=path, until=lambda run: True)
        except CheckpointError as error:
            expect_equal(_live(engine), before, "what was refused changed the run: it")
            _expect_not_driven(engine, str(error))
            return "refused"
        try:
            if not engine.current.ended:
                engine.run()
        except Exception:
            if _batches_of(folder / CHECKPOINT) != original(variant).batches:
                return "answered"  # what a batch must look like only the network knows
            raise
        if expected is not None:
            expect_equal(outcome(engine), expected.ends, "the run that was resumed from damage")
    return "answered"


def _expect_not_driven(engine: Engine, error: str) -> None:
    """Raise a `WrongAnswer` if an engine goes on whose resume was refused; one that was built otherwise may begin."""
    if "not the run that the checkpoint is of" in error:
        return
    try:
        engine.advance()
    except EngineError:
        return
    raise WrongAnswer(f"the engine was driven after {error:.200}")


def _live(engine: Engine) -> dict[str, str]:
    """Return digests of what a refusal must leave alone. The optimizers are made by the run itself."""
    run = engine.current
    parts = {
        "weights": run.network.state_dict(),
        "gradients": [parameter.grad for parameter in run.network.parameters()],
        "modes": [module.training for module in run.network.modules()],
        "random state": global_states(),
        "recorded values": [str(value) for value in run.records()],
        "counters": [run.epoch, run.batch_index, run.step, run.update, run.windows, run.samples, run.state],
        "plugins": [plugin.state_dict() for plugin in engine._manager.plugins],
    }
    return {name: digest(part) for name, part in parts.items()}


def _batches_of(path: Path) -> str:
    """Return a digest of the batches that a checkpoint holds."""
    run = Store(path.parent).load(path, ["run"]).sections["run"]
    return digest([run["position"]["batch"], run["position"]["kept"], run["data"].get("ahead")])


def _load(folder: Path, variant: str, expected: Original | None, draw: Random) -> Outcome:
    """Load weights into a network."""
    which = draw.choice(["newest", "ema"])
    path = draw.choice([folder / CHECKPOINT, folder])
    model = network()
    before = digest(model.state_dict())
    try:
        load_weights(path, model, which)
    except CheckpointError:
        expect_equal(digest(model.state_dict()), before, "what was refused changed the network: it")
        return "refused"
    if expected is not None:
        expect_equal(digest(model.state_dict()), expected.weights[which], "what was loaded from damage")
    return "answered"


def _summarize(folder: Path, variant: str, expected: Original | None, draw: Random) -> Outcome:
    """Read the summary, as `which="best"` and rotation do."""
    store = Store(folder)
    try:
        summary = store.summary(folder / CHECKPOINT)
        store.best_sound()
    except CheckpointError:
        return "refused"
    if not isinstance(summary, dict):
        raise WrongAnswer(f"the summary is {summary!r:.100}")
    return "answered"


READERS = [_resume, _resume, _resume, _load, _load, _summarize]
