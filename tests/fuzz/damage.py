"""What a bad disk, a bad copy or an editor makes of a file's bytes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def damaged(content: bytes, draw: Random) -> bytes:
    """Return the bytes of a file with one to three kinds of damage."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = draw.choice(KINDS)(bytearray(content), draw)
    return content


def _flip(content: bytearray, draw: Random) -> bytes:
    for _ in range(draw.choice([1, 1, 8])):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _overwrite(content: bytearray, draw: Random) -> bytes:
    start, end = _part(content, draw)
    fill = draw.choice([b"\x00", b"\xff", b"\x7f", b"["])
    content[start:end] = draw.randbytes(end - start) if draw.random() < 0.3 else fill * (end - start)
    return bytes(content)


def _cut(content: bytearray, draw: Random) -> bytes:
    return bytes(content[: draw.randrange(len(content) + 1)])


def _remove(content: bytearray, draw: Random) -> bytes:
    start, end = _part(content, draw)
    return bytes(content[:start] + content[end:])


def _double(content: bytearray, draw: Random) -> bytes:
    start, end = _part(content, draw)
    return bytes(content[:end] + content[start:])


def _move(content: bytearray, draw: Random) -> bytes:
    """Copy one part over another: a page that was written to the wrong place."""
    start, end = _part(content, draw)
    to = draw.randrange(len(content) - (end - start) + 1)
    content[to : to + end - start] = content[start:end]
    return bytes(content)


def _part(content: bytearray, draw: Random) -> tuple[int, int]:
    """Return where a part begins and ends; half of them are on borders of sectors."""
    sector = draw.choice([1, 512])
    start = draw.randrange(len(content) // sector + 1) * sector
    return start, min(start + draw.choice([1, 2, 4, 8, 64, 512, 4096]), len(content))


KINDS: list[Callable[[bytearray, Random], bytes]] = [_flip, _flip, _overwrite, _cut, _remove, _double, _move]
