"""`heptad weights`: the weights of a checkpoint as one safetensors file. Like `demo`, it loads torch."""

from __future__ import annotations

import argparse

from heptad.checkpoints.entry import WHICH
from heptad.cli.output import print_error, print_json, print_line


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("directory", metavar="DIR", help="a directory of checkpoints, one checkpoint, or a run folder")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file, such as model.safetensors")
    parser.add_argument(
        "--which",
        choices=WHICH,
        default="newest",
        help="newest; best, by the value that Checkpoint(monitor=…) watched; ema, the average in the newest",
    )
    parser.add_argument("--average", action="store_true", help="the average that EMA or SWA kept, also of the best")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from heptad.checkpoints.weights_file import write_weights  # noqa: PLC0415 - loads torch

    written = write_weights(
        arguments.directory,
        arguments.output,
        arguments.which,
        average=arguments.average,
        overwrite=arguments.overwrite,
    )
    for damage in written.damage:
        print_error(f"passed over: {damage}")
    if written.stale:
        print_error(written.stale)
    if written.left_out:
        print_error(f"left out, since only tensors can be written: {', '.join(written.left_out)}")
    if arguments.json:
        print_json(
            {
                "path": str(written.path),
                "checkpoint": str(written.checkpoint),
                "tensors": written.tensors,
                "bytes": written.size,
            }
        )
    else:
        print_line(f"{written.tensors:,} tensors of {written.checkpoint} in {written.path}, {written.size:,} bytes")
    return 0
