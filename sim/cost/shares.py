"""Steps of a replica whose requests are divided: micro-batches of a pipeline, groups with attention of their own (DP).

A step of the replica is a *round*: every running request gets its token once. Its decodes are divided evenly into as many
shares as there are stages x groups. A prefill chunk falls into any of the micro-batches (when its prompt arrives decides
which one in an engine; here a hash of its sizes), there into the group with the fewest tokens, and is cut where a share would
exceed its token budget. All shares are under way at once, each through all stages, so a round takes as long as its
largest share takes through the whole model: a stage works on one share while the others work on the rest. Experts that
groups share get the tokens of all groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

from kvsim.cost.form import written_out
from kvsim.cost.model import CostModel, Priced, mixed_work
from kvsim.cost.work import Ramp, StepWork, listed
from kvsim.errors import CalibrationError
from kvsim.model.parallel import Parallel

Chunks = list[tuple[int, int]]
Share = tuple[int, int, int, Sequence[tuple[int, int]], int]
"""Tokens, decodes, the sum of their contexts, prefill chunks, sampled rows."""
FINE = 4
"""Groups of a data-parallel replica get this many kinds of uneven for each group: how many tokens all of them have, over those of
the largest, rounded up to a quarter."""


class SharedPriced(Priced):
    """What the largest share takes, and the cost model that priced it."""

    __slots__ = ("model", "of", "step_ns")

    def __init__(self, model: CostModel, of: Priced) -> None:
        self.model, self.of, self.step_ns = model, of, of.step_ns


class SharedSteps(CostModel):
    """A round takes what its dearest share takes."""

    def __init__(self, make: Callable[[float], CostModel], parallel: Parallel, budget: int) -> None:
        """``make(groups)``: prices one share where all groups together have ``groups`` times its tokens, which is what the
        experts get; 1 to ``parallel.data``. ``budget``: tokens of one share."""
        self._make, self._parallel, self._budget = make, parallel, budget
        self._shares = parallel.shares
        self._models: dict[int, CostModel] = {}
        self._largest = self._model(parallel.data)
        self.spares_reads = self._largest.spares_reads

    def _model(self, groups: float) -> CostModel:
        """The one for so many times the tokens, rounded up."""
        quarters = min(self._parallel.data * FINE, max(FINE, ceil(groups * FINE)))
        found = self._models.get(quarters)
        if found is None:
            found = self._models[quarters] = self._make(quarters / FINE)
        return found

    def price(self, work: StepWork, link_share: Mapping[str, float] | None = None) -> Priced:
        """Plain steps only: a decode and prefill chunks.

        Raises:
            CalibrationError: a cache method's kernels, which nobody divides.
        """
        num_seqs: Any = 0
        sums: Any = None
        chunks: list[tuple[Any, Any]] = []
        for name, args, calls, group, lane in written_out(work.kernels, work.steps):
            plain = type(calls) is int and calls == 1 and (group, lane) == ("main", "gpu")
            if plain and name == "decode_attention" and sums is None:
                num_seqs, sums = args["num_seqs"], args["sum_context"]
            elif plain and name == "prefill_attention":
                chunks.append((args["new"], args["past"]))
            else:
                raise CalibrationError(
                    f"kernel {name}: with pipeline_parallel or data_parallel only steps without kernels of a cache method "
                    "can be priced; set both to 1, or take cache.manager prefix_tree, paged or none"
                )
        if not chunks and type(num_seqs) is int and num_seqs:
            contexts = listed(sums, work.steps)
            if contexts == listed(Ramp(contexts[0], num_seqs), work.steps):
                return self.price_decodes(num_seqs, contexts[0], work.steps)
        if work.steps > 1:
            raise CalibrationError(
                "with pipeline_parallel or data_parallel a run of steps has to be plain decodes"
            )
        decodes = (int(num_seqs), int(sums)) if num_seqs else (0, 0)
        some = [(int(n), int(p)) for n, p in chunks]
        model, share = self._dearest(work.tokens, *decodes, some, work.sampled)
        return SharedPriced(model, model.price(mixed_work(*share)))

    def price_decodes(self, num_seqs: int, sum_context: int, steps: int) -> Priced:
        most = -(-num_seqs // self._shares)
        model = self._model(num_seqs / self._parallel.pipeline / most)
        return SharedPriced(model, model.price_decodes(most, sum_context * most // num_seqs, steps))

    def mixed_ns(
        self,
        tokens: int,
        num_seqs: int,
        sum_context: int,
        chunks: Sequence[tuple[int, int]],
        sampled: int,
        counts: bool = True,
    ) -> int:
        if not chunks:
            return super().mixed_ns(tokens, num_seqs, sum_context, chunks, sampled, counts)
        model, share = self._dearest(tokens, num_seqs, sum_context, chunks, sampled)
        return model.mixed_ns(*share, counts)

    def _dearest(
        self,
        tokens: int,
        num_seqs: int,
        sum_context: int,
        chunks: Sequence[tuple[int, int]],
        sampled: int,
    ) -> tuple[CostModel, Share]:
        """Which share of a step takes longest, and what prices it."""
        rest = sampled - num_seqs
        total = tokens / self._parallel.pipeline
        shares = {(decodes, tuple(some)) for decodes, some in self._divide(num_seqs, chunks)}
        dearest: tuple[CostModel, Share] | None = None
        longest_ns = -1
        for decodes, some in sorted(shares):
            tokens = decodes + sum(new for new, _ in some)
            if not tokens:
                continue
            model = self._model(total / tokens)
            context = sum_context * decodes // num_seqs if num_seqs else 0
            ends = min(len(some), max(0, rest))  # prompts that end in this step, at most
            share = tokens, decodes, context, some, decodes + ends
            time_ns = model.mixed_ns(*share, counts=False)
            if time_ns > longest_ns:
                longest_ns, dearest = time_ns, (model, share)
        assert dearest is not None, "a step of no tokens"
        return dearest

    def _divide(self, num_seqs: int, chunks: Sequence[tuple[int, int]]) -> list[tuple[int, Chunks]]:
        """(decodes, prefill chunks) of each share: one micro-batch after the other, its groups side by side."""
        fewest, more = divmod(num_seqs, self._shares)
        shares: list[tuple[int, Chunks]] = [(fewest + (i < more), []) for i in range(self._shares)]
        tokens = [decodes for decodes, _ in shares]
        stages, groups = self._parallel.pipeline, self._parallel.data
        for place, (new, past) in enumerate(chunks):
            slot = _any_of(stages, place, new, past)
            tried = 0
            while new > 0:
                of_slot = range(slot * groups, (slot + 1) * groups)
                least = min(of_slot, key=tokens.__getitem__)
                room = self._budget - tokens[least]
                some = new if stages == 1 or new <= room or tried >= stages else max(0, room)
                if some:
                    shares[least][1].append((some, past))
                    tokens[least] += some
                    new, past = new - some, past + some
                slot, tried = (slot + 1) % stages, tried + 1
        return shares

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        """Each share has a first reading of its own: no fewer than this are read again if the decodes are dealt out evenly."""
        within = read_again - (self._shares - 1) * shared_tokens
        return self._largest.spared_tokens(within, shared_tokens) if within > 0 else 0

    def account(self, priced: Priced, start: int, stop: int) -> int:
        assert isinstance(priced, SharedPriced)
        return priced.model.account(priced.of, start, stop)

    def account_engine(self, time_ns: int) -> None:
        self._largest.account_engine(time_ns)

    def used_ns(self) -> dict[tuple[str, str], int]:
        total: Counter[tuple[str, str]] = Counter()
        for model in self._models.values():
            total.update(model.used_ns())
        return dict(total)


def _any_of(number: int, *sizes: int) -> int:
    """One of ``number`` without preference, always the same for the same ``sizes``."""
    mixed = 0
    for size in sizes:
        mixed = (mixed * 0x9E3779B1 + size + 1) % (1 << 32)
    return (mixed ^ mixed >> 15) * 0x85EBCA6B % (1 << 32) * number >> 32
