"""What ``--set`` means in a study: an override with several values is an axis of the grid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvsim.errors import ScenarioError

MAX_POINTS = 100_000

_RANGE = re.compile(
    r"\s*([+-]?[\d.]*\d(?:[eE][+-]?\d+)?)\s*([A-Za-z/]*?)\s*\.\.\s*"
    r"([+-]?[\d.]*?\d(?:[eE][+-]?\d+)?)\s*([A-Za-z/]*?)(?:\s*x\s*(\d+))?\s*"
)
_OPEN_RANGE = re.compile(r"\s*(?:[\d.]*\d\s*\w*\s*\.\.[\s\w]*|\.\.\s*\d[\d.]*[\s\w]*)")
_CLOSING = {"[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the scenario and its values, as YAML text; one value is an override of every point."""

    key: str
    values: tuple[str, ...]


def parse_axes(settings: Sequence[str]) -> list[Axis]:
    """The axes that ``--set`` gave, in that order: ``KEY=A..B``, ``KEY=A..BxN`` or ``KEY=V1,V2,...``.

    ``A..B`` are all whole numbers from A to B; ``xN`` are N evenly spaced values, in which A takes the unit of B
    if it has none. Commas in brackets or quotes do not separate.

    Raises:
        ScenarioError: no value, a range that runs backwards, a key or a value given twice, or nothing varies.
    """
    axes = [_axis(setting) for setting in settings]
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ScenarioError(
                f"--set {key}: given twice; list its values in one --set, separated by commas"
            )
    if not any(len(axis.values) > 1 for axis in axes):
        raise ScenarioError(
            "the grid is empty: no --set has more than one value; give one such as --set cluster.replicas=1..4"
        )
    size = grid_size(axes)
    if size > MAX_POINTS:
        raise ScenarioError(f"the grid has {size:,} points; give fewer values, {MAX_POINTS:,} points at most")
    return axes


def grid_size(axes: Sequence[Axis]) -> int:
    size = 1
    for axis in axes:
        size *= len(axis.values)
    return size


def _axis(setting: str) -> Axis:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError(f"--set {setting}: expected KEY=A..B or KEY=V1,V2, such as cluster.replicas=1..4")
    match = _RANGE.fullmatch(text)
    if match is None and _OPEN_RANGE.fullmatch(text):
        raise ScenarioError(
            f"--set {key}: '{text.strip()}' is no range; give both ends, such as 1..4 or 0..512 GB x5"
        )
    values = _range(key, text, match) if match else [part.strip() for part in _split(text)]
    if not all(values):
        found = f"an empty value in '{text.strip()}'" if text.strip() else "no value"
        raise ScenarioError(f"--set {key}: {found}; give a range A..B or values separated by commas")
    for value in values:
        if values.count(value) > 1:
            raise ScenarioError(f"--set {key}: {value} is given twice")
    return Axis(key, tuple(values))


def _range(key: str, text: str, match: re.Match[str]) -> list[str]:
    first, unit_of_first, last, unit, count = match.groups()
    if unit_of_first not in ("", unit):
        raise ScenarioError(f"--set {key}: {text.strip()}: both ends of a range need the same unit")
    try:
        start, end = float(first), float(last)
    except ValueError:
        raise ScenarioError(f"--set {key}: {text.strip()}: the ends of a range are numbers") from None
    if end <= start:
        raise ScenarioError(f"--set {key}: {text.strip()} is an empty range; the larger end comes last")
    if count is None:
        if unit or start != int(start) or end != int(end):
            raise ScenarioError(
                f"--set {key}: {text.strip()}: say how many values, such as {text.strip()}x5; "
                "only whole numbers without a unit go one by one"
            )
        count = str(int(end - start) + 1)
    number = int(count)
    if not 2 <= number <= MAX_POINTS:
        raise ScenarioError(f"--set {key}: {text.strip()}: {number:,} values; give 2 to {MAX_POINTS:,}")
    steps = [start + (end - start) * i / (number - 1) for i in range(number)]
    return [f"{_plain(value)} {unit}".strip() for value in steps]


def _plain(value: float) -> str:
    """``value`` without the last digits, in which rounding shows: 0.30000000000000004 is 0.3."""
    value = round(value, 12)
    return str(int(value)) if value == int(value) else repr(value)


def _split(text: str) -> Iterator[str]:
    """Parts between the commas that stand in no brackets and no quotes."""
    start = 0
    open_until: list[str] = []
    for place, letter in enumerate(text):
        if open_until and letter == open_until[-1]:
            open_until.pop()
        elif open_until and open_until[-1] in "'\"":
            continue
        elif letter in _CLOSING or letter in "'\"":
            open_until.append(_CLOSING.get(letter, letter))
        elif letter == "," and not open_until:
            yield text[start:place]
            start = place + 1
    yield text[start:]
