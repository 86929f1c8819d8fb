"""Toy clusters that prefill on some replicas and decode on others."""

from __future__ import annotations

from collections.abc import Sequence

from toys import ToyCost, toy_cache, toy_engine

from kvsim.cache.load import load_manager
from kvsim.cache.tiers import TierConfig
from kvsim.cluster.disaggregation import KvTransfer
from kvsim.cluster.router import RoundRobin
from kvsim.cluster.simulation import PoolParts, Simulation, build_cluster, play
from kvsim.hardware.spec import LinkSpec
from kvsim.workloads.trace import Trace


def disaggregated(
    trace: Trace,
    bytes_per_s: float = 1e9,
    latency_ns: int = 0,
    prefill: int = 1,
    decode: int = 1,
    layerwise: bool = False,
    blocks: Sequence[int] = (1000, 1000),
    block_tokens: int = 4,
    engine: dict[str, object] | None = None,
    manager: str = "prefix_tree",
    decode_first: bool = False,
    ddr_blocks: int = 0,
) -> Simulation:
    """1 byte a token: at 1e9 bytes/s a token takes 1 ns on the network. ``blocks``: of a prefill and a decode replica.
    ``ddr_blocks``: of a tier below each, at 0.1 B/ns."""
    tiers = (
        (TierConfig("ddr", ddr_blocks * block_tokens, "before", "through", "lru", 16),) if ddr_blocks else ()
    )
    kinds = [("prefill", prefill, blocks[0]), ("decode", decode, blocks[1])]
    pools = [
        PoolParts(
            toy_engine(**(engine or {})),
            toy_cache(count, block_tokens, tiers=tiers),
            tuple(LinkSpec(tier.name, 1e8, 1e8, 0) for tier in tiers),
            ToyCost(),
            number,
            role,
            role,
        )
        for role, number, count in (reversed(kinds) if decode_first else kinds)
    ]
    simulation = build_cluster(
        trace,
        pools,
        lambda config: load_manager(manager, config),
        RoundRobin(),
        check=True,
        kv_transfer=KvTransfer(LinkSpec("net", bytes_per_s, bytes_per_s, 0, latency_ns), layerwise),
        decode_router=RoundRobin(),
    )
    play(simulation)
    return simulation
