"""Lines and fields of trace files, plain or gzip; a mistake becomes one line that names file and line."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvsim.errors import TraceError, did_you_mean
from kvsim.workloads.trace import NS_PER_S

MAX_TIME_NS = 100 * 365 * 86_400 * NS_PER_S  # a century: larger means that the unit is wrong
MAX_TOKENS = 1_000_000_000
BLOCK_BYTES = 1 << 18  # of a file, read at once
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(slots=True)
class Row:
    """One record of a file: its fields, and where it stands for error messages."""

    path: Path
    line: int
    fields: dict[str, Any]
    text: bool = False  # of a CSV file, where numbers are strings too

    def error(self, message: str) -> TraceError:
        """``file:line: message``; the message says what was found and what to do."""
        return TraceError(f"{self.path}:{self.line}: {message}")

    def get(self, key: str) -> Any:
        """The field, which has to be there."""
        try:
            return self.fields[key]
        except KeyError:
            near = near_miss(key, self.fields)
            fix = f"the line has '{near}': is it misspelt?" if near else "add it or name the right reader"
            raise self.error(f"no '{key}'; {fix}") from None

    def whole(self, key: str, minimum: int) -> int:
        """The field as a whole number from ``minimum`` to ``MAX_TOKENS``."""
        found = self.get(key)
        number = self._whole_number(found)
        if number is None or number < minimum:
            raise self.error(f"{key} is {shown(found)}; it has to be a whole number of at least {minimum}")
        if number > MAX_TOKENS:
            raise self.error(f"{key} is {shown(found)}; it has to be at most {MAX_TOKENS}")
        return number

    def time_ns(self, key: str, unit_ns: int = NS_PER_S) -> int:
        """The field, a number of units of ``unit_ns``, in nanoseconds; at least 0."""
        found = self.get(key)
        try:
            usable = isinstance(found, str if self.text else int | float) and not isinstance(found, bool)
            time_ns = float(found) * unit_ns if usable else math.nan
        except (ValueError, OverflowError):
            time_ns = math.nan
        if not 0 <= time_ns <= MAX_TIME_NS:
            raise self.error(
                f"{key} is {shown(found)}; it has to be a number of at least 0 (and under a century)"
            )
        return round(time_ns)

    def name(self, key: str) -> str | None:
        """The field as a name; None where it is absent or null."""
        found = self.fields.get(key)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise self.error(f"{key} is {shown(found)}; it has to be a string or a whole number")
        return str(found)

    def list(self, key: str) -> list[Any]:
        """The field, which has to be a list."""
        found = self.get(key)
        if not isinstance(found, list):
            raise self.error(f"{key} is {shown(found)}; it has to be a list")
        return found

    def _whole_number(self, found: Any) -> int | None:
        """``found`` as an int when it is a whole number (12, 12.0; in a CSV file "12"), else None."""
        if type(found) is int:
            return found
        if isinstance(found, float) and found.is_integer():
            return int(found)
        if self.text and isinstance(found, str) and found.strip().isdecimal():
            return int(found)
        return None


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """The nearest of ``known`` where at most two characters are added or missing, else None.

    "sesion" is "session" and "arrival" is "arrival_s", but "input_tokens" is not "output_tokens".
    """

    def apart(other: str) -> int:
        same = sum(block.size for block in difflib.SequenceMatcher(None, name, other).get_matching_blocks())
        return len(name) + len(other) - 2 * same

    nearest = min(known, key=apart, default=None)
    return nearest if nearest is not None and apart(nearest) <= 2 else None


def shown(value: Any) -> str:
    """``value`` as it stands in the file, cut to fit a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a text file; blank lines are left out.

    Raises:
        TraceError: as :func:`read_blocks`, or it is not text.
    """
    for before, block in read_blocks(path):
        yield from lines_of(path, block, before)


def lines_of(path: Path, block: bytes, before: int) -> Iterator[tuple[int, str]]:
    """The lines of a block of ``path``, which has ``before`` lines before it, as :func:`read_lines` gives them.

    Raises:
        TraceError: it is not text.
    """
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        number = before + block.count(b"\n", 0, error.start) + 1
        raise TraceError(f"{path}:{number}: not UTF-8 text; give a JSON Lines or CSV file") from None
    for number, line in enumerate(io.StringIO(text, newline=None), before + 1):
        if not line.isspace():
            yield number, line


def read_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """(lines before it, whole lines) of a file, gzip or plain by its first bytes, without the mark of UTF-8.

    Raises:
        TraceError: there is no such file, it cannot be read or ends early.
    """
    before = 0
    try:
        with open(path, "rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            for block in _whole_lines(gzip.GzipFile(fileobj=raw) if zipped else raw):
                yield before, block if before else block.removeprefix(codecs.BOM_UTF8)
                before += block.count(b"\n")
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings)
        hint = near if near.startswith("; did") else "; check the path"
        raise TraceError(f"{path}: no such file{hint}") from None
    except DAMAGED as error:
        raise TraceError(
            f"{path}:{before + 1}: the gzip data are cut short or damaged ({error}); copy the file again"
        ) from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a readable file") from None


def _whole_lines(data: gzip.GzipFile | io.BufferedReader) -> Iterator[bytes]:
    """Blocks that end with a line; what comes before damaged data still comes."""
    held = bytearray()
    try:
        while piece := data.read1(BLOCK_BYTES):
            held += piece
            if len(held) >= BLOCK_BYTES and (end := held.rfind(b"\n") + 1):
                yield bytes(held[:end])
                del held[:end]
    except DAMAGED:
        if end := held.rfind(b"\n") + 1:
            yield bytes(held[:end])
        raise
    if held:
        yield bytes(held)


def json_rows(path: Path, lines: Iterable[tuple[int, str]] | None = None) -> Iterator[Row]:
    """The objects of a JSON Lines file, or of some numbered ``lines`` of it."""
    for number, line in read_lines(path) if lines is None else lines:
        try:
            fields = json.loads(line.rstrip("\n"))
        except json.JSONDecodeError as error:
            where = f"column {error.colno}: {error.msg}"
            raise TraceError(f"{path}:{number}: not JSON, {where}; write one JSON object a line") from None
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits, or thousands of brackets
            raise TraceError(f"{path}:{number}: not usable JSON ({error}); mend the line") from None
        if not isinstance(fields, dict):
            raise TraceError(
                f"{path}:{number}: found a {type(fields).__name__}; write one JSON object a line"
            )
        yield Row(path, number, fields)


def csv_rows(path: Path) -> Iterator[Row]:
    """The lines of a CSV file with a header, as strings by column name; no quoted line breaks."""
    lines = read_lines(path)
    header: list[str] = []
    for number, line in lines:
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise TraceError(f"{path}:{number}: not CSV ({error}); mend the line") from None
        if not header:
            header = cells
        elif len(cells) != len(header):
            raise TraceError(
                f"{path}:{number}: {len(cells)} columns where the header has {len(header)}; mend the line"
            )
        else:
            yield Row(path, number, dict(zip(header, cells, strict=True)), text=True)


def first_fields(path: Path) -> frozenset[str]:
    """Names of the fields of the first record: keys of a JSON object, or the header of a CSV file."""
    for _, line in read_lines(path):
        if not line.lstrip().startswith(("{", "[")):
            return frozenset(cell.strip() for cell in line.split(","))
        return frozenset(next(json_rows(path)).fields)
    raise TraceError(f"{path}: holds no requests; give a file with one request a line")


def file_source(path: Path, reader: str) -> dict[str, str]:
    """Provenance of a trace file: name, sha256 of its bytes, reader."""
    digest = hashlib.sha256()
    with open(path, "rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    return {"file": path.name, "sha256": digest.hexdigest(), "reader": reader}
