"""Microseconds that one call of the cost model takes: ``python tests/benchmarks/price.py``."""

from __future__ import annotations

import timeit

from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.profile import load_profile, profile_for_gpu
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, Ramp, StepWork
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model


def decode(steps: int, num_seqs: int = 32) -> StepWork:
    sizes = {"num_seqs": num_seqs, "sum_context": Ramp(num_seqs * 1500, num_seqs)}
    return StepWork(steps, num_seqs, num_seqs, (Kernel("decode_attention", sizes),))


def mixed(chunks: int) -> StepWork:
    prefills = [Kernel("prefill_attention", {"new": 900 + i, "past": 512 * i}) for i in range(chunks)]
    sizes = {"num_seqs": 32, "sum_context": 48_000}
    return StepWork(1, 32 + 900 * chunks, 32 + chunks, (Kernel("decode_attention", sizes), *prefills))


def with_copy(steps: int) -> StepWork:
    sizes = {"num_bytes": Ramp(1 << 22, 4096)}
    copy = Kernel("copy_h2d", sizes, lane="h2d")
    return decode(steps)._replace(kernels=(*decode(steps).kernels, copy))


def main() -> None:
    profile = load_profile(profile_for_gpu("h100-sxm"))
    model = KernelCostModel(
        profile, load_model("llama-3.1-8b"), load_gpu("h100-sxm"), 1, EngineTerms(480_000, 1.04, 1.07, 1.2)
    )
    cases = {f"decode, {k} steps": decode(k) for k in (1, 4, 15, 31, 32, 200, 2000)}
    cases |= {f"one step, decode + {n} prefill": mixed(n) for n in (1, 4)}
    cases |= {f"decode + copy in lane h2d, {k} steps": with_copy(k) for k in (1, 16)}
    for name, work in cases.items():
        priced = model.price(work)
        price_us, account_us = (
            min(timeit.repeat(call, number=2_000, repeat=5)) / 2_000 * 1e6
            for call in (
                lambda work=work: model.price(work),
                lambda priced=priced, work=work: model.account(priced, 0, work.steps),
            )
        )
        print(f"{name:40} price {price_us:7.2f} us   account {account_us:7.2f} us")


if __name__ == "__main__":
    main()
