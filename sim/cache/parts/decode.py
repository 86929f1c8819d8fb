"""The kernels of decode steps over what is held, whoever holds it: choosing, reading in the codec's form, packing, evicting."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import Span, plain_read
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel, Ramp
from kvsim.entities import Batch


def everything(batch: Batch, steps: int) -> Span:
    """All tokens of the batch: what it reads where no policy drops any."""
    num = len(batch.requests)
    first = batch.sum_base + num * (batch.round + 1)
    return Span(1, Ramp(first, num) if steps > 1 else first)


def decode_kernels(
    batch: Batch,
    steps: int,
    spans: Sequence[Span],
    codec: PackedKv | None = None,
    policy: TokenPolicy | None = None,
    reads: ReadSelector | None = None,
) -> tuple[Kernel | Formed, ...]:
    """Look. Of ``steps`` decode steps that attend to ``spans``."""
    num = len(batch.requests)
    if codec is None and reads is None and (policy is None or policy.only_reads):
        return tuple([plain_read(num, span) for span in spans])
    found: list[Kernel | Formed] = []
    if reads is not None:
        found += [*reads.select_work(batch, steps), *reads.new_tokens(batch)]
    scores = policy if policy is not None and policy.writes_scores else None
    for span in spans:
        if codec is not None:
            found += codec.read_work(num, span)
        elif scores is not None:
            found.append(scores.scored_read(num, span))
        else:
            found.append(plain_read(num, span))
    if policy is not None and policy.low_bits is not None:
        found += policy.low_reads(batch, steps)
    if codec is not None:
        if scores is not None:
            found += [scores.score_writing.at(span.tokens) for span in spans]
        found += codec.new_tokens(batch, steps)
    if policy is not None and policy.acts_in_steps:
        found += policy.step_work(batch, steps)
    return tuple(found)
