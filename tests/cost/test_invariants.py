"""Prices do not depend on how steps are asked for, and counted time adds up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim.cost import lines
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.lattice import quantise
from kvsim.cost.model import CostModel
from kvsim.cost.profile import load_profile
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, Ramp, StepWork, column
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model

TERMS = EngineTerms(step_ns=480_000.3, prefill_factor=1.013, mixed_attention_factor=1.2)


@cache
def model() -> KernelCostModel:
    return KernelCostModel(
        load_profile("h100-sxm-vllm-0.24.0"), load_model("llama-3.1-8b"), load_gpu("h100-sxm"), 1, TERMS
    )


def step_times(work: StepWork) -> list[int]:
    return [int(time_ns) for time_ns in model().price(work).step_ns]


@st.composite
def decode_runs(draw: st.DrawFn, most_steps: int = 100) -> StepWork:
    num_seqs = draw(st.integers(1, 600))
    start = num_seqs * draw(st.integers(1, 3_000)) + draw(st.integers(0, 500))
    step = draw(st.sampled_from([0, num_seqs, draw(st.integers(0, 5_000))]))
    sizes = {"num_seqs": num_seqs, "sum_context": Ramp(start, step)}
    return StepWork(
        draw(st.integers(1, most_steps)), num_seqs, num_seqs, (Kernel("decode_attention", sizes),)
    )


def with_sums(work: StepWork, sums: object, **changes: object) -> StepWork:
    kernel = work.kernels[0]
    kernel = kernel._replace(args={**kernel.args, "sum_context": sums})
    return work._replace(kernels=(kernel,), **changes)


@given(decode_runs(), st.integers(0, 100))
@settings(deadline=None)
def test_splitting_a_run_changes_no_price(work: StepWork, cut: int) -> None:
    cut = min(cut, work.steps - 1)
    start, step = work.kernels[0].args["sum_context"]
    later = with_sums(work, Ramp(start + cut * step, step), steps=work.steps - cut)
    assert step_times(work)[cut:] == step_times(later)


@given(decode_runs())
@settings(deadline=None)
def test_ramps_arrays_and_scalars_have_one_price(work: StepWork) -> None:
    sums = column(work.kernels[0].args["sum_context"], work.steps)
    expected = step_times(work)
    assert step_times(with_sums(work, sums)) == expected
    assert [step_times(with_sums(work, int(value), steps=1))[0] for value in sums] == expected
    by_column = with_sums(work, sums, steps=work.steps)
    kernel = by_column.kernels[0]
    many = kernel._replace(args={**kernel.args, "num_seqs": np.full(work.steps, kernel.args["num_seqs"])})
    assert step_times(by_column._replace(kernels=(many,))) == expected


chunks = st.lists(st.tuples(st.integers(0, 8_192), st.integers(0, 30_000)), min_size=1, max_size=4)


@given(decode_runs(most_steps=1), chunks, st.booleans())
@settings(deadline=None)
def test_one_mixed_step_costs_the_same_as_arrays_of_one(
    work: StepWork, found: list[tuple[int, int]], decodes: bool
) -> None:
    sums = work.kernels[0].args["sum_context"][0]
    plain = with_sums(work, sums).kernels if decodes else ()
    arrays = with_sums(work, np.array([sums])).kernels if decodes else ()
    scalar = tuple(Kernel("prefill_attention", {"new": new, "past": past}) for new, past in found)
    columns = tuple(
        Kernel("prefill_attention", {"new": np.array([n]), "past": np.array([p])}) for n, p in found
    )
    tokens = work.tokens + sum(new for new, _ in found)
    one = StepWork(1, tokens, work.sampled, (*plain, *scalar))
    other = StepWork(1, tokens, work.sampled, (*arrays, *columns))
    assert step_times(one) == step_times(other)


@cache
def pair() -> tuple[KernelCostModel, KernelCostModel]:
    """Two alike, which count what they are asked from one example to the next."""
    first, second = (
        KernelCostModel(model().setting.profile, model().setting.model, model().setting.gpu, 1, TERMS)
        for _ in range(2)
    )
    return first, second


@given(st.tuples(st.integers(0, 400), st.integers(1, 9_000)), chunks)
@settings(deadline=None)
def test_a_plain_mixed_step_costs_the_same_as_its_kernels(
    decodes: tuple[int, int], found: list[tuple[int, int]]
) -> None:
    num_seqs, sum_context = decodes[0], decodes[0] * decodes[1]
    some = [(max(1, new), past) for new, past in found]
    tokens = num_seqs + sum(new for new, _ in some)
    arguments = tokens, num_seqs, sum_context, some, num_seqs + len(some)
    models = pair()
    before = models[0].used_ns()
    looked = models[0].mixed_ns(*arguments, counts=False)
    assert models[0].used_ns() == before
    assert looked == models[0].mixed_ns(*arguments) == CostModel.mixed_ns(models[1], *arguments)
    assert sum(models[0].used_ns().values()) == sum(before.values()) + looked
    assert models[0].used_ns() == models[1].used_ns()


@given(
    st.integers(0, 400),
    st.integers(401, 8_192),
    st.lists(st.tuples(st.integers(1, 9_000), st.integers(0, 9_000))),
)
@settings(deadline=None)
def test_chunks_beside_the_same_decodes_cost_the_same_as_mixed_steps(
    num_seqs: int, tokens: int, found: list[tuple[int, int]]
) -> None:
    """Contexts within the table and beyond it; with and without a past."""
    first, second = pair()
    price = first.chunk_price(tokens, num_seqs)
    for context, past in found:
        arguments = tokens, num_seqs, num_seqs * context, [(tokens - num_seqs, past)], num_seqs + 1
        assert price(num_seqs * context, past) == second.mixed_ns(*arguments)
    assert first.used_ns() == second.used_ns()


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("gpus", [1, 2])
def test_numbers_of_tokens_cost_the_same_one_by_one(name: str, gpus: int) -> None:
    """Linear layers are priced in blocks: GEMMs of a block against those of one number of tokens."""
    costs = KernelCostModel(
        load_profile("h100-sxm-vllm-0.24.0"), load_model(name), load_gpu("h100-sxm"), gpus
    )
    linear = costs._linear
    for tokens in (1, 511, 512, 513, 8_192, 60_000, 140_000):
        priced = costs.layers(tokens, 1.0)
        assert priced.total_ns == sum(time_ns for _, time_ns in priced.parts)
        found = dict(((kernel, provenance), time_ns) for (kernel, provenance), time_ns in priced.parts)
        for kernel, n, k, _ in linear._gemms:
            time_ns, provenance = linear._gemm.price(tokens, n, k)
            assert found[kernel, provenance] == quantise(costs.setting.model.num_layers * time_ns)


@st.composite
def method_runs(draw: st.DrawFn) -> StepWork:
    """What methods do in a run of steps: sizes and calls of every form, some lanes side by side, some with a table."""
    steps, num_seqs = draw(st.integers(1, 60)), draw(st.integers(1, 300))

    def sizes(most: int) -> object:
        start = draw(st.integers(0, most))
        array = np.array(draw(st.lists(st.integers(0, most), min_size=steps, max_size=steps)))
        ramps = Ramp(start, draw(st.integers(0, most // 100))), Ramp(start, -(start // steps))
        return draw(st.sampled_from([start, *ramps, array, array / 7]))

    calls = st.sampled_from([1, 0, 0.25, True, np.arange(steps) % 3, np.arange(steps) % 3 * 0.5, Ramp(0, 2)])
    places = st.sampled_from(
        [("main", "gpu"), ("main", "gpu"), ("main", "h2d"), ("a", "gpu"), ("a", "d2h"), ("a", "cpu")]
    )
    kernels = []
    names = [
        "decode_attention",
        "method",
        "on_cpu",
        "copy_h2d",
        "gather_kv",
        "top_k_select",
        "prefill_attention",
    ]
    for name in draw(st.lists(st.sampled_from(names), max_size=4)):
        args: dict[str, object] = {"num_bytes": sizes(1 << 32)}
        if name == "decode_attention":
            args = {"num_seqs": num_seqs, "sum_context": sizes(num_seqs * 9_000)}
        elif name == "on_cpu":
            args = {"num_bytes": sizes(1 << 32), "flops": sizes(1 << 36)}
        elif name == "gather_kv":
            args = {"rows": sizes(1 << 16), "row_bytes": draw(st.sampled_from([128, 300, 4096]))}
        elif name == "top_k_select":
            args = {"rows": num_seqs, "entries": sizes(1 << 15), "k": draw(st.sampled_from([16, 100, 5000]))}
        elif name == "prefill_attention":
            args = {"new": draw(st.integers(0, 900)), "past": draw(st.integers(0, 9000))}
        group, lane = draw(places)
        kernels.append(Kernel(name, args, draw(calls), group, lane))  # type: ignore[arg-type]
    return StepWork(steps, num_seqs, num_seqs, tuple(kernels))


def one_by_one(work: StepWork) -> Iterator[StepWork]:
    """Its steps, with sizes that are plain numbers."""
    for i in range(work.steps):
        kernels = [
            kernel._replace(
                args={name: column(value, work.steps)[i].item() for name, value in kernel.args.items()},
                calls=column(kernel.calls, work.steps)[i].item(),
            )
            for kernel in work.kernels
        ]
        yield work._replace(steps=1, kernels=tuple(kernels))


@cache
def measured() -> tuple[KernelCostModel, KernelCostModel]:
    profile, gpu = load_profile("h100-sxm-measured"), load_gpu("h100-sxm")
    return tuple(KernelCostModel(profile, load_model("llama-3.1-8b"), gpu, 1, TERMS) for _ in range(2))  # type: ignore[return-value]


@given(method_runs(), st.sampled_from([{}, {"h2d": 0.5, "d2h": 1.0}]), st.integers(0, 60))
@settings(deadline=None, max_examples=150)
def test_a_run_on_lines_costs_the_same_as_its_steps(
    work: StepWork, share: dict[str, float], cut: int
) -> None:
    whole, single = measured()
    before = [costs.used_ns() for costs in measured()]
    run = whole.price(work, share)
    steps = [single.price(step, share) for step in one_by_one(work)]
    assert [int(time_ns) for time_ns in run.step_ns] == [priced.step_ns[0] for priced in steps]
    cut = min(cut, work.steps)
    counted = whole.account(run, 0, cut) + whole.account(run, cut, work.steps)
    assert counted == sum(single.account(priced, 0, 1) for priced in steps)
    after = [costs.used_ns() for costs in measured()]
    assert after[0].keys() == after[1].keys()
    for key in after[0]:  # sums of numbers that are not whole differ in their last digits
        of_run, of_steps = (now[key] - then.get(key, 0) for now, then in zip(after, before, strict=True))
        assert of_run == pytest.approx(of_steps, rel=1e-9, abs=3), key


def test_a_run_is_divided_where_rounding_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """With far more slack than there is, doubt is everywhere: no price changes."""
    copy = Kernel("method", {"num_bytes": Ramp(10_000_019, 7_001)})
    attention = Kernel("decode_attention", {"num_seqs": 9, "sum_context": Ramp(40_013, 9)}, 0.5)
    for steps, lattice in ((2, 0.1), (31, 0.02), (40, 0.02)):
        monkeypatch.setattr(lines, "LATTICE", lattice)
        work = StepWork(steps, 9, 9, (copy, attention))
        run = model().price(work)
        assert isinstance(run, lines.Joined)
        assert list(run.step_ns) == [model().price(step).step_ns[0] for step in one_by_one(work)]
        assert model().account(run, 1, steps) == sum(run.step_ns[1:])


@given(
    st.sampled_from(["gather_kv", "top_k_select", "device_copy", "method"]),
    st.lists(st.integers(0, 1 << 20), min_size=3, max_size=3),
    st.floats(0, 1e6),
)
@settings(deadline=None)
def test_a_price_lies_on_its_line(name: str, sizes: list[int], at: float) -> None:
    """On points of the table, between them, below and beyond; whole numbers or not."""
    axes = {"gather_kv": ("row_bytes", "rows"), "top_k_select": ("rows", "entries", "k")}.get(
        name, ("num_bytes",)
    )
    pricer = measured()[0].pricer(name)
    for over in axes:
        for value in (*sizes, at, 1, 128, 1024, 1024.5):
            args = {**dict(zip(axes, sizes, strict=False)), over: value}
            time_ns, provenance = pricer.price(args)
            line, x = pricer.line({**args, over: np.array([value])}) or pytest.fail("no line")
            assert line.first <= x.item(0) <= line.last
            assert line.base + line.slope * value == pytest.approx(time_ns, rel=1e-9, abs=1e-6)
            assert line.key == (name, provenance)


def works() -> Iterator[StepWork]:
    """Runs of every kind, some beyond the grid."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        num_seqs, steps = int(rng.integers(1, 400)), int(rng.integers(1, 60))
        sizes = {"num_seqs": num_seqs, "sum_context": Ramp(num_seqs * int(rng.integers(1, 9_000)), num_seqs)}
        attention = Kernel("decode_attention", sizes)
        yield StepWork(steps, num_seqs, num_seqs, (attention,))
        copy = Kernel("copy_h2d", {"num_bytes": Ramp(int(rng.integers(1, 1 << 30)), 1 << 22)}, lane="h2d")
        yield StepWork(steps, num_seqs, num_seqs, (attention, copy))
        prompt = Kernel(
            "prefill_attention", {"new": int(rng.integers(1, 4_000)), "past": int(rng.integers(0, 30_000))}
        )
        now = attention._replace(args={"num_seqs": num_seqs, "sum_context": num_seqs * 1000})
        yield StepWork(1, num_seqs + 4_000, num_seqs, (now, prompt))


def test_used_time_adds_up_exactly() -> None:
    costs = KernelCostModel(
        load_profile("h100-sxm-vllm-0.24.0"), load_model("llama-3.1-8b"), load_gpu("h100-sxm"), 1, TERMS
    )
    total = 0
    for work in works():
        priced = costs.price(work)
        stop = max(1, work.steps // 2)
        costs.account(priced, 0, stop)
        costs.account(priced, stop, work.steps)
        total += sum(int(time_ns) for time_ns in priced.step_ns)
        assert sum(costs.used_ns().values()) == total
    assert min(costs.used_ns().values()) >= 0
    assert {key[1] for key in costs.used_ns()} == {"measured", "imported", "derived", "extrapolated"}


@pytest.mark.parametrize("num_seqs", [1, 3, 64, 200, 511])
def test_decode_grows_with_context_beyond_the_noise_of_short_ones(num_seqs: int) -> None:
    sizes = {"num_seqs": num_seqs, "sum_context": Ramp(num_seqs * 127, num_seqs)}
    times = step_times(StepWork(3_000, num_seqs, num_seqs, (Kernel("decode_attention", sizes),)))
    assert times == sorted(times)
