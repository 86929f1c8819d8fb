"""Times of single points of a profile's tables, found as a simulation finds them: by pricer, or on the grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from kvsim.calibrate.kernels.kernel import Point
from kvsim.cost.decode import DecodeAttention
from kvsim.cost.gemm import GemmPrices
from kvsim.cost.grid import Grid
from kvsim.cost.prefill import PrefillAttention
from kvsim.cost.profile import Profile, Table
from kvsim.cost.roofline import Roofline
from kvsim.cost.setting import Setting
from kvsim.hardware.load import load_gpu
from kvsim.model.spec import ModelSpec


def predictor(profile: Profile, name: str, roofline: Roofline | None) -> Callable[[Point], float]:
    """Prices a point of table ``name`` in microseconds, as a simulation does: by its pricer, or by the grid."""
    if roofline is not None and name in _PRICED:
        return _PRICED[name](profile, roofline)
    grids: dict[tuple[str | int, ...], Grid] = {}
    table = profile.table(name)

    def grid_us(point: Point) -> float:
        variant = {key: value for key, value in point.items() if isinstance(value, str)}
        key = tuple(variant.values())
        if key not in grids:
            grids[key] = grid_of(table.select(**variant))
        return grids[key].at([float(point[axis]) for axis in table.axes])[0] / 1e3

    return grid_us


def grid_of(table: Table) -> Grid:
    """All integer axes of ``table`` as one grid; one row for each point of it."""
    keys = zip(*(table.columns[axis].tolist() for axis in table.axes), strict=True)
    return Grid(dict(zip(keys, table.latency_ns.tolist(), strict=True)))


def _gemm_us(profile: Profile, roofline: Roofline) -> Callable[[Point], float]:
    prices = cache(lambda dtype: GemmPrices(profile, roofline, dtype))
    return lambda point: (
        prices(str(point["dtype"])).price(int(point["m"]), int(point["n"]), int(point["k"]))[0] / 1e3
    )


def _prefill_us(profile: Profile, roofline: Roofline) -> Callable[[Point], float]:
    pricer = cache(lambda *shape: PrefillAttention(_one_layer(profile, *shape)))
    return lambda p: pricer(*_heads(p)).price({"new": int(p["new"]), "past": int(p["past"])})[0] / 1e3


def _decode_us(profile: Profile, roofline: Roofline) -> Callable[[Point], float]:
    pricer = cache(lambda *shape: DecodeAttention(_one_layer(profile, *shape)))

    def decode_us(p: Point) -> float:
        batch = int(p["batch"])
        return (
            pricer(*_heads(p)).price({"num_seqs": batch, "sum_context": batch * int(p["context"])})[0] / 1e3
        )

    return decode_us


_PRICED = {"gemm": _gemm_us, "prefill_attention": _prefill_us, "decode_attention": _decode_us}


def _heads(point: Point) -> tuple[int, int, int, str]:
    return int(point["heads"]), int(point["kv_heads"]), int(point["head_dim"]), str(point["kv_dtype"])


def _one_layer(profile: Profile, heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> Setting:
    model = ModelSpec("one layer", 1, heads * head_dim, heads, kv_heads, head_dim, 1, 1, 1, kv_dtype=kv_dtype)
    return Setting(profile, model, load_gpu(profile.gpu), 1)
