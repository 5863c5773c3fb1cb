"""Pages of the documentation as sessions: their Python runs in order, and prints what the comments beside it say."""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROUNDS = 2
"""How often a page is run in one folder: what a reader tries once, a reader tries again."""

_FIGURE = re.compile(r"^print\(.*\)  # (.*\b\d.*)$", re.MULTILINE)


class Session:
    """The Python of one page, run in one process, a block at a time.

    Args:
        page: The file.
    """

    def __init__(self, page: Path) -> None:
        self._page = page
        self.text = page.read_text(encoding="utf-8")
        self._printed: dict[int, str] = {}
        self._names: dict[str, Any] = {"print": self._print}

    def blocks(self, languages: str = "python") -> Iterator[re.Match[str]]:
        """Yield the blocks: group 1 is the language, group 2 the content."""
        return re.finditer(rf"```({languages})\n(.*?)```", self.text, re.DOTALL)

    def run(self, block: re.Match[str]) -> dict[str, Any]:
        """Run a block of Python; an error names the page's own line.

        Returns:
            The names that the page has defined so far.

        Raises:
            AssertionError: If a line with a figure in the comment behind its `print` printed something else; `…` in
                the comment stands for anything.
        """
        lines_above = self.text.count("\n", 0, block.start(2))
        exec(compile("\n" * lines_above + block[2], str(self._page), "exec"), self._names)
        for comment in _FIGURE.finditer(self.text, block.start(2), block.end(2)):
            line = self.text.count("\n", 0, comment.start()) + 1
            said = ".*".join(re.escape(part) for part in comment[1].split("…"))
            found = self._printed[line]
            assert re.search(rf"(?<!\w){said}(?!\w)", found), f"{self._page.name}:{line} prints {found!r}"
        return self._names

    def run_all(self) -> int:
        """Run all blocks of Python; returns how many there are."""
        return len([self.run(block) for block in self.blocks()])

    def _print(self, *values: object, **options: Any) -> None:
        self._printed[sys._getframe(1).f_lineno] = options.get("sep", " ").join(map(str, values))
        builtins.print(*values, **options)


def has_figures(page: Path) -> bool:
    """Return whether a page says behind a `print` what figures it prints."""
    return bool(_FIGURE.search(page.read_text(encoding="utf-8")))
