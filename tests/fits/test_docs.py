"""The manager that docs/managers.md shows: its blocks are counted right, and its fused steps equal single ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from harness import cache_of, simulate, trace_of

from kvsim.cost.form import Formed
from kvsim.entities import Batch, Request

DOCS = Path(__file__).parents[2] / "docs" / "managers.md"


def test_the_manager_that_the_docs_show() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    names: dict[str, Any] = {"__name__": "docs"}
    exec(code, names)
    make, cache = names["Slots"], cache_of(40, {"slots": 10}, tiers=0)
    trace = trace_of([(100 * i, 6 + 3 * i, 9) for i in range(12)])
    fused, single = simulate(make, trace, cache), simulate(make, trace, cache, unfused=True)
    assert list(fused.recorder.requests) == list(single.recorder.requests)
    assert fused.replicas[0].num_events < single.replicas[0].num_events
    batch = Batch(4)
    batch.add(Request(0, 0, 30, 9, [], []), 30, 9)
    assert [type(item) for item in make(cache).decode_work(batch, 3)] == [Formed, Formed]
