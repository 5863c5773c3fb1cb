"""HTML tables, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(caption: str, header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return an HTML table; every cell is escaped."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    heading = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<table><caption>{escape(caption)}</caption>{heading}<tbody>{body}</tbody></table>"
