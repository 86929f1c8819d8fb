"""Draws ``off_grid.csv.gz`` from measured runs: python -m kvsim.calibrate.draw_off_grid RUNS_DIR...

Only steps that could be reconstructed, as many from each run on a real trace; a step's largest chunk stands for its
prefill.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

from kvsim.calibrate.off_grid import STEPS
from kvsim.validate.folder import read_run, run_names
from kvsim.validate.steps import reconstruct

COUNT, SEED = 400, 20261122
TRACES = ("azure", "taubench", "ragpulse", "miniswe")


def main(folders: list[Path]) -> None:
    """Draw COUNT steps, half of them with prefill, and write the file."""
    random = np.random.default_rng(SEED)
    drawn = []
    named = [(folder, name) for folder in folders for name in run_names(folder)]
    runs = [read_run(folder, name) for folder, name in named if any(trace in name for trace in TRACES)]
    runs = [run for run in runs if run.iterations is not None]
    for run in runs:
        steps = [step for step in reconstruct(run) if step.is_sure and step.tokens]
        for kind in (
            [step for step in steps if step.prefills],
            [step for step in steps if not step.prefills],
        ):
            share = min(len(kind), -(-COUNT // (2 * len(runs))))
            for i in random.choice(len(kind), share, replace=False):
                new, past = max(kind[i].prefills, default=(0, 0))
                drawn.append((run.name, kind[i].tokens, new, past, kind[i].decodes, kind[i].sum_context))
    with gzip.GzipFile(STEPS, "wb", mtime=0) as packed:
        text = "run,tokens,new,past,decodes,sum_context\n"
        text += "".join(
            ",".join(str(value) for value in drawn[i]) + "\n" for i in random.permutation(len(drawn))
        )
        packed.write(text.encode())


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
