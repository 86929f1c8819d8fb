"""Lines of JSON that hold lengths alone, read many at once: all that are written as the first one but for their numbers."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from kvsim.workloads.trace import NS_PER_S, Array

REQUIRED = ("arrival_s", "input_tokens", "output_tokens")
# up to 30 years and a billion tokens, without an exponent: what is beyond it, or no number, is read line by line
TIME = rb"(?:0|[1-9][0-9]{0,8}+)(?:\.[0-9]++)?+"
TOKENS = rb"[1-9][0-9]{0,8}+"
FIRST_LINE = re.compile(
    rb'([ \t]*\{[ \t]*"(\w+)"[ \t]*:[ \t]*)[0-9.eE+-]+([ \t]*,[ \t]*"(\w+)"[ \t]*:[ \t]*)[0-9.eE+-]+'
    rb'([ \t]*,[ \t]*"(\w+)"[ \t]*:[ \t]*)[0-9.eE+-]+([ \t]*\}[ \t]*\r?\n)'
)
# of lines of this form: the numbers with a space after each
BESIDE_NUMBERS = bytes(byte for byte in range(256) if byte not in b"0123456789.,\n")
SPACES = bytes.maketrans(b",\n", b"  ")
# float64 has all whole numbers of so many digits and these powers of ten, so that a quotient is the nearest to what is written
MOST_DIGITS = 15
POWERS = np.array([float(10**power) for power in range(MOST_DIGITS)])


class LengthLines:
    """``columns``: where arrival, input and output tokens stand in a line."""

    def __init__(self, lines: re.Pattern[bytes], columns: tuple[int, ...]) -> None:
        self._lines = lines
        self._columns = columns

    def read(self, block: bytes, start: int) -> tuple[int, Array, Array, Array] | None:
        """The lines of ``block`` from ``start`` up to the first that differs: where it begins, and arrivals (ns), input and
        output tokens, int64 of shape (lines,). None: the first one does."""
        found = self._lines.match(block, start)
        if found is None:
            return None
        end = found.end()
        text = block[start:end].translate(SPACES, BESIDE_NUMBERS)
        numbers = read_numbers(text).reshape(-1, len(REQUIRED))
        arrivals, *tokens = (numbers[:, column] for column in self._columns)
        arrival_ns = np.rint(arrivals * NS_PER_S).astype(np.int64)
        return end, arrival_ns, tokens[0].astype(np.int64), tokens[1].astype(np.int64)


def read_numbers(text: bytes) -> npt.NDArray[np.float64]:
    """Numbers as TIME and TOKENS have them, with a space after each: what ``float`` makes of them, shape (numbers,)."""
    digits = np.frombuffer(text.replace(b".", b""), dtype=np.uint8)
    ends = np.flatnonzero(digits == ord(" "))
    widths = np.diff(ends, prepend=-1) - 1
    widest = int(widths.max())
    if widest > MOST_DIGITS:
        return np.fromstring(text, dtype=np.float64, sep=" ")
    found = np.zeros(len(ends), dtype=np.int64)
    for place in range(widest):
        having = np.flatnonzero(widths > place)
        found[having] += (digits[ends[having] - 1 - place].astype(np.int64) - ord("0")) * 10**place
    written = np.frombuffer(text, dtype=np.uint8)
    ends, points = np.flatnonzero(written == ord(" ")), np.flatnonzero(written == ord("."))
    of = ends.searchsorted(points)
    decimals = np.zeros(len(ends), dtype=np.int64)
    decimals[of] = ends[of] - points - 1
    numbers: npt.NDArray[np.float64] = found / POWERS[decimals]
    return numbers


def lines_like(line: bytes) -> LengthLines | None:
    """Those written like ``line``; None: it has not these three numbers alone."""
    found = FIRST_LINE.fullmatch(line)
    if found is None:
        return None
    *texts, end = found.group(1, 3, 5, 7)
    names = [name.decode() for name in found.group(2, 4, 6)]
    if set(names) != set(REQUIRED):
        return None
    numbers = [TIME if name == REQUIRED[0] else TOKENS for name in names]
    pattern = b"".join(re.escape(text) + number for text, number in zip(texts, numbers, strict=True))
    lines = re.compile(rb"(?:%b%b)++" % (pattern, re.escape(end)))
    return LengthLines(lines, tuple(names.index(name) for name in REQUIRED))
