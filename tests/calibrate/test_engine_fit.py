"""``kvsim calibrate engine``: what it reads, what it refuses, and that it finds the constants of a known engine."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import kvsim.cluster.simulation as cluster_run
import kvsim.engine.steps as steps_module
from kvsim.cache.manager import Transfer
from kvsim.calibrate.engines.engine_profile import profile_text, write_profile
from kvsim.calibrate.engines.fit import Fit, fit_copies, fit_engine, read_microbenchmarks
from kvsim.calibrate.engines.measure_vllm import rows_of
from kvsim.calibrate.engines.microbenchmarks import loads, shared_decode
from kvsim.cli.main import run_command
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, StepWork
from kvsim.engine.link import Links
from kvsim.engine.profile import load_engine
from kvsim.engine.replica import Replica
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
    )
]
PROFILE = ROOT / "sim" / "engine" / "profiles" / "vllm-0.24.0.yaml"

KNOWN = """\
name: known
gpu: h100-sxm
async_scheduling: true
host:
  {launch: 400 us, cpu: 1 ms, cpu_request: 200 us, cpu_sequence: 40 us, cached_token: 150 ns, intake_token: 300 ns,
   graph_tokens: 512, piecewise_cpu: 16 ms, eager_cpu: 28 ms,
   tail: 3 ms, load_decisions: 2, front_in: 1.5 ms, front_out: 1.5 ms}
device:
  step: 420 us
  prefill_factor: 1.05
  graphs: [[1, 1.455], [8, 1.55], [32, 1.75]]
  kv_read: 2500 GB/s
  mixed_attention_factor: 1.3
  sustained_factor: 1.06
  sustained_after: 700 ms
copies: {link: pcie-gen5-x16, load_operation: 900 ns, load_latency: 80 us, store_operation: 1300 ns, store_latency: 0 ns}
"""
META: dict[str, Any] = {
    "engine": {"model": "llama-3.1-8b (random weights)", "max_model_len": 32000},
    "num_gpu_blocks": 28000,
    "block_size": 16,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
}
Row = tuple[float, int, int]  # submitted at, input tokens, output tokens
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("calibrate", ...)`` gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


# ---- a simulated engine that writes the tables of a measured one


@dataclass(slots=True)
class Output:
    """One output batch as the engine's thread takes it."""

    t_ns: int
    running: int
    prompt_tokens: int
    tokens: int


class Logged(Replica):
    """Notes every output batch. One step a run, or the boundaries within a run would be missing."""

    log: list[Output]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._decoded = deque([0])  # decodes of the step in flight

    def _turn(self, now: int) -> None:
        effects = self._due
        self._decoded.append(self._run.decodes if self._run is not None else 0)
        tokens = self._decoded.popleft()
        super()._turn(now)
        first = effects.first_tokens if effects else []
        prompt_tokens = sum(request.input_tokens for request in first)
        self.log.append(Output(now, self.num_running, prompt_tokens, tokens + len(first)))


def microbenchmarks() -> dict[str, list[Row]]:
    """Rows by workload."""
    runs: dict[str, list[Row]] = {}
    for batch in (1, 8, 32):
        for context in (256, 2048):
            runs[f"decode_b{batch}_c{context}"] = [(0.0, context, 60)] * batch
    sizes = (64, 300, 600, 520, 700, 256, 1000, 2048, 128, 4096, 800, 8192, 3000, 6000, 1100)
    for batch in (8, 32):
        injected = [(1.5 + 0.4 * i + 0.00137 * i, size, 1) for i, size in enumerate(sizes)]
        runs[f"inject_b{batch}"] = [(0.0, 512, 900)] * batch + injected
    # long contexts tell the factor on decode attention from that on prefill
    injected = [(8.0 + 0.4 * i + 0.00137 * i, size, 1) for i, size in enumerate(sizes)]
    runs["inject_b32_long"] = [(0.0, 4096, 1500)] * 32 + injected
    runs["uneven"] = [(0.0, 256 if i % 2 else 4096, 60) for i in range(8)]
    runs["solo"] = [(0.5 * i, 128 * 2**i, 4) for i in range(7)]
    runs["queue_8192"] = [(0.0, 8192, 1)] * 30
    return runs


def write_table(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header.split(","), *rows])
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


REQUESTS = (
    "request,arrival_s,submit_s,input_tokens,output_tokens,cached_tokens,ttft_s,e2e_s,tpot_s,max_itl_s,"
    "engine_queue_s,engine_prefill_s"
)
ITERATIONS = "t_s,running,waiting,kv_usage,prompt_tokens,generation_tokens,preempted"


