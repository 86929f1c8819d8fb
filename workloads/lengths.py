"""Lines of JSON that hold lengths alone, read many at once: all that are written as the first one but for their numbers."""

from __future__ import annotations

import re

import numpy as np

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
        numbers = np.fromstring(text, dtype=np.float64, sep=" ").reshape(-1, len(REQUIRED))
        arrivals, *tokens = (numbers[:, column] for column in self._columns)
        arrival_ns = np.rint(arrivals * NS_PER_S).astype(np.int64)
        return end, arrival_ns, tokens[0].astype(np.int64), tokens[1].astype(np.int64)


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
