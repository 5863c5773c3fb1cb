"""Measure this engine against its peers on the same work: a plain loop is what each is divided by. One thread.

Seven parts, `--parts` selects:

- `null`: a network of one scalar parameter, batches of one number: what is left is what a library adds to a step;
- `subscribers`: the same with 10 empty handlers called at the end of each step, by each library's own mechanism;
- `mlp`: an MLP 32-64-10, batch 32, SGD; `accumulation`: the same with windows of 4;
- `epoch`: one shuffled pass over 60,000 samples of 28 × 28, batches of 64, an MLP 784-64-10, fed as each one's first
  tutorial does it: for most a `DataLoader` over a `TensorDataset`; for this engine `dataset=`. Set-up is part of it;
- `import`: the import with which the first tutorial begins, less that of torch, in fresh processes; and the packages
  and megabytes that an installation adds to those of torch;
- `probe`: the gradient of micro-batch i is the unit vector e_i, so an update says with which coefficient each counts.

Rounds are interleaved, and each measurement is first in turn. A step is timed from the fetch of one batch to the fetch
of another, so set-up and tear-down are not in it. A ratio is that to the plain loop of the same round; the tables show
its median and quartiles. After each run of `null`, `subscribers`, `mlp` and `accumulation` the weights are compared
with those of the plain loop; where they differ the table says so. The output is the Markdown of `docs/comparison.md`.

    make peers                                                          # all, about ten quiet minutes
    .peers/bin/python benchmarks/peers.py --page docs/comparison.md     # the same, and put into the page
    .peers/bin/python benchmarks/peers.py --rounds 3                    # short
    .peers/bin/python benchmarks/peers.py --parts probe,mlp --peers ignite,lightning
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset

from peer_adapters import ADAPTERS, PACKAGES, WITHOUT_HANDLERS, hush
from peer_hugging_face import reset
from peer_imports import imports
from peer_probe import probe
from peer_work import Ready, Work

PARTS = ("null", "subscribers", "mlp", "accumulation", "epoch", "import", "probe")
STEPS, WARM = 400, 40
"""Steps of a run, a multiple of 4, and those before the clock starts."""


class Scale(nn.Module):
    """A network of one scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, data: Tensor) -> Tensor:
        """Return the scaled data."""
        return self.weight * data


def mlp(*widths: int) -> nn.Module:
    """Return an MLP of one hidden layer, the same in each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:]))


def build(part: str, folder: Path) -> Work:
    """Return the work of a part, new."""
    generator = torch.Generator().manual_seed(1)
    if part in ("null", "subscribers"):
        batches = [(torch.rand(1, generator=generator), torch.rand(1, generator=generator)) for _ in range(STEPS)]
        subscribers = 10 if part == "subscribers" else 0
        return Work(Scale(), nn.MSELoss(), 1e-3, folder, Ready(batches), subscribers=subscribers)
    if part == "epoch":
        data = torch.rand(60_000, 28, 28, generator=generator)
        dataset = TensorDataset(data, torch.randint(0, 10, (60_000,), generator=generator))
        return Work(mlp(784, 64, 10), nn.CrossEntropyLoss(), 1e-2, folder, dataset=dataset)
    batches = [
        (torch.randn(32, 32, generator=generator), torch.randint(0, 10, (32,), generator=generator))
        for _ in range(STEPS)
    ]
    accumulation = 4 if part == "accumulation" else 1
    return Work(mlp(32, 64, 10), nn.CrossEntropyLoss(), 1e-2, folder, Ready(batches), accumulation=accumulation)


class Trained(NamedTuple):
    """What a run took and where it ended.

    Attributes:
        took: Microseconds a step, or milliseconds an epoch.
        weights: All weights, flat.
        updates: How many updates the optimizer made; counted in an epoch alone.
    """

    took: float
    weights: Tensor
    updates: int


def train(name: str, part: str) -> Trained:
    """Build the work of a part and train it by the adapter of that name.

    Raises:
        AssertionError: If not all steps, updates or calls of handlers were made.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = build(part, Path(folder))
        reset(name)
        updates: list[None] = []
        hook = None
        if part == "epoch":
            hook = register_optimizer_step_post_hook(lambda *_: updates.append(None))
        gc.collect()
        with contextlib.redirect_stdout(io.StringIO()):
            run = ADAPTERS[name](work)
            began = time.perf_counter()
            run()
            took = (time.perf_counter() - began) * 1e3
        if hook is not None:
            hook.remove()
            assert len(updates) == 938, f"{name} made {len(updates)} updates of 938"
        if work.batches is not None:
            fetched = work.batches.fetched[-STEPS:]  # one that looks at a first batch does it before the others
            assert len(fetched) == STEPS, f"{name} fetched {len(fetched)} batches of {STEPS}"
            took = (fetched[-1] - fetched[WARM]) / (STEPS - 1 - WARM) * 1e6
        assert work.calls == work.subscribers * STEPS, f"{name} made {work.calls} calls of handlers"
        weights = torch.cat([weight.detach().flatten() for weight in work.network.parameters()])
        return Trained(took, weights, len(updates))


