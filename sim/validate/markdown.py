"""The error tables of the documentation: ``python -m kvsim.validate.markdown RUNS_DIR ...`` prints them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvsim.validate.compare import Result
from kvsim.validate.replay import Assumptions
from kvsim.validate.run import validate
from kvsim.validate.table import ERROR_COLUMNS, STEP_COLUMNS, error_row, mark, step_row


def tables(results: Sequence[Result]) -> str:
    """Errors of every run, and of its step times."""
    forced = [result for result in results if result.get("teacher_forced")]
    steps = ([mark(result), *step_row(result)] for result in forced)
    errors = _table(("run", *ERROR_COLUMNS), ([mark(result), *error_row(result)] for result in results))
    return errors + "\n" + _table(("run", *STEP_COLUMNS), steps)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    found = [
        result
        for folder in sys.argv[1:]
        for result, _, _ in validate(Path(folder), Assumptions(), with_teacher=True)
    ]
    sys.stdout.write(tables(found))
