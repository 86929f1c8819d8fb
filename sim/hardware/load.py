"""Hardware presets by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.hardware.spec import GpuSpec, LinkSpec

PRESETS = Path(__file__).parent / "presets"


def gpu_presets() -> list[str]:
    return sorted(_presets("gpus"))


def link_presets() -> list[str]:
    return sorted(_presets("links"))


def load_gpu(name: str) -> GpuSpec:
    """The preset GPU of that name.

    Raises:
        ScenarioError: there is none.
    """
    return GpuSpec(name=name, **_preset("gpus", "GPU", name))


def load_link(name: str) -> LinkSpec:
    """The preset link of that name.

    Raises:
        ScenarioError: there is none.
    """
    values = {key: value for key, value in _preset("links", "link", name).items() if key != "source"}
    return LinkSpec(name=name, **values)


def load_media_price(name: str) -> float:
    """USD per GB and month of a kind of memory (ddr5, nvme)."""
    return float(_preset("media", "kind of memory", name)["usd_per_gb_month"])


@cache
def _presets(kind: str) -> dict[str, dict[str, Any]]:
    presets: dict[str, dict[str, Any]] = yaml.safe_load(
        (PRESETS / f"{kind}.yaml").read_text(encoding="utf-8")
    )
    return presets


def _preset(kind: str, word: str, name: str) -> dict[str, Any]:
    presets = _presets(kind)
    if name not in presets:
        raise ScenarioError(f"no {word} is called '{name}'{did_you_mean(name, presets)}")
    return presets[name]
