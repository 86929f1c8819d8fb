"""What leaves HBM (``cache.reads.offload``, ``cache.tokens.dropped``) with tiers, codec and engine: what goes together."""

from __future__ import annotations

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.errors import ScenarioError
from kvsim.model.spec import ModelSpec
from kvsim.scenario.cache_schema import Holds, Tier
from kvsim.scenario.reads import Disk, Offload
from kvsim.scenario.schema import Scenario


def check_offload(scenario: Scenario, offload: Offload, packed: PackedKv | None) -> None:
    """Raise unless steps can fetch what prompts leave.

    Raises:
        ScenarioError: steps cannot fetch from there, or not in this form.
    """
    where = "cache.reads.offload"
    named = fetched_from(scenario, offload.tier, where)
    if offload.disk is not None:
        _check_disk(scenario, offload.disk, named)
    if packed is not None:
        _check_rows(offload, packed)
    if offload.staging is not None and offload.staging < (most := scenario.engine.max_num_batched_tokens):
        raise ScenarioError(
            f"{where}.staging: room for {offload.staging} tokens, and a step computes up to {most}; set it to {most} or more, "
            "or lower engine.max_num_batched_tokens"
        )


def fetched_from(scenario: Scenario, name: str, where: str) -> list[Tier]:
    """The tier of that name, if there is one.

    Raises:
        ScenarioError: steps cannot fetch from it.
    """
    named = [tier for tier in scenario.cache.tiers if tier.name == name]
    if any(tier.link is not None for tier in named):
        raise ScenarioError(
            f"{where}.tier: steps fetch over the GPU's link to host memory, and '{name}' has another; leave its link out"
        )
    if any(tier.holds != Holds() for tier in named):
        raise ScenarioError(
            f"{where}.tier: what a request leaves is there whole; leave holds of '{name}' out"
        )
    if any(tier.scope == "cluster" for tier in named):
        raise ScenarioError(
            f"{where}.tier: what a request leaves is its replica's; give '{name}' scope: replica"
        )
    return named


def check_dropped(scenario: Scenario, policy: TokenPolicy, model: ModelSpec, packed: PackedKv | None) -> None:
    """Raise ScenarioError unless what ``cache.tokens`` does not keep can be held in its form, or fetched."""
    where = "cache.tokens.dropped"
    if policy.recalled is not None and policy.recalled.tier is not None:
        named, codec = fetched_from(scenario, policy.recalled.tier, where), scenario.cache.codec
        on_the_way = codec is not None and codec.place == "tiers"
        if packed is not None or on_the_way or any(tier.stored_ratio < 1 for tier in named):
            raise ScenarioError(
                f"{where}.tier: what is fetched has 16 bits; leave cache.codec, and stored_ratio of the tier, out"
            )
    if policy.low_bits is None:
        return
    if packed is not None:
        raise ScenarioError(
            f"{where}: fewer bits than what stays has, which cache.codec packs as well; leave out one of the two"
        )
    if model.kv_dtype not in ("bfloat16", "float16"):
        raise ScenarioError(
            f"{where}: it packs KV of 16 bits, the engine holds {model.kv_dtype}; leave out one of the two"
        )


def _check_disk(scenario: Scenario, disk: Disk, above: list[Tier]) -> None:
    """Raise ScenarioError unless the disk lies behind the tier that is fetched from."""
    where, tiers = "cache.reads.offload.disk.tier", scenario.cache.tiers
    if (
        [tier.name for tier in tiers[1:2]] != [disk.tier]
        or list(tiers[:1]) != above
        or tiers[1].behind is not None
    ):
        names = ", ".join(tier.name for tier in tiers) or "none"
        raise ScenarioError(
            f"{where}: '{disk.tier}' has to be the second of cache.tiers, behind the one that steps fetch from; found {names}"
        )
    if tiers[1].scope == "cluster":
        raise ScenarioError(
            f"{where}: what a request leaves is its replica's; give '{disk.tier}' scope: replica"
        )
    if tiers[1].stored_ratio != tiers[0].stored_ratio:
        raise ScenarioError(
            f"{where}: rows have one form below HBM; give '{disk.tier}' the stored_ratio of '{tiers[0].name}', "
            f"{tiers[0].stored_ratio:g}"
        )


def _check_rows(offload: Offload, packed: PackedKv) -> None:
    """Raise ScenarioError unless rows of packed KV can be fetched, and what has 16 bits stays."""
    where = "cache.reads.offload"
    if not packed.is_bits:
        raise ScenarioError(
            f"{where}: of cache.codec it takes fewer bits of keys and values, of which rows can be fetched; leave out what "
            "else the codec has, or offload"
        )
    if offload.trigger == "chunk" and packed.packs_prompts_late:
        raise ScenarioError(
            f"{where}.trigger: chunk, and cache.codec packs when a prompt is through; set cache.codec.trigger: chunk"
        )
    if offload.key_rank is not None:
        raise ScenarioError(f"{where}.key_rank: keys are rebuilt at 16 bits; leave it out, or cache.codec")
    if offload.extent_tokens % packed.group_tokens:
        raise ScenarioError(
            f"{where}.extent_tokens: {packed.group_tokens} tokens share a scale and rows have {offload.extent_tokens}; "
            f"set it to a multiple of {packed.group_tokens}"
        )
    if offload.resident < packed.wide_tokens:
        raise ScenarioError(
            f"{where}.resident: cache.codec holds {packed.wide_tokens} tokens at 16 bits, and {offload.resident} stay in "
            f"HBM; set it to {packed.wide_tokens} or more"
        )
