"""The contract between the engine and whatever prices its steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from kvsim.cost.work import Kernel, Ramp, StepWork

PROVENANCES = ("measured", "imported", "derived", "extrapolated")


class Priced(ABC):
    """Prices of one run of steps."""

    __slots__ = ()

    step_ns: Sequence[int]  # device time of each step, integer nanoseconds; of long runs an int64 array

    @property
    def lattice(self) -> range | None:
        """The same on the lattice (:mod:`kvsim.cost.lattice`), cut to whole nanoseconds by ``>> LATTICE_BITS``, where it grows
        evenly; None = somewhere it does not, or nobody knows."""
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

    def spared_tokens(self, num_seqs: int, read_again: int) -> int:
        """Of ``read_again`` tokens that ``num_seqs`` decodes read beside the first that reads them: how many cost nothing,
        in reads of their own."""
        return 0

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


def mixed_work(
    tokens: int,
    num_seqs: int,
    sum_context: int,
    chunks: Sequence[tuple[int, int]],
    sampled: int,
) -> StepWork:
    """What :meth:`CostModel.mixed_ns` prices."""
    kernels = [Kernel("prefill_attention", {"new": new, "past": past}) for new, past in chunks]
    if num_seqs:
        kernels.insert(0, Kernel("decode_attention", {"num_seqs": num_seqs, "sum_context": sum_context}))
    return StepWork(1, tokens, sampled, tuple(kernels))
