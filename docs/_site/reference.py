"""The directive `public`, which documents names by autodoc, and docstrings as this project writes them.

.. code-block:: rst

    .. public:: heptad

        Engine Components RunConfig

    .. public:: heptad.plugin
        :rest:

`:rest:` stands for the names of `__all__` that no page of the reference names and no module before it has, and
`:events:` for its events, so that a new name is on the site without an edit.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from names import exported, public
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective

import heptad
from heptad.plugin.marks import MARKS
from heptad.record.events import Event

PAGES = Path(__file__).resolve().parent.parent / "reference"

MADE_BY_THE_ENGINE = {"Run", "TransitionLog", "JournalRecorder"}
"""Public classes whose constructors are not shown; nor are those of classes that have no public name."""

FOR_THE_ENGINE = {
    *("emit", "plan_windows", "counters", "fail", "seq", "cells", "fault", "machine_class", "strategy_class", "store"),
    *("save_packed", "shared", "begin", "commit", "drop", "model_config"),
}
"""Members without an underscore that are used only inside the engine."""

_COLON = "\ue000"
"""Stands for the first colon of a property's words while napoleon reads them: it would take it for that of a type."""


@cache
def named() -> set[str]:
    """Return the full names that the pages of the reference name."""
    found: set[str] = set()
    for page in PAGES.glob("*.rst"):
        for module, names in blocks(page.read_text(encoding="utf-8")):
            found |= {f"{module}.{name}" for name in names}
    return found


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Return the module and the names of each `public` directive on a page."""
    found = re.findall(r"^\.\. public:: ([\w.]+)\n((?:\n| +.*\n?)*)", text, re.MULTILINE)
    return [(module, [name for name in body.split() if not name.startswith(":")]) for module, body in found]


def rest(module: str) -> list[str]:
    """Return the names of `__all__` that are documented in this module and named on no page."""
    elsewhere = named() | {f"{module}.{name}" for name in events(module)}
    names = [name for name in exported(module) if public()[name] == module and f"{module}.{name}" not in elsewhere]
    return sorted(names, key=str.lower)


def events(module: str) -> list[str]:
    """Return the names in `__all__` that are events of the log."""
    found = {name: getattr(import_module(module), name) for name in exported(module)}
    return [name for name, thing in found.items() if isinstance(thing, type) and issubclass(thing, Event)]


class Public(SphinxDirective):
    """The entries of some names of a module."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"rest": directives.flag, "events": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return what autodoc makes of each name."""
        module = self.arguments[0]
        if "events" in self.options:
            names = sorted(events(module))
        else:
            names = rest(module) if "rest" in self.options else " ".join(self.content).split()
        lines = [line for name in names for line in entry(module, name)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=False)


def entry(module: str, name: str) -> list[str]:
    """Return the autodoc directive of a name, with its options."""
    thing = getattr(import_module(module), name)
    full = f"{module}.{name}"
    if not isinstance(thing, type):
        kind = "autofunction" if inspect.isroutine(thing) else "autodata"
        return [f".. {kind}:: {full}", ""]
    kind = "autoexception" if issubclass(thing, BaseException) else "autoclass"
    lines = [f".. {kind}:: {full}", "    :members:", "    :undoc-members:"]
    if hidden := ", ".join(sorted(left_out(thing))):
        lines.append(f"    :exclude-members: {hidden}")
    if any(is_private_base(base) for base in thing.__mro__[1:]):
        lines.append(
            "    :inherited-members: Plugin, Event, object, BaseModel, BaseException, tuple, Protocol, Generic"
        )
    return [*lines, ""]


def is_private_base(base: type) -> bool:
    """Return whether a base is of the engine and documented nowhere itself, so that its members are shown below it."""
    return base.__module__.startswith("heptad") and base.__name__ not in public()


