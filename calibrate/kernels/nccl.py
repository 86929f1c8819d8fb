"""Collectives of NCCL between the GPUs of one machine, through torch.distributed: one process a GPU.

``num_bytes`` is the whole message as nccl-tests counts it: of all_reduce and send_recv what each GPU holds, of
all_gather the gathered result, of reduce_scatter what goes in, of alltoall what each GPU sends in all. send_recv is a
ring: every GPU sends to the next one and receives from the one before. A collective is captured in a CUDA graph as
engines capture theirs, and its time is the slowest GPU's. vLLM's own all-reduce is another table, ``custom_all_reduce``.

Settings of NCCL's environment (NCCL_NVLS_ENABLE and the like) are left as they are found.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point
from kvsim.cost.profile import FLOOR, LATENCY, SPREAD, Array

OPS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "send_recv")
NUM_GPUS = (2, 4, 8)
FULL = tuple(2**power for power in range(10, 30))  # 1 KiB .. 512 MiB
GRAPH_S = 0.002  # device time of one graph
MOST_LAUNCHES = 256
REPLAYS = 10
SAMPLE = 4096  # elements that are checked
VALUES = 8  # whole numbers from 0 to 7: sums over 8 GPUs are exact in bfloat16


class Nccl(Kernel):
    """In bfloat16. Points of more GPUs than the machine has are left out; a CPU runs two processes with gloo."""

    name = "nccl"
    columns = ("op", "num_gpus", "num_bytes")
    needs = ("gpus",)
    summary = "collectives between the GPUs of the machine"

    def points(self, plan: Plan) -> Sequence[Point]:
        if plan.size == "tiny":
            return [{"op": op, "num_gpus": 2, "num_bytes": 1024} for op in OPS]
        sizes = plan.pick(FULL, FULL[::3], ())
        return [
            {"op": op, "num_gpus": num_gpus, "num_bytes": size}
            for num_gpus in NUM_GPUS
            for op in OPS
            for size in sizes
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        """All operations of the point's size in processes of their own, kept for the next point.

        Only for a check of the results: the clock of :meth:`measure` is the workers'.
        """
        num_gpus, size = int(point["num_gpus"]), int(point["num_bytes"])
        every: list[Point] = [{"op": op, "num_gpus": num_gpus, "num_bytes": size} for op in OPS]

        def found() -> dict[str, float]:
            rows = bench.keep("nccl", (num_gpus, size), lambda: _in_processes(every, bench.on_gpu))
            return rows[OPS.index(str(point["op"]))]

        return Launch(run=lambda i: found(), error=lambda: found()["error"], tolerance=0.0, graph=False)

    def measure(
        self, points: Sequence[Point], bench: Bench
    ) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """All points, one set of processes for each number of GPUs.

        Raises:
            RuntimeError: a result is wrong, or a process failed; with the point's sizes.
        """
        most = torch.cuda.device_count() if bench.on_gpu else 2
        kept = [point for point in points if int(point["num_gpus"]) <= most]
        found = []
        for num_gpus in sorted({int(point["num_gpus"]) for point in kept}):
            found += _in_processes([point for point in kept if point["num_gpus"] == num_gpus], bench.on_gpu)
        kept.sort(key=lambda point: int(point["num_gpus"]))
        for point, row in zip(kept, found, strict=True):
            if row["error"] != 0:
                raise RuntimeError(f"nccl at {dict(point)}: the result is wrong by up to {row['error']:g}")
        columns: dict[str, Array] = {name: np.array([point[name] for point in kept]) for name in self.columns}
        for name in (LATENCY, SPREAD):
            columns[name] = np.array([row[name] for row in found], dtype=np.float64)
        columns[FLOOR] = np.zeros(len(found))  # the roofline is of one GPU
        about: dict[str, Any] = {"kernel_source": [_library(bench.on_gpu)], "largest_error": 0.0}
        return about, columns

    def source(self, point: Point) -> str:
        return _library(torch.cuda.is_available())


def _library(on_gpu: bool) -> str:
    if not on_gpu:
        return "gloo (a CPU; says nothing of a GPU)"
    settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("NCCL_")]
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return f"NCCL {version}" + (f" with {', '.join(settings)}" if settings else "")


def _in_processes(points: Sequence[Point], on_gpu: bool) -> list[dict[str, float]]:
    """Times and errors of ``points``, all of one number of GPUs.

    Raises:
        RuntimeError: a process failed.
    """
    num_gpus = int(points[0]["num_gpus"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(
                _worker, args=(num_gpus, [dict(point) for point in points], folder, on_gpu), nprocs=num_gpus
            )
        except Exception as error:
            last = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"nccl over {num_gpus} GPUs: {last}") from error
        return list(json.loads((Path(folder) / "found.json").read_text()))


def _worker(rank: int, num_gpus: int, points: list[Point], folder: str, on_gpu: bool) -> None:
    """One GPU's process; rank 0 writes what was found to ``folder``."""
    warnings.simplefilter("ignore", FutureWarning)  # later torch renames the collectives on whole tensors
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=num_gpus,
        device_id=device if on_gpu else None,
    )
    try:
        most = max(int(point["num_bytes"]) for point in points) // 2
        mine = values(torch.arange(most, device=device), rank)
        target = torch.empty_like(mine)
        found = []
        for point in points:
            size = int(point["num_bytes"]) // 2
            launch, result = collective(str(point["op"]), mine[:size], target[:size], rank, num_gpus)
            launch()
            wrong = mismatch(str(point["op"]), result, rank, num_gpus, size)
            seconds = _graph_times(launch) if on_gpu else _wall_times(launch)
            quarters = quantiles(seconds, n=4)
            row = torch.tensor(
                [median(seconds), quarters[2] - quarters[0], wrong], dtype=torch.float64, device=device
            )
            dist.all_reduce(row, op=dist.ReduceOp.MAX)
            latency_s, spread_s, error = row.tolist()
            found.append({LATENCY: 1e6 * latency_s, SPREAD: 1e6 * spread_s, "error": error})
        if rank == 0:
            (Path(folder) / "found.json").write_text(json.dumps(found))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def values(index: torch.Tensor, rank: int) -> torch.Tensor:
    """Element ``index`` of GPU ``rank``'s data, scrambled whole numbers from 0 to VALUES - 1; bfloat16."""
    mixed = (index + 1_000_003 * (rank + 1)) * 2_654_435_761
    return ((mixed >> 15) % VALUES).to(torch.bfloat16)


