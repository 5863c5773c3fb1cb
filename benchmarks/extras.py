"""Measure what each extra adds: megabytes on disk beyond the core, and seconds to import what is imported of it.

An extra's packages are those that it asks for and all that these ask for in turn, as installed here, without those that
the core brings already (torch and its packages among them). Their size is that of the files that the installed
packages list. An import is timed in a process of its own that has imported the core and torch before; the table shows
the median over the rounds, which are interleaved. Files are in the cache of the system by then: the first import after
a start of the machine takes longer. Run it on an idle machine, in the development environment:

    python benchmarks/extras.py

docs/extras.md has the table as it was printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

IMPORTS = {
    "rich": "rich.console, rich.live, rich.text, rich.table",
    "tensorboard": "tensorboard.compat.proto.event_pb2",
    "torchmetrics": "torchmetrics.classification",
    "monitor": "psutil, pynvml",
    "frames": "pandas",
    "mirror": "fsspec.core",
    "parquet": "pyarrow, pyarrow.parquet",
    "complete": "argcomplete",
    "report": "jinja2, bokeh.plotting, bokeh.embed, bokeh.models",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
    "optuna": "optuna",
    "otel": "opentelemetry.trace, opentelemetry.sdk.trace",
}
"""What is imported of each extra."""

TIMED = """
import importlib, sys, time
import torch, heptad.engine, heptad_plugins.journal, heptad_plugins.checkpoint
began = time.perf_counter()
for name in {names!r}.split(", "):
    importlib.import_module(name)
print(time.perf_counter() - began)
"""


def packages_of(requirements: list[str]) -> set[str]:
    """Return the installed packages that these requirements ask for, directly and through others."""
    found: set[str] = set()
    open_ones = [(Requirement(text), "") for text in requirements]
    while open_ones:
        requirement, extra = open_ones.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            asked = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue  # what a marker or a platform leaves out
        if name not in found:
            open_ones += [(one, "") for one in asked]
        open_ones += [(one, extra) for extra in requirement.extras for one in asked if "extra" in str(one.marker or "")]
        found.add(name)
    return found


def megabytes_of(name: str) -> float:
    """Return the size of the files that an installed package lists."""
    files = [Path(str(file.locate())) for file in distribution(name).files or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def seconds_to_import(names: str) -> float:
    """Return how long the imports take in a new process that has imported the core."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TIMED.format(names=names)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = packages_of(project["dependencies"])
    times: dict[str, list[float]] = {extra: [] for extra in IMPORTS}
    for _ in range(rounds):
        for extra, names in IMPORTS.items():
            times[extra].append(seconds_to_import(names))

    print("| extra | packages beyond the core | MB | imported | seconds |\n|---|--:|--:|---|--:|")
    for extra, names in IMPORTS.items():
        added = packages_of(project["optional-dependencies"][extra]) - core
        size = sum(megabytes_of(name) for name in added)
        shown = ", ".join(dict.fromkeys(f"`{name.split('.')[0]}`" for name in names.split(", ")))
        print(f"| `{extra}` | {len(added)} | {size:.1f} | {shown} | {statistics.median(times[extra]):.2f} |")
    wanted = [text for extra in IMPORTS for text in project["optional-dependencies"][extra]]
    added = packages_of(wanted) - core
    print(f"| `all` | {len(added)} | {sum(map(megabytes_of, added)):.1f} | | |")


if __name__ == "__main__":
    main()
