"""``kvsim explain``: what a scenario comes to, without simulating it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from kvsim.cli.options import AsJson, Overrides, ScenarioFile
from kvsim.cli.output import print_json

if TYPE_CHECKING:
    from kvsim.model.memory import MemoryBudget
    from kvsim.scenario.schema import Scenario

app = typer.Typer(
    help="Explain what a scenario comes to, without simulating it.",
    no_args_is_help=True,
    epilog="Example: kvsim explain memory scenarios/rag_mix.yaml",
)


@app.callback()
def _group() -> None:
    """Keeps ``memory`` a sub-command while it is the only one."""


@app.command(epilog="Example: kvsim explain memory scenarios/rag_mix.yaml --set cluster.gpu=h200-sxm")
def memory(scenario_file: ScenarioFile, overrides: Overrides, as_json: AsJson = False) -> None:
    """Show what each GPU's memory is spent on and how many tokens fit each tier; exit 2 if none do."""
    from kvsim.errors import CapacityError
    from kvsim.model.memory import require_fit
    from kvsim.scenario.build import build_memory
    from kvsim.scenario.load import load_scenario
    from kvsim.scenario.of_pool import pool_scenarios

    scenario = load_scenario(scenario_file, overrides)
    found: list[dict[str, Any]] = []
    problem: CapacityError | None = None
    for name, alone in pool_scenarios(scenario):
        budget = build_memory(alone, check=False)
        own: CapacityError | None = None
        try:
            require_fit(budget)
        except CapacityError as error:
            own = error
        found.append(({"pool": name} if name else {}) | _facts(alone, budget, own))
        problem = problem or own
    if as_json:
        print_json({"pools": found} if scenario.cluster.pools else found[0])
    else:
        for facts in found:
            _print_table(facts)
    if problem is not None:
        raise problem


def _facts(scenario: Scenario, budget: MemoryBudget, problem: Exception | None) -> dict[str, Any]:
    from kvsim.scenario.build import build_model, build_tiers

    per_token = build_model(scenario).kv_bytes_per_token
    return {
        "fits": problem is None,
        "problem": None if problem is None else str(problem),
        **asdict(budget),
        "gpu_memory_utilization": scenario.engine.gpu_memory_utilization,
        "kv_bytes_per_token": per_token,
        "num_tokens": budget.usable_tokens,
        "max_len_requests": budget.max_len_requests,
        "changed_request": _changed_request(scenario, budget),
        "swap": _swap_space(scenario, budget),
        "tiers": [
            {
                "name": tier.name,
                "link": tier.link.name,
                "capacity_bytes": tier.capacity_bytes,
                "num_tokens": tier.capacity_bytes // per_token // budget.block_tokens * budget.block_tokens,
            }
            for tier in build_tiers(scenario)
        ],
    }


def _swap_space(scenario: Scenario, budget: MemoryBudget) -> dict[str, Any] | None:
    """Where preempted requests go: the tier, and how many of the longest requests it has room for, held as in HBM; None where
    they are computed again."""
    from kvsim.scenario.build import build_model, build_parts

    preemption, tiers = scenario.engine.preemption, scenario.cache.tiers
    found = [tier for tier in tiers if preemption.tier in (None, tier.name)]
    tokens = min(budget.max_model_len, budget.request_tokens)
    if preemption.mode == "recompute" or not found or tokens <= 0:
        return None
    held = build_parts(scenario, build_model(scenario)).held_bytes(tokens) * found[0].stored_ratio
    return {"tier": found[0].name, "tokens": tokens, "requests": found[0].capacity / held}


