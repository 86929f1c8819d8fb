"""Finds a model: a preset of this package, or any Hugging Face ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.model.hf import spec_from_config
from kvsim.model.spec import ModelSpec
from kvsim.yaml_text import parse_yaml

PRESETS = Path(__file__).parent / "presets"


def model_presets() -> list[str]:
    """Names that :func:`load_model` knows without a file."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_model(name_or_path: str | Path, base: Path | None = None) -> ModelSpec:
    """The model of a preset name, or of a config.json or of the folder that holds one.

    A relative path starts at ``base`` (default: the working directory).

    Raises:
        ScenarioError: no such preset or file, or a model that kvsim cannot express.
    """
    name = str(name_or_path)
    if name in model_presets():
        preset = parse_yaml((PRESETS / f"{name}.yaml").read_text())
        return spec_from_config(preset["config"], name, where=f"{name}.yaml")
    path = (base or Path()) / name
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        preset = _preset_in(name)
        if "/" in name or name.endswith(".json"):
            hint = f"; did you mean the preset '{preset}'?" if preset else "; give a preset or a config.json"
            raise ScenarioError(f"{path}: no such model config{hint}")
        hint = did_you_mean(preset or name, model_presets())
        raise ScenarioError(f"no model preset and no file is called '{name}'{hint}")
    return _read_config(path)


def _preset_in(name: str) -> str | None:
    """The preset that a Hugging Face id stands for: ``Qwen/Qwen3-30B-A3B``, ``meta-llama/Llama-3.1-8B-Instruct``."""
    last = name.rsplit("/", 1)[-1].lower()
    return max((preset for preset in model_presets() if preset in last), key=len, default=None)


def _read_config(path: Path) -> ModelSpec:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path}, line {error.lineno}: bad JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ScenarioError(
            f"{path}: expected the keys of a Hugging Face config.json, found {type(config).__name__}"
        )
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return spec_from_config(config, name, where=path.name)