def left_out(thing: type) -> set[str]:
    """Return the members that are not shown: used by the engine alone, or described in the docstring of the class."""
    hidden = set(FOR_THE_ENGINE)
    if issubclass(thing, heptad.Plugin) and thing is not heptad.Plugin:
        hidden |= set(vars(heptad.Plugin)) | set(heptad.Plugin.__annotations__)
        hidden |= {name for base in thing.__mro__ for name, member in vars(base).items() if is_handler(name, member)}
    described = set(re.findall(r"^    (\w+)(?: \(.*\))?:", inspect.getdoc(thing) or "", re.MULTILINE))
    own = {name for base in thing.__mro__ for name in (*vars(base), *inspect.get_annotations(base))}
    without_words = {name for name in described & own if is_plain(inspect.getattr_static(thing, name, None))}
    return {name for name in (hidden | without_words) & own if not name.startswith("_")}


def is_plain(member: object) -> bool:
    """Return whether a member is a value, which has no docstring of its own."""
    return not inspect.isroutine(member) and not isinstance(member, (property, classmethod, staticmethod))


def is_handler(name: str, member: object) -> bool:
    """Return whether a method of a plugin is called by the engine."""
    return name.startswith("on_") or hasattr(member, MARKS)


def show_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Leave out the constructors of what only the engine makes."""
    if signature:
        signature = signature.replace("<factory>", "...")  # a default that no parser of types can read
    if signature and "Annotated[" in signature:
        signature = without_annotated(signature)
    if what in ("class", "exception") and isinstance(thing, type):
        if thing.__name__ in MADE_BY_THE_ENGINE or thing.__name__ not in public():
            return ("", None)
        if thing.__init__ is object.__init__ and not is_dataclass(thing):
            return ("", None)
    return (signature, returns)


def without_annotated(text: str) -> str:
    """Return a signature in which `Annotated[int, …]` is `int`: the words of the docstring say what pydantic checks."""
    while (begin := re.search(r"~?(?:typing\.)?Annotated\[", text)) is not None:
        depth, comma, at = 1, 0, begin.end()
        while depth:
            depth += {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}.get(text[at], 0)
            if depth == 1 and text[at] == "," and not comma:
                comma = at
            at += 1
        text = text[: begin.start()] + text[begin.end() : comma] + text[at:]
    return text


def docstring_as_rst(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turn backticks into code, or into a link to a public name, and `Returns:` into a field without a type.

    Runs before napoleon, which reads the sections that are left.
    """
    text = returns_as_fields("\n".join(lines))
    if what in ("property", "attribute"):
        text = re.sub(r"^Raises:\n    (\w+): ((?:.*\n?)(?:     +.*\n?)*)", r":raises \1: \2", text, flags=re.MULTILINE)
        first, newline, others = text.partition("\n")
        text = first.replace(":", _COLON) + newline + others
    text = re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", text)  # |w| is a norm, and no substitution
    lines[:] = re.sub(r"(?<![`:\\])`([^`]+)`(?!`)(\w?)", code, text).split("\n")


def colons_back(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Put the colons back that were hidden from napoleon."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def code(found: re.Match[str]) -> str:
    """Return a link for a public name, and code for anything else."""
    text, behind = found[1].replace("\n", " ").strip(), found[2]
    full = f"{public()[text]}.{text}" if text in public() else None
    shown = f":py:obj:`{text} <{full}>`" if full else f"``{text}``"
    return f"{shown}\\ {behind}" if behind else shown


def returns_as_fields(text: str) -> str:
    """Return a docstring in which `Returns:` and `Yields:` are fields: the words before a colon are no type here."""

    def field(found: re.Match[str]) -> str:
        body = inspect.cleandoc(found[2]).replace("\n", "\n    ")
        return f"\n:{found[1].lower()}: {body}\n\n"

    return re.sub(r"^(Returns|Yields):\n((?:(?: {4}.*)?(?:\n|\Z))+)", field, text, flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive, and connect the steps."""
    app.add_directive("public", Public)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as the docstrings call them
    app.connect("autodoc-process-docstring", docstring_as_rst, priority=400)
    app.connect("autodoc-process-docstring", colons_back, priority=600)
    app.connect("autodoc-process-signature", show_signature)
    return {"parallel_read_safe": True}
