"""KV below HBM: DDR, CXL, disk, a remote store. ``docs/tiers.md`` has every mode in one line."""

from kvsim.cache.tiers.config import HBM, TierConfig, charge_rest
from kvsim.cache.tiers.stack import TierStack
from kvsim.cache.tiers.tier import Load, Prefetch, Write

__all__ = ("HBM", "Load", "Prefetch", "TierConfig", "TierStack", "Write", "charge_rest")
