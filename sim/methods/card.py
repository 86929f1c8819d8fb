"""What a method card may say: a published system as an overlay on a scenario, with its claims and limits."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kvsim.methods.overlay import leaves
from kvsim.scenario.part import Part

API_VERSION = 1
CLAIM_KINDS = ("speed", "memory", "capacity", "hit-rate", "cost", "quality")

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Overlay = dict[str, Any]
"""Keys of a scenario, nested as there. A list entry with a ``name`` is laid over the entry of that name, one called
``"*"`` over every entry (``cache: {tiers: [{name: "*", load: layerwise}]}``)."""


class Paper(Part):
    title: Text
    where: str = ""
    """Venue and year, or the address where it can be read."""
    arxiv: str | None = None
    """Only if somebody has looked it up."""

    @field_validator("arxiv")
    @classmethod
    def _is_an_id(cls, arxiv: str | None) -> str | None:
        if arxiv is not None and not re.fullmatch(r"\d{4}\.\d{4,5}", arxiv):
            raise ValueError(f"an arXiv id looks like 2404.12457, found {arxiv!r}")
        return arxiv

    def __str__(self) -> str:
        places = [self.where] if self.where else []
        places += [f"arXiv:{self.arxiv}"] if self.arxiv else []
        return f"{self.title} ({', '.join(places)})" if places else self.title


class Claim(Part):
    """One figure of the paper. A simulator checks every kind but ``quality``, which it only cites."""

    kind: Literal["speed", "memory", "capacity", "hit-rate", "cost", "quality"]
    metric: Text
    value: Text
    baseline: str = ""
    context: str = ""


class Quality(Part):
    """A published figure of how good the answers are; shown beside approximate reuse, never computed."""

    metric: Text
    value: Text
    loss: Annotated[float | None, Field(ge=0, le=100)] = None
    """The same as a number where it can be one: the most that answers lose, in points of 100 or per cent of a score."""
    context: str = ""
    source: Text


class Assumption(Part):
    """A setting that the paper's abstract leaves open: the overlay has a value, the truth lies in ``range``."""

    key: Text
    """Dotted key of the scenario."""
    range: Annotated[tuple[Any, ...], Field(strict=False, min_length=2)]
    """Values from the least to the most plausible one; of numbers the ends count."""
    why: Text


class Knob(Part):
    """The method's main setting, and what turning it up does; a generated test holds the card to it."""

    key: Text
    values: Annotated[tuple[Any, ...], Field(strict=False, min_length=2)]
    metric: Text
    """Dotted key of summary.json, such as ``ttft_s.mean``."""
    direction: Literal["up", "down"]
    """The metric never falls (up) or never rises (down) from one value to the next, and differs at the ends."""


class MethodCard(Part):
    """A published system. ``overlay`` is what it changes; every other key says how far to trust that."""

    api_version: int | None = None
    """Needed of a plug-in's card: :data:`API_VERSION` that it was written for."""
    name: str
    """Small letters, digits and hyphens; for a card that comes with kvsim its file's name."""
    title: str = ""
    """Empty = the paper's title."""
    paper: Paper
    layers: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    overlay: Overlay
    defaults: Overlay = Field(default={})
    """What the method needs where the scenario says nothing, such as a tier; gives way to any key that is stated."""
    parameters: Annotated[tuple[Assumption, ...], Field(strict=False)] = ()
    kernels: Texts = ()
    """Kernels that the method adds to those of every run; each has to be in the profile."""
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()
    modelled: Texts
    approximated: Texts = ()
    out_of_reach: Texts = ()
    quality: Annotated[tuple[Quality, ...], Field(strict=False)] = ()
    probe: Overlay = Field(default={})
    """Laid below ``overlay`` where the card is tested: conditions in which the method shows, such as little HBM."""
    neutral: Overlay | None = None
    """Laid over ``overlay``: the setting at which the method changes nothing; null = it has none."""
    baseline: Overlay = Field(default={})
    """What the run at the neutral setting equals; empty = the scenario without the card."""
    knob: Knob | None = None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise ValueError(f"a card's name has small letters, digits and hyphens, found {name!r}")
        return name

    @field_validator("overlay", "defaults")
    @classmethod
    def _leaves_identity_alone(cls, overlay: Overlay) -> Overlay:
        for key in ("name", "method", "methods"):
            if key in overlay:
                raise ValueError(f"'{key}' belongs to the scenario; a card cannot set it")
        return overlay

    @model_validator(mode="after")
    def _assumptions_hold(self) -> MethodCard:
        set_by_card = dict(leaves(self.defaults)) | dict(leaves(self.overlay))
        for number, parameter in enumerate(self.parameters):
            if parameter.key not in set_by_card:
                raise ValueError(f"parameters.{number}.key: the overlay does not set '{parameter.key}'")
            _check_range(number, parameter, set_by_card[parameter.key])
        return self

    @property
    def text(self) -> str:
        return self.title or self.paper.title


def _check_range(number: int, parameter: Assumption, value: Any) -> None:
    """Numbers only: text with a unit is understood where the scenario is read."""
    span = parameter.range
    if not all(isinstance(each, int | float) for each in (value, *span)):
        return
    if not min(span) <= value <= max(span):
        raise ValueError(
            f"parameters.{number}.range: {parameter.key} is {value}, outside {min(span)} to {max(span)}"
        )
