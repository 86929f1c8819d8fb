"""Validates a folder of measured runs: what ``kvsim validate`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvsim.validate.compare import Result, compare
from kvsim.validate.folder import chosen, read_run
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.replay import Assumptions, Replayed, replay
from kvsim.validate.teacher import teacher_forced

SLOWER = 1.01
"""The elasticity is the effect of steps this much longer."""

Progress = Callable[[int, int], None]


def validate(
    folder: Path,
    assumptions: Assumptions,
    wanted: Sequence[str] = (),
    with_teacher: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[Result, MeasuredRun, Replayed]]:
    """Compare the chosen runs of ``folder`` one after another; the result is what ``--json`` prints.

    Raises:
        KvsimError: a file of the folder or a profile cannot be used.
    """
    names = chosen(folder, wanted)
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names))
        run = read_run(folder, name)
        predicted = replay(run, assumptions)
        result = compare(run, predicted, replay(run, assumptions, SLOWER))
        if with_teacher:
            result["teacher_forced"] = teacher_forced(run, assumptions)
        yield result, run, predicted
