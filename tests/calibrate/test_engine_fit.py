"""``kvsim calibrate engine``: what it reads, what it refuses, and that it finds the constants of a known engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from known_engine import (
    KNOWN,
    META,
    REQUESTS,
    Logged,
    microbenchmarks,
    record,
    record_bursts,
    record_loads,
    write_table,
)

import kvsim.cluster.simulation as cluster_run
import kvsim.engine.steps as steps_module
from kvsim.calibrate.engines.engine_profile import profile_text, write_profile
from kvsim.calibrate.engines.fit import Fit, fit_copies, fit_engine, read_microbenchmarks
from kvsim.calibrate.engines.fit_host import fit_stall
from kvsim.calibrate.engines.measure_vllm import rows_of
from kvsim.cli.main import run_command
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.profile import load_engine
from kvsim.engine.spec import EngineSpec
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.validate.folder import read_run
from kvsim.validate.measured import MeasuredRun
from kvsim.validate.replay import Assumptions, replay

ROOT = Path(__file__).parents[2]
SHIPPED = [
    ROOT / "calibrate" / "data" / name
    for name in (
        "vllm-0.24.0_h100-sxm",
        "vllm-0.24.0_h100-sxm_llama-3.1-8b",
        "vllm-0.24.0_h100-sxm_shared_loads",
        "vllm-0.24.0_h100-sxm_batches",
        "vllm-0.24.0_h100-sxm_sustained",
        "vllm-0.24.0_h100-sxm_fp8",
        "vllm-0.24.0_h100-sxm_irregular_1",
        "vllm-0.24.0_h100-sxm_irregular_2",
    )
]
PROFILE = ROOT / "sim" / "engine" / "profiles" / "vllm-0.24.0.yaml"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("calibrate", ...)`` gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def known_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Microbenchmarks of the engine in KNOWN, in a folder like those of real runs."""
    folder = tmp_path_factory.mktemp("known")
    engine = folder / "known.yaml"
    engine.write_text(KNOWN)
    (folder / "sim.meta.json").write_text(json.dumps(META))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_run, "Replica", Logged)
        patch.setattr(steps_module, "LONGEST_RUN", 1)
        for name, rows in microbenchmarks().items():
            record(folder, f"sim.{name}", rows, engine, 1_500_000)
        record_bursts(folder, engine)
        record_loads(folder, "sim_ddr", "auto", engine)
        record_loads(folder, "sim_ddr_fp8", "fp8", engine)
    return folder


LOADS = ROOT / "calibrate" / "engines" / "plans" / "loads"


@pytest.mark.parametrize("name", ["load_alone", "load_together", "load_over_b4"])
def test_the_plan_loads_from_host_memory(name: str, tmp_path: Path) -> None:
    """Each content is computed once; afterwards all of it comes from DDR and nothing from HBM."""
    [phase] = [p for p in json.loads((LOADS / "plan.json").read_text())["phases"] if p["name"] == "loads"]
    meta = {
        **META,
        "engine": {**phase["engine"], "model": "llama-3.1-8b"},
        "num_gpu_blocks": phase["engine"]["num_gpu_blocks_override"],
    }
    (tmp_path / "loads.meta.json").write_text(json.dumps(meta))
    (tmp_path / "workloads").mkdir()
    shutil.copy(LOADS / "workloads" / f"{name}.jsonl.gz", tmp_path / "workloads")
    rows = rows_of(str(LOADS / "workloads" / f"{name}.jsonl.gz"))
    table = [
        (
            f"{name}-{i}",
            row["arrival_s"],
            row["arrival_s"],
            row["input_tokens"],
            row["output_tokens"],
            *[0] * 7,
        )
        for i, row in enumerate(rows)
    ]
    write_table(tmp_path / f"loads.{name}.requests.csv.gz", REQUESTS, table)
    run = read_run(tmp_path, f"loads.{name}")
    assert run.is_microbenchmark
    found = replay(run, Assumptions()).requests
    seen = set()
    for row, hits in zip(rows, found.hits_by_tier.tolist(), strict=True):
        [[content, tokens]] = row["segments"]
        if row["output_tokens"] == 4:  # not a decode
            assert hits == ([0, tokens] if content in seen else [0, 0])
        seen.add(content)


