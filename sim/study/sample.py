"""``--sample``: points drawn at random or from a Sobol sequence, in place of a whole grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.study.axes import MAX_POINTS, Axis, Span, check_keys, parse_setting, spaced

KINDS = ("random", "sobol")

Texts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Which points to draw: ``size`` of them, of a kind in :data:`KINDS`. A larger size only adds points."""

    kind: str
    size: int
    seed: int = 0


def parse_sample(text: str, seed: int) -> Sample:
    """``random:64`` or ``sobol:64``.

    Raises:
        ScenarioError: anything else.
    """
    kind, _, size = (part.strip() for part in text.partition(":"))
    if kind not in KINDS:
        raise ScenarioError(f"--sample {text}: expected random:N or sobol:N{did_you_mean(kind, KINDS)}")
    if not size.isdigit() or not 1 <= int(size) <= MAX_POINTS:
        raise ScenarioError(
            f"--sample {text}: how many points? such as {kind}:64; {MAX_POINTS:,} points at most"
        )
    return Sample(kind, int(size), seed)


def draw(settings: Sequence[str], sample: Sample) -> tuple[list[Axis], list[Texts]]:
    """The axes of ``--set`` with the values that were drawn, and the distinct combinations in the order drawn.

    A range is drawn from evenly (in its logarithm with ``log``): whole numbers where its ends are whole and have no
    unit, else any number in it. Of a list, or a range with ``xN``, one value is taken. An axis ``seed`` is not drawn
    from: every combination is run with each of its values.

    Raises:
        ScenarioError: as :func:`kvsim.study.axes.parse_axes`.
    """
    parsed = [parse_setting(setting) for setting in settings]
    check_keys([axis.key for axis in parsed])
    parsed = [
        spaced(axis) if isinstance(axis, Span) and (axis.count or axis.key == "seed") else axis
        for axis in parsed
    ]
    drawn = [axis for axis in parsed if axis.key != "seed" and _varies(axis)]
    if not drawn:
        raise ScenarioError(
            "nothing to sample: no --set has a range or several values; give one such as --set cluster.replicas=1..16"
        )
    seeds = next((axis.values for axis in parsed if axis.key == "seed" and isinstance(axis, Axis)), ("",))
    if sample.size * len(seeds) > MAX_POINTS:
        raise ScenarioError(
            f"{sample.size:,} samples of {len(seeds):,} seeds: give fewer, {MAX_POINTS:,} points at most"
        )
    combinations: dict[Texts, None] = {}
    for row in _uniform(sample, len(drawn)):
        texts = {axis.key: _text(axis, share) for axis, share in zip(drawn, row, strict=True)}
        for seed in seeds:
            combinations[tuple(_fixed(axis, texts, seed) for axis in parsed)] = None
    found = list(combinations)
    axes = [
        Axis(axis.key, tuple(dict.fromkeys(texts[i] for texts in found))) for i, axis in enumerate(parsed)
    ]
    return axes, found


def _varies(axis: Span | Axis) -> bool:
    return isinstance(axis, Span) or len(axis.values) > 1


def _fixed(axis: Span | Axis, texts: dict[str, str], seed: str) -> str:
    if axis.key in texts:
        return texts[axis.key]
    assert isinstance(axis, Axis)
    return seed if axis.key == "seed" else axis.values[0]


def _uniform(sample: Sample, dimensions: int) -> npt.NDArray[np.float64]:
    """Shape (size, dimensions), in [0, 1); the first rows do not depend on the size."""
    rng = np.random.default_rng(sample.seed)
    if sample.kind == "random":
        return rng.random((sample.size, dimensions))
    from scipy.stats import qmc

    if dimensions > qmc.Sobol.MAXDIM:
        raise ScenarioError(f"--sample sobol: {dimensions:,} keys are too many; take random:{sample.size}")
    whole = qmc.Sobol(dimensions, scramble=True, seed=rng).random_base2(math.ceil(math.log2(sample.size)))
    rows: npt.NDArray[np.float64] = whole[: sample.size]
    return rows


def _text(axis: Span | Axis, share: float) -> str:
    """The value at ``share`` (0..1) of an axis."""
    if isinstance(axis, Axis):
        return axis.values[int(share * len(axis.values))]
    first, last = axis.first, axis.last + (1 if axis.whole else 0)
    number = first * (last / first) ** share if axis.log else first + (last - first) * share
    if axis.whole:
        return str(min(math.floor(number), int(axis.last)))
    return axis.value(float(f"{number:.6g}"))
