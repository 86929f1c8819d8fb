"""The folder of a plan: plan.json, report.html, report.md, and the answer's own result folder."""

from __future__ import annotations

import json
from typing import Any

from kvsim.study.folder import REPORT, SweepFolder
from kvsim.study.plan.plan import Space

PLAN, MARKDOWN, ANSWER = "plan.json", "report.md", "answer"


def write_plan(folder: SweepFolder, told: dict[str, Any], space: Space) -> None:
    """Run the answer (or what comes nearest) once more in full into ``answer/``, then write what the plan says.

    Raises:
        KvsimError: the disk says no, or plotly is missing.
    """
    from kvsim.cluster.run import run_scenario
    from kvsim.reports.html import write_report
    from kvsim.reports.plan import write_page
    from kvsim.reports.plan_markdown import markdown
    from kvsim.results.folder import write_results
    from kvsim.results.read import load_results

    point = told["answer"] if told["feasible"] else told["reachable"]
    results = None
    if point is not None:
        outcome = run_scenario(space.candidates[point["number"]].scenario)
        write_results(outcome, folder.path / ANSWER, force=True, finish=write_report)
        results = load_results(folder.path / ANSWER)
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    folder.write(PLAN, text.encode())
    folder.write(MARKDOWN, markdown(told, results).encode())
    write_page(folder.path / REPORT, told, results)
