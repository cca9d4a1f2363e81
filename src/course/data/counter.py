"""Randomness without state: every number is a function of a key and counters, not of what was drawn before.

That is what makes item 4711 of a data set the same in any batch, in any process and on any machine.
Everything is integer arithmetic modulo 2^64 on top of ``base.mix``, so there is nothing that could be rounded
differently.
"""

from __future__ import annotations

import numpy as np

from course.data.base import GOLDEN, mix


def bits(*counters: int | np.ndarray) -> np.ndarray:
    """Hash integers >= 0 (scalars or arrays, broadcast together) to a uint64 array of at least one axis."""
    state = np.zeros(1, np.uint64)
    for counter in counters:
        state = mix(state + GOLDEN * (np.atleast_1d(np.asarray(counter, np.uint64)) + np.uint64(1)))
    return state


def uniform(*counters: int | np.ndarray) -> np.ndarray:
    """Hash counters to float32 numbers in [0, 1): 24 bits, each of them exact in float32."""
    return (bits(*counters) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def permute(position: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Map positions 0..n-1 one to one onto 0..n-1, by a different permutation for each key.

    A four-round Feistel network permutes the next power of four; what falls outside 0..n-1 goes round again
    until it lands inside ("cycle walking"), which keeps the map one to one without storing a table.
    """
    half = np.uint64(max(1, (int(n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    card = np.asarray(position, np.uint64).copy()
    key = np.broadcast_to(key, card.shape)
    todo = np.arange(len(card))
    while len(todo):
        left, right = card[todo] >> half, card[todo] & low
        for turn in range(4):
            left, right = right, left ^ (bits(key[todo], turn, right) & low)
        card[todo] = (left << half) | right
        todo = todo[card[todo] >= n]
    return card.astype(np.int64)


def deal(index: np.ndarray, choices: tuple[int, ...], *key: int) -> tuple[np.ndarray, ...]:
    """Deal every combination of factors equally often.

    Think of a pack with one card for each combination of ``choices`` (how many values each factor has). The
    pack is shuffled, dealt to consecutive indices, shuffled anew, dealt again: n consecutive indices that
    start at a multiple of n = prod(choices) see each combination exactly once. Returns one int64 array a
    factor.
    """
    n = 1
    for count in choices:
        n *= count
    index = np.asarray(index, np.int64)
    card = permute(index % n, n, bits(*key, index // n))
    return np.unravel_index(card, choices)
