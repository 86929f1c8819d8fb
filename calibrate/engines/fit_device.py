"""Device times of an engine, from the step times of its microbenchmarks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import log2
from typing import Any

import numpy as np

from kvsim.calibrate.engines.residual import Residual, residual
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.roofline import Roofline
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.spec import EngineSpec
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.model.spec import DTYPE_BYTES
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.steps import Step, reconstruct
from kvsim.validate.teacher import compare_steps

DEVICE_BOUND = 1920  # tokens from which a step outlasts its launch
SETTLED = 3  # steps of an unchanged batch before the first that counts
LEAST_KV_SHARE = 0.05
"""Below it, an error of a percent in a step's constant is one of a fifth in the rate at which its KV is read."""
ONE_WAVE = 132
"""(Sequence, KV head) pairs that the multiprocessors of an H100 or H200 take at once. Up to there the longest context sets
the pace of decode attention, and a prefix that others read, too, saves what depends on the other contexts: less than
``shared_uneven`` says in the recorded steps of workloads (docs/validation.md)."""
SUSTAINED_S = 0.7
"""Back-to-back prefill before the clocks fall; read off the step times, not fitted."""


def fit_device(
    runs: Sequence[MeasuredRun], engine: EngineSpec, notes: list[str]
) -> tuple[dict[str, Any], list[Residual]]:
    """(terms, residuals) of the runs of one set-up; ``engine`` has the host times. What the runs do not tell is left out
    of the terms.

    Raises:
        CalibrationError: too few steady decode batches.
    """
    setup = runs[0].setup
    model, gpu = setup.model, load_gpu(setup.gpu)
    profile = load_profile(profile_for_gpu(gpu.name))

    def cost(terms: EngineTerms) -> KernelCostModel:
        return KernelCostModel(profile, model, gpu, setup.meta.engine.tensor_parallel_size, terms)

    weights = model.linear_parameters + model.vocab_size * model.hidden_size
    width = DTYPE_BYTES[model.weight_dtype]
    roofline = Roofline(gpu.hbm_bytes_per_s, gpu.flops_per_s)
    steps = [(run.name, reconstruct(run)) for run in runs]
    bases, slope_ns, decode_errors = _decode(
        _of(steps, "decode_", "inject_b"), captured_sizes(setup.meta.max_num_seqs)
    )
    graphs = [
        (size, base_ns / roofline.time_ns(2.0 * weights * size, weights * width))
        for size, base_ns in sorted(bases.items())
    ]
    rate = model.kv_bytes_per_token / slope_ns * 1e9
    fewest = min(bases)
    table_ns = float(cost(EngineTerms()).price(StepWork(1, fewest, fewest, ())).step_ns[0])
    step_ns = max(0.0, bases[fewest] - table_ns)  # long prompts do not tell it apart from their tokens
    uneven = _uneven(_of(steps, "uneven"), bases, slope_ns, model.num_kv_heads, notes)
    known = EngineTerms(
        step_ns=step_ns, graph_factors=tuple(graphs), kv_read_bytes_per_s=rate, uneven_factors=tuple(uneven)
    )
    shared = _shared(
        [run for run in runs if run.name.split(".", 1)[1].startswith("shared_uneven")],
        bases,
        slope_ns,
        known,
        notes,
    )
    prefill, errors = _prefill(
        _of(steps, "inject"), _lone(runs, engine.max_num_batched_tokens), engine, known, cost
    )
    residuals = [residual("decode step", decode_errors), residual("window around a prompt", errors)]
    sustained, errors = _sustained(_of(steps, "queue_"), notes)
    residuals.append(residual("sustained prefill step", errors))
    device: dict[str, Any] = {
        "step": step_ns,
        "graphs": graphs,
        "kv_read_bytes_per_s": rate,
        "uneven": uneven,
        "shared": shared,
        **prefill,
        "sustained_factor": sustained,
    }
    return device, residuals