def base_spec(run: MeasuredRun, name: str = "vllm-0.24.0") -> EngineSpec:
    meta = run.setup.meta
    spec, _ = load_engine(
        name,
        max_num_seqs=meta.max_num_seqs,
        max_num_batched_tokens=meta.max_num_batched_tokens,
        max_model_len=meta.engine.max_model_len,
        gpu=run.setup.gpu,
    )
    return spec


def fit_on(folder: Path, wanted: Sequence[str] = ()) -> Fit:
    runs = read_microbenchmarks(folder, wanted)
    return fit_engine([runs], base_spec(runs[0]))


# ---- what it finds


def test_constants_of_a_known_engine_are_found(known_runs: Path) -> None:
    """From the tables alone; the base profile is another one."""
    fit = fit_on(known_runs)
    device, host = fit.device, fit.host
    assert [size for size, _ in device["graphs"]] == [1, 8, 32]
    assert [factor for _, factor in device["graphs"]] == pytest.approx([1.455, 1.55, 1.75], rel=0.001)
    assert device["kv_read_bytes_per_s"] == pytest.approx(2.5e12, rel=0.002)
    [(pairs, factor)] = device["uneven"]
    assert pairs == 8 * 8 and factor == pytest.approx(1.0, rel=0.005)
    assert dict(device["power_limit"].factors) == pytest.approx({3000: 1.1, 8192: 1.06}, abs=0.01)
    assert device["power_limit"].sustained == pytest.approx(1.08, abs=0.01)
    assert host["eager_cpu"] == pytest.approx(28e6, rel=0.005)  # but for what starting a request takes
    assert host["piecewise_cpu"] == pytest.approx(16e6, rel=0.005)
    assert host["tail"] == pytest.approx(3e6, rel=0.01)
    assert host["cpu_sequence"] == pytest.approx(40e3, rel=0.1)
    assert host["cpu_request"] == pytest.approx(200e3, abs=50e3)
    assert host["intake_token"] == pytest.approx(300, rel=0.02)
    assert host["cached_token"] == pytest.approx(150, rel=0.1)
    assert host["front_in"] + host["front_out"] == pytest.approx(3e6, rel=0.01)
    assert device["stall"] < 2e3 and not device["shared"]
    # a step's constant and the factor on its kernels trade against each other; what steps cost in all does not
    found = EngineTerms(
        step_ns=device["step"],
        prefill_factor=device["prefill_factor"],
        mixed_attention_factor=device["mixed_attention_factor"],
    )
    known = EngineTerms(step_ns=385e3, prefill_factor=1.05, mixed_attention_factor=1.3)
    for tokens in (2048, 4096, 8192):
        for decodes in (0, 8, 32):
            prices = [prefill_ns(known_runs, terms, tokens, decodes) for terms in (found, known)]
            assert prices[0] == pytest.approx(prices[1], rel=0.005), f"{tokens} tokens, {decodes} decodes"
    assert device["step"] == pytest.approx(
        385e3, rel=0.03
    )  # KNOWN has what its smallest batch takes beyond its kernels
    assert device["mixed_attention_factor"] == pytest.approx(1.3, abs=0.06)


def prefill_ns(folder: Path, terms: EngineTerms, tokens: int, decodes: int) -> int:
    """Price of a step with one prompt beside decodes over contexts of 4,096 tokens."""
    setup = read_run(folder, "sim.solo").setup
    gpu = load_gpu(setup.gpu)
    cost = KernelCostModel(load_profile(profile_for_gpu(gpu.name)), setup.model, gpu, 1, terms)
    kernels = [Kernel("prefill_attention", {"new": tokens, "past": 0})]
    if decodes:
        kernels.append(Kernel("decode_attention", {"num_seqs": decodes, "sum_context": decodes * 4096}))
    return int(cost.price(StepWork(1, tokens + decodes, 1 + decodes, tuple(kernels))).step_ns[0])