def _changed_request(scenario: Scenario, budget: MemoryBudget) -> dict[str, Any] | None:
    """What cache.codec, cache.tokens and cache.reads make of the longest request that is let in, before its bytes are
    rounded to blocks; None without them. ``at_once``: as many fit once they are prefilled; None
    where nothing of them stays."""
    from kvsim.scenario.build import build_model, build_parts

    parts = build_parts(scenario, build_model(scenario))
    tokens = min(budget.max_model_len, budget.request_tokens)
    if not parts.changes_bytes or tokens <= 0:
        return None
    held = parts.held_bytes(tokens)
    return {
        "by": [
            f"cache.{key}" for key in ("codec", "tokens", "reads") if getattr(scenario.cache, key) is not None
        ],
        "tokens": tokens,
        "prefill_bytes": parts.peak_bytes(tokens),
        "held_bytes": held,
        "unchanged_bytes": tokens * parts.shape.bytes_per_token,
        "at_once": budget.num_blocks * budget.replica_block_bytes / held if held else None,
    }


def _print_table(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    gpus = facts["num_gpus"]
    each = "each GPU"
    if facts["pipeline_parallel"] > 1:
        each = f"each GPU of stage {facts['stage'] + 1} of {facts['pipeline_parallel']}, which holds the fewest blocks"
    console = Console()
    pool = f"pool {facts['pool']}: " if "pool" in facts else ""
    table = Table(title=f"{pool}{facts['model']} on {gpus} x {facts['gpu']}, {each}", title_justify="left")
    table.add_column("memory")
    table.add_column("bytes", justify="right")
    table.add_column("of HBM", justify="right")
    rows = [
        ("HBM", "hbm_bytes"),
        (f"usable ({facts['gpu_memory_utilization']:.0%})", "usable_bytes"),
        ("- weights", "weight_bytes"),
        ("- activations, peak", "activation_bytes"),
        ("- graphs and workspaces", "other_bytes"),
        *([("- recurrent state", "state_bytes")] if facts["state_bytes"] else []),
        ("= left for KV", "kv_bytes"),
    ]
    for label, key in rows:
        table.add_row(label, _gb(facts[key]), f"{facts[key] / facts['hbm_bytes']:.1%}")
    console.print(table)

    changed = facts["changed_request"]
    tiers = Table(title="KV of one replica", title_justify="left")
    for header in ("tier", "capacity", "tokens" if changed is None else "tokens kept whole"):
        tiers.add_column(header, justify="left" if header == "tier" else "right")
    tiers.add_row("hbm", _gb(facts["num_blocks"] * facts["replica_block_bytes"]), f"{facts['num_tokens']:,}")
    for tier in facts["tiers"]:
        tiers.add_row(
            f"{tier['name']} ({tier['link']})", _gb(tier["capacity_bytes"]), f"{tier['num_tokens']:,}"
        )
    console.print(tiers)
    console.print(
        f"{facts['num_blocks']:,} blocks of {facts['block_tokens']} tokens; "
        f"{facts['kv_bytes_per_token']:,} bytes a token; "
        f"{facts['max_len_requests']:.2f} requests of {facts['max_model_len']:,} tokens at once"
        f"{' if kept whole' if changed else ''}",
        highlight=False,
        soft_wrap=True,
    )
    if changed is not None:
        console.print(
            _changed_line(changed, facts["request_tokens"]),
            highlight=False,
            soft_wrap=True,
        )
    if (swap := facts["swap"]) is not None:
        console.print(
            f"preempted requests are swapped to {swap['tier']}: "
            f"room for {swap['requests']:,.2f} requests of {swap['tokens']:,} tokens",
            highlight=False,
            soft_wrap=True,
        )
    if facts["fits"]:
        console.print("fits", highlight=False)


def _changed_line(changed: dict[str, Any], most_tokens: int) -> str:
    at_once = "as many as tiers hold" if changed["at_once"] is None else f"{changed['at_once']:,.2f}"
    return (
        f"with {', '.join(changed['by'])}: at most {most_tokens:,} tokens a request; one of {changed['tokens']:,} takes "
        f"{_gb(changed['prefill_bytes'])} until it is prefilled, then {_gb(changed['held_bytes'])} in place of "
        f"{_gb(changed['unchanged_bytes'])}: {at_once} at once"
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
