"""The section about what answers in front of the replicas: reused responses and a small model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvsim.reports import colours, markup
from kvsim.reports.markup import Part
from kvsim.reports.sections import published_quality
from kvsim.results.read import Results
from kvsim.results.units import duration, number, percent, usd

FROM = {
    "exact": "the same request again",
    "similarity": "similarities and labels given in the trace",
    "curve": "a curve given in the scenario",
}


def in_front(results: Results) -> str:
    """Who answered, what it spared the replicas and what it cost; nothing where all requests went to the replicas."""
    summary = results.summary
    responses, small = summary["responses"], summary["small_model"]
    if responses is None and small is None:
        return ""
    facts = [*_spared(responses, small), *(_of_responses(summary) if responses else ())]
    facts += _of_small_model(small) if small else []
    similar = responses is not None and responses["hits_from"] != "exact"
    lead = (
        "Whether a hit is wrong, and what the small model can answer, is given to kvsim, never computed. Money is saved"
        " where fewer replicas will do: sweep cluster.replicas."
    )
    return markup.section(
        "In front of the replicas",
        lead,
        markup.stacked_bar("Who answered", _answered(summary, responses, small)),
        published_quality(summary["cache"]) if similar or small else "",
        markup.facts(facts),
    )


def _answered(
    summary: Mapping[str, Any], responses: Mapping[str, Any] | None, small: Mapping[str, Any] | None
) -> list[Part]:
    done = summary["requests_completed"] or 1
    counts = []
    if responses is not None:
        right = responses["hits"] - responses["wrong_hits"]
        counts += [("reused response", right, colours.GREEN)]
        counts += [("wrong reused response", responses["wrong_hits"], colours.VERMILION)]
    if small is not None:
        counts += [("small model", small["small"], colours.SKY)]
        counts += [("replicas, after the small model", small["both"], colours.PURPLE)]
    rest = done - sum(count for _, count, _ in counts)
    counts.append(("replicas", rest, colours.GREY))
    return [Part(name, count / done, percent(count / done), colour) for name, count, colour in counts]


def _spared(*fronts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    read, written = (
        sum(front[f"spared_{which}_tokens"] for front in fronts if front is not None)
        for which in ("input", "output")
    )
    return [("spared the replicas", f"{number(read)} prompt tokens, {number(written)} output tokens")]


def _of_responses(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = summary["responses"]
    rows = [
        ("look-up", f"{duration(found['lookup_s']['mean'])} mean, {duration(found['lookup_s']['p95'])} p95"),
        ("TTFT of what missed", f"{duration(found['miss_ttft_s']['mean'])} mean"),
        ("TTFT of all", f"{duration(summary['ttft_s']['mean'])} mean"),
        ("kept responses", f"{number(found['entries'])}, {number(found['evicted'])} evicted"),
        ("hits are", FROM[found["hits_from"]]),
    ]
    return rows + ([("source of hits", found["source"])] if found["source"] else [])


def _of_small_model(small: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("small model busy", percent(small["busy_ratio"])),
        ("sent to the replicas though it would have done", number(small["needless_large"])),
        ("cost of the small model", usd(small["usd"])),
        ("source of the small model", small["source"]),
    ]
