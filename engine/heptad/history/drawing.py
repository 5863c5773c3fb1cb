"""Drawing a table: a Mermaid diagram, and Markdown for people."""

from __future__ import annotations

from heptad.table import Table


class Diagram(str):
    """The text of a Mermaid diagram, which a notebook that knows Mermaid draws."""

    __slots__ = ()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        del include, exclude
        return {"text/plain": str(self), "text/vnd.mermaid": str(self)}


def mermaid(table: Table) -> Diagram:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for state in table.states:
        if state.kind == "start":
            lines.append(f"    [*] --> {state.shown}")
    for arc in table.arcs:
        label = f": {arc.guard}" if arc.guard else ""
        lines.append(f"    {table.shown[arc.source]} --> {table.shown[arc.dest]}{label}")
    for state in table.states:
        if state.kind == "end":
            lines.append(f"    {state.shown} --> [*]")
    return Diagram("\n".join(dict.fromkeys(lines)))


def markdown(table: Table) -> str:
    """Return the table as Markdown, arcs in the order in which they are tried."""
    rows = ["| from | if | to |", "|---|---|---|"]
    rows += [f"| {table.shown[arc.source]} | {arc.guard or ''} | {table.shown[arc.dest]} |" for arc in table.arcs]
    return "\n".join(rows)


def markdown_of_bodies(table: Table) -> str:
    """Return what the engine does in each of its states, as Markdown."""
    rows = ["| state | what the engine does in it |", "|---|---|"]
    rows += [f"| {state.shown} | {state.body} |" for state in table.states if state.body]
    return "\n".join(rows)
