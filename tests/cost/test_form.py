"""Forms are priced and counted as the kernels that they stand for, but for rounding; runs of them exactly as their steps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim.cost import lines, step
from kvsim.cost.form import Form, Formed, Size, written_out
from kvsim.cost.joint import Joint
from kvsim.cost.kernels import KernelCostModel
from kvsim.cost.merged import Merged
from kvsim.cost.profile import load_profile
from kvsim.cost.terms import EngineTerms
from kvsim.cost.work import Kernel, Ramp, StepWork
from kvsim.errors import CalibrationError
from kvsim.hardware.load import load_gpu
from kvsim.model.load import load_model

TERMS = EngineTerms(step_ns=480_000.3, prefill_factor=1.013, mixed_attention_factor=1.2)
PROMPT = Kernel("prefill_attention", {"new": 700, "past": 300})


def model(**options: Any) -> KernelCostModel:
    gpu = load_gpu("h100-sxm")
    return KernelCostModel(
        load_profile("h100-sxm-measured"), load_model("llama-3.1-8b"), gpu, 1, TERMS, **options
    )


FORMED, KERNELS = model(), model()  # one prices forms, the other one the kernels that they stand for
X: Any = Size()
FORMS: dict[str, Callable[[int], Form]] = {
    "scores": lambda num: Form(
        [
            Kernel("page_scores", {"page": 16, "batch": num, "pages": X // num, "num_bytes": X * 64}, 0.9),
            Kernel("top_k_select", {"rows": 8 * num, "entries": X // num, "k": 128}, 30.5),
        ]
    ),
    "attention": lambda num: Form([Kernel("decode_attention", {"num_seqs": num, "sum_context": X}, 0.25)]),
    "plain": lambda num: Form([Kernel("decode_attention", {"num_seqs": num, "sum_context": X})]),
    "two sums": lambda num: Form(
        [
            Kernel("dequantise_attention", {"bits": 2, "batch": num, "context": X // num + 70}),
            Kernel("method", {"num_bytes": 3 * X + 5}, 2),
            Kernel("quantise_kv", {"bits": 2, "tokens": num}),
        ]
    ),
    "calls": lambda num: Form([Kernel("quantise_kv", {"bits": 2, "tokens": 32 * num}, X)]),
    "computes": lambda num: Form([Kernel("method", {"num_bytes": X * 4, "flops": X * 4_000 * num})]),
    "side by side": lambda num: Form(
        [
            Kernel("low_rank_reconstruct", {"rank": 160, "tokens": X}, 0.9, group="fetch"),
            Kernel("host_gather", {"row_bytes": 2048, "rows": X * 4}, group="fetch", lane="h2d"),
        ]
    ),
    "on no line": lambda num: Form([Kernel("method", {"num_bytes": X * 4, "flops": 900_000})]),
}


@st.composite
def works(draw: st.DrawFn) -> StepWork:
    num, steps = draw(st.integers(1, 300)), draw(st.integers(1, 70))
    items: list[Kernel | Formed] = []
    for name in draw(st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=3, unique=True)):
        first, grows = draw(st.integers(0, 1 << draw(st.integers(1, 22)))), draw(st.integers(0, 2 * num))
        x: Any = Ramp(first, draw(st.sampled_from([num, grows])))
        if name == "calls" or draw(st.booleans()):
            x = draw(st.lists(st.integers(0, 9), min_size=steps, max_size=steps))
            x = x if name == "calls" else [first + sum(x[:i]) for i in range(steps)]
            x = draw(st.sampled_from([x, np.array(x)]))
        if steps == 1:
            x = int(x[0])
        items.append(FORMS[name](num).at(x))
    if steps == 1 and draw(st.booleans()):
        return StepWork(1, num + 700, num, (*items, PROMPT))
    return StepWork(steps, num, num, tuple(items))


def by_kernel(work: StepWork) -> StepWork:
    return work._replace(kernels=written_out(work.kernels, work.steps))


def each_step(work: StepWork) -> list[StepWork]:
    """The steps on their own."""

    def at(item: Kernel | Formed, i: int) -> Kernel | Formed:
        if type(item) is not Formed or work.steps == 1:
            return item
        x = item.x
        return item.form.at(x.start + x.step * i if type(x) is Ramp else int(x[i]))

    rows = [tuple(at(item, i) for item in work.kernels) for i in range(work.steps)]
    return [work._replace(steps=1, kernels=row) for row in rows]


@given(works(), st.integers(0, 69), st.sampled_from([{}, {"h2d": 0.5}]))
@settings(deadline=None, max_examples=400)
def test_a_form_costs_what_its_kernels_cost(work: StepWork, cut: int, share: dict[str, float]) -> None:
    formed, kernels = FORMED.price(work, share), KERNELS.price(by_kernel(work), share)
    assert np.abs(np.array(formed.step_ns) - kernels.step_ns).max() <= 1
    if work.steps == 1:
        assert step.price_step(KERNELS, by_kernel(work), share).step_ns == kernels.step_ns
    cut = min(cut, work.steps)
    for start, stop in ((0, cut), (cut, work.steps)):
        found, wanted = (
            FORMED.account(formed, start, stop),
            KERNELS.account(kernels, start, stop),
        )
        assert abs(found - wanted) <= stop - start
    counted, expected = FORMED.used_ns(), KERNELS.used_ns()
    for key in counted.keys() | expected.keys():  # whole nanoseconds, what is left over goes to the engine
        slack = DOUBTS if key[0] == "engine" else 3
        assert counted.get(key, 0) == pytest.approx(expected.get(key, 0), abs=slack), key


DOUBTS = 1000  # of all the steps of a test few are near the next nanosecond


def test_no_step_on_a_falling_line_is_less_than_the_least() -> None:
    line = Merged(10.0, -1.0, 0, 9, [])
    linear: Any = SimpleNamespace(total_ns=0.0, rest_ns=0.0)
    pieces: Any = SimpleNamespace(last=line)
    items: Any = [(None, [2, 0, 3])]
    run = Joint(linear, [(0, pieces, 1)]).price(items, 3)
    assert run is not None
    assert run.step_ns == [8, 10, 7]
    assert run.least == min(run.lattice)


@given(works(), st.integers(0, 69), st.sampled_from([{}, {"h2d": 0.5}]))
@settings(deadline=None, max_examples=400)
def test_a_run_costs_what_its_steps_cost(work: StepWork, cut: int, share: dict[str, float]) -> None:
    at_once, one_by_one = model(), model()
    run = at_once.price(work, share)
    steps = [one_by_one.price(one, share) for one in each_step(work)]
    assert list(run.step_ns) == [one.step_ns[0] for one in steps]
    if run.lattice is not None:
        assert run.least <= min(run.lattice)
    cut = min(cut, work.steps)
    found = at_once.account(run, 0, cut) + at_once.account(run, cut, work.steps)
    assert found == sum(one_by_one.account(one, 0, 1) for one in steps)
    counted, expected = at_once.used_ns(), one_by_one.used_ns()
    for key in counted.keys() | expected.keys():
        # plain attention has what a step's rounding adds
        assert counted.get(key, 0) == pytest.approx(expected.get(key, 0), abs=3 + work.steps), key


def test_where_rounding_is_in_doubt_lanes_are_priced_kernel_by_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (step, lines):
        monkeypatch.setattr(module, "LATTICE", 0.02)
    priced = model()
    for name, form in FORMS.items():
        for x in range(40_001, 40_031):
            for steps in (1, 5):
                at = Ramp(x, 9) if steps > 1 else x
                work = StepWork(steps, 9, 9, (form(9).at(at), FORMS["side by side"](9).at(at)))
                apart = [step.price_step(KERNELS, by_kernel(one), None).step_ns[0] for one in each_step(work)]
                assert list(priced.price(work).step_ns) == apart, name


def test_a_plain_form_costs_what_attention_costs_in_a_plain_step() -> None:
    for x in range(40_001, 40_101):
        work = StepWork(1, 709, 9, (FORMS["plain"](9).at(x), PROMPT))
        assert FORMED.price(work).step_ns == [KERNELS.mixed_ns(709, 9, x, [(700, 300)], 9)]
        assert FORMED.step_ns(709, 9, work.kernels[:1], [(700, 300)]) == FORMED.price(work).step_ns[0]


@pytest.mark.parametrize("x", [np.int64(40_000), 40_000.0, np.array([40_000] * 3)])
def test_numbers_of_any_kind_may_say_where_a_form_is(x: Any) -> None:
    for name, form in FORMS.items():
        for steps in (1, 3):
            at = x[:steps] if isinstance(x, np.ndarray) else x
            of_int, found = (FORMED.price(StepWork(steps, 9, 9, (form(9).at(u),))) for u in (40_000, at))
            assert list(found.step_ns) == list(of_int.step_ns), name
            counted = [FORMED.account(priced, 0, steps) for priced in (of_int, found)]
            assert counted[0] == counted[1], name


def test_what_the_profile_lacks_is_refused_by_name() -> None:
    work = StepWork(1, 9, 9, (FORMS["two sums"](9).at(40_000),))
    with pytest.raises(CalibrationError, match="kernel method with num_bytes=120005 would be extrapolated"):
        model(strict=True).price(work)


def test_a_size_is_what_it_says() -> None:
    assert (X * 6 // 2).of(7, 1) == 21
    assert (X // 4 * 3 + 1).of(Ramp(9, 4), 5) == Ramp(7, 3)
    assert (X // 4).of(Ramp(9, 3), 3).tolist() == [2, 3, 3]
    assert (X // 4 // 2).of([7, 8, 16], 3).tolist() == [0, 1, 2]
    with pytest.raises(AssertionError, match="is no size"):
        (X + 1) // 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([100, 200], r"a form is given 2 numbers for a run of 5 steps"),
        ([100.0, 200, 300, 400, 500.5], r"a form is given 500.5; sizes are whole numbers"),
        (np.array([1.0, 2.0, 3.0, 4.5, 5.0]), r"a form is given 4.5; sizes are whole numbers"),
        (Ramp(100.5, 1), r"a form is given Ramp\(start=100.5, step=1\); sizes are whole numbers"),
        (Ramp(100, 0.5), r"a form is given Ramp\(start=100, step=0.5\); sizes are whole numbers"),
    ],
)
def test_odd_sizes_of_a_run_are_named(sizes: Any, message: str) -> None:
    form = FORMS["computes"](8)
    with pytest.raises(CalibrationError, match=message):
        model().price(StepWork(5, 8, 8, (form.at(sizes),)))
