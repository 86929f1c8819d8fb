"""Hardware presets by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.hardware.spec import GpuSpec, LinkSpec
from kvsim.yaml_text import parse_yaml

PRESETS = Path(__file__).parent / "presets"


def gpu_presets() -> list[str]:
    return sorted(_presets("gpus"))


def link_presets() -> list[str]:
    return sorted(_presets("links"))


def load_gpu(name: str) -> GpuSpec:
    """The preset GPU of that name, or the one that a calibrated profile (the path of its YAML file) was made on.

    Raises:
        ScenarioError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return _gpu_of_profile(Path(name))
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


def media_price_source(name: str) -> str:
    """Where that price comes from."""
    return str(_preset("media", "kind of memory", name)["source"])


def _gpu_of_profile(path: Path) -> GpuSpec:
    """The preset behind the profile if there is one, else the GPU as the profile's header describes it, without a price."""
    try:
        about = parse_yaml(path.read_text(encoding="utf-8"))["gpu"]
        if about["name"] in gpu_presets():
            return load_gpu(about["name"])
        return GpuSpec(
            name=about["name"],
            hbm_bytes=int(about["hbm_bytes"]),
            hbm_bytes_per_s=float(about["hbm_bytes_per_s"]),
            flops_per_s={dtype: float(peak) for dtype, peak in about["flops_per_s"].items()},
            nvlink_bytes_per_s=float(about.get("nvlink_bytes_per_s", 0.0)),
            usd_per_hour=0.0,
            host_link=about.get("host_link", "pcie-gen5-x16"),
            sources={"usd_per_hour": "none: set cluster.usd_per_gpu_hour"},
            device=str(about.get("device", "")),
        )
    except OSError:
        raise ScenarioError(f"{path}: no such profile") from None
    except KeyError as error:
        raise ScenarioError(
            f"{path}: its gpu has no {error}, so no GPU can be made of it; a profile of --device cpu stands for none"
        ) from None
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise ScenarioError(f"{path}: not a profile that kvsim calibrate wrote: {error}") from None


@cache
def _presets(kind: str) -> dict[str, dict[str, Any]]:
    presets: dict[str, dict[str, Any]] = parse_yaml((PRESETS / f"{kind}.yaml").read_text(encoding="utf-8"))
    return presets


def _preset(kind: str, word: str, name: str) -> dict[str, Any]:
    presets = _presets(kind)
    if name not in presets:
        raise ScenarioError(f"no {word} is called '{name}'{did_you_mean(name, presets)}")
    return presets[name]
