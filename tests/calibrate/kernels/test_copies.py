"""Copies: what was not copied is caught; the gather's Triton code by its interpreter, from an address alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="the kernels run on torch; pip install torch")

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.device import find_device
from kvsim.calibrate.kernels import device_copy, host_copy, host_gather

BENCH = Bench(find_device("cpu"))


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
@pytest.mark.parametrize("pieces", [1, 8])
def test_pieces_are_a_permutation_of_the_whole(direction: str, pieces: int) -> None:
    bench = Bench(find_device("cpu"))
    launch = host_copy.HostCopy().prepare(host_copy._point(direction, "pinned", 65536, pieces), bench)
    launch.run(0)
    host, device = bench.keep("buffers", "pinned", lambda: None)
    as_pieces = [sorted(map(bytes, x.numpy().reshape(pieces, -1))) for x in (host, device)]
    assert as_pieces[0] == as_pieces[1]


def test_a_copy_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = [
        host_copy.HostCopy().prepare(host_copy._point("h2d", "pinned", 65536, 8), BENCH),
        device_copy.DeviceCopy().prepare({"num_bytes": 1000}, BENCH),
        host_gather.HostGather().prepare({"row_bytes": 256, "rows": 5}, BENCH),
    ]
    assert [launch.error() for launch in launches] == [0, 0, 0]
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *args, **kwargs: self)
    monkeypatch.setattr(torch, "index_select", lambda *args, **kwargs: None)
    launches = [
        launches[0],
        device_copy.DeviceCopy().prepare({"num_bytes": 1000}, BENCH),
        host_gather.HostGather().prepare({"row_bytes": 256, "rows": 5}, BENCH),
    ]
    assert all(launch.error() > 0.9 for launch in launches)


INTERPRETED = """
import torch
from kvsim.calibrate.triton.host_gather import gather

pool = torch.randint(2**31 - 1, (40, 300), dtype=torch.int32)
index, out = torch.tensor([39, 0, 7]), torch.zeros(3, 300, dtype=torch.int32)
gather(pool.data_ptr(), index, out)
assert torch.equal(out, pool[index])
print("ok")
"""


def test_triton_code_gathers_under_the_interpreter(interpreted: Callable[[str], None]) -> None:
    interpreted(INTERPRETED)
