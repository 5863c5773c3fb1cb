"""What it costs to install and to import each of the peers."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

import heptad
import heptad_plugins
from peer_adapters import PACKAGES


def needs(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Return the distributions that one needs here, itself included, by walking its requirements."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(name, extras)]
    while waiting:
        one, chosen = waiting.pop()
        one = one.lower().replace("_", "-").replace(".", "-")
        if (one, chosen) in seen:
            continue
        try:
            requires = distribution(one).requires or []
        except PackageNotFoundError:
            continue  # a requirement of another system
        seen.add((one, chosen))
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*chosen, "")):
                waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return {one for one, _ in seen}


def megabytes(name: str) -> float:
    """Return what the files of a distribution take on disk."""
    if name == "heptad":  # installed editable: no file of it is in the environment
        roots = [Path(str(package.__file__)).parent for package in (heptad, heptad_plugins)]
        return sum(path.stat().st_size for root in roots for path in root.rglob("*.py*") if path.suffix != ".pyc") / 1e6
    found = distribution(name)
    paths = [Path(str(found.locate_file(file))) for file in found.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc") / 1e6


def import_seconds(statement: str) -> float:
    """Return the seconds that a statement takes in a fresh process that has imported torch."""
    code = f"import time, torch\nbegan = time.perf_counter()\n{statement}\nprint(time.perf_counter() - began)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return float(done.stdout.split()[-1])


def imports(names: list[str], rounds: int) -> str:
    """Return the Markdown of the import times and of the packages."""
    asked = [name for name in names if name in PACKAGES]
    took: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(rounds + 1):  # the first warms the page cache
        for name in asked:
            seconds = import_seconds(PACKAGES[name][1])
            if number:
                took[name].append(seconds)
    of_torch = needs("torch")
    lines = ["| | version | import beyond torch, s | packages beyond torch's | MB beyond torch's |"]
    lines.append("|---|---|---:|---:|---:|")
    for name in asked:
        package = PACKAGES[name][0]
        more = needs(package) - of_torch
        size = sum(megabytes(one) for one in more)
        version = distribution(package).version
        lines.append(f"| {name} | {version} | {statistics.median(took[name]):.2f} | {len(more)} | {size:.0f} |")
    return "\n".join(lines)
