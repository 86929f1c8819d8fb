"""Small plan spaces: a workload of some hundred requests and a few dozen configurations, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvsim.study.axes import read_axes
from kvsim.study.folder import SweepFolder
from kvsim.study.plan.margin import margin_ratios
from kvsim.study.plan.plan import Space, make_space
from kvsim.study.plan.requirements import Requirements, parse_requirements
from kvsim.study.plan.runner import Runner
from kvsim.study.plan.space import candidates

SCENARIO = """\
name: small
seed: {seed}
cluster: {{router: {router}}}
workload:
  sources:
    - generator: shared_prefixes
      options:
        {{requests: {requests}, groups: {groups}, prefix_tokens: {prefix}, user_tokens: {user},
          output_tokens: {output}, arrivals: {{process: poisson, rate_per_s: {rate}}}}}
"""


@dataclass(frozen=True)
class Small:
    """A space and what it has to meet."""

    space: Space
    wanted: Requirements
    runner: Runner


@pytest.fixture
def small_space(tmp_path: Path) -> Callable[..., Small]:
    """``small_space(slos, settings, attain=None, **workload)``."""

    def make(
        slos: Sequence[str], settings: Sequence[str], attain: float | None = None, **given: object
    ) -> Small:
        workload = {
            "seed": 1, "router": "round_robin", "requests": 200, "groups": 8, "prefix": 2000, "user": 100,
            "output": 40, "rate": 10,
        } | given  # fmt: skip
        path = tmp_path / "small.yaml"
        path.write_text(SCENARIO.format(**workload))
        wanted = parse_requirements(slos, attain)
        space, _ = make_space(candidates(path, read_axes(settings)), wanted, 1.0)
        runner = Runner(SweepFolder(tmp_path / "plan"), wanted, margin_ratios(wanted), jobs=1)
        return Small(space, wanted, runner)

    return make
