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
        result["notes"] = _notes(run, with_teacher)
        yield result, run, predicted


def _notes(run: MeasuredRun, with_teacher: bool) -> list[str]:
    """What the files do not tell, and the replay therefore leaves out."""
    notes = []
    phase, _, workload = run.name.partition(".")
    cached = run.requests.cached_tokens.sum() / run.requests.input_tokens.sum()
    if cached and not run.trace.segment_tokens.size:
        notes.append(
            f"{run.name}: {cached:.0%} of its prompt tokens were cached when it was measured, and nothing is shared in the "
            f"replay: workloads/{workload}.jsonl.gz is missing, or says nothing of contents"
        )
    if run.served_at_once is None:
        notes.append(
            f"{run.name}: {phase}.meta.json does not say in 'workloads' what the engine had served before; replayed as if it "
            "had loaded all its kernels"
        )
    if with_teacher and run.iterations is None:
        notes.append(f"{run.name}: no {run.name}.iterations.csv.gz, so no steps to price")
    return notes
