"""Where a command writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all) now and then."""
EVERY_S = 10.0


def print_json(value: Any) -> None:
    """``value`` as the one JSON document of this command."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def note(line: str) -> None:
    """One line for the person at the terminal."""
    sys.stderr.write(line + "\n")


@contextmanager
def progress_bar(text: str) -> Iterator[Progress | None]:
    """A bar on stderr, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def points_progress(name: str) -> Iterator[Progress]:
    """A bar in a terminal; elsewhere a line every ten seconds with the time left, at the pace of this start."""
    from kvsim.results.units import duration

    with progress_bar(name) as bar:
        began = told = time.monotonic()
        kept = -1

        def progress(done: int, total: int) -> None:
            nonlocal told, kept
            now = time.monotonic()
            kept = done if kept < 0 else kept
            if bar is not None:
                bar(done, total)
            elif kept < done < total and now - told >= EVERY_S:
                told = now
                left_s = (now - began) / (done - kept) * (total - done)
                note(f"{done} of {total} points, about {duration(left_s)} left")

        yield progress
