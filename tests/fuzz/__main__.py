"""Give readers files that are damaged or crafted, and look whether each is refused or answered rightly.

python -m fuzz                                  # 100,000 inputs, a quarter of an hour; `make fuzz`
python -m fuzz --inputs 5000 --only journal     # fewer, of some kinds
python -m fuzz --again journal-crafted-17 …     # some again: those that were kept as they are
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from fuzz.kinds import KINDS
from fuzz.worker import Case, try_all

KEPT = Path("runs/fuzz")


def main() -> int:
    """Return 0 if no input failed."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, of all kinds together (100,000)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first of each kind (0)")
    parser.add_argument("--only", default="", help="kinds whose names hold this word")
    parser.add_argument("--keep", type=Path, default=KEPT, help=f"where those that fail are kept ({KEPT})")
    parser.add_argument(
        "--again", nargs="+", type=Case.named, metavar="NAME", help="inputs to try again, one a process"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds = [kind for kind in KINDS if asked.only in kind]
    numbers = range(asked.first, asked.first + asked.inputs // len(kinds))
    batches = [[case] for case in asked.again or ()] or [[Case(kind, number) for number in numbers] for kind in kinds]
    failed = sum([_report(cases, asked.keep) for cases in batches])
    return 1 if failed else 0


def _report(cases: list[Case], keep: Path) -> int:
    """Try inputs, print each failure and the counts, and return how many failed."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    for trial in try_all(cases, keep):
        counts[trial.outcome] += 1
        if trial.outcome == "failed":
            print(f"{trial.case.name} failed, kept in {keep / trial.case.name}:\n{trial.text}", flush=True)
    said = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in ("refused", "answered", "failed"))
    print(f"{cases[0].kind}: {len(cases):,} inputs in {time.monotonic() - began:.0f} s: {said}", flush=True)
    return counts["failed"]


if __name__ == "__main__":
    sys.exit(main())
