"""The registry of readers and the choice of one by the fields of a file's first record."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvsim.errors import TraceError
from kvsim.workloads.files import file_source, first_fields
from kvsim.workloads.registry import Registry
from kvsim.workloads.trace import Trace

readers: Registry[Callable[..., Trace]] = Registry("trace reader")
"""name -> ``reader(path, source, *, options) -> Trace``; ``source`` is provenance to put into the trace."""

_recognisers: dict[str, Callable[[frozenset[str]], bool]] = {}


def register(name: str, recognises: Callable[[frozenset[str]], bool]) -> Callable[[Any], Any]:
    """Decorator of a reader; ``recognises(fields of the first record)`` is true of its own files only."""

    def add(function: Callable[..., Trace]) -> Callable[..., Trace]:
        readers.register(name)(function)
        _recognisers[name] = recognises
        return function

    return add


def read(
    path: str | Path, reader: str | None = None, *, draws_seed: int | None = None, **options: Any
) -> Trace:
    """Read a trace file; without ``reader`` its format is told by the fields of the first record.

    ``draws_seed``: for a reader that draws starts or think times and is given no ``seed`` of its own.

    Raises:
        TraceError: no such file, unknown format, reader or option, or a line that cannot be used.
    """
    path = Path(path)
    fields = first_fields(path)
    if reader is None:
        fitting = [name for name, recognises in _recognisers.items() if recognises(fields)]
        if len(fitting) != 1:
            raise TraceError(
                f"{path}:1: no reader knows the fields {', '.join(sorted(fields))}; "
                f"name one of the readers {', '.join(sorted(readers))}"
            )
        reader = fitting[0]
    if draws_seed is not None and "seed" in inspect.signature(readers[reader]).parameters:
        options.setdefault("seed", draws_seed)
    trace: Trace = readers.call(reader, (path, file_source(path, reader)), options)
    return trace
