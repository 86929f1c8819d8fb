"""Device times of an engine, from the step times of its microbenchmarks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import log2
from typing import Any, NamedTuple

import numpy as np

from kvsim.calibrate.engines.residual import Residual, residual
from kvsim.calibrate.engines.steady import steady
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.roofline import Roofline
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.clocks import Clocks, PowerLimit
from kvsim.engine.spec import EngineSpec
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.model.spec import DTYPE_BYTES
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.steps import Step, reconstruct
from kvsim.validate.teacher import compare_steps, predicted_s

DEVICE_BOUND = 1920  # tokens from which a step outlasts its launch
OUTLIER = 0.03  # relative error from which on its size counts, not its square
FULL_SHARE = 0.97  # of the token budget
STALL = 0.3  # a step that takes so much longer waited for the host
LEAST_KV_SHARE = 0.05
"""Below it, an error of a percent in a step's constant is one of a fifth in the rate at which its KV is read."""
LARGE = 3000, 8192  # tokens of steps at which the power limit's factor is fitted
SUSTAINED_S = 0.7
"""Back-to-back prefill before the clocks fall further; read off the step times, not fitted."""
CREDIT_S, RECOVERY_S = 0.005, 0.08
"""How much of the power limit's slowing a rested GPU is spared, and the pause that rests it, from a coarse grid: events on the
GPU say 6 to 8 ms and 55 to 80, the microbenchmarks prefer more, a little, and workloads 5 over 8 (docs/engine_fit.md)."""


def fit_device(
    runs: Sequence[MeasuredRun], engine: EngineSpec, notes: list[str], limit: PowerLimit | None = None
) -> tuple[dict[str, Any], list[Residual]]:
    """(terms, residuals) of the runs of one set-up; ``engine`` has the host times. What the runs do not tell is left out
    of the terms. ``limit``: the GPU's power limit, if other runs told it.

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
    prefill, errors = _prefill(
        Prompts(
            _of(steps, "inject", "irregular", "sustained"),
            _of(steps, "queue_"),
            _lone(runs, engine.max_num_batched_tokens),
        ),
        engine,
        known,
        cost,
        limit,
        notes,
    )
    residuals = [residual("decode step", decode_errors)]
    residuals += [residual(part, found) for part, found in errors.items()]
    device: dict[str, Any] = {
        "step": step_ns,
        "graphs": graphs,
        "kv_read_bytes_per_s": rate,
        "uneven": uneven,
        **prefill,
    }
    return device, residuals


def captured_sizes(max_num_seqs: int) -> list[int]:
    """Batches that vLLM captures a CUDA graph of a decode step for, by default (vllm/config/vllm.py, 0.24)."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, min(2 * max_num_seqs, 512) + 1, 16)]
    return [size for size in sizes if size <= max_num_seqs]


def _of(steps: Iterable[tuple[str, list[Step]]], *kinds: str) -> list[list[Step]]:
    return [run for name, run in steps if name.split(".", 1)[1].startswith(kinds)]


