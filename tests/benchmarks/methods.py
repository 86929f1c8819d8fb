"""What per-step work of a cache method costs: ``python tests/benchmarks/methods.py TRACE``.

Plays the trace (any that scenarios read, with contents or without) with each manager of tests/fits and with the manager
that it is built on, in turn, and prints CPU seconds of the loop and their ratio; medians of ``--runs``. With ``--cards``
it plays cards of methods instead, each against its own baseline.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fits"))

from managers.h2o import H2O
from managers.kivi import Kivi
from managers.quest import Quest
from managers.shadowkv import ShadowKV
from managers.snapkv import SnapKV

from kvsim.cache.paged import cache_managers
from kvsim.cache.prefix_tree import PrefixTreeManager
from kvsim.cluster import run as cluster_run
from kvsim.cluster.simulation import Progress, Simulation
from kvsim.methods.load import load_card
from kvsim.methods.overlay import leaves
from kvsim.scenario.load import load_scenario

DDR = [{"name": "ddr", "capacity": "64 GB", "load": "layerwise"}]


class Tree(PrefixTreeManager):
    """Changes nothing, but keeps the tree where no prompt says what it contains, as any subclass does."""


METHODS = {
    "tree": (Tree, "prefix_tree", {}),
    "kivi": (Kivi, "prefix_tree", {"bits": 2, "group": 32, "window": 128}),
    "quest": (Quest, "prefix_tree", {"budget": 512, "page": 16, "dense_layers": 2}),
    "h2o": (H2O, "paged", {"budget": 512}),
    "snapkv": (SnapKV, "paged", {"budget": 512}),
    "shadowkv": (ShadowKV, "paged", {"share": 0.25, "budget": 512, "hit_rate": 0.5}),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("trace", type=Path)
    arguments.add_argument("--requests", type=int, default=2500)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--only", nargs="*", default=list(METHODS))
    arguments.add_argument("--cards", nargs="*", default=[])
    options = arguments.parse_args()
    if options.cards:
        compare_cards(options.trace, options.requests, options.runs, options.cards)
        return
    for name, (manager, _, _) in METHODS.items():
        manager.uses_tiers = True
        cache_managers.register(name)(manager)
    print("method    on            loop CPU s   baseline   ratio   steps    events   baseline's")
    for name in options.only:
        _, baseline, method_options = METHODS[name]
        runs = []
        for _ in range(options.runs):
            of_baseline = play(options.trace, options.requests, baseline, {}, [])
            of_method = play(
                options.trace, options.requests, name, method_options, DDR if name == "shadowkv" else []
            )
            runs.append((of_method, of_baseline))
        method_s, baseline_s = (statistics.median(run[i][0] for run in runs) for i in (0, 1))
        ratio = statistics.median(one[0] / other[0] for one, other in runs)
        (_, steps, events), (_, _, baseline_events) = runs[0]
        print(
            f"{name:9} {baseline:12} {method_s:11.3f} {baseline_s:10.3f} {ratio:7.2f} {steps:8,} {events:8,}"
            f" {baseline_events:8,}",
            flush=True,
        )


def compare_cards(trace: Path, requests: int, runs: int, names: list[str]) -> None:
    """Each card and the scenario that its neutral setting equals, in turn."""
    print("card              CPU s   baseline   ratio   steps    events   baseline's")
    for name in names:
        plain = [f"{key}={value}" for key, value in leaves(load_card(name).baseline) if key]
        found = [
            (play_with(trace, requests, [f"method={name}"]), play_with(trace, requests, plain))
            for _ in range(runs)
        ]
        method_s, baseline_s = (statistics.median(run[i][0] for run in found) for i in (0, 1))
        ratio = statistics.median(one[0] / other[0] for one, other in found)
        (_, steps, events), (_, _, baseline_events) = found[0]
        print(
            f"{name:16} {method_s:6.3f} {baseline_s:10.3f} {ratio:7.2f} {steps:8,} {events:8,} {baseline_events:8,}",
            flush=True,
        )


def play(
    trace: Path, requests: int, manager: str, method_options: dict[str, float], tiers: list[dict[str, str]]
) -> tuple[float, int, int]:
    """:func:`play_with` a manager and its options."""
    overrides = [f"cache.manager={manager}", f"cache.options={method_options}", f"cache.tiers={tiers}"]
    return play_with(trace, requests, overrides)


def play_with(trace: Path, requests: int, overrides: list[str]) -> tuple[float, int, int]:
    """CPU seconds of the loop, simulated steps, events."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(f"{{workload: {{sources: [{{file: {trace}}}]}}}}")
        file.flush()
        scenario = load_scenario(Path(file.name), [*overrides, f"workload.max_requests={requests}"])
    found = []
    real = cluster_run.play

    def timed(simulation: Simulation, progress: Progress | None = None) -> float:
        began = time.process_time()
        wall_s = real(simulation, progress)
        found.append(time.process_time() - began)
        return wall_s

    cluster_run.play = timed
    try:
        outcome = cluster_run.run_scenario(scenario)
    finally:
        cluster_run.play = real
    return found[0], outcome.num_steps, outcome.num_events


if __name__ == "__main__":
    main()
