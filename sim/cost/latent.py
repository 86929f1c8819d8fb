"""Latent attention (MLA): its attention alone, from tables of whole modules.

The ``mla_*`` tables hold DeepSeek-V3's module of one layer in bfloat16: projections, norms, rotary embedding, the write of
the latent and attention. The projections' own matrix products (``gemm``, bfloat16, the same number of tokens) are taken
off, so that a model's projections can be priced in its own dtype beside the rest: *derived*. Decodes multiply queries and
outputs by what would expand the latent (absorbed), which counts as the projection ``kv_b_proj``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from kvsim.cost.gemm import GemmPrices
from kvsim.cost.profile import Profile
from kvsim.cost.roofline import Roofline
from kvsim.cost.setting import Setting, table_dtype, worst
from kvsim.model.layers import LatentSpec
from kvsim.model.spec import DTYPE_BYTES

TABLE_HIDDEN, TABLE_LATENT = 7168, LatentSpec(1536, 512, 64, 128, 128)
"""Of DeepSeek-V3, which the tables were run with."""


@dataclass(frozen=True)
class LatentRoofline:
    """Least times of one layer on one GPU; nanoseconds."""

    roofline: Roofline
    latent: LatentSpec
    heads: int
    kv_dtype: str

    def prefill_ns(self, new: float, past: float) -> float:
        """Keys of nope + rope numbers, values of value_dim: 2 FLOPs each a pair and head. The past's latent is read."""
        latent = self.latent
        pairs = new * past + new * (new + 1) / 2
        flops = 2.0 * (latent.nope_dim + latent.rope_dim + latent.value_dim) * self.heads * pairs
        return self.roofline.time_ns(flops, past * latent.cached * DTYPE_BYTES[self.kv_dtype])

    def decode_ns(self, sum_context: float) -> float:
        """Absorbed: scores over all that is cached, values are the latent; all heads read it once."""
        latent = self.latent
        flops = 2.0 * (latent.cached + latent.kv_rank) * self.heads * sum_context
        return self.roofline.time_ns(flops, sum_context * latent.cached * DTYPE_BYTES[self.kv_dtype])


def latent_roofline(setting: Setting) -> LatentRoofline:
    assert setting.model.latent is not None
    return LatentRoofline(
        setting.roofline, setting.model.latent, setting.heads, table_dtype(setting.model.kv_dtype)
    )


def latent_prefill(setting: Setting) -> tuple[dict[tuple[int, int], float], str]:
    """Nanoseconds of (length, 0) for one prompt, one layer; and provenance."""
    floor = latent_roofline(setting)
    found, provenance = _residuals(setting, "mla_prefill", "length")
    if not found:
        lengths = [16 << i for i in range(12)]
        return {(length, 0): floor.prefill_ns(length, 0) for length in lengths}, provenance
    return {(length, 0): ns for (batch, length), ns in found.items() if batch == 1}, provenance


def latent_decode(setting: Setting) -> tuple[dict[tuple[int, int], float], str]:
    """Nanoseconds of (batch, context), one layer; and provenance."""
    floor = latent_roofline(setting)
    found, provenance = _residuals(setting, "mla_decode", "context")
    if not found:
        grid = [(1 << b, 1 << c) for b in range(0, 11, 2) for c in range(0, 18)]
        return {(batch, context): floor.decode_ns(batch * context) for batch, context in grid}, provenance
    return found, provenance


def _residuals(setting: Setting, name: str, axis: str) -> tuple[dict[tuple[int, int], float], str]:
    """By (batch, ``axis``): the module without its projections' matrix products. Empty where no table has the module."""
    profile = _owner(setting.profile, name)
    if profile is None:
        return {}, "extrapolated"
    table = profile.rows(name)
    provenance, kv_dtype = worst(table.provenance, "derived"), table_dtype(setting.model.kv_dtype)
    if kv_dtype not in table.values("kv_dtype"):
        kv_dtype, provenance = "bfloat16", "extrapolated"
    table = table.select(kv_dtype=kv_dtype)
    heads = min(table.values("heads"), key=lambda known: abs(log(known / setting.heads)))
    table = table.select(heads=heads)
    ratio = setting.heads / heads
    gemm = GemmPrices(profile, setting.roofline, "bfloat16")
    widths = TABLE_LATENT.widths(TABLE_HIDDEN, heads).values()
    batches, sizes = table.columns["batch"].tolist(), table.columns[axis].tolist()
    found = {}
    for batch, size, ns in zip(batches, sizes, table.latency_ns.tolist(), strict=True):
        tokens = batch * size if axis == "length" else batch
        rest = ns - sum(gemm.price(tokens, n, k)[0] for n, k in widths)
        found[batch, size] = ratio * max(rest, 0.0)
    return found, provenance


def _owner(profile: Profile, name: str) -> Profile | None:
    """The profile of the two whose own table it is."""
    if name in profile.table_names:
        return profile
    return profile.other if profile.other is not None and name in profile.other.table_names else None
