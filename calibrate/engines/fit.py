"""An engine profile from microbenchmarks of the running engine.

In this order, each with what came before held fixed:

1. decode: steady batches over sequences x context. Step time = constant of the batch + KV tokens read x slope.
2. front end: what the client waits longer than the engine works, from lone prompts.
3. host: prompts put into running decodes. How late the step before is read tells how long a launch holds the
   engine's thread, with piecewise graphs and without; how soon after it the step itself is read, the tail.
4. prefill and mixed attention: a step's constant is what the smallest decode batch takes beyond its kernels; the rest by
   least squares over windows around the longer of these prompts and over lone ones, whose time is the device's.
5. sustained prefill: full steps back to back, the late ones against the first.
6. copies: loads from and stores to host memory, by the device times that the engine's connector reports. Independent of
   the others, and for all KV types together: a piece of one block and layer has another size in each.

Only microbenchmarks are read: a fit that saw a workload could not be checked on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.roofline import Roofline
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.spec import Copies, EngineSpec
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu, load_link
from kvsim.model.spec import DTYPE_BYTES
from kvsim.validate.folder import read_run, run_names
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.steps import Step, reconstruct
from kvsim.validate.teacher import compare_steps

SHORTEST, LONGEST = 48, 1200  # tokens of a prompt whose step is bound by its launch
CHUNK_S = 0.1  # longer: the prompt had more chunks than the tables tell
LAUNCH_BOUND = 800  # tokens up to which the device is through with a step long before its eager launch
DEVICE_BOUND = 1920  # tokens from which a step outlasts its launch
SETTLED = 3  # steps of an unchanged batch before the first that counts
SUSTAINED_S = 0.7
"""Back-to-back prefill before the clocks fall; read off the step times, not fitted."""


@dataclass(slots=True)
class Fit:
    """What a fit found: the profile's values, how far its model is from the runs, what the runs cannot tell."""

    host: dict[str, float]  # ns
    device: dict[str, Any]
    residuals: list[tuple[str, int, float, float]]  # (part, points, median |error|, bias)
    notes: list[str]
    copies: Copies | None = None


def read_microbenchmarks(folder: Path, wanted: Sequence[str] = ()) -> list[MeasuredRun]:
    """All microbenchmarks of a folder that recorded iterations, or those that are ``wanted``.

    Raises:
        CalibrationError: a wanted run is a workload, or there is nothing to fit on.
    """
    runs = []
    for name in wanted or run_names(folder):
        run = read_run(folder, name)
        if not run.is_microbenchmark:
            if wanted:
                raise CalibrationError(
                    f"{folder / name}: a workload; engines are fitted on microbenchmarks only"
                )
            continue
        if run.iterations is not None and "warm_up" not in name:
            runs.append(run)
    if not runs:
        raise CalibrationError(
            f"{folder}: no microbenchmark (solo*, decode_*, inject*, uneven*, queue_*) with iterations"
        )
    return runs


