"""The kernels of decode steps over what is held, whoever holds it: choosing, reading in the codec's form, packing, evicting."""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.span import Span, mean_context, plain_read
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.cost.work import Kernel, Ramp
from kvsim.entities import Batch


def everything(batch: Batch, steps: int) -> Span:
    """All tokens of the batch: what it reads where no policy drops any."""
    num = len(batch)
    first = batch.sum_context + num
    return Span(1, Ramp(first, num) if steps > 1 else first)


def decode_kernels(
    batch: Batch,
    steps: int,
    spans: Sequence[Span],
    codec: PackedKv | None = None,
    policy: TokenPolicy | None = None,
    reads: ReadSelector | None = None,
) -> tuple[Kernel, ...]:
    """Look. Of ``steps`` decode steps that attend to ``spans``."""
    num = len(batch)
    found = [] if reads is None else [*reads.select_work(batch, steps), *reads.new_tokens(batch)]
    scores = policy if policy is not None and policy.writes_scores else None
    for span in spans:
        if codec is not None:
            found += codec.read_work(num, span, steps)
        elif scores is not None:
            sizes = {
                "batch": num,
                "context": mean_context(span.tokens, num, steps),
                "num_bytes": span.tokens * scores.shape.bytes_per_token,
            }
            found.append(Kernel("decode_with_scores", sizes, calls=1 if span.share == 1 else span.share))
        else:
            found.append(plain_read(num, span))
    if policy is not None and policy.low_bits is not None:
        found += policy.low_reads(batch, steps)
    if codec is not None:
        if scores is not None:
            num_bytes = _score_bytes(scores.shape.num_heads * scores.shape.num_layers)
            found += [Kernel("write_scores", {"num_bytes": span.tokens * num_bytes}) for span in spans]
        found += codec.new_tokens(batch, steps)
    return (*found, *(policy.step_work(batch, steps) if policy is not None else ()))


def _score_bytes(rows: int) -> int:
    """Of the probabilities of a token in so many heads, in float32."""
    return 4 * rows
