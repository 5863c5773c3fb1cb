"""What may come of an input: the right answer, or a refusal in words; all else is a fault."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["answered", "refused"]


class WrongAnswer(AssertionError):
    """A reader believed what it should have refused, or changed something although it refused."""


def expect_equal(found: object, expected: object, what: str) -> None:
    """Raise a `WrongAnswer` that says where two values differ, if they do."""
    if found != expected:
        raise WrongAnswer(f"{what} differs:\n  found    {found!r:.300}\n  expected {expected!r:.300}")