def fit_engine(folders: Sequence[Sequence[MeasuredRun]], base: EngineSpec) -> Fit:
    """Fit on one set-up; ``base`` has what microbenchmarks cannot tell (graph sizes, poll of loads).

    Device times are fitted on all folders together. Host times differ from machine to machine, so each folder
    gives a median of its own and the profile has their mean.

    Raises:
        CalibrationError: the runs do not tell what a profile needs.
    """
    notes: list[str] = []
    copies, copy_residuals = fit_copies([run for folder in folders for run in folder], notes)
    folders = _one_setup(folders, notes)
    runs = [run for folder in folders for run in folder]
    setup = runs[0].setup
    gpu = load_gpu(setup.gpu)
    profile = load_profile(profile_for_gpu(gpu.name))

    def cost(terms: EngineTerms) -> KernelCostModel:
        return KernelCostModel(profile, setup.model, gpu, setup.meta.engine.tensor_parallel_size, terms)

    weights = setup.model.linear_parameters + setup.model.vocab_size * setup.model.hidden_size
    width = DTYPE_BYTES[setup.model.weight_dtype]
    roofline = Roofline(gpu.hbm_bytes_per_s, gpu.flops_per_s)
    steps = [(run.name, reconstruct(run)) for run in runs]
    residuals: list[tuple[str, int, float, float]] = []

    bases, slope_ns, decode_errors = _decode(_of(steps, "decode_", "inject"))
    residuals.append(_row("decode step", decode_errors))
    graphs = [
        (size, base_ns / roofline.time_ns(2.0 * weights * size, weights * width))
        for size, base_ns in sorted(bases.items())
    ]
    rate = setup.model.kv_bytes_per_token / slope_ns * 1e9
    front_ns = _front_end(runs, notes)
    host = _host(folders, base, front_ns, notes)
    engine = replace(
        base,
        cpu_sequence_ns=round(host["cpu_sequence"]),
        piecewise_cpu_ns=round(host["piecewise_cpu"]),
        eager_cpu_ns=round(host["eager_cpu"]),
        tail_ns=round(host["tail"]),
    )
    fewest = min(bases)
    table_ns = float(cost(EngineTerms()).price(StepWork(1, fewest, fewest, ())).step_ns[0])
    step_ns = max(0.0, bases[fewest] - table_ns)  # long prompts do not tell it apart from their tokens
    uneven = _uneven(_of(steps, "uneven"), bases, slope_ns, notes)
    known = EngineTerms(
        step_ns=step_ns, graph_factors=tuple(graphs), kv_read_bytes_per_s=rate, uneven_factor=uneven
    )
    prefill, errors = _prefill(
        _of(steps, "inject"), _lone(runs, base.max_num_batched_tokens), engine, known, cost
    )
    residuals.append(_row("window around a prompt", errors))
    sustained, errors = _sustained(_of(steps, "queue_"), notes)
    residuals.append(_row("sustained prefill step", errors))
    host["front_in"] = host["front_out"] = front_ns / 2
    notes.append(
        "not identifiable: how the front end's latency divides into in and out (halved), and launch, which a busy "
        "device hides (kept)"
    )
    device = {
        "kv_read_bytes_per_s": rate,
        "uneven_factor": uneven,
        "graphs": graphs,
        "step": step_ns,
        **prefill,
        "sustained_factor": sustained,
    }
    return Fit(host, device, residuals + copy_residuals, notes, copies or base.copies)


def _one_setup(folders: Sequence[Sequence[MeasuredRun]], notes: list[str]) -> list[list[MeasuredRun]]:
    """The runs of the set-up that has most of them."""
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for folder in folders:
        for run in folder:
            counts[run.setup.model.name, run.setup.model.kv_dtype, run.setup.gpu] += 1
    most = max(counts, key=counts.__getitem__)
    for setup, count in counts.items():
        if setup != most:
            notes.append(f"left out: {count} runs of another set-up ({', '.join(setup)})")
    kept = [
        [run for run in folder if (run.setup.model.name, run.setup.model.kv_dtype, run.setup.gpu) == most]
        for folder in folders
    ]
    return [folder for folder in kept if folder]


def _of(steps: Iterable[tuple[str, list[Step]]], *kinds: str) -> list[list[Step]]:
    return [run for name, run in steps if name.split(".", 1)[1].startswith(kinds)]


def _row(part: str, errors: Iterable[float]) -> tuple[str, int, float, float]:
    values = np.array(list(errors))
    if not len(values):
        return part, 0, float("nan"), float("nan")
    return part, len(values), float(np.median(np.abs(values))), float(np.mean(values))


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


def _decode(runs: list[list[Step]]) -> tuple[dict[int, float], float, list[float]]:
    """(constant by batch, ns; ns per KV token; relative errors). One slope for all batches, relative errors."""
    points = [point for run in runs for point in _steady(run)]
    counts: dict[int, int] = defaultdict(int)
    for sequences, _, _ in points:
        counts[sequences] += 1
    points = [point for point in points if counts[point[0]] >= 2]
    sizes = sorted({sequences for sequences, _, _ in points})
    if len(sizes) < 2:
        raise CalibrationError(
            "too few steady decode batches to fit: at least two batch sizes over two contexts"
        )
    matrix = np.zeros((len(points), len(sizes) + 1))
    times = np.array([seconds * 1e9 for _, _, seconds in points])
    for row, (sequences, read, _) in enumerate(points):
        matrix[row, sizes.index(sequences)] = 1
        matrix[row, -1] = read
    weights = 1 / times
    found, *_ = np.linalg.lstsq(matrix * weights[:, None], times * weights, rcond=None)
    errors = (matrix @ found / times - 1).tolist()
    return dict(zip(sizes, found[:-1].tolist(), strict=True)), float(found[-1]), errors


