"""How evenly tenants were served."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvsim.results.columns import RequestColumns
from kvsim.results.outcome import Outcome


def jain_index(shares: np.ndarray[Any, Any]) -> float | None:
    """(sum x)^2 / (n sum x^2): 1 = all alike, 1 / n = one has everything (Jain, Chiu and Hawe 1984). None if nobody has any."""
    squares = float((shares.astype(np.float64) ** 2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares else None


def fairness(outcome: Outcome, done: RequestColumns) -> dict[str, Any] | None:
    """Jain's index of the tokens (prompt and output) of each tenant's completed requests; None without tenants."""
    num_tenants = len(outcome.tenant_names)
    if not num_tenants:
        return None
    named = done.tenant >= 0
    tokens = (done.input_tokens + done.output_tokens)[named]
    served = np.bincount(done.tenant[named], weights=tokens, minlength=num_tenants)
    return {"tenants": num_tenants, "jain_index_of_served_tokens": jain_index(served)}
