"""The importer on a directory with a handful of rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from kvsim.calibrate.importers.aiconfigurator import import_aiconfigurator
from kvsim.cost.profile import load_profile
from kvsim.errors import CalibrationError

DAY = datetime.date(2026, 1, 2)
DATASHEET = (
    "gpu: {mem_bw: 3350000000000, bfloat16_tc_flops: 989000000000000, int8_tc_flops: 1978000000000000}\n"
)


def gemm(m: int, latency: float, **changes: Any) -> dict[str, Any]:
    row = {"device": "GPU", "kernel_source": "torch.nn.functional.linear", "gemm_dtype": "bfloat16", "m": m}
    return {**row, "n": 64, "k": 64, "latency": latency, **changes}


def attention(latency: float, **changes: Any) -> dict[str, Any]:
    row = {"device": "GPU", "kernel_source": "vllm_flash_attn_fa3", "batch_size": 1, "isl": 1, "num_heads": 2}
    row |= {"num_key_value_heads": 1, "head_dim": 64, "beam_width": 1, "attn_dtype": "bfloat16"}
    return {**row, "kv_cache_dtype": "bfloat16", "step": 0, "window_size": 0, "latency": latency, **changes}


def reduce(size: int, latency: float, source: str) -> dict[str, Any]:
    row = {"device": "GPU", "kernel_source": source, "allreduce_dtype": "bfloat16", "num_gpus": 2}
    return {**row, "message_size": size, "latency": latency}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "tables"
    system = root / "toy_sxm"
    write(system / "gemm/vllm/0.9.0/gemm_perf.parquet", [gemm(1, 9.0)])  # older: not read
    rows = [gemm(2, 0.02), gemm(1, 0.01), gemm(1, 0.5), gemm(1, 7.0, kernel_source="other")]
    write(system / "gemm/vllm/0.10.0/gemm_perf.parquet", rows)
    rows = [attention(0.1, isl=16), attention(0.3, isl=16, window_size=128), attention(9.9, head_dim=512)]
    write(system / "attention/vllm/0.10.0/context_attention_perf.parquet", rows)
    write(system / "attention/vllm/0.10.0/generation_attention_perf.parquet", [attention(0.2, step=7)])
    rows = [reduce(1024, 0.004, "vLLM_custom_graph"), reduce(1024, 0.02, "vLLM_custom_eager")]
    write(system / "comm/vllm/0.10.0/custom_allreduce_perf.parquet", rows)
    (root / "systems").mkdir()
    (root / "systems/toy_sxm.yaml").write_text(DATASHEET)
    return root


def test_rows_are_chosen_and_none_averaged(source: Path, tmp_path: Path) -> None:
    (path,) = import_aiconfigurator(source, ["toy_sxm"], tmp_path / "out", DAY)
    profile = load_profile(path)
    assert (profile.name, profile.gpu, profile.provenance) == ("toy-sxm-vllm-0.10.0", "toy-sxm", "imported")
    gemm_table = profile.table("gemm")
    assert gemm_table.columns["m"].tolist() == [1, 2]
    assert gemm_table.latency_ns.tolist() == pytest.approx(
        [10_000, 20_000]
    )  # the first row of a repeated point
    assert profile.header["tables"]["gemm"]["repeated_points_dropped"] == 1
    assert profile.table("prefill_attention").latency_ns.tolist() == pytest.approx([100_000])
    assert profile.table("decode_attention").columns["context"].tolist() == [7]
    all_reduce = profile.table("custom_all_reduce")
    assert all_reduce.columns["num_bytes"].tolist() == [2048]  # message_size counts elements of 2 bytes
    assert all_reduce.latency_ns.tolist() == pytest.approx([4_000])
    assert not profile.has("moe")


def test_the_header_says_where_numbers_come_from(source: Path, tmp_path: Path) -> None:
    (path,) = import_aiconfigurator(source, ["toy_sxm"], tmp_path / "out", DAY)
    header = load_profile(path).header
    assert header["date"] == "2026-01-02"
    assert "Apache-2.0" in header["licence"]
    assert header["gpu"]["hbm_bytes_per_s"] == 3.35e12
    (read,) = header["tables"]["gemm"]["inputs"]
    assert read["path"] == "toy_sxm/gemm/vllm/0.10.0/gemm_perf.parquet"
    assert len(read["sha256"]) == 64


def test_equal_input_gives_equal_bytes(source: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        import_aiconfigurator(source, ["toy_sxm"], tmp_path / out, DAY)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_mistakes_are_told_in_one_line(source: Path, tmp_path: Path) -> None:
    gemm_path = source / "toy_sxm/gemm/vllm/0.10.0/gemm_perf.parquet"

    def message() -> str:
        with pytest.raises(CalibrationError) as caught:
            import_aiconfigurator(source, ["toy_sxm"], tmp_path / "out", DAY)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(CalibrationError, match="no system 'toy_sx'; did you mean 'toy_sxm'"):
        import_aiconfigurator(source, ["toy_sx"], tmp_path / "out", DAY)
    with pytest.raises(CalibrationError, match="no such directory"):
        import_aiconfigurator(tmp_path / "nowhere", None, tmp_path / "out", DAY)
    write(gemm_path, [gemm(1, -1.0)])
    assert "latency must be finite and positive" in message()
    write(gemm_path, [{"device": "GPU", "m": 1}])
    assert "column 'gemm_dtype' is missing" in message()
    gemm_path.write_bytes(b"PAR1 not really")
    assert "gemm_perf.parquet: cannot be read" in message()
    gemm_path.unlink()
    (source / "toy_sxm/gemm/vllm/0.9.0/gemm_perf.parquet").unlink()
    assert "no such table; a profile needs gemm" in message()


def test_a_broken_profile_is_told_in_one_line(source: Path, tmp_path: Path) -> None:
    (path,) = import_aiconfigurator(source, ["toy_sxm"], tmp_path / "out", DAY)
    (tmp_path / "out/toy-sxm-vllm-0.10.0.gemm.parquet").write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="table gemm: cannot read"):
        load_profile(path).table("gemm")
    with pytest.raises(CalibrationError, match="no table 'gem'; did you mean 'gemm'"):
        load_profile(path).table("gem")
    path.write_text("format: 7\n")
    with pytest.raises(CalibrationError, match="format: 1 is expected, found 7"):
        load_profile(path)
