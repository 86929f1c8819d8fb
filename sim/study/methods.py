"""``kvsim methods compare``: one scenario with each method card, KV bytes against goodput."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvsim.errors import KvsimError, ScenarioError
from kvsim.methods.card import MethodCard
from kvsim.methods.load import card_names, load_card
from kvsim.scenario.load import parse_scenario
from kvsim.scenario.read import read_yaml
from kvsim.scenario.schema import Scenario, is_card_file
from kvsim.study.execute import Execute, Progress, complete
from kvsim.study.folder import SweepFolder
from kvsim.study.points import Point, point_of
from kvsim.study.simulate import Row
from kvsim.study.slo import Slos
from kvsim.version import __version__

NONE = "none"
"""The scenario without any card."""
GOODPUT, RATE = "goodput_requests_per_s", "requests_per_s"
NO_EFFECT = ("method", "capacity_", "total_", "usd", "tiers_usd")
"""Beginnings of what may differ where a card does nothing: it may still bring a tier, which costs money."""


@dataclass(frozen=True, slots=True)
class Contenders:
    """The scenario without a card first, then with each that fits; ``refused``: card to the reason."""

    points: list[Point]
    cards: dict[str, MethodCard]
    refused: dict[str, str]


def chosen_names(only: Sequence[str]) -> list[str]:
    """Cards that ``only`` names (comma-separated, names or files), or all that can be simulated.

    Raises:
        ScenarioError: no such card, or one named twice.
    """
    known = card_names()
    names = [name.strip() for text in only for name in text.split(",") if name.strip()]
    for name in names:
        if not is_card_file(name) and name not in known:
            try:
                load_card(name)
            except ScenarioError as error:
                raise ScenarioError(f"--only: {error}") from None
        if names.count(name) > 1:
            raise ScenarioError(f"--only {name}: named twice")
    if only and not names:
        raise ScenarioError("--only: expected names of cards, such as --only kivi,snapkv")
    return names or known


def contenders(path: Path, names: Sequence[str], overrides: Sequence[str], slos: Slos) -> Contenders:
    """A point for each card that ``path`` can be laid under. Overrides win over the cards.

    Raises:
        ScenarioError: the scenario itself cannot be used, with or without the overrides; or a card's file.
    """
    from kvsim.cluster.run import check_parts

    base, folder = read_yaml(path), path.resolve().parent

    def point(card: str, key: str) -> Point:
        scenario = parse_scenario(
            base, [*overrides, f"method={card}"], base=folder, where=path.name, stem=path.stem
        )
        check_parts(scenario)
        return point_of({"method": key}, scenario, slos)

    for override in overrides:
        if override.partition("=")[0].strip() in ("method", "methods"):
            raise ScenarioError(f"--set {override}: cards are chosen by --only here")
    points, cards, refused = [point("null", NONE)], {}, {}
    for name in names:
        card = load_card(name, folder)
        try:
            points.append(point(json.dumps(name), card.name))
        except KvsimError as error:
            refused[card.name] = _line(error)
        if card.name in cards or card.name == NONE:
            raise ScenarioError(f"--only {name}: another card is called '{card.name}', too")
        cards[card.name] = card
    return Contenders(points, cards, refused)


def run_methods(
    those: Contenders, folder: SweepFolder, slos: Slos, execute: Execute, progress: Progress | None = None
) -> dict[str, Any]:
    """Simulate what ``folder`` does not hold yet, write its tables and give the content of its JSON file.

    Raises:
        ScenarioError: the scenario cannot run without a card, or the disk says no.
        KvsimError: a worker process was killed.
    """
    table = complete(those.points, folder, slos, execute, progress)
    if table[0]["error"] is not None:
        raise ScenarioError(f"the scenario without a card cannot run: {table[0]['error']}")
    told = _told(those, slos, table)
    folder.write_tables(told, table)
    return told


def _told(those: Contenders, slos: Slos, table: Sequence[Row]) -> dict[str, Any]:
    scenario = those.points[0].scenario
    entries, refused = [], dict(those.refused)
    for point, row in zip(those.points, table, strict=True):
        if row["error"] is None:
            card = those.cards.get(row["method"])
            entries.append({**row, **_of_card(card, point.scenario, row, table[0])})
        else:
            refused[row["method"]] = row["error"]
    return {
        "name": scenario.name,
        "model": Path(scenario.model).parent.name if "/" in scenario.model else scenario.model,
        "gpu": scenario.cluster.gpu,
        "seed": scenario.seed,
        "slos": slos,
        "goodput": GOODPUT if slos else RATE,
        "methods": entries,
        "refused": [{"method": name, "reason": refused[name]} for name in sorted(refused)],
        "kvsim_version": __version__,
    }


def _of_card(card: MethodCard | None, scenario: Scenario, row: Row, baseline: Row) -> dict[str, Any]:
    """What the page says of a card beside its figures; of the scenario without one, too."""
    facts = scenario.method_facts
    losses = [] if card is None else [each.loss for each in card.quality if each.loss is not None]
    return {
        "paper": None if card is None else str(card.paper),
        "layers": [] if card is None else list(card.layers),
        "claims": [] if card is None else [claim.model_dump(mode="json") for claim in card.claims],
        "approximated": [] if card is None else list(card.approximated),
        "out_of_reach": [] if card is None else list(card.out_of_reach),
        "published_quality": [] if card is None else [each.model_dump(mode="json") for each in card.quality],
        "published_loss": max(losses, default=None),
        "overridden": facts[0]["overridden"] if facts else [],
        "exact": _is_exact(scenario, row),
        "without_effect": card is not None and _same(row, baseline),
    }


def _is_exact(scenario: Scenario, row: Row) -> bool:
    """Every answer is the model's own: nothing is approximated, dropped, skipped or answered by somebody else."""
    cache, cluster = scenario.cache, scenario.cluster
    parts = (cache.codec, cache.tokens, cache.reads, cluster.response_cache, cluster.small_model)
    return all(part is None for part in parts) and not row["approximate_token_ratio"]


def _same(row: Row, baseline: Row) -> bool:
    common = row.keys() & baseline.keys()
    return all(row[key] == baseline[key] for key in common if not key.startswith(NO_EFFECT))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
