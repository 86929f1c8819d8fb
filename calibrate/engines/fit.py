"""An engine profile from microbenchmarks of the running engine.

In this order, each with what came before held fixed:

1. decode: steady batches over sequences x context. Step time = constant of the batch + KV tokens read x slope.
2. front end: what the client waits longer than the engine works, from lone prompts of different lengths.
3. host: prompts put into running decodes. How late the step before is read tells how long a launch holds the
   engine's thread, with piecewise graphs and without; how soon after it the step itself is read, the tail. Bursts of
   cached prompts tell what starting a request takes, and each of its cached tokens.
4. prefill, mixed attention and the GPU's power limit: a step's constant is what the smallest decode batch takes beyond its
   kernels; the rest by least squares over windows around the longer of these prompts, over lone ones, whose time is the
   device's, and over full steps back to back.
5. copies: loads from and stores to host memory, by the device times that the engine's connector reports. Independent of
   the others, and for all KV types together: a piece of one block and layer has another size in each.

Only microbenchmarks are read: a fit that saw a workload could not be checked on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvsim.calibrate.engines.fit_copies import fit_copies
from kvsim.calibrate.engines.fit_device import captured_sizes, fit_device
from kvsim.calibrate.engines.fit_host import fit_host, fit_stall
from kvsim.calibrate.engines.fit_shared import Batch, fit_shared
from kvsim.calibrate.engines.residual import Residual
from kvsim.engine.spec import Copies, EngineSpec
from kvsim.errors import CalibrationError
from kvsim.validate.folder import read_run, run_names
from kvsim.validate.measured import MeasuredRun

Folders = Sequence[Sequence[MeasuredRun]]
Points = Sequence[tuple[int, float]]


@dataclass(slots=True)
class Fit:
    """What a fit found: the profile's values, how far its model is from the runs, what the runs cannot tell."""

    host: dict[str, float]  # ns
    device: dict[str, Any]
    residuals: list[Residual]  # (part, points, median |error|, bias)
    notes: list[str]
    copies: Copies | None = None
    kv_dtype: str = "bfloat16"  # of the set-up that all the rest is of
    by_kv_dtype: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # device terms with KV of another type


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


def fit_engine(
    folders: Folders,
    base: EngineSpec,
    batches: Sequence[Batch] = (),
    kept: Callable[[str], Points] = lambda kv_dtype: (),
) -> Fit:
    """Fit on the set-up with most runs; ``base`` has what microbenchmarks cannot tell (graph sizes, poll of loads).
    ``batches``: of the engine's attention kernel; without them the price of shared KV is ``kept`` for a type of KV.

    Device times are fitted on all folders together, and once more for each other type of KV that was measured on the
    same model and GPU. Host times differ from machine to machine, so each folder gives a median of its own and the
    profile has their mean.

    Raises:
        CalibrationError: the runs do not tell what a profile needs.
    """
    notes: list[str] = []
    base = replace(base, lazy_rows=())
    copies, copy_residuals = fit_copies([run for folder in folders for run in folder], notes)
    by_setup = _setups(folders)
    most = max(by_setup, key=lambda setup: sum(map(len, by_setup[setup])))
    folders = by_setup.pop(most)
    model, kv_dtype, gpu = most
    host = fit_host(folders, base, notes)
    host_ns: dict[str, Any] = {f"{key}_ns": round(ns) for key, ns in host.items()}
    engine = replace(base, **host_ns)
    runs = [run for folder in folders for run in folder]
    device, residuals = fit_device(runs, engine, notes)
    device["stall"] = fit_stall(folders, notes)
    spec = runs[0].setup.model
    heads = spec.num_heads, spec.num_kv_heads, spec.head_dim
    device["shared"] = fit_shared(batches, gpu, (*heads, kv_dtype), notes) or kept(kv_dtype)
    device["graph_sizes"] = captured_sizes(runs[0].setup.meta.max_num_seqs)
    by_kv_dtype = {}
    for setup, others in by_setup.items():
        label, runs = ", ".join(setup), [run for folder in others for run in folder]
        if (setup[0], setup[2]) != (model, gpu):
            notes.append(f"left out: {len(runs)} runs of another set-up ({label})")
            continue
        try:
            terms, found = fit_device(runs, engine, [], device["power_limit"])
        except CalibrationError:  # copies were all that was measured
            notes.append(f"only copies: {len(runs)} runs of another set-up ({label})")
            continue
        shared = fit_shared(batches, gpu, (*heads, setup[1]), notes) or kept(setup[1])
        by_kv_dtype[setup[1]] = {**terms, "shared": shared}
        residuals += [
            (f"{setup[1]} KV: {part}", points, median, bias) for part, points, median, bias in found
        ]
    notes.append(
        "not identifiable: how the front end's latency divides into in and out (halved), and launch, which a busy "
        "device hides (kept)"
    )
    return Fit(host, device, residuals + copy_residuals, notes, copies or base.copies, kv_dtype, by_kv_dtype)


def _setups(folders: Folders) -> dict[tuple[str, str, str], list[list[MeasuredRun]]]:
    """The runs of each (model, type of KV, GPU), by folder."""
    found: dict[tuple[str, str, str], list[list[MeasuredRun]]] = defaultdict(list)
    for folder in folders:
        here = defaultdict(list)
        for run in folder:
            here[run.setup.model.name, run.setup.model.kv_dtype, run.setup.gpu].append(run)
        for setup, runs in here.items():
            found[setup].append(runs)
    return found
