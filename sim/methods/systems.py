"""The published systems that kvsim is made for: which have a card, and what the others lack."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from kvsim.methods.card import Claim
from kvsim.scenario.read import read_yaml


@dataclass(frozen=True, slots=True)
class System:
    """One of ``systems.yaml``."""

    name: str
    title: str
    layers: tuple[str, ...]
    needs: tuple[str, ...]  # mechanisms that a card would need, as text; none where there is one
    claims: tuple[Claim, ...]

    @property
    def reason(self) -> str:
        """Why it has no card."""
        return f"it needs {'; '.join(self.needs)}" if self.needs else "nobody has written one yet"


def _read() -> dict[str, Any]:
    return read_yaml(Path(str(files("kvsim.methods") / "systems.yaml")))


def load_mechanisms() -> dict[str, str]:
    """What systems without a card need: name to text."""
    return dict(_read()["mechanisms"])


def load_systems() -> list[System]:
    """All systems, by name."""
    data = _read()
    mechanisms = data["mechanisms"]
    return [
        System(
            name=entry["id"],
            title=entry["title"],
            layers=tuple(entry["layers"]),
            needs=tuple(mechanisms[need] for need in entry.get("needs", ())),
            claims=tuple(Claim.model_validate(claim) for claim in entry["claims"]),
        )
        for entry in data["systems"]
    ]


def list_methods() -> list[dict[str, Any]]:
    """Every system and every card: ``{"name", "layers", "runnable", "reason", "paper"}``, by name.

    Raises:
        ScenarioError: a card that comes with kvsim or a plug-in cannot be used.
    """
    from kvsim.methods.load import card_names, load_card

    rows = {
        system.name: {
            "name": system.name,
            "layers": list(system.layers),
            "runnable": False,
            "reason": system.reason,
            "paper": system.title,
        }
        for system in load_systems()
    }
    for name in card_names():
        card = load_card(name)
        rows[name] = {
            "name": name,
            "layers": list(card.layers),
            "runnable": True,
            "reason": "",
            "paper": str(card.paper),
        }
    return [rows[name] for name in sorted(rows)]
