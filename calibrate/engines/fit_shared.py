"""What KV costs that several decodes of a step read, from an engine's attention kernel alone (measure_attention.py)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvsim.errors import CalibrationError, ScenarioError
from kvsim.model.spec import DTYPE_BYTES
from kvsim.validate.measured import Floats
from kvsim.validate.setup import preset_of

FILE = "attention.jsonl.gz"
KNOTS_MB = 5, 10, 20, 40, 80, 160, 320
"""Points of the fit: an H100's L2 cache has 50 MB."""
FEWEST = 5
"""Sequences of a batch from which on the kernel fills the GPU: below, its longest context sets the pace."""
OUTLIER = 0.1  # relative error from which on its size counts, not its square


class Batch(NamedTuple):
    """One launch of decode attention, a layer."""

    gpu: str  # preset
    shape: tuple[int, int, int, str]  # heads, KV heads, head_dim, type of KV
    sequences: int
    read: int  # KV tokens, of all sequences
    once: int  # different ones among them
    shared: int  # of these, those that several sequences read
    is_even: bool  # all sequences have as many tokens of their own
    time_us: float

    @property
    def token_mb(self) -> float:
        """K and V of a token."""
        _, kv_heads, head_dim, kv_dtype = self.shape
        return 2e-6 * kv_heads * head_dim * DTYPE_BYTES[kv_dtype]


def read_batches(folder: Path) -> list[Batch]:
    """The attention batches measured beside an engine's runs; [] = there is no such file.

    Raises:
        CalibrationError: the file cannot be read, or a line is no batch.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error}); measure again") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_batch(json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, ScenarioError) as error:
            raise CalibrationError(
                f"{path}, line {number}: not a batch of measure_attention.py ({error!r}); measure again"
            ) from None
    if not found:
        raise CalibrationError(f"{path}: holds no batches; measure again")
    return found


def _batch(row: dict[str, Any]) -> Batch:
    tails, groups, prefixes = ([int(n) for n in row[key]] for key in ("tails", "groups", "prefixes"))
    shape = int(row["heads"]), int(row["kv_heads"]), int(row["head_dim"]), str(row["kv_dtype"])
    time_us = float(row["us"])
    readers = np.bincount(groups, minlength=len(prefixes))
    if not (0 < len(tails) == len(groups) and len(readers) == len(prefixes)):
        raise ValueError("a tail and a group for each sequence, a prefix for each group")
    if min(*tails, *prefixes, *shape[:3]) < 0 or shape[3] not in DTYPE_BYTES or not 0 < time_us < inf:
        raise ValueError("numbers >= 0, a type of KV, microseconds > 0")
    lengths = np.array(prefixes)
    return Batch(
        preset_of(str(row["gpu"])),
        shape,
        len(tails),
        sum(tails) + int(lengths @ readers),
        sum(tails) + int(lengths[readers > 0].sum()),
        int(lengths[readers > 1].sum()),
        len(set(tails)) == 1,
        time_us,
    )


def fit_shared(
    batches: Sequence[Batch], gpu: str, shape: tuple[int, int, int, str], notes: list[str]
) -> list[tuple[int, float]]:
    """(bytes of a layer's KV that several sequences read, price of reading them again, in first reads), from the batches of one
    GPU and ``shape`` (heads, KV heads, head_dim, type of KV); [] = not known.

    Batches without a common prefix give a line over the tokens read for each number of sequences. What one with a prefix
    takes beyond its different tokens, on the line of its number, is the price of the others: straight between KNOTS_MB,
    never falling, by least squares of relative errors. Of batches with a prefix only those count whose own contexts
    differ: in equal ones all sequences reach a token at the same time, which workloads do not do.
    """
    from scipy.optimize import least_squares

    kv_dtype = shape[3]
    own = [batch for batch in batches if (batch.gpu, batch.shape) == (gpu, shape)]
    lines = _lines([batch for batch in own if not batch.shared])
    wanted = [
        batch
        for batch in own
        if batch.shared and batch.sequences >= FEWEST and not batch.is_even and batch.sequences in lines
    ]
    shared_mb = np.array([batch.shared * batch.token_mb for batch in wanted])
    knots = [mb for mb in KNOTS_MB if ((shared_mb > mb / 2) & (shared_mb < mb * 2)).any()]
    if not knots:
        notes.append(
            f"not identifiable: shared_bytes with {kv_dtype} KV (no attention batches of unequal contexts behind prefixes); kept"
        )
        return []
    base, per_mb = np.array([lines[batch.sequences] for batch in wanted]).T
    once = np.array([batch.once * batch.token_mb for batch in wanted])
    again = np.array([(batch.read - batch.once) * batch.token_mb for batch in wanted])
    times = np.array([batch.time_us for batch in wanted])

    def errors(rises: Sequence[float]) -> Floats:
        """The first price, and how much each is above the one before."""
        read = once + np.interp(shared_mb, knots, np.cumsum(rises)) * again
        found: Floats = (base + per_mb * read) / times - 1
        return found

    start = [0.4] + [0.1] * (len(knots) - 1)
    fit = least_squares(errors, start, bounds=(0, 1), loss="soft_l1", f_scale=OUTLIER)
    whole = errors([1.0] + [0.0] * (len(knots) - 1))
    notes.append(
        f"KV read again: {len(wanted)} attention batches with {kv_dtype} KV, median |error| "
        f"{np.median(abs(fit.fun)):.1%} ({np.median(abs(whole)):.0%} at the price of a first read)"
    )
    prices = np.minimum(np.cumsum(fit.x), 1.0).tolist()
    return [(round(mb * 1e6), price) for mb, price in zip(knots, prices, strict=True)]


def _lines(batches: Sequence[Batch]) -> dict[int, tuple[float, float]]:
    """(us, us by MB read) of the batches of each number of sequences, by least squares of relative errors."""
    by_number = defaultdict(list)
    for batch in batches:
        by_number[batch.sequences].append((batch.read * batch.token_mb, batch.time_us))
    found = {}
    for number, points in by_number.items():
        if len(points) >= 3:
            read, times = np.array(points).T
            matrix = np.stack([np.ones(len(read)), read], axis=1) / times[:, None]
            (base, slope), *_ = np.linalg.lstsq(matrix, np.ones(len(read)), rcond=None)
            found[number] = float(base), float(slope)
    return found