def record(folder: Path, name: str, rows: Sequence[Row], engine: Path, front_out_ns: int) -> None:
    """Play ``rows`` on a simulated engine and write what a real one would have logged."""
    table = folder / f"{name}.requests.csv.gz"
    plain = [(f"{name}-{i}", at, at, new, out, 0, 0, 0, 0, 0, 0, 0) for i, (at, new, out) in enumerate(rows)]
    write_table(table, REQUESTS, plain)
    Logged.log = []
    found = replay(read_run(folder, name), Assumptions(str(engine))).requests
    own_s = found.queue_s + found.load_s + found.prefill_s
    write_table(
        table,
        REQUESTS,
        (
            [*row[:5], cached, f"{ttft_s:.6f}", f"{e2e_s:.6f}", 0, 0, 0, f"{engine_s:.6f}"]
            for row, cached, ttft_s, e2e_s, engine_s in zip(
                plain, found.cached_tokens, found.ttft_s, found.e2e_s, own_s, strict=True
            )
        ),
    )
    seen = [
        (f"{(o.t_ns + front_out_ns) / 1e9:.6f}", o.running, 0, 0.0, o.prompt_tokens, o.tokens, 0)
        for o in Logged.log
    ]
    write_table(folder / f"{name}.iterations.csv.gz", ITERATIONS, seen)


def record_bursts(folder: Path, engine: Path) -> None:
    """As :func:`record`, of cached prompts that come at once."""
    (folder / "workloads").mkdir(exist_ok=True)
    for number, context in enumerate((512, 1024, 3072)):
        rows = shared_decode(context, 0, (16, 32), 20, 1000 * number)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "workloads" / f"shared_c{context}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        submits = [(row["arrival_s"], row["input_tokens"], row["output_tokens"]) for row in rows]
        record(folder, f"sim.shared_c{context}", submits, engine, 1_500_000)


TRANSFERS = "t_s,load_bytes,load_s,loads,store_bytes,store_s,stores"


def record_loads(folder: Path, phase: str, kv_dtype: str, engine: Path) -> None:
    """As :func:`record`, of contents that come from host memory, with the times that its link took."""
    name, rows = f"{phase}.load_alone", loads([[n] for n in (2048, 512, 8192, 1024, 6144, 4096)], 3, 0)
    tier = {"kv_offloading_size": 8.0, "kv_cache_dtype": kv_dtype}
    meta = {**META, "engine": {**META["engine"], **tier}, "num_gpu_blocks": 520}
    (folder / f"{phase}.meta.json").write_text(json.dumps(meta))
    (folder / "workloads").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "workloads" / "load_alone.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    moved: list[list[object]] = []
    submit = Links.submit

    def noting(self: Links, transfer: Transfer, ended: Callable[[Transfer], None]) -> None:
        submit(self, transfer, ended)
        row = [transfer.num_bytes, (transfer.end_ns - transfer.start_ns) / 1e9, 1]
        moved.append([transfer.end_ns / 1e9, *row, 0, 0, 0] if transfer.dst == "hbm" else [0, 0, 0, 0, *row])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Links, "submit", noting)
        submits = [(row["arrival_s"], row["input_tokens"], row["output_tokens"]) for row in rows]
        record(folder, name, submits, engine, 1_500_000)
    write_table(folder / f"{name}.transfers.csv.gz", TRANSFERS, moved)


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
    assert device["sustained_factor"] == pytest.approx(1.06, abs=0.01)
    assert host["eager_cpu"] == pytest.approx(28e6, rel=0.005)  # but for what starting a request takes
    assert host["piecewise_cpu"] == pytest.approx(16e6, rel=0.005)
    assert host["tail"] == pytest.approx(3e6, rel=0.01)
    assert host["cpu_sequence"] == pytest.approx(40e3, rel=0.1)
    assert host["cpu_request"] == pytest.approx(200e3, abs=50e3)
    assert host["intake_token"] == pytest.approx(300, rel=0.02)
    assert host["cached_token"] == pytest.approx(150, rel=0.1)
    assert host["front_in"] + host["front_out"] == pytest.approx(3e6, rel=0.01)
    # a step's constant and the factor on its kernels trade against each other; what steps cost in all does not
    found = EngineTerms(
        step_ns=device["step"],
        prefill_factor=device["prefill_factor"],
        mixed_attention_factor=device["mixed_attention_factor"],
    )
    known = EngineTerms(step_ns=420e3, prefill_factor=1.05, mixed_attention_factor=1.3)
    for tokens in (2048, 4096, 8192):
        for decodes in (0, 8, 32):
            prices = [prefill_ns(known_runs, terms, tokens, decodes) for terms in (found, known)]
            assert prices[0] == pytest.approx(prices[1], rel=0.005), f"{tokens} tokens, {decodes} decodes"
    assert device["step"] == pytest.approx(
        420e3, rel=0.03
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


# ---- what it cannot find


def test_missing_parts_are_reported_and_not_invented(known_runs: Path) -> None:
    wanted = ["solo", "inject_b8", "inject_b32", *(f"decode_b{b}_c{c}" for b in (1, 8) for c in (256, 2048))]
    fit = fit_on(known_runs, [f"sim.{name}" for name in wanted])
    assert fit.device["uneven"] == []
    assert fit.device["sustained_factor"] == 1.0
    assert fit.copies == base_spec(read_run(known_runs, "sim.solo")).copies  # the base profile's
    notes = "\n".join(fit.notes)
    assert "not identifiable: uneven (" in notes
    assert "not identifiable: sustained_factor" in notes
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
    for part in ("host", "device"):
        for key, value in profile[part].items():
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