def _uneven(runs: list[list[Step]], bases: dict[int, float], slope_ns: float, notes: list[str]) -> float:
    """How much slower KV is read where contexts differ: median over batches of two sequences and more."""
    sizes = sorted(bases)
    ratios = [
        (seconds * 1e9 - float(np.interp(sequences, sizes, [bases[size] for size in sizes])))
        / (slope_ns * read)
        for run in runs
        for sequences, read, seconds in _steady(run)
        if sequences > 1
    ]
    if not ratios:
        notes.append("not identifiable: uneven_factor (no batch of uneven contexts); 1")
        return 1.0
    notes.append(
        "uneven contexts: KV is read at "
        + ", ".join(f"1/{ratio:.2f}" for ratio in ratios)
        + " of the even rate"
    )
    return float(np.median(ratios))


def _front_end(runs: Sequence[MeasuredRun], notes: list[str]) -> float:
    """Client latency less the engine's own, nanoseconds, from lone prompts."""
    found: list[float] = []
    for run in runs:
        own = run.requests.engine_s
        if "solo" in run.name and own is not None:
            found += (run.requests.ttft_s - own).tolist()
    if not found:
        raise CalibrationError(
            "no lone prompts (solo*) with engine_queue_s and engine_prefill_s: no front-end latency"
        )
    low, high = np.percentile(found, [10, 90]) * 1e3
    notes.append(f"front end: {len(found)} prompts, 10 % to 90 %: {low:.1f} to {high:.1f} ms")
    return float(np.median(found)) * 1e9


def _host(
    folders: Sequence[Sequence[MeasuredRun]], base: EngineSpec, front_ns: float, notes: list[str]
) -> dict[str, float]:
    """How long launches hold the thread, ns: the mean over the folders of their medians."""
    tails = [tail for runs in folders for tail in _delays(runs, base)["tail"]]
    sequence_s, tail_s = _per_sequence(tails, base, notes)
    tail_ns = tail_s * 1e9
    found = {"tail": tail_ns, "cpu_sequence": sequence_s * 1e9}
    for key in ("piecewise_cpu", "eager_cpu"):
        medians = []
        for number, runs in enumerate(folders, 1):
            holds = [hold - sequence_s * sequences for sequences, hold in _delays(runs, base)[key]]
            how = "launches"
            if len(holds) < 3:
                holds, how = _from_lone_prompts(runs, key, base, (front_ns + tail_ns) / 1e9), "lone prompts"
            if len(holds) < 2:
                continue
            medians.append(float(np.median(holds)) * 1e9)
            low, high = np.percentile(holds, [10, 90]) * 1e3
            notes.append(
                f"{key}, folder {number}: {len(holds)} {how}, median {medians[-1] / 1e6:.1f} ms, "
                f"10 % to 90 %: {low:.1f} to {high:.1f} ms"
            )
        if not medians:
            notes.append(f"not identifiable: {key} (no prompt that its launch delays); kept")
        found[key] = float(np.mean(medians)) if medians else float(getattr(base, f"{key}_ns"))
    return found


def _per_sequence(
    tails: Sequence[tuple[int, float]], base: EngineSpec, notes: list[str]
) -> tuple[float, float]:
    """(seconds of the thread for each sequence of a step, tail of a step of none): the median of the slopes between
    steps of different batches, and of what it leaves."""
    pairs = [
        (other - tail) / (more - sequences)
        for sequences, tail in tails
        for more, other in tails
        if more >= 2 * sequences
    ]
    if len(tails) < 3:
        notes.append("not identifiable: tail (no step that its launch delays); kept")
        return base.cpu_sequence_ns / 1e9, base.tail_ns / 1e9
    if not pairs:
        notes.append("not identifiable: cpu_sequence (all batches of about one size); kept")
    sequence_s = max(0.0, float(np.median(pairs))) if pairs else base.cpu_sequence_ns / 1e9
    return sequence_s, float(np.median([tail - sequence_s * sequences for sequences, tail in tails]))


