"""`PluginReport`: what `check_plugin` did and found."""

from __future__ import annotations

from dataclasses import dataclass, field

from heptad.errors import counted


@dataclass
class PluginReport:
    """What `check_plugin` did and found.

    Attributes:
        plugin: The plugin's name.
        runs: How many short runs it was driven through.
        faults: What is wrong with it, each in words, and the runs in which it showed.
    """

    plugin: str
    runs: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def fault(self, text: str, where: object = "") -> None:
        """Add a fault, or one more run in which a known one shows."""
        self.faults.setdefault(text, []).append(str(where))

    def __str__(self) -> str:
        if not self.faults:
            return f"{self.plugin}: no fault found in {self.runs} runs"
        lines = [f"{self.plugin}: {counted(len(self.faults), 'fault')} found in {self.runs} runs"]
        for text, runs in self.faults.items():
            more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
            lines.append(f"  - {text}{f' (with {runs[0]}{more})' if runs[0] else ''}")
        return "\n".join(lines)
