"""Kills a run at every one of its moments, resumes each, and prints how many were the run that nobody killed.

python tests/kill_matrix.py            # all moments: with a journal, on a dataset; takes about half an hour
python tests/kill_matrix.py --every 10 # every tenth of them
python tests/kill_matrix.py --background # checkpoints are written in the background
python tests/kill_matrix.py --thaws # a part is frozen, and joins the optimizer later
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from killing import BACKGROUND, MEMORY, in_child, live, trial


def main() -> int:
    """Return 0 if none differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take each n-th moment (default: all)")
    parser.add_argument("--background", action="store_true", help="write the checkpoints in the background")
    parser.add_argument("--thaws", action="store_true", help="freeze a part for an epoch")
    asked = parser.parse_args()
    options = (BACKGROUND if asked.background else {"journal": True}) | ({"thaws": True} if asked.thaws else {})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        lived = in_child(lambda: live(Path(name) / "checkpoints", None, None, **options))
    moments = range(0, len(lived["labels"]), asked.every)
    wrong = 0
    for number, at in enumerate(moments, 1):
        if found := trial(at, lived, **options):
            wrong += 1
            print(f"moment {at}, {lived['labels'][at]}: {', '.join(found)} differ", flush=True)
        if number % 100 == 0:
            print(f"{number} of {len(moments)} killed and resumed, {wrong} differ", flush=True)
    print(f"{len(moments) - wrong} of {len(moments)}: killed by SIGKILL, resumed, and equal to the run that was not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
