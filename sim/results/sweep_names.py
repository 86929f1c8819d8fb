"""What the keys of a sweep are called where people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def setting_texts(others: Mapping[str, Any]) -> list[str]:
    """``engine.gpu_memory_utilization`` 0.5 as "gpu_memory_utilization 0.5", with the owner of a plain ``capacity``."""
    return [f"{short_key(key)} {value}" for key, value in others.items()]


def short_key(key: str) -> str:
    """The last word of a key, with the one before where it says too little."""
    steps = key.split(".")
    return " ".join(steps[-2:]) if steps[-1] in ("capacity", "seed", "link", "read", "write") else steps[-1]
