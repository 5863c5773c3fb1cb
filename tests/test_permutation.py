"""The permutation that is computed by index: it is one at every length, and looks as one that is drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from heptad.data.generators import derive
from heptad.data.permutation import ROUNDS, KeyedPermutation

Indices = npt.NDArray[np.int64]


def permutation(length: int, *key: int, rounds: int = ROUNDS) -> Indices:
    """Return a whole permutation under the keys that are derived from `key`."""
    keys = [derive("test", *key, number) for number in range(rounds)]
    return KeyedPermutation(length, keys)(np.arange(length, dtype=np.uint64))


def drawn(length: int, key: int) -> Indices:
    """Return a permutation that torch draws."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive("test", key))).numpy()


def is_whole(indices: Indices) -> bool:
    """Return whether each of 0, 1, …, length - 1 is there once."""
    return bool((np.bincount(indices, minlength=len(indices)) == 1).all())


# -- it is the one that is described


def by_hand(index: int, length: int, keys: list[int]) -> int:
    """Return where an index is led, in whole numbers of Python."""
    bits = (length - 1).bit_length() // 2
    high, low = divmod(index, 2**bits)
    highs = -(-length // 2**bits)
    for number, key in enumerate(keys):
        word = ((low if number % 2 else high) + key) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = ((word ^ word >> 27) * 0x94D049BB133111EB % 2**64) >> 32
        if number % 2:
            high = (high + (word * highs >> 32)) % highs
        else:
            low = (low + word) % 2**bits
    led = high * 2**bits + low
    return led if led < length else by_hand(led, length, keys)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 1000, 10**8, 10**12 + 39, 2**62 + 1, 2**63 - 1])
def test_an_index_is_led_where_whole_numbers_of_python_lead_it(length: int):
    keys = [derive(length, number) for number in range(ROUNDS)]
    indices = [length * part // 97 for part in range(97)]
    led = KeyedPermutation(length, keys)(np.array(indices, np.uint64))
    assert led.tolist() == [by_hand(index, length, keys) for index in indices]


# -- it is a permutation


@pytest.mark.parametrize("rounds", [1, 2, ROUNDS])
def test_every_short_length_has_each_index_once(rounds: int):
    assert all(is_whole(permutation(length, length, rounds=rounds)) for length in range(1, 300))


@pytest.mark.parametrize("length", [
    *(2**bits + more for bits in (10, 11, 16, 17) for more in (-1, 0, 1)),
    997, 65_537, 99_991, 250_000, 3_000_017, 2**22 - 1,
])  # fmt: skip
def test_every_length_has_each_index_once(length: int):
    assert is_whole(permutation(length, 7))


# -- it looks as one that is drawn


def chi_square(one: Indices, other: Indices) -> float:
    """Return how far pairs of numbers below 32 are from being spread evenly."""
    counts = np.bincount(one * 32 + other, minlength=1024)
    even = counts.sum() / 1024
    return float(((counts - even) ** 2).sum() / even)


FIGURES: dict[str, Callable[[Indices], float]] = {
    "neighbours that stay neighbours": lambda p: float((np.abs(np.diff(p)) == 1).sum()),
    "runs that descend": lambda p: float((np.diff(p) < 0).sum()),
    "fixed points": lambda p: float((p == np.arange(len(p))).sum()),
    "correlation with the place": lambda p: float(np.corrcoef(p, np.arange(len(p)))[0, 1]),
    "correlation with the next": lambda p: float(np.corrcoef(p[1:], p[:-1])[0, 1]),
    "first bits by place": lambda p: chi_square(p * 32 // len(p), np.arange(len(p)) * 32 // len(p)),
    "first bits of neighbours": lambda p: chi_square(p[1:] * 32 // len(p), p[:-1] * 32 // len(p)),
    "last bits by place": lambda p: chi_square(p % 32, np.arange(len(p)) % 32),
    "last bits of neighbours": lambda p: chi_square(p[1:] % 32, p[:-1] % 32),
}
LENGTHS = (50_021, 2**16)
KEYS = 30


@pytest.fixture(scope="module", params=LENGTHS)
def length(request: pytest.FixtureRequest) -> int:
    """Return the length of the permutations that are compared."""
    return request.param


@pytest.fixture(scope="module")
def of_randperm(length: int) -> dict[str, list[float]]:
    """Return the figures of permutations that torch draws."""
    return figures([drawn(length, key) for key in range(KEYS)])


def figures(permutations: list[Indices]) -> dict[str, list[float]]:
    """Return each figure of each permutation."""
    return {name: [figure(indices) for indices in permutations] for name, figure in FIGURES.items()}


def strange(found: dict[str, list[float]], of_randperm: dict[str, list[float]]) -> set[str]:
    """Return the figures whose mean is more than four standard errors from that of `randperm`, or whose spread twice.

    Both are of as many permutations, so the error of the difference is larger by the root of two.
    """
    wrong: set[str] = set()
    for name, values in found.items():
        spread = float(np.std(of_randperm[name], ddof=1))
        error = spread * (2 / len(values)) ** 0.5
        if abs(np.mean(values) - np.mean(of_randperm[name])) > 4 * error or np.std(values, ddof=1) > 2 * spread:
            wrong.add(name)
    return wrong


def test_no_figure_tells_it_from_randperm(length: int, of_randperm: dict[str, list[float]]):
    """Means and spreads over 30 keys."""
    found = figures([permutation(length, key) for key in range(KEYS)])
    assert strange(found, of_randperm) == set()


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_fewer_rounds_are_told_from_randperm(rounds: int, length: int, of_randperm: dict[str, list[float]]):
    """So the test above can fail: most figures find two rounds, and three."""
    found = strange(figures([permutation(length, key, rounds=rounds) for key in range(KEYS)]), of_randperm)
    expected = {"neighbours that stay neighbours", "correlation with the place", "first bits of neighbours"}
    assert found >= expected | ({"last bits of neighbours"} if rounds < 3 else set[str]())


def test_two_keys_agree_by_chance_alone():
    """Of 2,000,000 places two permutations of one length share one, on average."""
    orders = [permutation(2_000_000, key) for key in (0, 1)]
    assert int((orders[0] == orders[1]).sum()) <= 8  # more in 1 of 10**6 pairs
