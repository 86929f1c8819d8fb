"""What the summary says of what stands in front of the replicas: a cache of responses, a small model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvsim.results.columns import RequestColumns
from kvsim.results.outcome import MODELS, VERDICTS, Outcome
from kvsim.results.statistics import ratio, statistics


def responses(outcome: Outcome, done: RequestColumns) -> dict[str, Any] | None:
    """Of completed requests; null without a cache of responses. ``wrong_response_ratio`` is of all of them, hits or not."""
    use = outcome.responses
    if use is None:
        return None
    answered = np.isin(use.verdict[done.request], [VERDICTS.index("hit"), VERDICTS.index("wrong")])
    verdict, lookup_s = use.verdict[done.request], use.lookup_ns[done.request] / 1e9
    wrong = int((verdict == VERDICTS.index("wrong")).sum())
    hits = wrong + int((verdict == VERDICTS.index("hit")).sum())
    return {
        "lookups": len(verdict),
        "hits": hits,
        "wrong_hits": wrong,
        "hit_ratio": ratio(hits, len(verdict)),
        "wrong_response_ratio": ratio(wrong, len(verdict)),
        **_spared(done, answered),
        "hits_from": use.hits_from,
        "source": use.source,
        "lookup_s": statistics(lookup_s),
        "miss_ttft_s": statistics(done.ttft_s[verdict == VERDICTS.index("miss")]),
        "entries": use.num_entries,
        "evicted": use.num_evicted,
    }


def small_model(outcome: Outcome, done: RequestColumns) -> dict[str, Any] | None:
    """Of completed requests; null without a second pool. ``both``: its answer would not do, and the replicas gave another."""
    use = outcome.small_model
    if use is None:
        return None
    model = use.model[done.request]
    counts = {name: int((model == number).sum()) for number, name in enumerate(MODELS)}
    return {
        **counts,
        "needless_large": use.num_needless,
        "answered_ratio": ratio(counts["small"], len(model)),
        **_spared(done, model == MODELS.index("small")),
        "busy_ratio": ratio(use.busy_ns, outcome.makespan_ns * use.num_servers),
        "usd": outcome.makespan_ns / 3.6e12 * use.usd_per_hour,
        "source": use.source,
    }


def _spared(done: RequestColumns, answered: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Tokens that the replicas neither read nor wrote, since ``answered`` requests never reached them."""
    return {
        "spared_input_tokens": int(done.input_tokens[answered].sum()),
        "spared_output_tokens": int(done.output_tokens[answered].sum()),
    }
