"""Collectives: the check of a result, by hand; two processes of a CPU run every operation in test_every_kernel."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import nccl

POINTS = [{"op": op, "num_gpus": gpus, "num_bytes": 2048} for gpus in (4, 2) for op in nccl.OPS]
BENCH = Bench(find_device("cpu"))


def _found(error: float) -> object:
    return lambda points, on_gpu: [
        {"latency_us": float(i), "spread_us": 0.5, "error": error} for i, _ in enumerate(points)
    ]


def test_more_gpus_than_there_are_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "_in_processes", _found(0.0))
    measured = nccl.Nccl().measure(POINTS, BENCH)
    assert measured is not None
    assert measured[1]["op"].tolist() == list(nccl.OPS)
    assert set(measured[1]["num_gpus"].tolist()) == {2}
    assert measured[1]["latency_us"].tolist() == [0, 1, 2, 3, 4]


def test_a_wrong_result_names_its_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "_in_processes", _found(3.0))
    with pytest.raises(RuntimeError, match=r"all_reduce.*wrong by up to 3"):
        nccl.Nccl().measure(POINTS, BENCH)


def test_mismatch_by_hand() -> None:
    both = [nccl.values(torch.arange(8), rank) for rank in (0, 1)]
    assert nccl.mismatch("all_reduce", both[0] + both[1], 0, 2, 8) == 0
    assert nccl.mismatch("all_gather", torch.cat((both[0][:4], both[1][4:])), 1, 2, 8) == 0
    assert nccl.mismatch("reduce_scatter", (both[0] + both[1])[4:], 1, 2, 8) == 0
    assert nccl.mismatch("alltoall", torch.cat((both[0][4:], both[1][4:])), 1, 2, 8) == 0
    assert nccl.mismatch("send_recv", both[1], 0, 2, 8) == 0
    assert nccl.mismatch("all_reduce", both[0], 0, 2, 8) == float(both[1].max())
    assert both[0].tolist() != both[1].tolist() and len(set(both[0].tolist())) > 2