def _delays(runs: Sequence[MeasuredRun], base: EngineSpec) -> dict[str, list[tuple[int, float]]]:
    """(sequences, seconds) of prompts put into a quiet batch: the step before is read when the launch is through, the own
    step a tail later."""
    found: dict[str, list[tuple[int, float]]] = {"piecewise_cpu": [], "eager_cpu": [], "tail": []}
    for run in runs:
        if not run.name.split(".", 1)[1].startswith("inject"):
            continue
        steps = reconstruct(run)
        for i in range(4, len(steps)):
            step, quiet = steps[i], steps[i - 4 : i]
            if (
                len(step.prefills) != 1
                or not SHORTEST <= step.prefills[0][0] <= LONGEST
                or any(other.prefills or other.ends_busy or other.decodes != step.decodes for other in quiet)
            ):
                continue
            hold, usual = (quiet[-1].seen_s - quiet[-2].seen_s), (quiet[-2].seen_s - quiet[-3].seen_s)
            own = step.seen_s - quiet[-1].seen_s
            if hold > 1.25 * usual and own < CHUNK_S:
                key, sequences = (
                    "piecewise_cpu" if step.tokens <= base.graph_tokens else "eager_cpu",
                    step.decodes + 1,
                )
                found[key].append((sequences, hold))
                if base.graph_tokens < step.tokens <= LAUNCH_BOUND and own < 0.75 * usual:
                    found["tail"].append((sequences, own))
    return found


def _from_lone_prompts(runs: Sequence[MeasuredRun], key: str, base: EngineSpec, rest_s: float) -> list[float]:
    """The hold of a prompt that meets an idle engine: its latency less front end and tail. The first is a warm-up."""
    found = []
    for run in runs:
        if "solo" not in run.name:
            continue
        tokens, ttft_s = run.requests.input_tokens[1:], run.requests.ttft_s[1:]
        small = tokens <= base.graph_tokens
        wanted = small if key == "piecewise_cpu" else ~small & (tokens <= LONGEST)
        found += (ttft_s[wanted] - rest_s).tolist()
    return found


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


def fit_copies(
    runs: Sequence[MeasuredRun], notes: list[str]
) -> tuple[Copies | None, list[tuple[str, int, float, float]]]:
    """What a transfer and each of its pieces take beside their bytes at the link's rate; None without transfers.

    A row of a table holds the transfers that ended between two outputs; pieces are one block of one layer. Relative
    least squares, no negative times. Without pieces of two sizes (KV in two types) a piece's cost is told apart from its
    bytes by the link's rate alone.
    """
    from scipy.optimize import nnls

    moved = [run for run in runs if run.transfers is not None]
    if not moved:
        return None, []
    link = load_link(load_gpu(moved[0].setup.gpu).host_link)
    rates = {"load": link.read_bytes_per_s, "store": link.write_bytes_per_s}
    found: dict[str, int] = {}
    residuals = []
    for kind, rate in rates.items():
        points: list[tuple[float, float, float, float]] = []  # transfers, pieces, ns of their bytes, ns
        sizes = set()
        for run in moved:
            meta, model = run.setup.meta, run.setup.model
            piece = meta.block_size * model.kv_bytes_per_token // model.num_layers
            columns = (f"{kind}s", f"{kind}_bytes", f"{kind}_s")
            for count, num_bytes, seconds in zip(
                *(getattr(run.transfers, key) for key in columns), strict=True
            ):
                if num_bytes > 0 and seconds > 0:
                    sizes.add(piece)
                    points.append((count, num_bytes / piece, num_bytes / rate * 1e9, seconds * 1e9))
        if len(points) < 5:
            raise CalibrationError(
                f"transfers: {len(points)} rows with a {kind}; 5 or more tell what one takes"
            )
        counts, pieces, bytes_ns, times = np.array(points).T
        matrix = np.column_stack([counts, pieces]) / times[:, None]
        (latency, operation), _ = nnls(matrix, 1 - bytes_ns / times)
        errors = (counts * latency + pieces * operation + bytes_ns) / times - 1
        residuals.append(_row(f"{kind} of host memory", errors.tolist()))
        found[f"{kind}_operation_ns"], found[f"{kind}_latency_ns"] = round(operation), round(latency)
        rate_of = ", ".join(
            f"{size // 1024} KiB: {size / (operation + size / rate * 1e9):.1f} GB/s" for size in sorted(sizes)
        )
        notes.append(f"{kind}s of host memory: pieces of {rate_of}")
    return Copies(link.name, **found), residuals
