"""Times of the engine's host: front end, intake of prompts, launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvsim.calibrate.engines.steady import steady
from kvsim.engine.spec import EngineSpec
from kvsim.errors import CalibrationError
from kvsim.validate.measured import Floats, Ints, MeasuredRun
from kvsim.validate.steps import reconstruct

SHORTEST, LONGEST = 48, 1200  # tokens of a prompt whose step is bound by its launch
CHUNK_S = 0.1  # longer: the prompt had more chunks than the tables tell
LAUNCH_BOUND = 800  # tokens up to which the device is through with a step long before its eager launch
LAUNCHES = ("piecewise_cpu", "eager_cpu")
LONE = ("solo", "past")  # runs of one prompt at a time
STEADY = (
    "decode_",
    "inject",
    "irregular",
    "uneven",
    "shared",
    "sustained",
)  # runs with decodes that nothing else delays
FEWEST_STEADY = 500  # decode steps of a folder that tell how often they stall
BURST = 16  # requests that come at once, at least
APART_S = 0.05  # between bursts
TOGETHER_S = 5e-4  # first tokens of one step
NEARLY_CACHED = 32  # tokens that a prompt of a burst computes, at most


class Delay(NamedTuple):
    """A prompt put into running decodes: how long something took in a step of ``sequences`` requests."""

    sequences: int
    tokens: int  # of the prompt
    seconds: float


def fit_host(
    folders: Sequence[Sequence[MeasuredRun]], base: EngineSpec, notes: list[str]
) -> dict[str, float]:
    """Host times by their names in a profile, ns.

    What a launch holds differs from machine to machine: each folder gives a median and the profile has their mean.

    Raises:
        CalibrationError: the runs have no lone prompts.
    """
    runs = [run for folder in folders for run in folder]
    front_s, intake_s = _front_end(runs, base, notes)
    delays = [_delays(folder, base) for folder in folders]
    sequence_s, tail_s = _per_sequence([tail for found in delays for tail in found["tail"]], base, notes)
    request_s = attach_s = 0.0
    for last in (False, False, True):  # a launch holds the start of its prompt, and bursts hold launches
        launches = {key: _launch(key, delays, sequence_s, request_s, intake_s) for key in LAUNCHES}
        told = notes if last else []
        request_s, attach_s = _starts(runs, base, launches, intake_s, sequence_s, tail_s, told)
    found = {
        "front_in": front_s / 2,
        "front_out": front_s / 2,
        "intake_token": intake_s,
        "cached_token": attach_s,
        "cpu_request": request_s,
        "cpu_sequence": sequence_s,
        "tail": tail_s,
    }
    for key in LAUNCHES:
        medians = []
        for folder, of_folder in zip(folders, delays, strict=True):
            holds = [_hold(delay, sequence_s, request_s, intake_s) for delay in of_folder[key]]
            how = "launches"
            if len(holds) < 3:
                lone = _lone_launches(folder, key, base, intake_s)
                holds, how = [s - front_s - tail_s - request_s for s in lone], "lone prompts"
            if len(holds) < 2:
                continue
            medians.append(float(np.median(holds)))
            low, high = np.percentile(holds, [10, 90]) * 1e3
            notes.append(
                f"{key}, {_phases(folder)}: {len(holds)} {how}, median {medians[-1] * 1e3:.1f} ms, "
                f"10 % to 90 %: {low:.1f} to {high:.1f} ms"
            )
        if not medians:
            notes.append(f"not identifiable: {key} (no prompt that its launch delays); kept")
        found[key] = float(np.mean(medians)) if medians else getattr(base, f"{key}_ns") / 1e9
    return {key: seconds * 1e9 for key, seconds in found.items()}


def _phases(folder: Sequence[MeasuredRun]) -> str:
    """Starts of the engine in a folder: batches and stores."""
    return " and ".join(sorted({run.name.partition(".")[0] for run in folder}))


def fit_stall(folders: Sequence[Sequence[MeasuredRun]], notes: list[str]) -> float:
    """ns that a decode step waits on average for a thread that the machine held up: what steady decodes take beyond what
    most of them take; the mean of the folders."""
    means = []
    for folder in folders:
        late, steps = 0.0, 0
        for run in folder:
            if not run.name.split(".", 1)[1].startswith(STEADY):
                continue
            for stretch in steady(reconstruct(run)):
                late += float((stretch.gaps_s - stretch.step_s).sum())
                steps += len(stretch.gaps_s)
        if steps >= FEWEST_STEADY:
            means.append(max(0.0, late / steps))
            notes.append(f"stalls, {_phases(folder)}: {means[-1] * 1e6:.0f} us a decode step, of {steps}")
    if not means:
        notes.append("not identifiable: stall (too few steady decode steps); 0")
    return 1e9 * float(np.mean(means)) if means else 0.0


def _front_end(runs: Sequence[MeasuredRun], base: EngineSpec, notes: list[str]) -> tuple[float, float]:
    """Client latency less the engine's own: (seconds of an empty prompt, seconds of each of its tokens). Lone prompts."""
    from scipy.stats import theilslopes

    tokens: list[int] = []
    waits: list[float] = []
    for run in runs:
        if run.requests.engine_s is not None and any(kind in run.name for kind in LONE):
            tokens += run.requests.input_tokens.tolist()
            waits += (run.requests.ttft_s - run.requests.engine_s).tolist()
    if not waits:
        raise CalibrationError(
            "no lone prompts (solo*) with engine_queue_s and engine_prefill_s: no front-end latency"
        )
    if len(set(tokens)) < 3:
        notes.append("not identifiable: intake_token (lone prompts of fewer than three lengths); kept")
        return float(np.median(waits)), base.intake_token_ns / 1e9
    line = theilslopes(waits, tokens)
    slope, wait = max(0.0, float(line.slope)), float(line.intercept)
    left = np.percentile(np.array(waits) - wait - slope * np.array(tokens), [10, 90]) * 1e3
    notes.append(
        f"front end: {len(waits)} prompts, {wait * 1e3:.1f} ms and {slope * 1e6:.2f} us a token, 10 % to 90 %: "
        f"{left[0]:+.1f} to {left[1]:+.1f} ms"
    )
    return wait, slope


