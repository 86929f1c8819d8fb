"""A published claim as a file: what a paper says, and the runs that would show it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.methods.card import Text
from kvsim.scenario.part import Part
from kvsim.scenario.problems import problem_lines
from kvsim.scenario.read import read_yaml

FOLDER = Path("scenarios") / "papers"
LONGEST = "longest_prompt"
"""Metric of a claim on memory: tokens of the longest prompt that the scenario's memory has room for; nothing is run."""


class Setting(Part):
    """One of several ways to compare: overlays on the scenarios of both sides, of the baseline, of the method."""

    both: dict[str, Any] = Field(default={})
    baseline: dict[str, Any] = Field(default={})
    method: dict[str, Any] = Field(default={})


class Axis(Part):
    """Something that the abstract leaves open: every value is tried, none is chosen."""

    key: Text
    """A key of the scenario or of ``queries``; of a claim on kernels, a variable of their sizes, ``model`` or ``gpu``; with
    ``settings`` any name."""
    values: Annotated[tuple[Any, ...], Field(strict=False)] = ()
    settings: dict[Text, Setting] = Field(default={})
    """In place of values, where several keys change together: name to overlays. Under the method's card, under other axes."""
    of: Literal["both", "baseline", "method"] = "both"
    """Whose runs it changes."""
    why: Text

    @model_validator(mode="after")
    def _has_choices(self) -> Axis:
        if bool(self.values) == bool(self.settings):
            raise ValueError("give one of 'values' and 'settings', with what is tried")
        if self.settings and self.of != "both":
            raise ValueError("of: settings say themselves whose runs they change; leave it out")
        return self

    @property
    def choices(self) -> tuple[Any, ...]:
        """Values, or names of settings."""
        return self.values or tuple(self.settings)


class KernelCall(Part):
    """One kernel, priced for all layers of the model."""

    kernel: Text
    sizes: dict[str, str | int]
    """Numbers, or formulas of the axes' keys, ``num_layers`` and ``num_kv_heads`` of the model, with + - * / ( )."""
    calls: str | float = 1
    """Launches, a number or a formula: ``num_layers`` of a kernel whose table has no axes of a model, ``1 / steps`` of one
    that does not run in every step."""


class Kernels(Part):
    """A claim that a kernel's timings decide, without a run."""

    baseline: Annotated[tuple[KernelCall, ...], Field(strict=False, min_length=1)]
    method: Annotated[tuple[KernelCall, ...], Field(strict=False, min_length=1)]


class ClaimFile(Part):
    """One claim. Its figure is a ratio by which the method is better, so that 1 means no difference; or tokens that fit."""

    name: Text
    system: Text
    """Of ``kvsim methods list``."""
    claim: Text
    """In words: metric, figure, baseline and conditions as the abstract has them."""
    claimed: Annotated[tuple[float, float], Field(strict=False)]
    """[least, most] of the published ratio, of :data:`LONGEST` in tokens; a single figure is both."""
    metric: Text
    """What is compared: a column of sweep.parquet, ``time`` of kernels, ``cost`` of queries, or :data:`LONGEST` of memory."""
    ratio: Literal["method/baseline", "baseline/method"] = "method/baseline"
    """method/baseline where more is better."""
    axes: Annotated[tuple[Axis, ...], Field(strict=False, min_length=1)]
    solve_for: str | None = None
    """An axis of numbers; the result says where along it the claimed figures come out."""
    notes: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """What the comparison leaves out or approximates."""
    scenario: dict[str, Any] | None = None
    baseline: dict[str, Any] = Field(default={})
    """Overlays on ``scenario``; ``method: NAME`` in one lays a card over it."""
    method: dict[str, Any] = Field(default={})
    kernels: Kernels | None = None
    queries: dict[str, Any] | None = None
    """Queries to a cache of answers and two models (:class:`kvsim.study.multiplexing.Multiplexing`), with ``baseline``
    and ``method`` laid over."""

    @model_validator(mode="after")
    def _one_kind(self) -> ClaimFile:
        if sum(part is not None for part in (self.scenario, self.kernels, self.queries)) != 1:
            raise ValueError("a claim needs one of 'scenario', 'kernels' and 'queries'")
        if self.scenario is None and any(axis.settings for axis in self.axes):
            raise ValueError("axes: settings are of a 'scenario'; give values")
        if self.is_capacity and self.scenario is None:
            raise ValueError(f"metric {LONGEST} is of a 'scenario'")
        if not 1 < self.claimed[0] <= self.claimed[1]:
            raise ValueError(
                f"claimed: expected [least, most], both above 1 (better), found {list(self.claimed)}"
            )
        if self.solve_for not in (None, *(axis.key for axis in self.axes)):
            raise ValueError(f"solve_for: no axis is called '{self.solve_for}'")
        keys = [(axis.key, side) for axis in self.axes for side in _sides(axis)]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"axes: '{key[0]}' is given twice")
        return self

    @property
    def is_capacity(self) -> bool:
        """The figure is a number of tokens that fit, not a ratio."""
        return self.metric == LONGEST

    def combinations(self) -> Iterator[Mapping[str, Any]]:
        """All points of the axes: value by key, the last axis running fastest. ``of`` keeps equal keys apart."""
        labels = [axis.key if axis.of == "both" else f"{axis.key} ({axis.of})" for axis in self.axes]
        for values in itertools.product(*(axis.choices for axis in self.axes)):
            yield dict(zip(labels, values, strict=True))

    def settings(self, point: Mapping[str, Any], side: str) -> dict[str, Any]:
        """Value by key of the axes that hold for ``side``."""
        return {
            axis.key: value
            for axis, value in zip(self.axes, point.values(), strict=True)
            if axis.values and side in _sides(axis)
        }

    def overlays(self, point: Mapping[str, Any], side: str) -> Iterator[Mapping[str, Any]]:
        """Of the chosen settings, those that hold for ``side``, to be laid one over the other."""
        for axis, choice in zip(self.axes, point.values(), strict=True):
            if axis.settings:
                yield axis.settings[choice].both
                yield getattr(axis.settings[choice], side)


def _sides(axis: Axis) -> tuple[str, ...]:
    return ("baseline", "method") if axis.of == "both" else (axis.of,)


def claim_files(folder: Path) -> dict[str, Path]:
    """Claims in a folder: name to file.

    Raises:
        ScenarioError: no such folder, or it holds none.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder.is_dir() else {}
    if not found:
        raise ScenarioError(
            f"{folder}: no claims there; they lie in scenarios/papers of kvsim's repository: give --papers that folder"
        )
    return found


def find_claim(name: str, folder: Path) -> Path:
    """The file of the claim ``name``: a path, or a name in ``folder``.

    Raises:
        ScenarioError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = claim_files(folder)
    if name not in known:
        own = [each for each in known if each.startswith(f"{name}-")]
        near = f"; '{name}' has {', '.join(own)}" if own else did_you_mean(name, known)
        raise ScenarioError(f"{folder}: no claim is called '{name}'{near}")
    return known[name]


def load_claim(path: Path) -> ClaimFile:
    """The claim in a file.

    Raises:
        ScenarioError: the first problem, as one line.
    """
    data = read_yaml(path)
    try:
        return ClaimFile.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        lines = [
            f"{path.name}.{key}: {text}" if key else f"{path.name}: {text}"
            for key, text in problem_lines(error, ClaimFile)
        ]
        first = ScenarioError(lines[0])
        for line in lines[1:]:
            first.add_note(line)
        raise first from None