@pytest.mark.parametrize("phases", [["sim_ddr"], ["sim_ddr", "sim_ddr_fp8"]])
def test_copies_of_a_known_engine_are_found(known_runs: Path, phases: list[str]) -> None:
    notes: list[str] = []
    runs = [read_run(known_runs, f"{phase}.load_alone") for phase in phases]
    copies, residuals = fit_copies(runs, notes)
    assert copies is not None and copies.link == "pcie-gen5-x16"
    assert copies.load_operation_ns == pytest.approx(900, abs=2)
    assert copies.store_operation_ns == pytest.approx(1300, abs=2)
    assert copies.load_latency_ns == pytest.approx(80_000, rel=0.01)
    assert copies.store_latency_ns < 100
    assert [(part, points) for part, points, _, _ in residuals] == [
        ("load of host memory", 18 * len(phases)),
        ("store of host memory", 6 * len(phases)),
    ]
    assert all(median < 1e-4 for _, _, median, _ in residuals)
    # 65,536 bytes in 900 ns and 65,536 / 54 GB/s
    assert "loads of host memory: pieces of " in notes[0] and "64 KiB: 31.0 GB/s" in notes[0]


def test_a_fitted_profile_carries_the_copies_and_a_replay_uses_them(known_runs: Path, tmp_path: Path) -> None:
    spec = base_spec(read_run(known_runs, "sim_ddr.load_alone"), str(known_runs / "known.yaml"))
    fit = fit_on(known_runs)
    assert fit.copies is not None
    out = tmp_path / "fitted.yaml"
    write_profile(profile_text(fit, spec, "fitted", "h100-sxm", "", []), out)
    run = read_run(known_runs, "sim_ddr.load_alone")
    loads_s = [
        replay(run, Assumptions(str(path))).requests.load_s[-6:] for path in (out, known_runs / "known.yaml")
    ]
    assert loads_s[0] == pytest.approx(loads_s[1], rel=0.02)
    assert (
        loads_s[0].sum() > 1.2 * replay(run, Assumptions()).requests.load_s[-6:].sum()
    )  # not the shipped copies


def test_stalls_are_what_steady_decodes_take_on_average_beyond_most(known_runs: Path) -> None:
    """One step in 20 waits 6 ms for the thread."""
    runs = [run for run in read_microbenchmarks(known_runs) if ".inject_b" in run.name]
    late = []
    for run in runs:
        assert run.iterations is not None
        waits_s = 0.006 * (np.arange(len(run.iterations.t_s)) % 20 == 0)
        late.append(
            replace(run, iterations=replace(run.iterations, t_s=run.iterations.t_s + np.cumsum(waits_s)))
        )
    notes: list[str] = []
    assert fit_stall([runs, late], notes) / 1e3 == pytest.approx(300 / 2, rel=0.15)
    assert len(notes) == 2 and notes[0].startswith("stalls, sim: 0 us a decode step, of ")
    assert fit_stall([[]], notes) == 0 and notes[-1].startswith("not identifiable: stall")


# ---- what it cannot find


def test_missing_parts_are_reported_and_not_invented(known_runs: Path) -> None:
    wanted = ["solo", "inject_b8", "inject_b32", *(f"decode_b{b}_c{c}" for b in (1, 8) for c in (256, 2048))]
    fit = fit_on(known_runs, [f"sim.{name}" for name in wanted])
    assert fit.device["uneven"] == []
    assert {factor for _, factor in fit.device["power_limit"].factors} == {1.0}
    assert fit.copies == base_spec(read_run(known_runs, "sim.solo")).copies  # the base profile's
    notes = "\n".join(fit.notes)
    assert "not identifiable: uneven (" in notes
    assert "not identifiable: power_limit" in notes
    assert "not identifiable: cpu_request, cached_token" in notes


def test_without_decode_batches_there_is_no_profile(known_runs: Path) -> None:
    with pytest.raises(CalibrationError, match="too few steady decode batches"):
        fit_on(known_runs, ["sim.solo", "sim.decode_b8_c256"])


