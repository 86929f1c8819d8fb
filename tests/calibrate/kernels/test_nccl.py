"""Collectives over two processes of a CPU: every operation against what the processes' data give."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import nccl


def test_every_operation_is_right_over_two_processes() -> None:
    points = [{"op": op, "num_gpus": gpus, "num_bytes": 2048} for gpus in (2, 4) for op in nccl.OPS]
    measured = nccl.Nccl().measure(points, Bench(find_device("cpu")))
    assert measured is not None
    about, columns = measured
    assert about["largest_error"] == 0
    assert columns["op"].tolist() == list(nccl.OPS)  # what four GPUs would run is left out
    assert (columns["latency_us"] > 0).all()


def test_mismatch_by_hand() -> None:
    both = [nccl.values(torch.arange(8), rank) for rank in (0, 1)]
    assert nccl.mismatch("all_reduce", both[0] + both[1], 0, 2, 8) == 0
    assert nccl.mismatch("all_gather", torch.cat((both[0][:4], both[1][4:])), 1, 2, 8) == 0
    assert nccl.mismatch("reduce_scatter", (both[0] + both[1])[4:], 1, 2, 8) == 0
    assert nccl.mismatch("alltoall", torch.cat((both[0][4:], both[1][4:])), 1, 2, 8) == 0
    assert nccl.mismatch("send_recv", both[1], 0, 2, 8) == 0
    assert nccl.mismatch("all_reduce", both[0], 0, 2, 8) == float(both[1].max())
    assert both[0].tolist() != both[1].tolist() and len(set(both[0].tolist())) > 2
