"""One thing more of each kind: what another GPU, more DDR, more disk or a faster link would bring the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvsim.cache.paged import cache_managers
from kvsim.errors import KvsimError
from kvsim.hardware.load import load_link
from kvsim.scenario.build import build_gpu, build_tiers
from kvsim.scenario.cache_schema import Tier
from kvsim.scenario.link import InlineLink
from kvsim.scenario.of_pool import pool_scenarios
from kvsim.scenario.schema import Scenario

DDR_BYTES, DISK_BYTES = 64 * 10**9, 10**12


@dataclass(frozen=True, slots=True)
class Variant:
    """The answer with one thing more; ``scenario`` is None where that cannot be, ``why_not`` says why."""

    name: str
    scenario: Scenario | None
    why_not: str = ""
    free: bool = False  # its price is not known and not counted


def variants(scenario: Scenario) -> list[Variant]:
    """One more replica, 64 GB of DDR and 1 TB of disk more for each replica, and twice the link to the nearest tier."""
    found = _one_more_replica(scenario)
    if not _uses_tiers(scenario.cache.manager):
        why = f"manager {scenario.cache.manager} keeps nothing outside HBM"
        return found + [
            Variant(name, None, why) for name in ("64 GB of DDR", "1 TB of disk", "twice the link")
        ]
    found.append(_more(scenario, "64 GB of DDR", None, "ddr", DDR_BYTES))
    found.append(_more(scenario, "1 TB of disk", "nvme", "disk", DISK_BYTES))
    found.append(_twice_the_link(scenario))
    return found


def _one_more_replica(scenario: Scenario) -> list[Variant]:
    """Of each pool, if there are any."""
    cluster, found = scenario.cluster, []
    for i, (name, pool) in enumerate(pool_scenarios(scenario)):
        update: dict[str, Any] = {"replicas": cluster.replicas + 1}
        if name:
            more = cluster.pools[i].model_copy(update={"replicas": cluster.pools[i].replicas + 1})
            update = {"pools": (*cluster.pools[:i], more, *cluster.pools[i + 1 :])}
        size = pool.cluster.gpus_per_replica
        text = "one more GPU" if size == 1 else f"one more replica ({size} GPUs)"
        changed = cluster.model_copy(update=update)
        found.append(
            Variant(f"{text} in {name}" if name else text, scenario.model_copy(update={"cluster": changed}))
        )
    return found


def _uses_tiers(manager: str) -> bool:
    try:
        return bool(cache_managers.get(manager).uses_tiers)
    except KvsimError:
        return False


def _more(scenario: Scenario, name: str, link: str | None, tier_name: str, num_bytes: int) -> Variant:
    """``num_bytes`` more in the first tier behind ``link``; without one, such a tier below the others."""
    tiers = list(scenario.cache.tiers)
    place = next((i for i, tier in enumerate(tiers) if tier.link == link), None)
    if place is not None:
        new = tiers[place].model_copy(update={"capacity": tiers[place].capacity + num_bytes})
        tiers[place] = new
        scope = "in all" if new.scope == "cluster" else "a replica"
        return Variant(f"{name} {scope}", _with_tiers(scenario, tiers))
    if any(tier.name == tier_name for tier in tiers):
        return Variant(f"{name} a replica", None, f"tier {tier_name} has a link of its own")
    added: Mapping[str, Any] = {"name": tier_name, "link": link, "capacity": f"{num_bytes // 10**9} GB"}
    tier = Tier.model_validate(added)
    tiers = [tier, *tiers] if link is None else [*tiers, tier]
    return Variant(f"{name} a replica", _with_tiers(scenario, tiers))


def _twice_the_link(scenario: Scenario) -> Variant:
    """Reads and writes of the nearest tier twice as fast; operations and latency stay."""
    tiers = list(scenario.cache.tiers)
    name = "twice the link"
    if not tiers:
        return Variant(name, None, "no tier lies behind a link")
    link = tiers[0].link
    if isinstance(link, InlineLink):
        twice = link.model_copy(update={"read": 2 * link.read, "write": 2 * link.write})
    elif link is None or isinstance(link, str):
        known = load_link(link or build_gpu(scenario).host_link)
        twice = InlineLink(
            read=f"{2 * known.read_bytes_per_s:.0f} B/s",  # type: ignore[arg-type]
            write=f"{2 * known.write_bytes_per_s:.0f} B/s",  # type: ignore[arg-type]
            operation=f"{known.operation_ns} ns",  # type: ignore[arg-type]
            latency=f"{known.latency_ns} ns",  # type: ignore[arg-type]
        )
    else:
        return Variant(name, None, "the link is measured, not described by a rate")
    price = build_tiers(scenario)[0].usd_per_gb_month  # as it follows from the old link
    tiers[0] = tiers[0].model_copy(update={"link": twice, "usd_per_gb_month": price})
    return Variant(f"{name} of {tiers[0].name}", _with_tiers(scenario, tiers), free=True)


def _with_tiers(scenario: Scenario, tiers: list[Tier]) -> Scenario:
    return scenario.model_copy(update={"cache": scenario.cache.model_copy(update={"tiers": tuple(tiers)})})