def captured_sizes(max_num_seqs: int) -> list[int]:
    """Batches that vLLM captures a CUDA graph of a decode step for, by default (vllm/config/vllm.py, 0.24)."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, min(2 * max_num_seqs, 512) + 1, 16)]
    return [size for size in sizes if size <= max_num_seqs]


def _of(steps: Iterable[tuple[str, list[Step]]], *kinds: str) -> list[list[Step]]:
    return [run for name, run in steps if name.split(".", 1)[1].startswith(kinds)]


def _steady(run: list[Step]) -> Iterable[tuple[int, float, float]]:
    """(sequences, KV tokens read, seconds) of stretches in which nothing but one batch decodes, by their medians."""
    begin = 0
    for i in range(1, len(run) + 1):
        plain = i < len(run) and not run[i].prefills and not run[i - 1].ends_busy
        if plain and run[i].decodes == run[begin].decodes:
            continue
        inside = run[begin + SETTLED : i]
        if (
            len(inside) > 12
            and not any(step.prefills for step in inside)
            and all(step.is_sure for step in inside)
        ):
            gaps = np.diff([step.seen_s for step in inside])
            yield (
                inside[0].decodes,
                float(np.mean([step.sum_context for step in inside[1:]])),
                float(np.median(gaps)),
            )
        begin = i


def _decode(
    runs: list[list[Step]], graph_sizes: Sequence[int]
) -> tuple[dict[int, float], float, list[float]]:
    """(constant by CUDA graph, ns; ns per KV token; relative errors). One slope for all graphs, relative errors."""
    points = [
        (_padded(sequences, graph_sizes), read, seconds)
        for run in runs
        for sequences, read, seconds in _steady(run)
    ]
    counts = Counter(size for size, _, _ in points)
    if sum(count > 1 for count in counts.values()) < 2:
        raise CalibrationError(
            "too few steady decode batches to fit: at least two batch sizes over two contexts"
        )
    sizes = sorted(counts)
    matrix = np.zeros((len(points), len(sizes) + 1))
    times = np.array([seconds * 1e9 for _, _, seconds in points])
    for row, (size, read, _) in enumerate(points):
        matrix[row, sizes.index(size)] = 1
        matrix[row, -1] = read
    weights = 1 / times
    found, *_ = np.linalg.lstsq(matrix * weights[:, None], times * weights, rcond=None)
    errors = (matrix @ found / times - 1).tolist()
    return dict(zip(sizes, found[:-1].tolist(), strict=True)), float(found[-1]), errors


def _padded(sequences: int, graph_sizes: Sequence[int]) -> int:
    """The CUDA graph that a decode batch runs in."""
    return next((size for size in graph_sizes if size >= sequences), sequences)


def _constant_ns(bases: dict[int, float], sequences: int) -> float:
    """A decode step's constant, straight between the graphs that were measured."""
    graphs = sorted(bases)
    return float(np.interp(_padded(sequences, graphs), graphs, [bases[size] for size in graphs]))


def _uneven(
    runs: list[list[Step]], bases: dict[int, float], slope_ns: float, kv_heads: int, notes: list[str]
) -> list[tuple[int, float]]:
    """((sequence, KV head) pairs, how much slower KV is read where contexts differ): medians over the batches nearest
    to each power of two whose KV takes :data:`LEAST_KV_SHARE` of the rest of the step or more. The number of pairs decides
    how the attention kernel spreads its work over the GPU."""
    ratios = defaultdict(list)
    for run in runs:
        for sequences, read, seconds in _steady(run):
            base_ns = _constant_ns(bases, sequences)
            if sequences > 1 and slope_ns * read >= LEAST_KV_SHARE * base_ns:
                ratios[2 ** round(log2(sequences))].append((seconds * 1e9 - base_ns) / (slope_ns * read))
    if not ratios:
        notes.append("not identifiable: uneven (no batch of uneven contexts); 1")
    for sequences, found in sorted(ratios.items()):
        notes.append(
            f"uneven contexts, about {sequences} sequences: KV is read at "
            + ", ".join(f"1/{ratio:.2f}" for ratio in found)
            + " of the even rate"
        )
    return [(size * kv_heads, float(np.median(found))) for size, found in sorted(ratios.items())]