class Measured(NamedTuple):
    """What a part measured of one adapter: figures by round, and how far its weights are from those of the loop."""

    took: list[float]
    apart: float


def measure(names: list[str], part: str, rounds: int, train: Callable[[str, str], Trained] = train):
    """Return what each adapter took by round; one that raises is left out, and the error is said."""
    found = {name: Measured([], 0.0) for name in names}
    for number in range(rounds + 1):  # the first is a warm-up
        ends: dict[str, Tensor] = {}
        turn = list(found)
        for place in range(len(turn)):
            name = turn[(place + number) % len(turn)]
            try:
                ran = train(name, part)
            except Exception as error:
                if name == "plain":
                    raise
                print(f"{name} fails in {part}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
                del found[name]
                continue
            ends[name] = ran.weights
            if number:
                found[name].took.append(ran.took)
        plain = ends["plain"]
        for name, before in found.items():
            apart = (ends[name] - plain).abs().max().item()
            found[name] = before._replace(apart=max(apart, before.apart))
    return found


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the median, the lower and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def table(found: dict[str, Measured], part: str) -> str:
    """Return the Markdown of a part."""
    unit = "ms an epoch" if part == "epoch" else "µs a step"
    compared = part != "epoch"
    lines = [f"| | {unit} | ratio to the plain loop | quartiles |" + (" weights |" if compared else "")]
    lines.append("|---|---:|---:|---|" + ("---|" if compared else ""))
    plain = found["plain"].took
    for name, (took, apart) in found.items():
        ratio, low, high = quartiles([own / base for own, base in zip(took, plain, strict=True)])
        same = "the same bits" if apart == 0 else f"within {apart:.0e}" if apart < 1e-5 else f"**{apart:.0e} apart**"
        digits = 0 if part == "epoch" else 1
        row = f"| {name} | {statistics.median(took):.{digits}f} | {ratio:.2f} | {low:.2f} – {high:.2f} |"
        lines.append(row + (f" {same} |" if compared else ""))
    return "\n".join(lines)


def available(names: list[str]) -> list[str]:
    """Return those that can be imported; say why others cannot."""
    found: list[str] = []
    for name in names:
        statement = PACKAGES.get(name.split(" + ")[0], ("", "pass"))[1]
        try:
            exec(statement, {})
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        else:
            found.append(name)
    return found


def put(page: Path, part: str, text: str) -> None:
    """Replace what stands in a page between the markers of a part."""
    before, marker, rest = page.read_text(encoding="utf-8").partition(f"<!-- {part} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    assert end, f"{page} has no markers of {part}"
    page.write_text(f"{before}{marker}\n{text}\n\n{end}{after}", encoding="utf-8")


def parsed() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default all)")
    parser.add_argument("--peers", default=",".join(ADAPTERS), help="comma-separated (default all)")
    parser.add_argument("--rounds", type=int, default=15, help="of a step (default 15); of an epoch and imports half")
    parser.add_argument("--page", type=Path, help="a page in which the tables are replaced: docs/comparison.md")
    asked = parser.parse_args()
    for given, known in ((asked.parts, PARTS), (asked.peers, ADAPTERS)):
        for name in given.split(","):
            if name not in known:
                parser.error(f"{name!r} is not one of {', '.join(known)}")
    return asked


def main() -> None:
    """Measure and print."""
    asked = parsed()
    torch.set_num_threads(1)
    hush()
    parts = asked.parts.split(",")
    names = available([name for name in ADAPTERS if name == "plain" or name in asked.peers.split(",")])
    fewer = max(asked.rounds // 2, 1)
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, one thread; {asked.rounds} rounds,")
    print(f"{fewer} of an epoch and of imports; {time.strftime('%Y-%m-%d')}; load before {os.getloadavg()[0]:.1f}")
    for part in parts:
        began = time.perf_counter()
        if part == "probe":
            text = probe(names)
        elif part == "import":
            text = imports(names, fewer)
        else:
            able = [name for name in names if part != "subscribers" or name not in WITHOUT_HANDLERS]
            text = table(measure(able, part, fewer if part == "epoch" else asked.rounds), part)
        print(f"\n### {part}\n\n{text}", flush=True)
        if asked.page is not None:
            put(asked.page, part, text)
        print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
