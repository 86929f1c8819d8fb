"""Cache managers by name."""

from __future__ import annotations

from kvsim.cache.manager import CacheConfig, CacheManager
from kvsim.cache.paged import Paged, cache_managers
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cache.private import PrivatePrefixes
from kvsim.errors import ScenarioError


def load_manager(name: str, config: CacheConfig) -> CacheManager:
    """A new manager.

    Raises:
        ScenarioError: no manager has this name, or the configuration does not suit it.
    """
    found = cache_managers.get(name)
    _check_parts(name, found, config)
    if not issubclass(found, Paged):
        return found(config)  # type: ignore[call-arg]  # it has no blocks to lay parts over
    if config.tokens is not None and "tokens" in found.parts:
        recalled = config.tokens.recalled
        if recalled is not None and recalled.tier is not None:
            from kvsim.cache.recalled import RecalledTokens

            return RecalledTokens(config)
        from kvsim.cache.kept import KeptTokens

        return KeptTokens(config)
    if found is PrefixTreeManager and config.only_counts:
        found = PrivatePrefixes
    if config.codec is not None or config.tokens is not None:
        from kvsim.cache.packed import packed

        found = packed(found)
    if config.reads is not None:
        from kvsim.cache.offloading import offloading
        from kvsim.cache.selective import selective

        found = selective(found) if config.reads.reads.offload is None else offloading(found)
    if config.swap is not None:
        from kvsim.cache.swapping import swapping

        found = swapping(found)
    return found(config)


def _check_parts(name: str, manager: type[CacheManager], config: CacheConfig) -> None:
    """Raise ScenarioError for an option or a part that the manager has no use for."""
    if config.options and not manager.takes_options:
        raise ScenarioError(
            f"cache.options.{next(iter(config.options))}: manager '{name}' has no options; leave them out"
        )
    if config.codec is not None:
        if "codec" not in manager.parts:
            raise ScenarioError(
                f"cache.codec: manager '{name}' holds KV at 16 bits; take paged, prefix_tree or chunks, or concatenated "
                "for static batches, or leave codec out"
            )
        if issubclass(manager, Paged):
            config.codec.check_block(config.block_tokens)
    if config.reads is not None:
        offload = config.reads.reads.offload
        if "reads" not in manager.parts:
            raise ScenarioError(
                f"cache.reads: the steps of manager '{name}' read all of it; take paged or prefix_tree, or concatenated for "
                "static batches, or leave reads out"
            )
        if offload is not None and "offload" not in manager.parts:
            why = f"manager '{name}' moves nothing to a tier for steps to fetch it"
            if issubclass(manager, PrefixTreeManager):
                why = f"what a prompt leaves in a tier is its own, and in '{name}' prompts share blocks"
            raise ScenarioError(f"cache.reads.offload: {why}; set cache.manager to paged")
    if config.swap is not None:
        _check_swap(name, manager, config)
    if config.tokens is None:
        return
    recalled = config.tokens.recalled
    if recalled is not None and recalled.tier is not None and "offload" not in manager.parts:
        raise ScenarioError(
            f"cache.tokens.dropped.tier: manager '{name}' moves nothing to a tier for steps to fetch it; set cache.manager "
            "to paged"
        )
    if "tokens" in manager.parts:
        return
    score, shares = config.tokens.tokens.score, "proportional tokens" in manager.parts
    if config.tokens.tokens.query_conditioned:
        why = f"what score '{score}' keeps is of one query, and refused to the other prompts of '{name}': take another score"
    elif shares and not config.tokens.is_proportional:
        why = (
            f"prompts share blocks in '{name}', so each has to keep the same share of its tokens: "
            "ratio, schedule chunk and compact, with no split over layers or heads and what goes discarded or merged"
        )
    elif shares:
        return
    else:
        why = f"manager '{name}' holds all tokens: leave tokens out"
    raise ScenarioError(
        f"cache.tokens: {why}; or set cache.manager to paged, or to concatenated for static batches"
    )


def _check_swap(name: str, manager: type[CacheManager], config: CacheConfig) -> None:
    """Raise ScenarioError where preempted requests cannot be swapped."""
    if "swap" not in manager.parts:
        raise ScenarioError(
            f"engine.preemption: manager '{name}' does not swap; set cache.manager to paged or none, or preemption to recompute"
        )
    for key, part in (("tokens", config.tokens), ("reads", config.reads)):
        if part is not None:
            raise ScenarioError(
                f"engine.preemption: what cache.{key} leaves of a request is not swapped; set preemption to recompute"
            )
