"""How the arcs and times of a chunk become one blob: 2 to 4 bytes a transition.

Each transition is ten bytes: the number of its arc in two, the time since the one before in eight, the lowest byte
first. The blob holds the first byte of all transitions, then the second of all, and so on, deflated (zlib, level 1):
what is the same for all of them takes no room so. zlib's own checksum guards it.
"""

from __future__ import annotations

import zlib

import numpy as np

from heptad.record.chunk import Ints

_ARC, _WHOLE = 2, 10


def pack(arcs: Ints, times: Ints, clock: int) -> bytes:
    """Returns the blob.

    Args:
        arcs: The number of the arc of each transition, below 65,536.
        times: When each was made, in nanoseconds; they never fall.
        clock: What the times begin from, on their clock.
    """
    planes = np.empty((len(arcs), _WHOLE), dtype=np.uint8)
    planes[:, :_ARC] = arcs.astype("<u2").view(np.uint8).reshape(-1, _ARC)
    planes[:, _ARC:] = np.diff(times, prepend=clock).astype("<u8").view(np.uint8).reshape(-1, _WHOLE - _ARC)
    return zlib.compress(planes.T.tobytes(), level=1)


def unpack(blob: bytes, count: int, clock: int) -> tuple[Ints, Ints]:
    """Returns the arcs and the times.

    Raises:
        zlib.error: If the blob is damaged.
        ValueError: If it does not hold as many transitions.
    """
    held = zlib.decompress(blob)
    if len(held) != count * _WHOLE:
        raise ValueError(f"a chunk of {count} transitions holds {len(held)} bytes, not {count * _WHOLE}")
    planes = np.frombuffer(held, dtype=np.uint8).reshape(_WHOLE, count).T
    arcs = np.ascontiguousarray(planes[:, :_ARC]).view("<u2").ravel().astype(np.int64)
    since = np.ascontiguousarray(planes[:, _ARC:]).view("<u8").ravel().astype(np.int64)
    return arcs, clock + np.cumsum(since)
