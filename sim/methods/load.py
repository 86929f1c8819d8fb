"""Cards by name: those that come with kvsim, a plug-in's, or a YAML file of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.methods.card import API_VERSION, MethodCard
from kvsim.methods.overlay import lay, leaves, merge_overlays, without_pages, without_wildcards
from kvsim.registry import Registry
from kvsim.scenario.problems import problem_lines
from kvsim.scenario.read import read_yaml
from kvsim.scenario.schema import Scenario, beside, is_card_file

methods: Registry[MethodCard] = Registry("method", API_VERSION)
"""Cards of plug-ins: ``"method:NAME" = "my_package:CARD"`` with ``CARD = read_card(path)``."""

_ANY_WORKLOAD = {"sources": [{"name": "any", "generator": "chat"}]}


def shipped_cards() -> dict[str, Path]:
    """Cards that come with kvsim: name to file."""
    folder = Path(str(files("kvsim.methods") / "catalog"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def card_names() -> list[str]:
    """All cards that a scenario can name, those of plug-ins included."""
    return sorted({*shipped_cards(), *methods.names()})


def load_card(name: str, base: Path | None = None) -> MethodCard:
    """The card called ``name``, or the one in a file (relative to ``base``).

    Raises:
        ScenarioError: there is none, or it cannot be used; one line.
    """
    if is_card_file(name):
        return read_card(beside(base or Path.cwd(), name))
    shipped = shipped_cards()
    if name in shipped:
        return read_card(shipped[name])
    if name in methods.names():
        return methods.get(name)
    from kvsim.methods.systems import load_systems

    for system in load_systems():
        if system.name == name:
            raise ScenarioError(f"'{name}' has no card: {system.reason}")
    several = [each.strip() for each in name.split(",")]
    if len(several) > 1:
        raise ScenarioError(
            f"'{name}' are {len(several)} names; several cards are methods: [{', '.join(several)}]"
        )
    raise ScenarioError(f"no method is called '{name}'{did_you_mean(name, card_names())}")


def read_card(path: str | Path) -> MethodCard:
    """The card in a YAML file, checked with all overlays.

    Raises:
        ScenarioError: the first problem, as one line that names the file and the key.
    """
    path = Path(path)
    data = read_yaml(path)
    try:
        card = MethodCard.model_validate(data)
    except ValidationError as error:
        raise _refusal(path.name, problem_lines(error, MethodCard)) from None
    check_card(card, path.name)
    return card


def check_card(card: MethodCard, where: str) -> None:
    """Overlays have keys and values that a scenario can have; kernels are known.

    Raises:
        ScenarioError: the first that does not hold.
    """
    for part, layers in (
        ("overlay", (card.overlay,)),
        ("defaults", (card.defaults,)),
        ("probe", (card.probe,)),
        ("neutral", (card.overlay, card.neutral or {})),
        ("baseline", (card.baseline,)),
    ):
        data: Any = {"name": card.name, "workload": _ANY_WORKLOAD}
        for layer in layers:
            data = lay(data, layer)
        try:
            Scenario.model_validate(data)
        except ValidationError as error:
            # what an entry of a list leaves out, the scenario's entry of the same name has
            found = [(f"{part}.{key}", text) for key, text in problem_lines(error, Scenario, missing=False)]
            if found:
                raise _refusal(where, found) from None
    known = known_kernels()
    for number, kernel in enumerate(card.kernels):
        if kernel not in known:
            raise ScenarioError(
                f"{where}.kernels.{number}: no kernel is called '{kernel}'{did_you_mean(kernel, known)}"
            )


@cache
def known_kernels() -> tuple[str, ...]:
    """Kernels that some shipped profile has timings of."""
    folder = Path(str(files("kvsim.cost") / "profiles"))
    tables = (path.name.removesuffix(".parquet") for path in folder.glob("*.parquet"))
    return tuple(sorted({name.split(".")[-1] for name in tables if not name.endswith(".off_grid")}))


def _refusal(where: str, problems: Sequence[tuple[str, str]]) -> ScenarioError:
    lines = [f"{where}.{key}: {text}" if key else f"{where}: {text}" for key, text in problems]
    first = ScenarioError(lines[0])
    for line in lines[1:]:
        first.add_note(line)
    return first


def lay_methods(
    data: Mapping[str, Any], base: Path, where: str, over: bool
) -> tuple[dict[str, Any], tuple[MethodCard, ...]]:
    """``data`` with the cards that its ``method`` or ``methods`` names, and these.

    ``over``: the cards' keys win over those of ``data``; otherwise they give way. ``where`` begins the messages.

    Raises:
        ScenarioError: no such card, or two that set a key differently.
    """
    rest = {key: value for key, value in data.items() if key not in ("method", "methods")}
    names = _names(data, where)
    cards = tuple(_load_card(name, base, where) for name in names)
    overlay = without_pages(merge_overlays([(card.name, card.overlay) for card in cards]), rest)
    defaults = merge_overlays([(card.name, card.defaults) for card in cards])
    if over:
        laid = lay(lay(defaults, rest, keep_entries=True), overlay)
    else:
        laid = lay(lay(defaults, overlay), rest, keep_entries=True)
    return {**without_wildcards(laid), "methods": names}, cards


def _names(data: Mapping[str, Any], where: str) -> list[str]:
    one, several = data.get("method"), data.get("methods")
    if one is not None and several is not None:
        raise ScenarioError(f"{where}method: 'methods' is given as well; give one of the two")
    key = "method" if one is not None else "methods"
    names = [one] if one is not None else several if several is not None else []
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ScenarioError(f"{where}methods: expected a list, found {names!r}; 'method' takes one name")
    for name in names:
        if not isinstance(name, str):
            hint = "; methods takes a list" if key == "method" else ""
            raise ScenarioError(f"{where}{key}: expected text, found {name!r}{hint}")
        if list(names).count(name) > 1:
            raise ScenarioError(f"{where}{key}: '{name}' is named twice")
    return list(names)


def _load_card(name: str, base: Path, where: str) -> MethodCard:
    try:
        return load_card(name, base)
    except ScenarioError as error:
        if is_card_file(name):
            raise
        raise ScenarioError(f"{where}method: {error}") from None


def facts(card: MethodCard, scenario: Scenario) -> dict[str, Any]:
    """What the results say of a card; plain data."""
    return {
        "name": card.name,
        "title": card.text,
        "paper": str(card.paper),
        "overridden": overridden(card, scenario),
        "quality": [quality.model_dump(mode="json") for quality in card.quality],
    }


def overridden(card: MethodCard, scenario: BaseModel) -> list[str]:
    """Keys of the card that the scenario states otherwise."""
    plain = scenario.model_dump(mode="json")
    with_card = without_wildcards(lay(plain, without_pages(card.overlay, plain)))
    with suppress(ValidationError):  # such as a tier of the card that the scenario has not
        with_card = Scenario.model_validate(with_card).model_dump(mode="json")  # 64 GB and 64000 MB are equal
    stated, wanted = dict(leaves(plain)), dict(leaves(with_card))
    return sorted(key for key, value in wanted.items() if key not in stated or stated[key] != value)
