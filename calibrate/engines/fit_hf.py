"""Fit the host time of transformers' ``generate``: ``python -m kvsim.calibrate.engines.fit_hf GENERATE.csv``.

Prints the engine profile ``sim/engine/profiles/transformers-5.17.yaml`` (which ``--out`` writes), and to stderr how the
predicted times of every point compare. A step waits for its kernels or for the host that launches them, whichever takes longer:
the host's time is the median of the decode steps whose kernels take less than half of it. Prefill runs norms, rotary embedding,
activation and residual as kernels of their own, unfused: a factor on its kernels, the median where they take twice the host's
time or more. Nothing else is fitted.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvsim.cache.concatenated import copied, tensor_read
from kvsim.cache.parts.span import Span
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.work import Kernel, StepWork
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model

GPU = "h100-sxm"


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of sdpa with equal prompts: numbers but for the model."""
    with path.open(encoding="utf-8") as lines:
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        return [
            {key: value if key in ("model", "attention") else float(value) for key, value in row.items()}
            for row in rows
            if row["attention"] == "sdpa" and row["padded"] == "0"
        ]


def device_ms(rows: list[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    """(prompts, the step in the middle of the answers) of each row, by their kernels alone."""
    gpu = load_gpu(GPU)
    profile = load_profile(profile_for_gpu(gpu.name))
    costs = {
        name: KernelCostModel(profile, load_model(name), gpu, 1) for name in {row["model"] for row in rows}
    }
    for row in rows:
        batch, prompt = int(row["batch"]), int(row["prompt"])
        prefill = tuple(Kernel("prefill_attention", {"new": prompt, "past": 0}) for _ in range(batch))
        model = load_model(row["model"])
        tokens, held = batch * (prompt + 12), model.kv_bytes_per_token
        decode = copied(Span(1, tokens), held, model.num_layers), tensor_read(batch, tokens, held, 1)
        price = costs[row["model"]].price
        steps = StepWork(1, batch * prompt, batch, prefill), StepWork(1, batch, batch, decode)
        first, later = (int(price(work).step_ns[0]) / 1e6 for work in steps)
        yield first, later


def profile_text(host_ms: float, factor: float) -> str:
    return f"""# Fitted by: python -m kvsim.calibrate.engines.fit_hf calibrate/engines/transformers-5.17_h100-sxm/generate.csv
# (torch 2.11, sdpa without cuDNN). Static batches, a step at a time: the host's time is the least a step takes.
name: transformers-5.17
batching: static
async_scheduling: false
host: {{cpu: {host_ms * 1000:.0f} us, eager_cpu: {host_ms * 1000:.0f} us, graph_tokens: 0}}
device: {{prefill_factor: {factor:.3f}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = read(arguments.data)
    priced = list(device_ms(rows))
    bound = [row["step_ms"] for row, (_, step) in zip(rows, priced, strict=True) if step < row["step_ms"] / 2]
    host_ms = statistics.median(bound)
    quartiles = statistics.quantiles(bound, n=4)
    print(
        f"host: {len(bound)} of {len(rows)} steps, quartiles {quartiles[0]:.1f} to {quartiles[2]:.1f} ms",
        file=sys.stderr,
    )
    ratios = [
        row["prefill_ms"] / prefill
        for row, (prefill, _) in zip(rows, priced, strict=True)
        if prefill > 2 * host_ms
    ]
    factor = statistics.median(ratios)
    print(f"prefill: {len(ratios)} prompts, {min(ratios):.2f} to {max(ratios):.2f}", file=sys.stderr)
    for row, (prefill, step) in zip(rows, priced, strict=True):
        told = f"{row['model']:13} {row['batch']:3.0f} x {row['prompt']:5.0f}"
        for key, ms in (("prefill_ms", prefill * factor), ("step_ms", step)):
            predicted = max(ms, host_ms)
            told += (
                f"  {key} {row[key]:8.1f} kernels {ms:8.1f} error {100 * (predicted / row[key] - 1):+6.1f} %"
            )
        print(told, file=sys.stderr)
    text = profile_text(host_ms, factor)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
