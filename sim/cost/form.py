"""Kernels as functions of one number: written down once, then priced and counted together in every step that has them.

What a method does in a step is mostly the same kernels again and again, sized by one sum over contexts that differs. A
manager makes a :class:`Form` of such kernels once (for a number of sequences, say) and then says only where it is::

    form = Form([Kernel("page_scores", {"batch": num, "pages": Size() // num}), Kernel(...)])
    return (form.at(batch.pages(16).sum_read(steps)),)

It may stand wherever kernels do; :func:`written_out` gives the kernels that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple, final

import numpy as np

from kvsim.cost.work import Column, Kernel, Ramp, listed


@dataclass(frozen=True, slots=True)
class Size:
    """``factor * (x // over) + plus`` of a form's x. ``factor``, ``over``: whole numbers, at least 1."""

    factor: int = 1
    plus: int = 0
    over: int = 1

    def __mul__(self, factor: int) -> Any:
        """Times a whole number; times 0 it is the number 0."""
        factor = index(factor)
        return Size(self.factor * factor, self.plus * factor, self.over) if factor else 0

    __rmul__ = __mul__

    def __add__(self, plus: int) -> Size:
        return Size(self.factor, self.plus + plus, self.over)

    def __floordiv__(self, over: int) -> Size:
        if self.factor % over == 0 and self.plus % over == 0:
            return Size(self.factor // over, self.plus // over, self.over)
        assert self.factor == 1 and not self.plus, f"{self} // {over} is no size of a form"
        return Size(over=self.over * over)

    def of(self, x: Any, steps: int) -> Any:
        """The size where x is a column over ``steps``."""
        x = divided(x, self.over, steps)
        if type(x) is Ramp:
            return Ramp(self.factor * x.start + self.plus, self.factor * x.step)
        return self.factor * (np.array(x) if type(x) is list else x) + self.plus


def divided(x: Any, over: int, steps: int) -> Any:
    """``x // over`` of a column; a list where it is neither a number nor a line."""
    if over == 1:
        return x
    if type(x) is int:
        return x // over
    if type(x) is Ramp and x[1] % over == 0:
        return Ramp(x[0] // over, x[1] // over)
    return [value // over for value in (x if type(x) is list else listed(x, steps))]


class Form:
    """Some kernels, sizes and calls of which may be a :class:`Size`. Costs once what pricing them costs: keep it."""

    __slots__ = ("decodes", "kernels", "lanes", "num_plain")

    def __init__(self, kernels: Iterable[Kernel]) -> None:
        """``kernels``: without prefill attention. Either sizes vary with x or the number of calls, of each kernel."""
        self.kernels = tuple(kernels)
        self.lanes = tuple(sorted({kernel.lane for kernel in self.kernels} - {"gpu"}))
        self.decodes = any(map(_is_decode, self.kernels))
        """Whether its decode attention shares the launch of a prefill."""
        self.num_plain = 0
        """Sequences, where all there is is decode attention over x tokens."""
        if len(self.kernels) == 1 and self.decodes and type(self.kernels[0].calls) is int:
            sizes: Mapping[str, Any] = self.kernels[0].args
            if sizes["sum_context"] == Size():
                self.num_plain = int(sizes["num_seqs"])

    def at(self, x: Column | list[int]) -> Formed:
        """These kernels where x is a column over steps, of whole numbers."""
        return _new(Formed, (self, x))  # as Formed(self, x), which takes twice as long


@final
class Formed(NamedTuple):
    """A form, and its x: a column, or a number for each step."""

    form: Form
    x: Any

    def kernels(self, steps: int) -> tuple[Kernel, ...]:
        """What it stands for."""
        form, x = self

        def of(value: Any) -> Any:
            return value.of(x, steps) if type(value) is Size else value

        return tuple(
            Kernel(name, {key: of(value) for key, value in args.items()}, of(calls), group, lane)
            for name, args, calls, group, lane in form.kernels
        )


_new = tuple.__new__


def written_out(work: Iterable[Kernel | Formed], steps: int) -> tuple[Kernel, ...]:
    """``work`` of ``steps`` steps as kernels alone."""
    found: list[Kernel] = []
    for item in work:
        if type(item) is Formed:
            found += item.kernels(steps)
        else:
            found.append(item)
    return tuple(found)


def _is_decode(kernel: Kernel) -> bool:
    args: Mapping[str, Any] = kernel.args
    name, _, _, group, lane = kernel
    calls: Any = kernel.calls
    plain = name == "decode_attention" and (group, lane) == ("main", "gpu")
    return plain and type(calls) is not Size and bool(calls == 1) and bool(args["num_seqs"] > 0)