def _launch(
    key: str,
    delays: Sequence[Mapping[str, list[Delay]]],
    sequence_s: float,
    request_s: float,
    intake_s: float,
) -> float | None:
    """Seconds that a launch holds the thread; None if no folder tells."""
    medians = [
        float(np.median([_hold(delay, sequence_s, request_s, intake_s) for delay in found[key]]))
        for found in delays
        if len(found[key]) >= 3
    ]
    return float(np.mean(medians)) if medians else None


def _hold(delay: Delay, sequence_s: float, request_s: float, intake_s: float) -> float:
    """Of the launch alone."""
    return delay.seconds - sequence_s * delay.sequences - request_s - intake_s * delay.tokens


def _per_sequence(tails: Sequence[Delay], base: EngineSpec, notes: list[str]) -> tuple[float, float]:
    """(seconds of the thread for each sequence of a step, tail of a step of none): the median of the slopes between
    steps of different batches, and of what it leaves."""
    pairs = [
        (other.seconds - tail.seconds) / (other.sequences - tail.sequences)
        for tail in tails
        for other in tails
        if other.sequences >= 2 * tail.sequences
    ]
    if len(tails) < 3:
        notes.append("not identifiable: tail (no step that its launch delays); kept")
        return base.cpu_sequence_ns / 1e9, base.tail_ns / 1e9
    if not pairs:
        notes.append("not identifiable: cpu_sequence (all batches of about one size); kept")
    sequence_s = max(0.0, float(np.median(pairs))) if pairs else base.cpu_sequence_ns / 1e9
    return sequence_s, float(np.median([tail.seconds - sequence_s * tail.sequences for tail in tails]))