def collective(
    op: str, mine: torch.Tensor, target: torch.Tensor, rank: int, num_gpus: int
) -> tuple[Callable[[], Any], torch.Tensor]:
    """(what launches ``op``, where its result is). ``mine``, ``target``: as many elements as the message has.

    all_reduce is in place in ``target`` and only right the first time: later launches add up what is there.
    """
    share = len(mine) // num_gpus
    own = slice(rank * share, (rank + 1) * share)
    if op == "all_reduce":
        target.copy_(mine)
        return lambda: dist.all_reduce(target), target
    if op == "all_gather":
        return lambda: dist.all_gather_into_tensor(target[: share * num_gpus], mine[own]), target
    if op == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(target[:share], mine[: share * num_gpus]), target
    if op == "alltoall":
        whole = slice(0, share * num_gpus)
        return lambda: dist.all_to_all_single(target[whole], mine[whole]), target

    def send_recv() -> None:
        requests = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, mine, (rank + 1) % num_gpus),
                dist.P2POp(dist.irecv, target, (rank - 1) % num_gpus),
            ]
        )
        for request in requests:
            request.wait()

    return send_recv, target


def mismatch(op: str, result: torch.Tensor, rank: int, num_gpus: int, size: int) -> float:
    """Largest difference of a sample of ``result`` from what the GPUs' data give."""
    share = size // num_gpus
    length = {"reduce_scatter": share, "all_gather": share * num_gpus, "alltoall": share * num_gpus}.get(
        op, size
    )
    index = torch.linspace(
        0, length - 1, min(length, SAMPLE), dtype=torch.float64, device=result.device
    ).long()
    if op == "all_reduce":
        expected = torch.stack([values(index, other).float() for other in range(num_gpus)]).sum(dim=0)
    elif op == "reduce_scatter":
        there = index + rank * share
        expected = torch.stack([values(there, other).float() for other in range(num_gpus)]).sum(dim=0)
    elif op == "all_gather":  # element i is GPU i // share's own i-th
        expected = _from(index // share, index, num_gpus)
    elif op == "alltoall":  # block j is what GPU j had for this one
        expected = _from(index // share, index % share + rank * share, num_gpus)
    else:
        expected = values(index, (rank - 1) % num_gpus).float()
    return float((result[index].float() - expected).abs().max())


def _from(owner: torch.Tensor, index: torch.Tensor, num_gpus: int) -> torch.Tensor:
    """Element ``index`` of the data of GPU ``owner``, one by one."""
    of_each = torch.stack([values(index, rank).float() for rank in range(num_gpus)])
    return of_each.gather(0, owner[None])[0]


def _graph_times(launch: Callable[[], Any]) -> list[float]:
    """Seconds of one launch in each of the replays of a graph of many; all GPUs choose the same number of launches."""
    for _ in range(3):
        launch()
    once = torch.tensor([_events(lambda: [launch() for _ in range(3)]) / 3], device="cuda")
    dist.all_reduce(once, op=dist.ReduceOp.MAX)
    launches = max(1, min(MOST_LAUNCHES, round(GRAPH_S / max(float(once), 1e-6))))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local: NCCL's watchdog queries events from its own thread meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(launches):
            launch()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPLAYS):
        dist.barrier()
        times.append(_events(graph.replay) / launches)
    return times


def _events(work: Callable[[], Any]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _wall_times(launch: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(4):
        dist.barrier()
        begin = time.perf_counter()
        launch()
        times.append(time.perf_counter() - begin)
    return times