def test_without_lone_prompts_there_is_no_front_end(known_runs: Path) -> None:
    wanted = [f"sim.decode_b{b}_c{c}" for b in (1, 8) for c in (256, 2048)]
    with pytest.raises(CalibrationError, match="no lone prompts"):
        fit_on(known_runs, wanted)


# ---- what it refuses


def test_a_workload_is_refused(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "engine.yaml"
    code, printed, error = cli(
        "calibrate", "engine", "--from", SHIPPED[0], "--run", "bf16.ragpulse_q6", "--out", out
    )
    assert (code, printed) == (2, "")
    assert error.strip().count("\n") == 0
    assert "bf16.ragpulse_q6: a workload; engines are fitted on microbenchmarks only" in error
    assert not out.exists()


def test_what_is_there_is_replaced_only_if_asked(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "engine.yaml"
    out.write_text("mine")
    code, printed, error = cli("calibrate", "engine", "--from", SHIPPED[0], "--out", out)
    assert (code, printed, out.read_text()) == (2, "", "mine")
    assert error == f"{out}: already there; give --force to replace it, or another name\n"
    code, _, error = cli("calibrate", "engine", "--from", SHIPPED[0], "--out", out, "--force")
    assert code == 0 and out.read_text() != "mine", error


def test_workloads_of_a_folder_are_passed_over() -> None:
    for folder in SHIPPED:
        runs = read_microbenchmarks(folder)
        assert runs and all(run.is_microbenchmark for run in runs)


# ---- what is shipped


def test_the_shipped_profile_is_what_the_command_gives(cli: Cli, tmp_path: Path) -> None:
    """No constant was edited by hand after the fit."""
    out = tmp_path / "engine.yaml"
    folders = [part for folder in SHIPPED for part in ("--from", folder)]
    code, _, error = cli("calibrate", "engine", *folders, "--name", "vllm-0.24.0", "--out", out)
    assert code == 0, error
    fitted, shipped = (yaml.safe_load(path.read_text()) for path in (out, PROFILE))
    assert flat(fitted) == pytest.approx(flat(shipped), rel=2e-3)
    assert {key: value for key, value in fitted.items() if key not in ("host", "device")} == {
        key: value for key, value in shipped.items() if key not in ("host", "device")
    }


def flat(profile: dict[str, Any]) -> dict[str, float]:
    """Every number of a profile, units cut off (the same code writes both)."""
    found: dict[str, float] = {}
    parts = {part: dict(profile[part]) for part in ("host", "device")}
    parts["power_limit"] = parts["device"].pop("power_limit")
    for part, values in parts.items():
        for key, value in values.items():
            if isinstance(value, list):
                pairs = value if isinstance(value[0], list) else enumerate(value)
                found.update({f"{part}.{key}.{place}": number for place, number in pairs})
            elif isinstance(value, bool):
                found[f"{part}.{key}"] = float(value)
            else:
                found[f"{part}.{key}"] = float(str(value).split(" ")[0])
    return found


def test_terms_by_type_of_kv(tmp_path: Path) -> None:
    """A measured type of KV brings its own terms; another one is priced by the table, as derived."""
    path = tmp_path / "own.yaml"
    data = {
        **yaml.safe_load(KNOWN),
        "model": "llama-3.1-8b",
        "kv_dtype": "bfloat16",
        "device_by_kv_dtype": {"fp8": {"kv_read": "2 TB/s"}},
    }
    path.write_text(yaml.safe_dump(data))
    found = {
        kv_dtype: load_engine(
            str(path),
            max_num_seqs=8,
            max_num_batched_tokens=64,
            max_model_len=100,
            gpu="h100-sxm",
            model="llama-3.1-8b",
            kv_dtype=kv_dtype,
        )[1]
        for kv_dtype in ("bfloat16", "fp8", "int8")
    }
    rates = {kv_dtype: terms.kv_read_bytes_per_s for kv_dtype, terms in found.items()}
    assert rates == {"bfloat16": 2.5e12, "fp8": 2e12, "int8": 0.0}
    assert (
        found["fp8"].prefill_factor == found["bfloat16"].prefill_factor == 1.05
    )  # what it lacks is the others'
    assert [terms.provenance for terms in found.values()] == ["measured", "measured", "derived"]
