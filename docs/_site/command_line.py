"""The directive `command-line`: what `heptad COMMAND --help` prints, of every command."""

from __future__ import annotations

import argparse
import os
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from heptad.cli.main import COMMANDS

WIDTH = "88"


def help_of(command: str) -> str:
    """Return the help of a command, as wide on every machine."""
    os.environ["COLUMNS"] = WIDTH
    parser = argparse.ArgumentParser(prog=f"heptad {command}", description=f"{COMMANDS[command].capitalize()}.")
    import_module(f"heptad.cli.{command}").add_to(parser)
    return parser.format_help()


class CommandLine(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        found: list[nodes.Node] = []
        for command in COMMANDS:
            name = f"heptad {command}"
            section = nodes.section("", nodes.title("", name), ids=[nodes.make_id(name)], names=[name])
            self.state.document.note_explicit_target(section, section)
            text = help_of(command)
            section += nodes.literal_block(text, text, language="text")
            found.append(section)
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
