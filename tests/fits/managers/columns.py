"""Columns over k steps of n sequences that grow by one token a step, in O(n log n + k) instead of n x k.

``contexts`` are the cached tokens of each sequence before the first step; in step i a sequence reads
context + 1 + i tokens, its own included. A single step gives an int: the cost model prices those fastest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def sum_capped(contexts: Ints, cap: int, steps: int) -> int | Ints:
    """Sum over sequences of min(tokens read, ``cap``)."""
    first = int(np.minimum(contexts, cap - 1).sum()) + len(contexts)
    return first if steps == 1 else _sums(first, len(contexts) - num_over(contexts, cap - 1, steps - 1))


def sum_pages(contexts: Ints, page_tokens: int, steps: int) -> int | Ints:
    """Sum over sequences of the pages that hold the tokens read."""
    first = int((contexts // page_tokens).sum()) + len(contexts)
    return first if steps == 1 else _sums(first, num_at_boundary(contexts, page_tokens, steps - 1))


def num_over(contexts: Ints, cap: int, steps: int) -> int | Ints:
    """Sequences that read more than ``cap`` tokens."""
    if steps == 1:
        return int(np.count_nonzero(contexts >= cap))
    return len(contexts) - np.searchsorted(np.sort(contexts), cap - np.arange(steps), side="left")


def num_at_boundary(contexts: Ints, size: int, steps: int) -> int | Ints:
    """Sequences whose own token is the last one of a block of ``size``."""
    phases = np.bincount((contexts + 1) % size, minlength=size)
    return int(phases[0]) if steps == 1 else phases[-np.arange(steps) % size]


def _sums(first: int, increments: int | Ints) -> Ints:
    return np.concatenate(([first], first + np.cumsum(increments)))
