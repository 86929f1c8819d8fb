"""The price of KV that several decodes read: from batches of an attention kernel."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kvsim.calibrate.engines.fit_shared import FILE, Batch, fit_shared, read_batches
from kvsim.errors import CalibrationError

SHIPPED = Path(__file__).parents[2] / "calibrate" / "data" / "vllm-0.24.0_h100-sxm_shared_loads"
GPU, SHAPE = "h100-sxm", (32, 8, 128, "bfloat16")
TOKEN_MB = 2 * 8 * 128 * 2 / 1e6


def batch(price: float, sequences: int, own: int, prefix: int, is_even: bool = False) -> Batch:
    """All sequences behind one prefix, on a GPU of 8 us and 0.36 us a MB whose second reads cost ``price``."""
    once, read = sequences * own + prefix, sequences * (own + prefix)
    time_us = 8.0 + 0.36 * TOKEN_MB * (once + price * (read - once))
    return Batch(GPU, SHAPE, sequences, read, once, prefix, is_even, time_us)


def alone() -> list[Batch]:
    return [batch(1.0, num, own, 0) for num in (4, 8, 32) for own in (500, 2000, 8000)]


def price_at(mb: float) -> float:
    return float(np.interp(mb, (20, 160), (0.4, 0.9)))


def test_known_prices_are_found() -> None:
    shared_mb = (5, 10, 20, 40, 80, 160, 320)
    batches = [batch(price_at(mb), num, 700, round(mb / TOKEN_MB)) for mb in shared_mb for num in (8, 32)]
    found = fit_shared([*alone(), *batches], GPU, SHAPE, [])
    assert [size for size, _ in found] == [mb * 10**6 for mb in shared_mb]
    assert [price for _, price in found] == pytest.approx([price_at(mb) for mb in shared_mb], abs=0.01)


def test_prices_never_fall() -> None:
    """Where a measurement says so it is an outlier: L2 does not hold more of what is larger."""
    batches = [
        batch(price, 32, 700, round(mb / TOKEN_MB)) for mb, price in ((10, 0.6), (40, 0.2), (160, 0.9))
    ]
    prices = [price for _, price in fit_shared([*alone(), *batches], GPU, SHAPE, [])]
    assert prices == sorted(prices) and 0.2 < prices[0] < 0.6


def test_batches_that_say_nothing_are_left_out() -> None:
    """Equal tails, few sequences, numbers of sequences and KV that were not measured alone."""
    told = batch(0.5, 32, 700, 5000)
    others = [
        batch(0.1, 32, 700, 5000, is_even=True),
        batch(0.1, 4, 700, 5000),
        batch(0.1, 33, 700, 5000),
        told._replace(shape=(32, 8, 128, "fp8"), time_us=1.0),
        told._replace(shape=(64, 8, 128, "bfloat16"), time_us=1.0),
        told._replace(gpu="a100-80gb-sxm", time_us=1.0),
    ]
    assert fit_shared([*alone(), told, *others], GPU, SHAPE, [])[0][1] == pytest.approx(0.5, abs=0.03)
    notes: list[str] = []
    assert fit_shared([*alone(), *others], GPU, SHAPE, notes) == []
    assert notes == [
        "not identifiable: shared_bytes with bfloat16 KV (no attention batches of unequal contexts behind prefixes); kept"
    ]


GOOD = {
    "gpu": "NVIDIA H100 80GB HBM3",
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "kv_dtype": "fp8",
    "us": 12.5,
}
GOOD |= {"tails": [10, 20], "groups": [0, 0], "prefixes": [160]}


def test_a_row_says_what_is_read_once_and_again(tmp_path: Path) -> None:
    row = GOOD | {"tails": [10, 20, 30], "groups": [0, 0, 2], "prefixes": [160, 32, 48]}
    with gzip.open(tmp_path / FILE, "wt") as file:
        file.write(json.dumps(row) + "\n")
    assert read_batches(tmp_path) == [
        Batch(GPU, (32, 8, 128, "fp8"), 3, 60 + 2 * 160 + 48, 60 + 160 + 48, 160, False, 12.5)
    ]
    assert read_batches(tmp_path / "elsewhere") == []


ODD: list[dict[str, object]] = [
    {"groups": [-1, 0]},
    {"groups": [0, 1]},
    {"tails": []},
    {"tails": [10]},
    {"tails": [-1, 2]},
    {"kv_dtype": "int3"},
    {"us": 0},
    {"us": float("nan")},
    {"us": "fast"},
    {"gpu": "TPU v5"},
]


@pytest.mark.parametrize("line", ["{", "[]", '{"tails": [1]}', *(json.dumps(GOOD | odd) for odd in ODD)])
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    with gzip.open(tmp_path / FILE, "wt") as file:
        file.write(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(CalibrationError, match=r"attention.jsonl.gz, line 2: not a batch .*; measure again"):
        read_batches(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"{}" * 500)[:-9], gzip.compress(b"\xff\xfe"), gzip.compress(b"")],
    ids=["not gzip", "cut off", "not UTF-8", "empty"],
)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(
        CalibrationError, match=r"attention.jsonl.gz: (cannot be read|holds no) .*measure again$"
    ):
        read_batches(tmp_path)


def test_shipped_batches_of_another_shape_agree() -> None:
    """Four times the KV heads: the price goes by bytes, not by tokens or sequences. Below 40 MB that shape has few batches."""
    batches = read_batches(SHIPPED)
    grouped, whole = (dict(fit_shared(batches, GPU, (32, kv, 128, "bfloat16"), [])) for kv in (8, 32))
    for size in (40, 80, 160, 320):
        assert whole[size * 10**6] == pytest.approx(grouped[size * 10**6], abs=0.18)


# ---- the script that measures


def test_the_shipped_batches_are_those_of_the_script() -> None:
    pytest.importorskip("torch", reason="the script runs on torch; pip install torch")
    from kvsim.calibrate.engines.measure_attention import Contexts, batches

    known = {str(contexts) for contexts in batches()}
    with gzip.open(SHIPPED / FILE, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 1005
    assert all(str(Contexts(row["tails"], row["groups"], row["prefixes"])) in known for row in rows)


def test_tables_name_the_blocks_of_a_prefix_once() -> None:
    pytest.importorskip("torch", reason="the script runs on torch; pip install torch")
    from kvsim.calibrate.bench import Bench
    from kvsim.calibrate.device import find_device
    from kvsim.calibrate.engines.measure_attention import Contexts, launch_of, shared_cache

    bench = Bench(find_device("cpu"))
    cache = shared_cache(bench, Contexts([40, 16, 70], [0, 0, 1], [64, 32]), 2, 32, "bfloat16")
    assert cache is not None and cache.contexts == [104, 80, 102]
    first, second, other = (cache.tables[0][row, :blocks].tolist() for row, blocks in enumerate((7, 5, 7)))
    assert first[:4] == second[:4]
    assert len({*first, *second, *other}) == 4 + 3 + 1 + 2 + 5
    launch = launch_of(bench, cache, 4, "bfloat16")
    assert launch.error() < launch.tolerance
