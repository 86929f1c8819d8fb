"""An append-only table of integer rows that keeps columns instead of objects once it grows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

Row = TypeVar("Row", bound=NamedTuple)

Integers = npt.NDArray[Any]  # of any signed or unsigned width

ROWS_PER_CHUNK = 4_096


class Rows(Sequence[Row], Generic[Row]):
    """Looks like a list of named tuples of ints; a number costs the bytes that its column needs instead of about 40.

    One field, ``wide``, is itself a tuple of ints (one per tier) of the same length in every row. Rows are
    read back as they were appended. Two tables, or a table and a list, are equal when their rows are.
    """

    def __init__(self, row_type: type[Row], wide: str) -> None:
        self._row_type = row_type
        self._fields: tuple[str, ...] = row_type._fields
        self._wide = self._fields.index(wide)
        self._chunks: list[list[Integers]] = []  # each has one array a column, of ROWS_PER_CHUNK rows
        self._tail: list[tuple[Any, ...]] = []

    def append(self, row: tuple[Any, ...]) -> None:
        """Add one row, or the plain tuple of its values; every ``ROWS_PER_CHUNK`` rows are packed.

        Raises:
            TypeError: a value that is not an integer (found when its chunk is packed or read).
        """
        self._tail.append(row)
        if len(self._tail) >= ROWS_PER_CHUNK:
            self._chunks.append(self._pack(self._tail))
            self._tail = []

    def extend(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for row in rows:
            self.append(row)

    def column(self, field: str) -> npt.NDArray[np.int64]:
        """All values of ``field``: shape (rows,), or (rows, tiers) for the wide field. A copy."""
        at, tiers = self._fields.index(field), self._num_wide()
        tail = self._integers([row[at] for row in self._tail], field)
        if at == self._wide:
            packed = [np.column_stack(chunk[at : at + tiers]).astype(np.int64) for chunk in self._chunks]
            return np.concatenate([*packed, tail.reshape(len(self._tail), tiers)])
        first = at if at < self._wide else at + tiers - 1
        return np.concatenate([*(chunk[first] for chunk in self._chunks), tail], dtype=np.int64)

    def _num_wide(self) -> int:
        if self._chunks:
            return len(self._chunks[0]) - len(self._fields) + 1
        return len(self._tail[0][self._wide]) if self._tail else 0

    def _pack(self, rows: list[tuple[Any, ...]]) -> list[Integers]:
        """One array a column, the wide field as one column a tier; each in as few bytes as its values need."""
        packed: list[Integers] = []
        columns: Iterable[Integers]
        for i, values in enumerate(zip(*rows, strict=True)):
            if i == self._wide:
                flat = self._integers([*chain.from_iterable(values)], self._fields[i])
                columns = flat.reshape(len(rows), len(values[0])).T
            else:
                columns = (self._integers(values, self._fields[i]),)
            for one in columns:
                packed.append(one.astype(np.result_type(*map(np.min_scalar_type, (one.min(), one.max())))))
        return packed

    def _integers(self, values: Sequence[Any], field: str) -> npt.NDArray[np.int64]:
        try:
            return np.frombuffer(array("q", values), dtype=np.int64)  # twice as fast as numpy.array
        except (TypeError, ValueError, OverflowError):
            pass  # tuples, numpy's booleans, none at all, or what does not belong here
        found = np.array(values)
        if found.size and found.dtype.kind not in "iub":  # a cast would cut fractions off without a word
            raise TypeError(f"{self._row_type.__name__}.{field}: {found.dtype} found where integers belong")
        return found.astype(np.int64)

    def _unpack(self, chunk: list[Integers]) -> Iterator[Row]:
        at, tiers = self._wide, self._num_wide()
        for values in zip(*(column.tolist() for column in chunk), strict=True):
            yield self._row_type._make((*values[:at], tuple(values[at : at + tiers]), *values[at + tiers :]))

    def __len__(self) -> int:
        return len(self._chunks) * ROWS_PER_CHUNK + len(self._tail)

    def __iter__(self) -> Iterator[Row]:
        for chunk in self._chunks:
            yield from self._unpack(chunk)
        yield from map(self._row_type._make, self._tail)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        at, offset = divmod(i, ROWS_PER_CHUNK)
        if at == len(self._chunks):
            return self._row_type._make(self._tail[offset])
        return next(self._unpack([column[offset : offset + 1] for column in self._chunks[at]]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        rows: list[Any] = self[:3]
        return f"Rows({len(self)} of {self._row_type.__name__}: {rows}{'...' if len(self) > 3 else ''})"
