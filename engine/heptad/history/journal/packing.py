"""How the arcs and times of a chunk become one blob: 2 to 4 bytes a transition.

A transition is ten bytes: the number of its arc in two, then the nanoseconds since the one before in eight, both with
the lowest byte first. The blob has the bytes in planes, deflated (zlib, level 1), which guards them with its checksum:

    plane 0: arc, low byte, of transition 0, 1, 2 …      (the path repeats, so it deflates well)
    plane 1: arc, high byte, of transition 0, 1, 2 …     (all 0 below 256 arcs)
    plane 2: time, lowest byte, of transition 0, 1, 2 …  (noise: this is what the blob consists of)
    …
    plane 9: time, highest byte, of transition 0, 1 …    (0, as in planes 6 to 8, for turns below 4 s)
"""

from __future__ import annotations

import zlib

import numpy as np

from heptad.record.buffer import CHUNK
from heptad.record.chunk import Ints

_ARC, _WHOLE = 2, 10

_EVER = 1 << 62
"""Nanoseconds: the year 2116. Sums of two such times fit into 64 bits."""


def pack_turns(arcs: Ints, times: Ints, clock: int) -> bytes:
    """Return the blob of a chunk.

    Args:
        arcs: The number of the arc of each transition, below 65,536.
        times: When each was made, in nanoseconds; never decreasing.
        clock: The time of the transition before the first, on the same clock.
    """
    planes = np.empty((len(arcs), _WHOLE), dtype=np.uint8)
    planes[:, :_ARC] = arcs.astype("<u2").view(np.uint8).reshape(-1, _ARC)
    planes[:, _ARC:] = np.diff(times, prepend=clock).astype("<u8").view(np.uint8).reshape(-1, _WHOLE - _ARC)
    return zlib.compress(planes.T.tobytes(), level=1)


def unpack_turns(blob: bytes, count: int, clock: int) -> tuple[Ints, Ints]:
    """Return the arcs and the times.

    Raises:
        zlib.error: If the blob is damaged.
        ValueError: If it does not hold that many transitions.
    """
    if not 0 <= count <= CHUNK:
        raise ValueError(f"a chunk says that it holds {count} transitions; it holds {CHUNK} at most")
    inflating = zlib.decompressobj()
    held = inflating.decompress(blob, count * _WHOLE + 1)  # a small blob may inflate to gigabytes
    if len(held) == count * _WHOLE and not inflating.eof:
        raise ValueError(f"the blob of a chunk of {count} transitions lacks its end")
    if len(held) != count * _WHOLE:
        raise ValueError(f"a chunk of {count} transitions holds {len(held)} bytes, not {count * _WHOLE}")
    planes = np.frombuffer(held, dtype=np.uint8).reshape(_WHOLE, count).T
    arcs = np.ascontiguousarray(planes[:, :_ARC]).view("<u2").ravel().astype(np.int64)
    since = np.ascontiguousarray(planes[:, _ARC:]).view("<u8").ravel().astype(np.int64)
    if since.min(initial=0) < 0 or abs(clock) + since.sum(dtype=np.float64) > _EVER:
        raise ValueError(f"the times of a chunk of {count} transitions lie beyond all time")
    return arcs, clock + np.cumsum(since)