def _decode(
    runs: list[list[Step]], graph_sizes: Sequence[int]
) -> tuple[dict[int, float], float, list[float]]:
    """(constant by CUDA graph, ns; ns per KV token; relative errors). One slope for all graphs, relative errors."""
    points = [
        (_padded(stretch.sequences, graph_sizes), stretch.read, stretch.step_s)
        for run in runs
        for stretch in steady(run)
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
        for stretch in steady(run):
            sequences, base_ns = stretch.sequences, _constant_ns(bases, stretch.sequences)
            even_ns = slope_ns * stretch.read
            if sequences > 1 and even_ns >= LEAST_KV_SHARE * base_ns:
                ratios[2 ** round(log2(sequences))].append((stretch.step_s * 1e9 - base_ns) / even_ns)
    if not ratios:
        notes.append("not identifiable: uneven (no batch of uneven contexts); 1")
    for sequences, found in sorted(ratios.items()):
        notes.append(
            f"uneven contexts, about {sequences} sequences: KV is read at "
            + ", ".join(f"1/{ratio:.2f}" for ratio in found)
            + " of the even rate"
        )
    return [(size * kv_heads, float(np.median(found))) for size, found in sorted(ratios.items())]


class Prompts(NamedTuple):
    """What tells the device time of prefill, run by run."""

    beside_decodes: list[list[Step]]
    queued: list[list[Step]]  # full steps back to back
    lone: list[list[tuple[int, float]]]
    """(tokens, seconds) of prompts that met an idle engine and fit one step."""


def _prefill(
    prompts: Prompts,
    engine: EngineSpec,
    known: EngineTerms,
    cost: Any,
    limit: PowerLimit | None,
    notes: list[str],
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(terms, relative errors by kind of measurement): factor on the kernels of steps with prefill, the one on their
    decode attention on top, and how much longer steps of LARGE tokens take at the power limit, unless ``limit`` is known.
    Every run has the same weight."""
    from scipy.optimize import least_squares

    def errors(values: Sequence[float]) -> dict[str, list[list[float]]]:
        whole, mixed, *slower = values
        model = cost(replace(known, prefill_factor=whole, mixed_attention_factor=mixed))
        power = limit or _power_limit(slower)
        limited = replace(engine, power_limit=power)
        return {
            "window around a prompt": [
                [
                    window.predicted_s / window.measured_s - 1
                    for window in compare_steps(run, model, limited)
                    if window.kind != "decode" and window.largest >= DEVICE_BOUND
                ]
                for run in prompts.beside_decodes
            ],
            "lone prompt": [
                [
                    (_lone_ns(tokens, model, power) + engine.launch_ns) / 1e9 / seconds - 1
                    for tokens, seconds in run
                ]
                for run in prompts.lone
            ],
            "queued prefill step": [_queued(run, model, limited) for run in prompts.queued],
        }

    def weighted(values: Sequence[float]) -> list[float]:
        """Large errors count by their size, not its square."""
        return [
            float(np.sign(error) * np.sqrt(2 * (np.hypot(1, error / OUTLIER) - 1) / len(run)))
            for runs in errors(values).values()
            for run in runs
            for error in run
        ]

    unknown = () if limit else (*LARGE, SUSTAINED_S)
    found = least_squares(
        weighted,
        [1.0, 1.0, *[1.05 for _ in unknown]],
        bounds=([0.8, 0.5, *[1.0 for _ in unknown]], [1.5, 3.0, *[1.5 for _ in unknown]]),
        diff_step=0.01,
    )
    values = found.x.tolist()
    terms: dict[str, Any] = {"prefill_factor": values[0], "mixed_attention_factor": values[1]}
    if not limit:
        if not any(prompts.queued):
            notes.append("not identifiable: power_limit (no queue of full prefill steps); factors 1")
            values[2:] = [1.0 for _ in unknown]
        terms["power_limit"] = _power_limit(values[2:])
    return terms, {part: [error for run in runs for error in run] for part, runs in errors(values).items()}


def _power_limit(factors: Sequence[float]) -> PowerLimit:
    """The last factor is that of sustained prefill."""
    *of_large, sustained = factors
    return PowerLimit(
        tuple(zip(LARGE, of_large, strict=True)),
        round(CREDIT_S * 1e9),
        round(RECOVERY_S * 1e9),
        sustained,
        round(SUSTAINED_S * 1e9),
    )


def _lone_ns(tokens: int, model: KernelCostModel, power: PowerLimit) -> int:
    """Device time of a lone prompt on a rested GPU."""
    kernel = Kernel("prefill_attention", {"new": tokens, "past": 0})
    step_ns = int(model.price(StepWork(1, tokens, 1, (kernel,))).step_ns[0])
    return step_ns + Clocks(power).slowed_ns(tokens, 0, step_ns)


def _lone(runs: Sequence[MeasuredRun], most: int) -> list[list[tuple[int, float]]]:
    """Of each run (tokens, seconds from intake to first token on the engine's clock) of lone prompts too long for their launch
    to matter, in one step."""
    found = []
    for run in runs:
        if "solo" in run.name and run.requests.engine_s is not None:
            pairs = zip(run.requests.input_tokens.tolist(), run.requests.engine_s.tolist(), strict=True)
            found.append([(tokens, seconds) for tokens, seconds in pairs if DEVICE_BOUND <= tokens <= most])
    return found


def _queued(run: list[Step], model: KernelCostModel, engine: EngineSpec) -> list[float]:
    """Relative errors of the times between full steps that follow one another; no stalls of the host."""
    seen_s = predicted_s(run, model, engine)
    full = [
        i
        for i, step in enumerate(run)
        if step.prefills and step.decodes < 8 and step.tokens > FULL_SHARE * engine.max_num_batched_tokens
    ]
    errors = [
        (seen_s[i] - seen_s[i - 1]) / (run[i].seen_s - run[i - 1].seen_s) - 1
        for i in full[2:-1]
        if i - 1 in full
    ]
    return [error for error in errors if abs(error) < STALL]