def _shared(
    runs: Sequence[MeasuredRun],
    bases: dict[int, float],
    slope_ns: float,
    terms: EngineTerms,
    notes: list[str],
) -> list[tuple[int, float]]:
    """((sequence, KV head) pairs, price of KV that another sequence of the batch reads, too, in reads of its own), from
    batches whose contexts differ behind one prefix; 1 up to ONE_WAVE."""
    found = defaultdict(list)
    for run in runs:
        kv_heads, shared = run.setup.model.num_kv_heads, _common_prefix(run)
        for sequences, read, seconds in _steady(reconstruct(run)):
            if sequences > 1 and shared:
                base_ns = _constant_ns(bases, sequences)
                token_ns = slope_ns * terms.uneven_factor(sequences, kv_heads)
                again = (sequences - 1) * shared
                price = 1 - (read - (seconds * 1e9 - base_ns) / token_ns) / again
                found[2 ** round(log2(sequences)) * kv_heads].append(price)
    if not found:
        notes.append("not identifiable: shared (no batch of unequal contexts behind one prefix); 1")
    for pairs, prices in sorted(found.items()):
        notes.append(
            f"KV read again by another sequence, about {pairs} (sequence, KV head) pairs: costs "
            + ", ".join(f"{price:.2f}" for price in prices)
            + " of a read"
        )
    return [
        (pairs, 1.0 if pairs <= ONE_WAVE else min(1.0, max(0.0, float(np.median(prices)))))
        for pairs, prices in sorted(found.items())
    ]


def _common_prefix(run: MeasuredRun) -> int:
    """Tokens of the segment that all prompts of a run begin with; 0 = they do not."""
    trace = run.trace
    first = trace.segment_offsets[:-1]
    ids, tokens = trace.segment_id[first], trace.segment_tokens[first]
    return int(tokens[0]) if (ids == ids[0]).all() else 0


def _prefill(
    runs: list[list[Step]],
    lone: Sequence[tuple[int, float]],
    engine: EngineSpec,
    known: EngineTerms,
    cost: Any,
) -> tuple[dict[str, float], list[float]]:
    """Factor on the kernels of steps with prefill, and the one on their decode attention on top.

    ``lone``: (tokens, seconds) of prompts that met an idle engine and fit one step.
    """
    from scipy.optimize import least_squares

    def errors(values: Sequence[float]) -> list[float]:
        terms = replace(
            known,
            prefill_factor=values[0],
            mixed_attention_factor=values[1],
        )
        model = cost(terms)
        found = [
            window.predicted_s / window.measured_s - 1
            for run in runs
            for window in compare_steps(run, model, engine)
            if window.kind != "decode" and window.largest >= DEVICE_BOUND
        ]
        for tokens, seconds in lone:
            kernel = Kernel("prefill_attention", {"new": tokens, "past": 0})
            step_ns = model.price(StepWork(1, tokens, 1, (kernel,))).step_ns[0]
            found.append((int(step_ns) + engine.launch_ns) / 1e9 / seconds - 1)
        return found

    found = least_squares(
        errors, [1.05, 1.1], bounds=([0.8, 0.5], [1.5, 3]), loss="soft_l1", f_scale=0.03, diff_step=0.01
    )
    whole, mixed = found.x.tolist()
    return {"prefill_factor": whole, "mixed_attention_factor": mixed}, errors(found.x.tolist())


def _lone(runs: Sequence[MeasuredRun], most: int) -> list[tuple[int, float]]:
    """(tokens, seconds from intake to first token on the engine's clock) of lone prompts too long for their launch
    to matter, in one step."""
    found: list[tuple[int, float]] = []
    for run in runs:
        if "solo" in run.name and run.requests.engine_s is not None:
            pairs = zip(run.requests.input_tokens.tolist(), run.requests.engine_s.tolist(), strict=True)
            found += [(tokens, seconds) for tokens, seconds in pairs if DEVICE_BOUND <= tokens <= most]
    return found


def _sustained(runs: list[list[Step]], notes: list[str]) -> tuple[float, list[float]]:
    """Full-budget steps after SUSTAINED_S of them against those before."""
    ratios = []
    errors: list[float] = []
    for run in runs:
        full = [step for step in run if step.prefills and step.decodes < 8]
        if len(full) < 12:
            continue
        gaps = np.diff([step.seen_s for step in full])[1:-1]
        at = np.cumsum(gaps)
        early, late = gaps[at < SUSTAINED_S], gaps[at > 2 * SUSTAINED_S]
        if len(early) >= 2 and len(late) >= 5:
            ratios.append(float(np.median(late) / np.median(early)))
            errors += (np.median(late) / late - 1).tolist()
    if not ratios:
        notes.append("not identifiable: sustained_factor (no queue of full prefill steps); 1")
        return 1.0, []
    return float(np.mean(ratios)), errors
