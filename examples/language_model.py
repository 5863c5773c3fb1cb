"""Train a small GPT on the source of Python's standard library, and generate some with it.

The text is on every machine: about 9 MB of Python, read once. Every 16th file is held out whole, and the bits a
character that the model needs for those are compared with those of `xz -9 --extreme`. It takes about twelve minutes on
two cores; `language_model.out.txt` shows what it prints.

    torchrun --nproc-per-node 2 examples/language_model.py --strategy fsdp

shards it over two processes; `docs/cluster.md` shows how it is killed there and resumed by one.
"""

import argparse
import lzma
import math
import os
import signal
import sysconfig
import textwrap
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from heptad import Components, Detour, Engine, LossOutput, Plugin, Run, RunConfig, load_weights
from heptad_plugins import EMA, Checkpoint, CSVLogger, Evaluate, GradientClipping, LRSchedule, Progress

CONTEXT = 256
VOCABULARY = 128  # ASCII
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3"}  # data, or repetitive


def read_library() -> tuple[bytes, bytes]:
    """Return the training text and the held-out text: whole files, concatenated in the order of their names.

    Files with a character beyond ASCII are left out, so that a byte is a character.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not LEFT_OUT & {*path.relative_to(root).parts})
    texts = [path.read_bytes() for path in paths if not path.name.startswith("_sysconfigdata")]
    texts = [text for text in texts if text.isascii()]
    held_out = texts[8::16]
    return b"\0".join(text for number, text in enumerate(texts) if number % 16 != 8), b"\0".join(held_out)


def rows_of(text: bytes) -> Tensor:
    """Return rows, shape (n, CONTEXT + 1): the last character of each row is the first of the next."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, CONTEXT + 1, CONTEXT)


