"""Loads from and stores to host memory: what a transfer and each of its pieces take beside their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvsim.calibrate.engines.residual import Residual, residual
from kvsim.engine.spec import Copies
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu, load_link
from kvsim.validate.measured import MeasuredRun


def fit_copies(runs: Sequence[MeasuredRun], notes: list[str]) -> tuple[Copies | None, list[Residual]]:
    """What a transfer and each of its pieces take beside their bytes at the link's rate; None without transfers.

    A row of a table holds the transfers that ended between two outputs; pieces are one block of one layer. Relative
    least squares, no negative times. Without pieces of two sizes (KV in two types) a piece's cost is told apart from its
    bytes by the link's rate alone.
    """
    from scipy.optimize import nnls

    moved = [run for run in runs if run.transfers is not None]
    if not moved:
        return None, []
    link = load_link(load_gpu(moved[0].setup.gpu).host_link)
    rates = {"load": link.read_bytes_per_s, "store": link.write_bytes_per_s}
    found: dict[str, int] = {}
    residuals = []
    for kind, rate in rates.items():
        points: list[tuple[float, float, float, float]] = []  # transfers, pieces, ns of their bytes, ns
        sizes = set()
        for run in moved:
            meta, model = run.setup.meta, run.setup.model
            piece = meta.block_size * model.kv_bytes_per_token // model.num_layers
            columns = (f"{kind}s", f"{kind}_bytes", f"{kind}_s")
            for count, num_bytes, seconds in zip(
                *(getattr(run.transfers, key) for key in columns), strict=True
            ):
                if num_bytes > 0 and seconds > 0:
                    sizes.add(piece)
                    points.append((count, num_bytes / piece, num_bytes / rate * 1e9, seconds * 1e9))
        if len(points) < 5:
            raise CalibrationError(
                f"transfers: {len(points)} rows with a {kind}; 5 or more tell what one takes"
            )
        counts, pieces, bytes_ns, times = np.array(points).T
        matrix = np.column_stack([counts, pieces]) / times[:, None]
        (latency, operation), _ = nnls(matrix, 1 - bytes_ns / times)
        errors = (counts * latency + pieces * operation + bytes_ns) / times - 1
        residuals.append(residual(f"{kind} of host memory", errors.tolist()))
        found[f"{kind}_operation_ns"], found[f"{kind}_latency_ns"] = round(operation), round(latency)
        rate_of = ", ".join(
            f"{size // 1024} KiB: {size / (operation + size / rate * 1e9):.1f} GB/s" for size in sorted(sizes)
        )
        notes.append(f"{kind}s of host memory: pieces of {rate_of}")
    return Copies(link.name, **found), residuals