def _delays(runs: Sequence[MeasuredRun], base: EngineSpec) -> dict[str, list[Delay]]:
    """Prompts put into a quiet batch: the step before is read when the launch is through, the own step a tail later."""
    found: dict[str, list[Delay]] = {"piecewise_cpu": [], "eager_cpu": [], "tail": []}
    for run in runs:
        if not run.name.split(".", 1)[1].startswith(("inject", "irregular")):
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
                key = "piecewise_cpu" if step.tokens <= base.graph_tokens else "eager_cpu"
                sequences, tokens = step.decodes + 1, step.prefills[0][0]
                found[key].append(Delay(sequences, tokens, hold))
                if base.graph_tokens < step.tokens <= LAUNCH_BOUND and own < 0.75 * usual:
                    found["tail"].append(Delay(sequences, tokens, own))
    return found


def _lone_launches(runs: Sequence[MeasuredRun], key: str, base: EngineSpec, intake_s: float) -> list[float]:
    """Latency, less its tokens' intake, of prompts that meet an idle engine and are bound by their launch. The first is a
    warm-up."""
    found: list[float] = []
    for run in runs:
        if "solo" not in run.name:
            continue
        tokens, ttft_s = run.requests.input_tokens[1:], run.requests.ttft_s[1:]
        small = tokens <= base.graph_tokens
        wanted = small if key == "piecewise_cpu" else ~small & (tokens <= LONGEST)
        found += (ttft_s - intake_s * tokens)[wanted].tolist()
    return found


def _starts(
    runs: Sequence[MeasuredRun],
    base: EngineSpec,
    launches: Mapping[str, float | None],
    intake_s: float,
    sequence_s: float,
    tail_s: float,
    notes: list[str],
) -> tuple[float, float]:
    """(seconds of the thread for each request that a step starts, for each token that it attaches from the cache).

    From bursts of cached prompts: a step starts the first few, the next one all others, and the first tokens are
    read when the second launch is through. What that takes beyond two launches is a line over the prompts' length.
    """
    from scipy.stats import theilslopes

    kept = base.cpu_request_ns / 1e9, base.cached_token_ns / 1e9
    small, large = launches["piecewise_cpu"], launches["eager_cpu"]
    tokens, seconds = [], []
    if small is not None and large is not None:
        for prompt, computed, first, batch, taken_s in _bursts(runs):
            if batch == first:
                second_s = tail_s
            else:
                second_s = small if computed / batch * (batch - first) <= base.graph_tokens else large
            tokens.append(prompt)
            taken_in = intake_s * prompt * (batch - first)  # those of the first step met an idle engine
            seconds.append((taken_s - small - second_s - taken_in) / batch - sequence_s)
    if len(set(tokens)) < 3:
        notes.append(
            "not identifiable: cpu_request, cached_token (no bursts of cached prompts of three lengths); kept"
        )
        return kept
    line = theilslopes(seconds, tokens)
    request_s, attach_s = max(0.0, float(line.intercept)), max(0.0, float(line.slope))
    notes.append(
        f"starts: {len(tokens)} bursts of cached prompts, {line.intercept * 1e3:.2f} ms a request and "
        f"{line.slope * 1e6:.2f} us a token beside its intake (95 %: {line.low_slope * 1e6:.2f} to "
        f"{line.high_slope * 1e6:.2f} us)"
    )
    return request_s, attach_s


def _bursts(runs: Sequence[MeasuredRun]) -> Iterator[tuple[float, int, int, int, float]]:
    """(tokens of a prompt, computed ones of all, requests of the first step, requests, seconds to the first tokens)."""
    for run in runs:
        requests, engine_s = run.requests, run.requests.engine_s
        if engine_s is None or not run.name.split(".", 1)[1].startswith(("decode_", "shared_")):
            continue
        order: Ints = np.argsort(requests.submit_s, kind="stable")
        gaps: Floats = np.diff(requests.submit_s[order])
        for rows in np.split(order, np.flatnonzero(gaps > APART_S) + 1):
            new = requests.input_tokens[rows] - requests.cached_tokens[rows]
            if len(rows) < BURST or new.max() > NEARLY_CACHED:
                continue
            seen_s = (requests.submit_s + requests.ttft_s)[rows]
            first = int((seen_s < seen_s.min() + TOGETHER_S).sum())
            taken_s = float(engine_s[rows[np.argmin(seen_s)]])
            yield float(requests.input_tokens[rows].mean()), int(new.sum()), first, len(rows), taken_s