class Block(nn.Module):
    """Causal attention with rotary positions, then a network of two layers, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.RMSNorm(width), nn.RMSNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Map (batch, time, width) to the same shape."""
        batch, length, width = x.shape
        parts = self.queries_keys_values(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = parts.transpose(1, 3).unbind(2)
        q, k = (rotated(functional.rms_norm(part, part.shape[-1:]), rotation) for part in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.relu(self.up(self.before_network(x))).square())


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of features by angles that grow with the position."""
    cosine, sine = (part.to(x.dtype) for part in rotation)
    one, other = x.chunk(2, dim=-1)
    return torch.cat((one * cosine - other * sine, one * sine + other * cosine), dim=-1)


class GPT(nn.Module):
    """Map characters, shape (batch, time), to scores of the next one, shape (batch, time, VOCABULARY)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        heads = width // 64
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        turns = torch.outer(torch.arange(CONTEXT), 10_000 ** -torch.linspace(0, 1, width // heads // 2))
        self.register_buffer("cosine", turns.cos())
        self.register_buffer("sine", turns.sin())

    def forward(self, characters: Tensor) -> Tensor:
        """Compute the scores."""
        length = characters.shape[1]
        x = self.embedding(characters)
        for block in self.blocks:
            x = block(x, (self.cosine[:length], self.sine[:length]))
        return self.head(self.norm(x))


def initialise(network: nn.Module) -> None:
    """Draw the weights so that at first blocks add nothing and every character is equally likely."""
    for name, parameter in network.named_parameters():
        if name.endswith(("attended.weight", "down.weight", "head.weight")):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3 if "embedding" in name else 0.5 / math.sqrt(parameter.shape[1]))


def matrices_of(network: nn.Module) -> list[nn.Parameter]:
    """Return the matrices of the blocks."""
    return [one for name, one in network.named_parameters() if name.startswith("blocks") and one.dim() == 2]


def others_of(network: nn.Module) -> list[nn.Parameter]:
    """Return the other parameters."""
    return [one for name, one in network.named_parameters() if not name.startswith("blocks") or one.dim() < 2]


def compute_loss(network: nn.Module, rows: Tensor, *, mixed: bool) -> LossOutput:
    """Return the loss in bits a character."""
    rows = rows.long()
    with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=mixed):
        scores = network(rows[:, :-1])
    target = rows[:, 1:].flatten()
    loss = functional.cross_entropy(scores.flatten(0, 1).float(), target) / math.log(2)
    return LossOutput(loss, weight=len(target))


def warm_up_and_cosine(optimizer: Optimizer, total: int) -> LambdaLR:
    """Return a schedule with a warm-up over 1/40 of the updates and a cosine decay to 1/50 of the rate."""
    warm_up = max(1, total // 40)
    return LambdaLR(
        optimizer,
        lambda update: min(1.0, (update + 1) / warm_up) * (0.51 + 0.49 * math.cos(math.pi * min(1.0, update / total))),
    )


class Sample(Plugin):
    """Write text with the averaged weights every `every` updates, in a state of its own, `sample`."""

    observes = True  # it has its own generator, so the RNGs of the run do not change
    runs_after = ("EMA",)

    def __init__(self, average: EMA, path: Path, every: int) -> None:
        self._average, self._path, self._every = average, path, every

    def detours(self) -> list[Detour]:
        """Return the state `sample`."""
        return [Detour("sample", "optimizer_update", lambda run: True, self.write, every=self._every)]

    def write(self, run: Run) -> None:
        """Append a text to the file, where the network is whole: the body of `sample`."""
        if run.rank or run.config.strategy == "fsdp":
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a" if run.update > self._every else "w", encoding="utf-8") as file:
            file.write(f"--- update {run.update}\n{continued(self._average.network, 'def ', 400)}\n")


def continued(network: nn.Module, beginning: str, length: int) -> str:
    """Return a text that continues the beginning, sampled a character at a time."""
    generator = torch.Generator().manual_seed(0)
    text = torch.tensor([list(beginning.encode())])
    with torch.inference_mode():
        for _ in range(length):
            scores = network(text[:, -CONTEXT:])[:, -1].float()
            text = torch.cat((text, torch.multinomial((scores / 0.7).softmax(-1), 1, generator=generator)), dim=1)
    return bytes(text[0].tolist()).decode()


def build(options: argparse.Namespace, train: bytes, held_out: bytes) -> tuple[Engine, EMA]:
    """Return the engine, and the average of the weights."""
    average = EMA(decay=0.99)
    # Muon multiplies whole matrices with each other, so shards of them give other digits
    of_matrices = partial(Muon, lr=0.02, weight_decay=0.01) if not options.adamw else partial(AdamW, lr=3e-3)
    checkpoints = Checkpoint(options.folder / "checkpoints", at="optimizer_update", every=options.store_every or 1)
    engine = Engine(
        Components(
            network=GPT(options.width, options.layers),
            dataset=rows_of(train),  # a tensor of rows is a dataset
            compute_loss=partial(compute_loss, mixed=not options.float32),
            optimizer=[  # functions: with fsdp they are given the parameters as they are when they are sharded
                lambda network: of_matrices(matrices_of(network)),
                lambda network: AdamW(others_of(network), lr=3e-3, weight_decay=0.0),
            ],
            init_weights=initialise,
            blocks=lambda network: network.blocks,
        ),
        # two batches over all ranks: two steps of one process, one step of each of two
        RunConfig(
            epochs=1, max_updates=options.updates, batch_size=4, window=2, device="cpu", strategy=options.strategy
        ),
        plugins=[
            GradientClipping(max_norm=1.0),
            LRSchedule(warm_up_and_cosine),
            LRSchedule(warm_up_and_cosine, optimizer=1),
            average,
            Evaluate(rows_of(held_out)[::8], at="optimizer_update", every=options.every),
            Evaluate(rows_of(held_out), name="held_out"),  # at the end of the only epoch
            Sample(average, options.folder / "samples.txt", every=options.every),
            *([checkpoints] if options.store_every else []),
            CSVLogger(options.folder / "values.csv", every=20, overwrite=True),
            Progress(),
        ],
    )

    @engine.on_enter("sample")  # after the evaluation, as their plugins stand in that order
    def report(run: Run) -> None:
        loss = run.metrics["valid/loss"]
        if not run.rank:
            print(f"update {run.update:,} of {run.total_updates:,}: {loss:.3f} bits a character", flush=True)

    @engine.on_exit("optimizer_update")
    def die(run: Run) -> None:
        if run.update == options.die_at and run.rank == run.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return engine, average


def read_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--updates", type=int, help="number of updates (default: one pass over the text)")
    parser.add_argument("--every", type=int, default=400, help="updates between two evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "language_model")
    parser.add_argument("--strategy", choices=("auto", "none", "ddp", "fsdp"), default="auto")
    parser.add_argument("--adamw", action="store_true", help="AdamW for all parameters, in place of Muon for matrices")
    parser.add_argument("--float32", action="store_true", help="compute in float32, in place of bfloat16")
    parser.add_argument("--store-every", type=int, help="updates between two checkpoints, from which it resumes")
    parser.add_argument("--die-at", type=int, help="the update after which the last process is killed")
    return parser.parse_args()


def main() -> None:
    """Train, compare with xz, and print what the model writes."""
    options = read_options()
    torch.set_num_threads(options.threads)

    train, held_out = read_library()
    if options.updates:
        held_out = held_out[:100_000]  # a short run is evaluated on less text
    engine, average = build(options, train, held_out)
    first = not engine.current.rank
    if first:
        print(f"{len(train):,} characters to train on, {len(held_out):,} in files held out")

    began, worked = time.perf_counter(), time.process_time()
    run = engine.run(resume="auto" if options.store_every else None)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    if not first:
        return
    if run.resumed_from:
        print(f"resumed from {Path(run.resumed_from).name}")
    print(f"\n{run.samples * CONTEXT:,} characters in {took / 60:.1f} minutes, {worked / 60:.1f} of processor time;")
    print(f"{os.getloadavg()[0]:.1f} programs at work on {os.cpu_count()} cores at the end")
    for state, spent in run.log.durations().items():
        print(f"    {state:18}{spent}")
    if options.strategy == "fsdp":  # each process has a part of the average; a checkpoint gives it to a network
        network = GPT(options.width, options.layers)
        load_weights(options.folder / "checkpoints", network, average=True)
    else:
        network = average.network
    written = continued(network, "class ", 400)
    print("\n" + textwrap.indent(written, "| ", lambda line: True) + "\n")

    xz = 8 * len(lzma.compress(held_out, preset=9 | lzma.PRESET_EXTREME)) / len(held_out)
    print(f"xz -9 on the files held out: {xz:.3f} bits a character")
    print(f"the model:                   {run.metrics['held_out/loss']:.3f} bits a character")


if __name__ == "__main__":
    main()
