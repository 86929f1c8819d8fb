"""The managers under test, with a setting that bites and a neutral one; the toy cluster of tests/engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "engine"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from managers.h2o import H2O  # noqa: E402
from managers.kivi import Kivi  # noqa: E402
from managers.quest import Quest  # noqa: E402
from managers.shadowkv import ShadowKV  # noqa: E402
from managers.snapkv import SnapKV  # noqa: E402
from toys import ToyCost, toy_engine, toy_trace  # noqa: E402

from kvsim.cache.chunks.manager import ChunkManager  # noqa: E402
from kvsim.cache.load import load_manager  # noqa: E402
from kvsim.cache.manager import CacheConfig, CacheManager  # noqa: E402
from kvsim.cache.paged import Paged  # noqa: E402
from kvsim.cache.parts.codec import PackedKv  # noqa: E402
from kvsim.cache.parts.reads import ReadSelector  # noqa: E402
from kvsim.cache.parts.span import KvShape  # noqa: E402
from kvsim.cache.parts.tokens import TokenPolicy  # noqa: E402
from kvsim.cache.prefix_tree import PrefixTreeManager  # noqa: E402
from kvsim.cache.tiers import TierConfig  # noqa: E402
from kvsim.cluster.router import RoundRobin  # noqa: E402
from kvsim.cluster.simulation import Simulation, build_simulation, play  # noqa: E402
from kvsim.engine import steps as steps_module  # noqa: E402
from kvsim.engine.spec import EngineSpec  # noqa: E402
from kvsim.hardware.spec import LinkSpec  # noqa: E402
from kvsim.scenario.codec import Codec  # noqa: E402
from kvsim.scenario.reads import Reads  # noqa: E402
from kvsim.scenario.tokens import Tokens  # noqa: E402
from kvsim.workloads.trace import SEGMENT_KINDS, Trace  # noqa: E402

CHUNK, USER = SEGMENT_KINDS.index("chunk"), SEGMENT_KINDS.index("user")
Row = tuple[int, int, int]  # arrival_ns, input tokens, output tokens
Part = tuple[int, int] | tuple[int, int, int]  # segment: id, tokens, kind (default user)


@dataclass(frozen=True)
class Fit:
    """One manager: its baseline, options that make it act, options at which it must be the baseline."""

    make: Callable[[CacheConfig], CacheManager]
    baseline: type[CacheManager]
    options: Mapping[str, Any]
    neutral: Mapping[str, Any]
    tiers: int = 1  # that the baseline has; a manager may keep the tier for itself


SHAPE = KvShape(num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, hidden_size=32, bytes_per_token=16)
"""Of a toy model; the bytes are those of :func:`cache_of`."""


def with_parts(manager: str) -> Callable[[CacheConfig], CacheManager]:
    """``manager`` with the parts that the options say, as a scenario would."""

    def make(config: CacheConfig) -> CacheManager:
        options = dict(config.options or {})
        codec = PackedKv(SHAPE, Codec.model_validate(options.pop("codec", {})))
        keys = options.pop("tokens", None)
        tokens = None if keys is None else TokenPolicy(SHAPE, Tokens.model_validate(keys))
        read = options.pop("reads", None)
        share = 1.0
        if tokens is not None and tokens.tokens.heads is not None:
            share = tokens.classes[0].slices / SHAPE.num_slices
        codec_or_none = None if codec.is_neutral else codec
        reads = None
        if read is not None:
            reads = ReadSelector(
                SHAPE, Reads.model_validate(read), share, codec_or_none, options.pop("ratio", 1.0)
            )
        if reads is not None and reads.is_neutral(config.max_model_len):
            reads = None
        config = replace(config, options=options, codec=codec_or_none, tokens=tokens, reads=reads)
        return load_manager(manager, config)

    return make


PACKED: Mapping[str, Any] = {
    "window": 5, "sinks": 2, "keys": {"bits": 2, "axis": "channel", "group": 4, "metadata_bits": 8},
    "values": {"bits": 4, "group": "token"},
}  # fmt: skip
LATENT = {
    "trigger": "prefill",
    "factors": "request",
    "keys": {"rank": 4},
    "values": {"rank": 6},
    "joint_layers": 2,
}
WINDOW = {"score": "window", "window": 3, "budget": 10}
PYRAMID = {"score": "window", "window": 2, "budget": 12, "pyramid": 4.0, "schedule": "layer"}
SLOTS = {"score": "accumulated", "ratio": 0.4, "generated": "evict"}
CAPPED = {
    "score": "norm",
    "budget": 9,
    "generated": "evict",
    "schedule": "chunk",
    "block": 5,
    "dropped": "merge",
}
PAGES = {**CAPPED, "budget": 8, "every": 4, "granularity": 4, "compact": False}
LAYERS = {**CAPPED, "layer_shares": [3.0, 1.0]}
GROWING = {"score": "accumulated", "ratio": 0.3, "generated": "share", "dropped": "merge"}
BY_LAYER = {
    **GROWING,
    "score": "norm",
    "ratio": 0.35,
    "layer_shares": [4, 2, 1],
    "schedule": "chunk",
    "block": 5,
}
IN_FOURS = {**GROWING, "score": "norm", "every": 4, "whole_layers": 1}
DRAWN = {
    "score": "window",
    "window": 3,
    "ratios": [0.1, 0.3, 0.9],
    "schedule": "layer",
    "layer_shares": [2, 1],
}
DRAWN_SLOTS = {"score": "norm", "ratios": [0.2, 0.6], "generated": "evict", "schedule": "chunk", "block": 6}
HEADS = {"full": 0.3, "sinks": 2, "recent": 5, "prefill": "windowed"}
STREAMING = {"score": "position", "schedule": "chunk", "block": 6, "generated": "evict", "heads": HEADS}
BY_PROMPT = {**STREAMING, "heads": {**HEADS, "recent": 0, "recent_ratio": 0.2, "merged": 1}}
HOLES = {"score": "norm", "ratio": 0.5, "compact": False}
SHARED = {**PYRAMID, "pages": "shared"}
WHOLE = {"score": "key_similarity", "ratio": 0.5, "whole_layers": 1}
LOW = {
    "score": "norm",
    "budget": 8,
    "dropped": {"bits": 4, "group": 8},
    "layer_shares": [2, 1],
    "schedule": "layer",
}
LOW_SLOTS = {**SLOTS, "dropped": {"bits": 2, "group": None}, "whole_layers": 1}
LOW_GROWING = {**GROWING, "dropped": {"bits": 2, "group": 8}, "schedule": "chunk", "block": 5}
LOW_DRAWN = {**DRAWN_SLOTS, "schedule": "prefill", "layer_shares": [2, 1], "dropped": {"bits": 8}}
SEGMENTS = {
    "score": "accumulated",
    "ratio": 0.5,
    "generated": "evict",
    "generated_budget": 7,
    "layer_shares": [3, 1],
}
SEGMENTS_BY_FOUR = {**SEGMENTS, "layer_shares": [], "score": "norm", "every": 4, "weighs_values": True}
HASHED = {"score": "hash", "hash_bits": 16, "ratio": 0.5, "generated": "evict"}
DRAFTED = {"score": "window", "window": 3, "budget": 10, "lookahead": 2, "renumbered": True, "granularity": 2}
BY_PROFILE = {"score": "accumulated", "heads": {"full": 0.5, "sinks": 1, "recent_ratio": 0.3}}
CURVE = {"score": "key_similarity", "curve": [[8, 6], [40, 14]], "generated": "evict", "dropped": "merge"}
FOLDED = {
    "score": "accumulated",
    "ratio": 0.3,
    "generated": "evict",
    "dropped": {"features": 3},
    "whole_layers": 1,
}
REBUILT = {"score": "accumulated", "budget": 9, "generated": "evict", "dropped": {"tokens": 1.5}}
BELOW = {"score": "norm", "ratio": 0.4, "layer_shares": [2, 1], "dropped": {"tier": "ddr", "tokens": 2.5}}
POLICIES = {
    "window": WINDOW, "pyramid": PYRAMID, "slots": SLOTS, "capped": CAPPED, "pages": PAGES, "layers": LAYERS,
    "streaming": STREAMING, "by prompt": BY_PROMPT, "holes": HOLES, "shared": SHARED, "whole layers": WHOLE,
    "low": LOW, "low slots": LOW_SLOTS, "low growing": LOW_GROWING, "low drawn": LOW_DRAWN, "segments": SEGMENTS,
    "segments by four": SEGMENTS_BY_FOUR, "hashed": HASHED, "drafted": DRAFTED, "heads by profile": BY_PROFILE,
    "curve": CURVE,
    "folded": FOLDED,
    "rebuilt": REBUILT,
    "growing": GROWING, "growing by layer": BY_LAYER, "in fours": IN_FOURS, "drawn": DRAWN, "drawn slots": DRAWN_SLOTS,
}  # fmt: skip
BOUNDS = {"index": {"kind": "bounds", "tokens": 4}, "budget": 12, "dense_layers": 1, "refresh": 2.0}
SCORED = {
    "index": {"kind": "keys", "held": False, "channels": 4},
    "budget": 9,
    "gathered": True,
    "prefill_budget": 16,
}
CODES = {
    "index": {"kind": "codes", "parts": 2},
    "budget": 12,
    "offload": {"tier": "ddr", "resident": 3, "hit_rate": 0.3, "extent_tokens": 2},
}
SHADOW = {
    "index": {"kind": "vectors", "tokens": 8},
    "budget": 8,
    "offload": {"tier": "ddr", "stored": "values", "key_rank": 2, "hit_rate": 0.6, "fetch": "beside_keys"},
}
COPY = {
    "index": {"kind": "copy", "bits": 2, "group": 8},
    "budget": 6,
    "dense_layers": 1,
    "offload": {"tier": "ddr", "fetch": "ahead", "buffer": 0.5, "heads_together": True},
}
ON_CPU = {
    "index": {"kind": "keys", "bits": 4, "group": 8},
    "budget": 10,
    "offload": {"tier": "ddr", "stored": "values", "attention": "cpu"},
}
CLUSTERS = {
    "index": {"kind": "vectors", "tokens": 5, "rounds": 3},
    "budget": 11,
    "offload": {"tier": "ddr", "leaves": "values", "stored": "values"},
}
AT_HOST = {**CODES, "index": {"kind": "bounds", "tokens": 4, "place": "tier"}}
ROWS = {
    "index": {"kind": "vectors", "tokens": 4},
    "budget": 8,
    "offload": {"tier": "ddr", "resident": 7, "extent_tokens": 4, "hit_rate": 0.5},
}
EARLY = {
    "index": {"kind": "bounds", "tokens": 4},
    "budget": 8,
    "offload": {"tier": "ddr", "resident": 3, "trigger": "chunk", "staging": 12, "hit_rate": 0.5},
}
EARLY_VALUES = {**ON_CPU, "offload": {**ON_CPU["offload"], "trigger": "chunk"}}
EARLY_SOME = {
    **CODES,
    "prefill_budget": 16,
    "offload": {**CODES["offload"], "trigger": "chunk", "leaves": "kv"},
}
DISK = {"tier": "disk", "share": 0.4, "reads": 0.25}
THREE_LEVELS = {
    "index": {"kind": "bounds", "tokens": 4, "place": "disk"},
    "budget": 8,
    "refresh": 2.0,
    "offload": {"tier": "ddr", "resident": 2, "hit_rate": 0.5, "extent_tokens": 4, "disk": DISK},
}
DISK_EARLY = {**EARLY_VALUES, "offload": {**EARLY_VALUES["offload"], "disk": {"tier": "disk", "share": 1.0}}}
SHARE = {"index": {"kind": "vectors", "tokens": 4}, "ratio": 0.3, "gathered": True, "rotated": True}
FORECAST = {
    "index": {"kind": "history", "tokens": 4, "steps": 3},
    "ratio": 0.25,
    "offload": {"tier": "ddr", "fetch": "ahead", "hit_rate": 0.5},
}
AT_THE_DISK = {
    "index": {"kind": "none"},
    "budget": 10_000,
    "offload": {
        "tier": "ddr",
        "buffer": 0.0,
        "attention": "disk",
        "disk": {"tier": "disk", "share": 1.0},
    },
}
READS = {
    "share offloaded": FORECAST,
    "at the disk": AT_THE_DISK,
    "three levels": THREE_LEVELS,
    "disk early": DISK_EARLY,
    "early": EARLY,
    "early values": EARLY_VALUES,
    "early some": EARLY_SOME,
    "codes": CODES,
    "shadow": SHADOW,
    "copy": COPY,
    "on cpu": ON_CPU,
    "clusters": CLUSTERS,
    "at host": AT_HOST,
}
WHOLE_READ = {"reads": {"index": {"kind": "none"}, "budget": 10_000}}
THINNED = {"score": "norm", "ratio": 0.5, "schedule": "chunk", "block": 6}
EVERYTHING = {"score": "norm", "budget": 10_000}
VARIANTS = {"share": 0.5, "fix": "by_context", "variants": 3, "max_share": 0.4}
LEVELS = [{"name": "fine", "ratio": 0.5}, {"name": "coarse", "ratio": 0.2}]
FITS = {
    "chunks": Fit(ChunkManager, PrefixTreeManager, {"share": 0.25}, {"share": 1}, tiers=0),
    "alone": Fit(
        ChunkManager,
        PrefixTreeManager,
        {"made": "alone", "hit": "rotate"},
        {"made": "alone", "share": 1},
        tiers=0,
    ),
    "variants": Fit(
        ChunkManager, PrefixTreeManager, VARIANTS, {**VARIANTS, "share": 1, "fix": "constant"}, tiers=0
    ),
    "kept": Fit(ChunkManager, PrefixTreeManager, {"hit": "attach", "kept": 0.4}, {"share": 1}, tiers=0),
    "stream": Fit(
        ChunkManager,
        PrefixTreeManager,
        {"hit": "attach", "levels": LEVELS, "piece_tokens": 8},
        {"share": 1},
        tiers=0,
    ),
    "scoped": Fit(ChunkManager, PrefixTreeManager, {"scope": "user"}, {"share": 1}, tiers=0),
    "kivi": Fit(Kivi, PrefixTreeManager, {"bits": 2, "group": 16, "window": 8}, {"bits": 16}),
    "snapkv": Fit(SnapKV, Paged, {"budget": 9}, {"budget": 10_000}),
    "quest": Fit(Quest, PrefixTreeManager, {"budget": 12, "page": 4, "dense_layers": 1}, {"budget": 10_000}),
    "shadowkv": Fit(ShadowKV, Paged, {"share": 0.25, "budget": 12, "hit_rate": 0.5}, {"share": 1}),
    "packed": Fit(with_parts("prefix_tree"), PrefixTreeManager, {"codec": PACKED}, {}),
    "packed paged": Fit(with_parts("paged"), Paged, {"codec": PACKED}, {}),
    "packed chunks": Fit(
        with_parts("chunks"), PrefixTreeManager, {"codec": PACKED, "share": 0.25}, {"share": 1}, tiers=0
    ),
    "latent": Fit(with_parts("prefix_tree"), PrefixTreeManager, {"codec": LATENT}, {}),
    "latent paged": Fit(with_parts("paged"), Paged, {"codec": LATENT}, {}),
    **{
        name: Fit(with_parts("paged"), Paged, {"tokens": keys}, {"tokens": EVERYTHING})
        for name, keys in POLICIES.items()
    },
    "thinned": Fit(with_parts("prefix_tree"), PrefixTreeManager, {"tokens": THINNED}, {}),
    "thinned packed": Fit(
        with_parts("prefix_tree"), PrefixTreeManager, {"tokens": THINNED, "codec": PACKED}, {}
    ),
    "slots packed": Fit(with_parts("paged"), Paged, {"tokens": SLOTS, "codec": PACKED}, {}),
    "streaming packed": Fit(with_parts("paged"), Paged, {"tokens": STREAMING, "codec": PACKED}, {}),
    "bounds": Fit(with_parts("prefix_tree"), PrefixTreeManager, {"reads": BOUNDS}, WHOLE_READ),
    "share": Fit(
        with_parts("prefix_tree"), PrefixTreeManager, {"reads": SHARE}, {"reads": {**SHARE, "ratio": 1.0}}
    ),
    "scored": Fit(with_parts("paged"), Paged, {"reads": SCORED}, WHOLE_READ, tiers=0),
    "bounds packed": Fit(
        with_parts("prefix_tree"), PrefixTreeManager, {"reads": BOUNDS, "codec": PACKED}, {}
    ),
    "bounds of heads": Fit(with_parts("paged"), Paged, {"reads": BOUNDS, "tokens": STREAMING}, {}),
    **{name: Fit(with_parts("paged"), Paged, {"reads": keys}, WHOLE_READ) for name, keys in READS.items()},
    "rows packed": Fit(with_parts("paged"), Paged, {"reads": ROWS, "codec": PACKED}, {}),
    "rows packed late": Fit(
        with_parts("paged"), Paged, {"reads": ROWS, "codec": {**PACKED, "trigger": "prefill"}}, {}
    ),
    "early packed": Fit(
        with_parts("paged"),
        Paged,
        {
            "reads": {**ROWS, "offload": {**ROWS["offload"], "trigger": "chunk"}},
            "codec": PACKED,
            "ratio": 0.5,
        },
        {},
    ),
    "codes unpacked": Fit(with_parts("paged"), Paged, {"reads": CODES, "ratio": 0.5}, {}),
    "below": Fit(with_parts("paged"), Paged, {"tokens": BELOW}, {"tokens": EVERYTHING}),
    "h2o": Fit(H2O, Paged, {"budget": 30}, {"budget": 10_000}),
}
every_fit = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


def cache_of(
    num_blocks: int,
    options: Mapping[str, Any] | None = None,
    bytes_per_token: int = 16,
    tiers: int = 1,
    ddr_tokens: int = 10**6,
) -> CacheConfig:
    """Blocks of 4 tokens, 4 layers, and a DDR tier (or none) that is loaded layer by layer; a disk behind it where reads
    have one."""
    ddr = TierConfig("ddr", ddr_tokens * bytes_per_token, "layerwise", "through", "lru", 1 << 20)
    below = (ddr,) * tiers
    if ((options or {}).get("reads", {}).get("offload") or {}).get("disk"):
        below = (ddr, replace(ddr, name="disk"))
    return CacheConfig(
        capacity_bytes=num_blocks * 4 * bytes_per_token, bytes_per_token=bytes_per_token, block_tokens=4,
        max_model_len=10_000, num_layers=4, reserved_blocks=0, tiers=below, options=options,
    )  # fmt: skip


LINK = LinkSpec("host", read_bytes_per_s=1e9, write_bytes_per_s=1e9, operation_ns=0)  # 1 byte a nanosecond


def trace_of(rows: Sequence[Row], parts: Sequence[Sequence[Part]] | None = None) -> Trace:
    """A toy trace whose segments may say what kind they are."""
    if parts is None:
        return toy_trace(rows)
    trace = toy_trace(rows, [[(part[0], part[1]) for part in row] for row in parts])
    kinds = [part[2] if len(part) == 3 else USER for row in parts for part in row]
    return replace(trace, segment_kind=np.array(kinds, dtype=np.int8))


def simulate(
    make: Callable[[CacheConfig], CacheManager],
    trace: Trace,
    cache: CacheConfig,
    engine: EngineSpec | None = None,
    link: LinkSpec = LINK,
    unfused: bool = False,
) -> Simulation:
    """Run to the end, integrity checked after every event and nothing left behind."""
    simulation = build_simulation(
        trace, engine or toy_engine(), cache, (link,) * max(1, len(cache.tiers)), make, ToyCost(), RoundRobin(), check=True  # type: ignore[arg-type]
    )  # fmt: skip
    longest = steps_module.LONGEST_RUN
    try:
        if unfused:
            steps_module.LONGEST_RUN = simulation.replicas[0]._horizon = 1
        play(simulation)
    finally:
        steps_module.LONGEST_RUN = longest
    assert simulation.cluster.num_finished + len(simulation.recorder.rejected) == len(trace)
    manager = simulation.replicas[0].manager
    assert manager.held_bytes == 0
    return simulation


def times(simulation: Simulation) -> dict[int, tuple[int, int]]:
    """(first token, last token) of each request, in nanoseconds of the clock."""
    return {
        row.request: (
            row.arrival_ns + row.queue_ns + row.load_ns + row.prefill_ns + row.host_ns,
            row.arrival_ns + row.e2e_ns,
        )
        for row in simulation.recorder.requests
    }
