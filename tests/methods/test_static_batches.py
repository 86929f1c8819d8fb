"""Every card with a part of the cache, in static batches of an engine like transformers: it runs, or says why it cannot."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from test_catalog import NAMES, QUICKSTART, SAME, card_of, run

from kvsim.engine import steps as steps_module
from kvsim.errors import KvsimError
from kvsim.methods.overlay import lay, without_pages, without_wildcards
from kvsim.scenario.load import parse_scenario

STATIC = lay(
    QUICKSTART,
    {
        "engine": {"profile": "transformers-5.17", "max_num_seqs": 6, "max_model_len": 8192},
        "cache": {"manager": "concatenated"},
        "workload": {"max_requests": 30},
    },
)
PARTS = ("codec", "tokens", "reads")


def cache_keys(name: str) -> dict[str, Any]:
    return dict(card_of(name).overlay.get("cache", {}))


def refused(name: str) -> str:
    """The beginning of what such a card is told."""
    cache = cache_keys(name)
    if "offload" in (cache.get("reads") or {}):
        return "cache.reads.offload: manager 'concatenated' moves nothing"
    tokens = cache.get("tokens") or {}
    if tokens.get("ratios"):
        return "cache.tokens.ratios: the rows of a static batch"
    return "" if tokens.get("compact", True) else "cache.tokens.compact: a static batch is a tensor"


WITH_PARTS = [name for name in NAMES if any(part in cache_keys(name) for part in PARTS)]
THAT_RUN = [name for name in WITH_PARTS if not refused(name)]


def test_most_cards_run() -> None:
    assert len(THAT_RUN) > 25


@pytest.mark.parametrize("name", sorted(set(WITH_PARTS) - set(THAT_RUN)))
def test_the_others_say_why(name: str) -> None:
    with pytest.raises(KvsimError) as raised:
        run(STATIC, [f"method={name}"])
    assert str(raised.value).startswith(refused(name))


@pytest.mark.parametrize("name", THAT_RUN)
def test_it_runs_and_fused_equals_single_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"method={name}", "workload.max_requests=14"]
    summary, fused = run(STATIC, overrides)
    (used,) = summary["methods"]
    assert used["overridden"] == [] and summary["requests_completed"] == 14
    kernels = {entry["kernel"] for entry in summary["time_by_kernel"]}
    assert "decode_attention" not in kernels, "attention over pages"
    monkeypatch.setattr(steps_module, "LONGEST_RUN", 1)
    _, single = run(STATIC, overrides)
    for column in SAME:
        assert np.array_equal(getattr(fused, column), getattr(single, column)), column


@pytest.mark.parametrize("name", [name for name in THAT_RUN if card_of(name).neutral is not None])
def test_at_its_neutral_setting_nothing_changes(name: str) -> None:
    card = card_of(name)
    neutral = lay(lay(STATIC, without_pages(card.overlay, STATIC)), card.neutral)
    _, with_card = run(without_wildcards(neutral))
    _, without = plain()
    for column in SAME:
        assert np.array_equal(getattr(with_card, column), getattr(without, column)), column


@cache
def plain() -> Any:
    return run(STATIC)


@pytest.mark.parametrize("name", [name for name in THAT_RUN if card_of(name).knob is not None])
def test_its_knob_turns_one_way_on_what_is_held(name: str) -> None:
    """Of ideal steps, as the host's time hides the rest; a knob of reuse or of prefill does nothing here."""
    card = card_of(name)
    assert card.knob is not None
    data = lay(
        STATIC, {"engine": {"profile": "ideal", "batching": "static"}, "workload": {"max_requests": 12}}
    )
    found: Sequence[float] = [
        run(data, [f"method={name}", f"{card.knob.key}={yaml.safe_dump(value).strip()}"])[0]["tpot_s"]["mean"]
        for value in card.knob.values
    ]
    assert list(found) in (sorted(found), sorted(found, reverse=True))


def test_the_manager_of_a_card_gives_way_to_that_of_static_batches_only() -> None:
    def manager(data: dict[str, Any], *overrides: str) -> str:
        return parse_scenario(data, overrides).cache.manager

    assert manager(STATIC, "method=snapkv") == manager(STATIC, "method=quest") == "concatenated"
    assert manager(STATIC, "method=vllm-pagedattention") == "paged", "it is nothing but its manager"
    assert manager(QUICKSTART, "method=snapkv") == "paged"
    assert manager(STATIC, "methods=[snapkv]", "cache.manager=paged") == "paged"
