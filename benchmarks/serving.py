"""Measure what `heptad serve` costs the run that it shows: updates a second with it and without, bound 1.02.

An MLP is trained with a journal, in rounds: alone, then shown by a server that is asked for the page every two seconds,
as a browser asks. Printed are the ratios, and their median. Run it on a quiet machine of two cores or more:

    python benchmarks/serving.py

"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import torch

from heptad_plugins import Journal
from overhead import build_mlp_engine


def updates_per_second(folder: Path, seconds: float) -> float:
    """Train an MLP with a journal for that long."""
    loader = [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(100)]
    engine = build_mlp_engine(loader, 1, 1_000_000, [Journal(folder / "run.journal", overwrite=True)])
    began: list[float] = []
    engine.on_exit("before_loop")(lambda run: began.append(time.perf_counter()))
    engine.on_exit("optimizer_update", every=50)(
        lambda run: run.stop("enough") if time.perf_counter() - began[0] > seconds else None
    )
    updates = engine.run().update
    return updates / (time.perf_counter() - began[0])


def serving(folder: Path, rounds: int = 5, seconds: float = 10.0) -> None:
    """Print how much slower a run is that is shown by `heptad serve`."""
    ratios: list[float] = []
    for number in range(rounds):
        home = folder / str(number)
        home.mkdir()
        alone = updates_per_second(home, seconds)
        reader = subprocess.Popen([sys.executable, __file__, "--ask", str(home / "run.journal")])
        try:
            shown = updates_per_second(home, seconds)
        finally:
            reader.terminate()
            reader.wait()
        ratios.append(alone / shown)
        pages = home / "run.journal.pages"
        asked = pages.read_text(encoding="utf-8") if pages.exists() else "0"
        print(f"  {asked} pages were asked for while it was shown")
        print(f"  round {number + 1}: {alone:,.0f} updates/s alone, {shown:,.0f} shown, ratio {ratios[-1]:.3f}")
    print(f"heptad serve: median ratio {statistics.median(ratios):.3f} (bound 1.02)")


def ask_all_the_time(journal: str) -> None:
    """Serve a journal that is about to be written, and ask for the page every two seconds, as a browser does."""
    time.sleep(2)
    served = [sys.executable, "-m", "heptad", "serve", journal]
    with subprocess.Popen(served, stdout=subprocess.PIPE, text=True) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        pages = 0
        while address and server.poll() is None:
            with suppress(OSError), urlopen(f"{address}page?since=0") as answer:
                pages += len(answer.read()) > 0
                Path(f"{journal}.pages").write_text(str(pages), encoding="utf-8")
            time.sleep(2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default 20)")
    parser.add_argument("--ask", metavar="FILE", help="only serve a journal and ask for it (internal)")
    asked = parser.parse_args()
    if asked.ask:
        ask_all_the_time(asked.ask)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        serving(Path(folder), asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
