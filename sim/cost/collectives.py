"""Time of collectives between the GPUs of a replica: vLLM's custom all-reduce where it was run, NCCL beyond.

Tables ``custom_all_reduce`` (num_gpus, num_bytes) and ``nccl`` (op, num_gpus, num_bytes). ``num_bytes`` is
the whole message, as nccl-tests counts it: of an all_gather it is the gathered result.
"""

from __future__ import annotations

import numpy as np

from kvsim.cost.curve import Array, Curve
from kvsim.cost.profile import Profile, Table
from kvsim.cost.setting import Setting, worst
from kvsim.errors import CalibrationError


class CollectivePrices:
    """Curves over bytes for one number of GPUs."""

    def __init__(self, profile: Profile, num_gpus: int) -> None:
        self._profile = profile
        self._num_gpus = num_gpus
        self._curves: dict[str, list[tuple[Curve, str]]] = {}

    def price(self, op: str, num_bytes: int) -> tuple[float, str]:
        """(nanoseconds, provenance) of one ``op``: all_reduce, all_gather, reduce_scatter or alltoall."""
        if op not in self._curves:
            self._curves[op] = self._load(op)
        for curve, provenance in self._curves[op]:
            if curve.covers(num_bytes):
                return curve.at(num_bytes), provenance
        curve, _ = self._curves[op][-1]
        return curve.at(num_bytes), "extrapolated"

    def _load(self, op: str) -> list[tuple[Curve, str]]:
        tables: list[Table] = []
        if op == "all_reduce" and self._profile.has("custom_all_reduce"):
            tables.append(self._profile.table("custom_all_reduce"))
        if self._profile.has("nccl"):
            tables.append(self._profile.table("nccl").select(op=op))
        curves = []
        for table in tables:
            rows = table.select(num_gpus=self._num_gpus)
            if len(rows):
                points = sorted(
                    zip(rows.columns["num_bytes"].tolist(), rows.latency_ns.tolist(), strict=True)
                )
                curves.append((Curve([x for x, _ in points], [y for _, y in points]), table.provenance))
        if not curves and self._profile.other is not None:
            return CollectivePrices(self._profile.other, self._num_gpus)._load(op)
        if not curves:
            raise CalibrationError(
                f"profile {self._profile.name}: no {op} over {self._num_gpus} GPUs; "
                "choose another tensor_parallel or data_parallel"
            )
        return curves


def between_groups(setting: Setting, tokens: Array) -> list[tuple[str, list[str], Array]]:
    """(kernel, provenance of each, nanoseconds) for numbers of ``tokens`` of one micro-batch or group, all layers.

    Pipeline: hidden states and residual go to the next stage, each GPU of a stage sends its share. No table has a plain
    send; two GPUs that gather twice the bytes send as much each: *derived*. Data parallelism: each layer of experts
    gathers the tokens of all groups and scatters the results back (vLLM's default, allgather_reducescatter).
    """
    found: list[tuple[str, list[str], Array]] = []
    hidden_bytes = setting.model.hidden_size * 2
    if setting.pipeline_parallel > 1:
        two = CollectivePrices(setting.profile, 2)
        sizes = -(-tokens * (2 * hidden_bytes) // setting.tensor_parallel)
        times, provenances = _column(two, "all_gather", 2 * sizes)
        sends = setting.pipeline_parallel - 1
        found.append(("pipeline_send", [worst(each, "derived") for each in provenances], sends * times))
    if setting.data_parallel > 1:
        groups = CollectivePrices(setting.profile, setting.data_parallel)
        for op, name in (("all_gather", "expert_dispatch"), ("reduce_scatter", "expert_combine")):
            sizes = np.ceil(tokens * setting.groups).astype(np.int64) * hidden_bytes
            times, provenances = _column(groups, op, sizes)
            found.append((name, provenances, setting.model.expert_layers * times))
    return found


def _column(prices: CollectivePrices, op: str, sizes: Array) -> tuple[Array, list[str]]:
    times, provenances = zip(*(prices.price(op, num_bytes) for num_bytes in sizes.tolist()), strict=True)
    return np.array(times), list(provenances)
