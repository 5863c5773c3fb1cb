"""`KeyedPermutation`: a pseudo-random permutation of any length, computed index by index, of which nothing is stored.

Called by `heptad.data.order` alone, which says under which key and from which length on it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

ROUNDS = 6
"""Times that one half is changed by the other. After 4 the last bits of neighbours are still related, by a pair test of
chi-square over 60 keys; after 6 no test of tests/test_order.py, and none of those tried beside it, finds anything."""

_CHUNK = 8192
"""Indices computed at a time: their few arrays of 64 KiB stay in the cache of a core."""

_30, _27, _32 = (np.uint64(bits) for bits in (30, 27, 32))
_MIX, _MIX_AGAIN = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class KeyedPermutation:
    """A permutation of 0, 1, …, length - 1: a Feistel network with cycle walking.

    An index is split into `low`, its last bits, and `high`, the rest, each of about half of the bits. A round adds a
    hash of one half to the other, modulo the range of that, so each round is undone by a subtraction and the network
    is a permutation of all pairs, `2**bits * highs` of them. These are the length, rounded up by less than its root;
    an index that is led outside is led through again until it is inside (Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002). On its way it meets its own cycle only, so that stays a permutation.

    Args:
        length: Of the permutation, below 2**63.
        keys: Of each round, `ROUNDS` whole numbers of at most 64 bits.
    """

    def __init__(self, length: int, keys: list[int]) -> None:
        bits = max(0, (length - 1).bit_length()) // 2
        self._length = np.uint64(length)
        self._bits = np.uint64(bits)
        self._mask = np.uint64((1 << bits) - 1)
        self._highs = np.uint64(-(-length >> bits))
        self._keys = [np.uint64(key) for key in keys]

    def __call__(self, indices: Words) -> npt.NDArray[np.int64]:
        """Return where each of these indices, all below the length, is led."""
        led = np.empty(indices.shape, np.uint64)
        for start in range(0, len(indices), _CHUNK):
            chunk = self._mix(indices[start : start + _CHUNK])
            while len(outside := np.flatnonzero(chunk >= self._length)):
                chunk[outside] = self._mix(chunk[outside])
            led[start : start + _CHUNK] = chunk
        return led.view(np.int64)

    def _mix(self, indices: Words) -> Words:
        low, high = indices & self._mask, indices >> self._bits
        for number, key in enumerate(self._keys):
            if number % 2:
                add = _hash(low, key)
                add *= self._highs
                add >>= _32  # from 32 bits into the range of `high`
                high += add
                np.minimum(high, high - self._highs, out=high)  # modulo: where it was below, the difference wraps
            else:
                low += _hash(high, key)
                low &= self._mask
        high <<= self._bits
        high |= low
        return high


def _hash(words: Words, key: Any) -> Words:
    """Return 32 bits of each word and the key: the last steps of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = words + key
    words ^= words >> _30
    words *= _MIX
    words ^= words >> _27
    words *= _MIX_AGAIN
    words >>= _32
    return words
