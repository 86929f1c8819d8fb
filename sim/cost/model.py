"""The contract between the engine and whatever prices its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kvsim.cost.work import Kernel, Ramp, StepWork

if TYPE_CHECKING:
    from kvsim.cost.form import Formed

PROVENANCES = ("measured", "imported", "derived", "extrapolated")


class Priced(ABC):
    """Prices of one run of steps."""

    __slots__ = ()

    step_ns: Sequence[int]  # device time of each step, integer nanoseconds; of long runs an int64 array
    # where there is a ``lattice``
    least: int  # none of it is less
    bits: int  # of a nanosecond

    @property
    def lattice(self) -> Sequence[int] | None:
        """The same as whole numbers of 2**-bits ns (:mod:`kvsim.cost.lattice`), cut to nanoseconds by ``>> bits``; None = nobody
        knows."""
        return None


class CostModel(ABC):
    """Prices kernels. Pure but for :meth:`account`, which only counts what was used."""

    spares_reads = False  # :meth:`spared_tokens` may find some

    @abstractmethod
    def price(self, work: StepWork, link_share: Mapping[str, float] | None = None) -> Priced:
        """Device time of every step of ``work``, each rounded to an integer nanosecond once.

        Elementwise over steps: rows j.. of a price equal the price of rows j.. of the work.
        ``link_share``: share of the host link (lanes h2d, d2h) that a copy inside the step gets, 1 if absent.

        Raises:
            CalibrationError: the profile lacks a kernel, or extrapolation is refused.
        """

    def price_decodes(self, num_seqs: int, sum_context: int, steps: int) -> Priced:
        """:meth:`price` of plain decode steps: ``num_seqs`` sequences read ``sum_context`` tokens in the first step,
        their own new ones included, and one more each in every further step."""
        sums = Ramp(sum_context, num_seqs) if steps > 1 else sum_context
        kernel = Kernel("decode_attention", {"num_seqs": num_seqs, "sum_context": sums})
        return self.price(StepWork(steps, num_seqs, num_seqs, (kernel,)))

    def mixed_ns(
        self,
        tokens: int,
        num_seqs: int,
        sum_context: int,
        chunks: Sequence[tuple[int, int]],
        sampled: int,
        counts: bool = True,
    ) -> int:
        """Device time of one plain step of ``tokens`` tokens, in nanoseconds: a decode as in :meth:`price_decodes` (or none)
        and prefill chunks of (new, past) tokens. ``counts``: change; it is simulated time from now on."""
        priced = self.price(mixed_work(tokens, num_seqs, sum_context, chunks, sampled))
        if counts:
            self.account(priced, 0, 1)
        return int(priced.step_ns[0])

    def step_ns(
        self,
        tokens: int,
        sampled: int,
        kernels: Sequence[Kernel | Formed],
        chunks: Sequence[tuple[int, int]],
        link_share: Mapping[str, float] | None = None,
    ) -> int:
        """Change. Device time of one step of any kernels and then of plain prefill chunks of (new, past) tokens, in nanoseconds:
        it is simulated time from now on."""
        work = (*kernels, *map(prefill_of, chunks))
        priced = self.price(StepWork(1, tokens, sampled, work), link_share)
        self.account(priced, 0, 1)
        return int(priced.step_ns[0])

    def chunk_price(self, tokens: int, num_seqs: int) -> Callable[[int, int], int]:
        """:meth:`mixed_ns` of steps with one chunk, which fills what ``num_seqs`` decodes leave of ``tokens``, as a function of
        the decodes' ``sum_context`` and the chunk's past; each call is simulated time."""
        new, sampled = tokens - num_seqs, num_seqs + 1
        return lambda sum_context, past: self.mixed_ns(tokens, num_seqs, sum_context, ((new, past),), sampled)

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        """Of ``read_again`` tokens, ``shared_tokens`` different ones, that decodes read beside the first that reads them: how
        many cost nothing, in reads of their own."""
        return 0

    def price_run(
        self,
        num_seqs: int,
        kernels: tuple[Kernel | Formed, ...],
        steps: int,
        link_share: Mapping[str, float] | None = None,
    ) -> Priced:
        """:meth:`price` of decode-only steps of ``num_seqs`` sequences, with any kernels."""
        return self.price(StepWork(steps, num_seqs, num_seqs, kernels), link_share)

    @abstractmethod
    def account(self, priced: Priced, start: int, stop: int) -> int:
        """Change. Count rows start..stop of ``priced`` as simulated time, by kernel and provenance; their sum in
        nanoseconds. ``priced`` is of this cost model."""

    def account_each(
        self, priced: Sequence[Priced | None], stops: Sequence[int], times_ns: Sequence[int]
    ) -> None:
        """Change. :meth:`account` of the first ``stops[i]`` rows of each ``priced[i]`` (None = nothing to count), which
        take ``times_ns[i]``."""
        for one, stop in zip(priced, stops, strict=True):
            if one is not None:
                self.account(one, 0, stop)

    @abstractmethod
    def account_engine(self, time_ns: int) -> None:
        """Change. Count simulated time that no kernel explains, as the engine's."""

    @abstractmethod
    def used_ns(self) -> dict[tuple[str, str], int]:
        """Simulated nanoseconds so far by (kernel, provenance); provenance is one of PROVENANCES."""


def prefill_of(chunk: tuple[int, int]) -> Kernel:
    """Of a chunk of (new, past) tokens."""
    return Kernel("prefill_attention", {"new": chunk[0], "past": chunk[1]})


def mixed_work(
    tokens: int,
    num_seqs: int,
    sum_context: int,
    chunks: Sequence[tuple[int, int]],
    sampled: int,
) -> StepWork:
    """What :meth:`CostModel.mixed_ns` prices."""
    kernels = [*map(prefill_of, chunks)]
    if num_seqs:
        kernels.insert(0, Kernel("decode_attention", {"num_seqs": num_seqs, "sum_context": sum_context}))
    return StepWork(1, tokens, sampled, tuple(kernels))
