"""What --sample draws: in the ranges, even in each of them, the same again, and more of the same with a larger size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvsim.errors import ScenarioError
from kvsim.study.sample import Sample, draw, parse_sample

SETTINGS = ("a=1..8", "b=0.5..1.5", "c=1..1000 GB log", "d=x,y", "e=10..20 GB x3", "f=one")


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_draws_lie_evenly_in_their_ranges(kind: str) -> None:
    axes, combinations = draw(SETTINGS, Sample(kind, 512, seed=4))
    assert [axis.key for axis in axes] == ["a", "b", "c", "d", "e", "f"]
    a, b, c, d, e, f = zip(*combinations, strict=True)
    assert set(a) == {str(n) for n in range(1, 9)} and set(d) == {"x", "y"}
    assert set(e) == {"10 GB", "15 GB", "20 GB"} and set(f) == {"one"}
    shares = np.array([float(text) - 0.5 for text in b])
    logs = np.array([math.log10(float(text.removesuffix(" GB"))) / 3 for text in c])
    for share in (shares, logs, (np.array(a, dtype=int) - 0.5) / 8):
        assert share.min() >= 0 and share.max() <= 1
        counts = np.histogram(share, 8, (0, 1))[0]
        # 64 in each eighth: exactly by Sobol's sequence, within 5 standard deviations (7.5) at random
        assert np.abs(counts - 64).max() <= (0 if kind == "sobol" else 37), counts


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_a_larger_sample_has_the_smaller_one(kind: str) -> None:
    few, many = (draw(SETTINGS, Sample(kind, size))[1] for size in (5, 40))
    assert many[:5] == few
    assert draw(SETTINGS, Sample(kind, 5, seed=1))[1] != few


def test_equal_draws_are_one_point() -> None:
    _, combinations = draw(["a=1..2"], Sample("random", 50))
    assert sorted(combinations) == [("1",), ("2",)]


def test_every_seed_of_a_drawn_point() -> None:
    _, combinations = draw(["seed=3..4", "b=0.5..1.5"], Sample("random", 2))
    (first, b), (second, b_again), *_ = combinations
    assert (first, second) == ("3", "4") and b == b_again and len(combinations) == 4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["seed=1..3", "a=1"], "nothing to sample: no --set has a range or several values"),
        (["a=0..1 log"], "--set a: 0..1 log: 0 has no logarithm; begin above 0"),
        (["a=1..2", "a=3"], "--set a: given twice"),
        (["a=1..2", "seed=0..200000"], "--set seed: 0..200000: 200,001 values"),
        (["a=1..2", "seed=0..90000"], "2 samples of 90,001 seeds: give fewer"),
    ],
)
def test_what_cannot_be_sampled(settings: list[str], line: str) -> None:
    with pytest.raises(ScenarioError) as error:
        draw(settings, Sample("random", 2))
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("text", ["latin:8", "sobol:", "random:0", "random:1e9", "8"])
def test_what_is_no_sample(text: str) -> None:
    with pytest.raises(ScenarioError, match=f"--sample {text}"):
        parse_sample(text, 0)
