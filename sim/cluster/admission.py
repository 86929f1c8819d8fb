"""What the front end turns away, or puts off, when it knows which replica a request would go to."""

from __future__ import annotations

from kvsim.engine.replica import Replica
from kvsim.entities import Request
from kvsim.scenario.admission import FrontAdmission, RateLimit

DEFERRED = 1 << 32  # added to a priority: behind any that a scenario gives


class Gate:
    """Decides once for each request, when the router has picked its replica."""

    def __init__(self, setting: FrontAdmission) -> None:
        self._setting = setting
        self._limit = None if setting.rate_limit is None else Buckets(setting.rate_limit)

    def refuses(self, request: Request, replica: Replica, now_ns: int) -> str | None:
        """Change. Why ``request`` is rejected; None: it may go to ``replica``, maybe with another priority."""
        setting = self._setting
        if self._limit is not None and not self._limit.takes(request.tenant, request.arrival_ns):
            return "its tenant is over cluster.admission.rate_limit"
        if setting.max_waiting is None and setting.ttft is None:
            return None
        replica.sync()
        if setting.max_waiting is not None and replica.num_waiting >= setting.max_waiting:
            return "cluster.admission.max_waiting requests wait at its replica"
        if (
            setting.ttft is not None
            and now_ns + wait_ns(request, replica) > request.arrival_ns + setting.ttft
        ):
            if setting.late == "reject":
                return "it would not have its first token within cluster.admission.ttft"
            request.priority += DEFERRED
        return None


def wait_ns(request: Request, replica: Replica) -> int:
    """From now until the client would have the first token of ``request``, as its replica can tell.

    The step under way, and then all prompt tokens that are queued before it and its own uncached ones in full steps, each
    priced as one prompt, and the way out. Decodes in these steps, and waiting for a slot or for KV memory, are left out, so it
    is too low where they matter; prompts in the queue count in full, which is too high where they are cached.
    """
    engine = replica.engine
    tokens = replica.manager.to_compute(request)
    tokens += sum(other.prompt_tokens for other in replica.waiting if not other.priority > request.priority)
    if (partial := replica.partial) is not None:
        tokens += partial.to_compute - partial.computed
    steps, rest = divmod(tokens, engine.max_num_batched_tokens)
    compute_ns = steps * replica.prefill_ns(engine.max_num_batched_tokens, 0) if steps else 0
    if rest:
        compute_ns += replica.prefill_ns(rest, 0)
    return replica.busy_for_ns + compute_ns + engine.front_out_ns


class Buckets:
    """The generic cell rate algorithm (ITU-T I.371): a request may come ``burst`` - 1 intervals before its regular time."""

    def __init__(self, limit: RateLimit) -> None:
        self._interval_ns = 1e9 / limit.requests_per_s
        self._early_ns = (limit.burst - 1) * self._interval_ns
        self._regular: dict[int, float] = {}  # by tenant, when its next request is due

    def takes(self, tenant: int, now_ns: int) -> bool:
        """Change. A request of ``tenant`` has come; whether it is within the limit."""
        regular = self._regular.get(tenant, 0.0)
        if now_ns < regular - self._early_ns:
            return False
        self._regular[tenant] = max(regular, float(now_ns)) + self._interval_ns
        return True
