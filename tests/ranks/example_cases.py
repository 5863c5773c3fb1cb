"""The example of a language model, as torchrun starts it on each rank."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch
from rank_program import Rank

import heptad.ranks.fsdp  # noqa: F401 - imported in the warm parent, once, for all ranks

SCRIPT = Path(__file__).parents[2] / "examples" / "language_model.py"


def main(rank: Rank) -> None:
    """Run the script with the arguments that the environment has; it prints into the output of this rank."""
    torch.set_num_threads(1)
    sys.argv = [str(SCRIPT), *os.environ["ARGUMENTS"].split()]
    runpy.run_path(str(SCRIPT), run_name="__main__")
