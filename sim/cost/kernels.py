"""The cost model: a step's kernels looked up in a profile, plus the engine's constants.

The same price, bit for bit, for plain steps (one cached line per batch) and for any kernels, step by step
(:mod:`kvsim.cost.step`) or a run at once (sums of lines, :mod:`kvsim.cost.lines`), because components lie on a lattice on which
sums are exact (:mod:`kvsim.cost.lattice`). Forms that come one after another (decode-only: :mod:`kvsim.cost.joint`, with
prefill: :mod:`kvsim.cost.mixed`) are lines on a finer lattice: a run costs what its steps cost, and the kernels written out
cost the same to the rounding of a line's slope, 2^-31 ns for each unit of a size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import floor
from operator import itemgetter
from typing import Any

import numpy as np

from kvsim.cost.decode import DecodeAttention
from kvsim.cost.disk import DiskGather
from kvsim.cost.form import Form, Formed, written_out
from kvsim.cost.forward import ForwardPass
from kvsim.cost.generic import RooflinePricer, TablePricer
from kvsim.cost.joint import Joint, JointRun, joint_of
from kvsim.cost.lattice import SCALE, quantise
from kvsim.cost.line import first_of
from kvsim.cost.line_run import Joined
from kvsim.cost.linear import BLOCK_TOKENS, Block, Key, LinearPart, Spent, StepLinear, scaled
from kvsim.cost.linear import Priced as LinearPriced
from kvsim.cost.lines import VECTOR_STEPS, each_step, price_lines
from kvsim.cost.merged import Plan, plan_of
from kvsim.cost.mixed import MixedStep, Turn, price_prefill
from kvsim.cost.model import CostModel, Priced, prefill_of
from kvsim.cost.prefill import PrefillAttention
from kvsim.cost.pricer import Pricer, kernel_pricers, register_kernel
from kvsim.cost.profile import Profile
from kvsim.cost.setting import Setting
from kvsim.cost.step import price_step
from kvsim.cost.terms import EngineTerms
from kvsim.cost.usage import DecodePlan, DecodeRun, EvenRun, Usage
from kvsim.cost.work import Kernel, Ramp, StepWork
from kvsim.errors import CalibrationError
from kvsim.hardware.spec import GpuSpec, LinkSpec
from kvsim.model.spec import DTYPE_BYTES, ModelSpec

register_kernel("decode_attention")(DecodeAttention)
register_kernel("prefill_attention")(PrefillAttention)
register_kernel("disk_gather")(DiskGather)
register_kernel("forward_pass")(ForwardPass)


FITTED_CONTEXT = 1024
"""KV tokens of a sequence at which the fitted model's steps are compared with their kernels: steady decodes had 256 to 8,192."""
UNKNOWN: Any = object()
FORM_OF = itemgetter(0)


class KernelCostModel(CostModel):
    """Prices ``model`` on ``tensor_parallel`` GPUs of one kind from the kernel timings in ``profile``.

    ``strict``: a price that would be extrapolated is an error that names kernel and size.
    ``host_link`` prices copies inside a step (lanes h2d, d2h), ``disk_link`` its reads of a disk (lane disk).
    ``kv_layout``: contiguous = attention finds the KV of a sequence in one piece (:mod:`kvsim.cost.layout`).

    Raises:
        CalibrationError: the profile cannot price this model at all.
    """

    def __init__(
        self,
        profile: Profile,
        model: ModelSpec,
        gpu: GpuSpec,
        tensor_parallel: int = 1,
        terms: EngineTerms | None = None,
        strict: bool = False,
        host_link: LinkSpec | None = None,
        pipeline_parallel: int = 1,
        data_parallel: int = 1,
        expert_parallel: int = 1,
        groups: float | None = None,
        disk_link: LinkSpec | None = None,
        kv_layout: str = "paged",
    ) -> None:
        """In a pipeline and with data parallelism steps are those of one micro-batch or group (:mod:`kvsim.cost.shares`);
        all groups together have ``groups`` times its tokens, None = each as many."""
        self.setting = Setting(
            *(profile, model, gpu, tensor_parallel, host_link),
            *(pipeline_parallel, data_parallel, expert_parallel, disk_link),
            float(data_parallel if groups is None else groups),
            kv_layout,
        )
        self.terms = terms or EngineTerms()
        self.strict = strict
        self._linear = LinearPart(self.setting)
        self.decode_attention = DecodeAttention(self.setting, self.terms)
        self.spares_reads = bool(self.terms.shared_factors)
        numbers = model.latent.cached if model.latent else 2 * self.setting.kv_heads * model.head_dim
        self._layer_kv_bytes = numbers * DTYPE_BYTES[model.kv_dtype]  # of a token on a GPU
        plain = model.moe is None and model.state is None and DTYPE_BYTES[model.weight_dtype] == 2
        self._graphs = bool(self.terms.graph_factors) and plain and tensor_parallel == pipeline_parallel == 1
        self._fitted: tuple[KernelCostModel, ...] = ()  # as the engine runs it, as its kernels alone
        if self.terms.fitted and self._graphs:
            fitted, own_terms = self.terms.fitted
            even = replace(own_terms, stall_ns=0.0, uneven_factors=())
            self._fitted = tuple(KernelCostModel(profile, fitted, gpu, terms=t) for t in (even, None))
        self._weights = model.linear_parameters + model.vocab_size * model.hidden_size  # that a step reads
        self._decode_linear: dict[tuple[int, int], tuple[LinearPriced, LinearPriced]] = {}
        self._step_linear: dict[tuple[int, int], StepLinear] = {}
        self.prefill_attention = PrefillAttention(self.setting)
        self.pricers: dict[str, Pricer] = {  # those that were asked for
            "decode_attention": self.decode_attention,
            "prefill_attention": self.prefill_attention,
        }
        # by factor, then by number of tokens or sampled rows
        self._blocks: defaultdict[float, dict[int, Block]] = defaultdict(dict)
        self._layers: defaultdict[float, dict[int, LinearPriced]] = defaultdict(dict)
        self._heads: defaultdict[float, dict[int, LinearPriced]] = defaultdict(dict)
        self._plans: dict[tuple[int, int, int], DecodePlan] = {}
        self._plain_plans: dict[int, DecodePlan] = {}  # of plain decodes, by number of sequences
        self._engine_ns = quantise(self.terms.step_ns)
        self._stall_ns = quantise(self.terms.stall_ns)
        self._engine_half_ns = self._engine_ns + 0.5  # int() then rounds
        factor = self.terms.prefill_factor
        # of steps with prefill: factor on the GPU kernels, and the same on decode attention
        self.mixed = factor, factor * self.terms.mixed_attention_factor
        self._mixed = *self.mixed, self._layers[factor], self._heads[factor]
        self._usage = Usage(("engine", self.terms.provenance), self.pricers)
        self.merged = self._usage.merged
        self._engine_spent = Spent(self._usage.engine)
        self._usage.spent += (
            self._engine_spent,
            *self.decode_attention.spent.values(),
            *self.prefill_attention.spent.values(),
        )
        self._form_ratios = [(1.0, 1.0), self.mixed]  # of steps without prefill and with it
        self.form_plans: list[dict[Any, Plan]] = [{}, {}]
        self.turns: dict[Form, Turn] = {}  # of steps with prefill
        # of decode-only steps: by tokens and forms
        self._joints: dict[tuple[Any, ...], Joint | None] = {}

    def price(self, work: StepWork, link_share: Mapping[str, float] | None = None) -> Priced:
        steps, tokens, sampled, kernels = work
        if len(kernels) == 1:
            alone = kernels[0]
            num_seqs: Any
            if type(alone) is Formed:
                num_seqs, sums = alone.form.num_plain, alone.x
            else:
                name, args, calls, group, lane = alone
                num_seqs = 0
                if (
                    name == "decode_attention"
                    and type(calls) is int
                    and calls == 1
                    and lane == "gpu"
                    and group == "main"
                ):
                    num_seqs, sums = args["num_seqs"], args["sum_context"]
            if type(num_seqs) is int and num_seqs > 0:
                if type(sums) is Ramp:
                    if sums[1] == tokens == sampled == num_seqs:
                        return self.price_decodes(num_seqs, sums[0], steps)
                    plan = self._plan(tokens, sampled, num_seqs)
                    return self._decode_run(plan, num_seqs, sums[0], sums[1], steps)
                if type(sums) is int:
                    plan = self._plan(tokens, sampled, num_seqs)
                    return self._decode_run(plan, num_seqs, sums, 0, steps)
        if self.strict:  # what is refused is told kernel by kernel
            work = work._replace(kernels=written_out(kernels, steps))
        else:
            priced: Priced | None
            if tokens == sampled:
                together = tokens, *map(FORM_OF, kernels)
                joint = self._joints.get(together, UNKNOWN)
                if joint is UNKNOWN:
                    joint = self._joints[together] = joint_of(self, tokens, kernels)
                priced = None if joint is None else joint.price(kernels, steps)
                if priced is None and joint is not None and steps > 1:
                    return Joined([self.price(one, link_share) for one in each_step(work)])
            else:  # prompts, mostly
                mixed = price_prefill(self, tokens, sampled, kernels) if steps == 1 else None
                priced = None if mixed is None else MixedStep(mixed)
            if priced is not None:
                return priced
        if steps == 1:
            return price_step(self, work, link_share)
        return price_lines(self, work, link_share)

    def price_run(
        self,
        num_seqs: int,
        kernels: tuple[Kernel | Formed, ...],
        steps: int,
        link_share: Mapping[str, float] | None = None,
    ) -> Priced:
        if len(kernels) > 1:  # the same forms as before, mostly
            joint = self._joints.get((num_seqs, *map(FORM_OF, kernels)))
            priced = None if joint is None else joint.price(kernels, steps)
            if priced is not None:
                return priced
        return self.price(StepWork(steps, num_seqs, num_seqs, kernels), link_share)

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        return int(read_again * (1 - self.terms.shared_factor(shared_tokens * self._layer_kv_bytes)))

    def price_decodes(self, num_seqs: int, sum_context: int, steps: int) -> Priced:
        plan = self._plain_plans.get(num_seqs)
        if plan is None:
            plan = self._plain_plans[num_seqs] = self._plan(num_seqs, num_seqs, num_seqs)
        if not self.strict:
            until, base, slope = plan.even[bisect_right(plan.knots, sum_context) - 1]
            if sum_context + num_seqs * (steps - 1) <= until:  # most runs
                first, rise = base + slope * sum_context, slope * num_seqs
                return EvenRun(range(first, first + rise * steps, rise), first, plan, sum_context, num_seqs)
        return self._decode_run(plan, num_seqs, sum_context, num_seqs, steps)

    def mixed_ns(
        self,
        tokens: int,
        num_seqs: int,
        sum_context: int,
        chunks: Sequence[tuple[int, int]],
        sampled: int,
        counts: bool = True,
    ) -> int:
        if self.strict or not chunks:
            return super().mixed_ns(tokens, num_seqs, sum_context, chunks, sampled, counts)
        factor, decode_factor, layers_of, head_of = self._mixed
        layers = layers_of.get(tokens) or self.layers(tokens, factor)
        head = head_of.get(sampled) or self.head(sampled, factor)
        total = layers.total_ns + head.total_ns + self._engine_half_ns
        shared_ns = 0.0
        launch_ns = self.prefill_attention.launch_ns
        if num_seqs:
            time_ns, spent = self.decode_attention.at(num_seqs, sum_context)
            if decode_factor != 1.0:
                time_ns = floor(time_ns * decode_factor * SCALE + 0.5) / SCALE
            total += time_ns
            if counts:
                spent.ns += time_ns
            shared_ns = launch_ns  # the kernels of a step share one launch
        prefill = self.prefill_attention.at
        for new, past in chunks:
            time_ns, spent = prefill(new, past)
            time_ns -= shared_ns
            shared_ns = launch_ns
            if factor != 1.0:
                time_ns = floor(time_ns * factor * SCALE + 0.5) / SCALE
            total += time_ns
            if counts:
                spent.ns += time_ns
        step_ns = floor(total)
        if counts:
            layers.uses += 1
            head.uses += 1
            self._usage.steps_ns += step_ns
            self._engine_spent.ns += self._engine_ns
        return step_ns

    def step_ns(
        self,
        tokens: int,
        sampled: int,
        kernels: Sequence[Kernel | Formed],
        chunks: Sequence[tuple[int, int]],
        link_share: Mapping[str, float] | None = None,
    ) -> int:
        if tokens != sampled and not self.strict:
            mixed = price_prefill(self, tokens, sampled, kernels, chunks)
            if mixed is not None:
                return mixed.count(self._usage)
            work = StepWork(1, tokens, sampled, (*kernels, *map(prefill_of, chunks)))
            return price_step(self, work, link_share).count(self._usage, 0, 1)
        return super().step_ns(tokens, sampled, kernels, chunks, link_share)

    def chunk_price(self, tokens: int, num_seqs: int) -> Callable[[int, int], int]:
        if self.strict or not num_seqs:
            return super().chunk_price(tokens, num_seqs)
        factor, decode_factor = self.mixed
        layers, head = self.layers(tokens, factor), self.head(num_seqs + 1, factor)
        fixed_ns = layers.total_ns + head.total_ns + self._engine_half_ns
        decode, prefill, new = self.decode_attention.at, self.prefill_attention.at, tokens - num_seqs
        launch_ns, usage = self.prefill_attention.launch_ns, self._usage
        engine, engine_ns = self._engine_spent, self._engine_ns

        def step_ns(sum_context: int, past: int) -> int:
            decode_ns, decodes = decode(num_seqs, sum_context)
            chunk_ns, chunk = prefill(new, past)
            chunk_ns -= launch_ns
            if decode_factor != 1.0:
                decode_ns = floor(decode_ns * decode_factor * SCALE + 0.5) / SCALE
            if factor != 1.0:
                chunk_ns = floor(chunk_ns * factor * SCALE + 0.5) / SCALE
            decodes.ns += decode_ns
            chunk.ns += chunk_ns
            engine.ns += engine_ns
            layers.uses += 1
            head.uses += 1
            time_ns = floor(fixed_ns + decode_ns + chunk_ns)
            usage.steps_ns += time_ns
            return time_ns

        return step_ns

    def account(self, priced: Priced, start: int, stop: int) -> int:
        return priced.count(self._usage, start, stop) if stop > start else 0  # type: ignore[attr-defined]

    def account_each(
        self, priced: Sequence[Priced | None], stops: Sequence[int], times_ns: Sequence[int]
    ) -> None:
        usage = self._usage
        for one, stop, time_ns in zip(priced, stops, times_ns, strict=True):
            if one is None:
                continue
            if type(one) is EvenRun:
                plan = one.plan
                if one.start + one.step * (stop - 1) <= plan.in_table_until:
                    plan.even_steps += stop
                    plan.even_ns += time_ns
                    continue
            elif type(one) is JointRun:
                one.add(usage, 0, stop, time_ns)
                continue
            one.count(usage, 0, stop)  # type: ignore[attr-defined]

    def account_engine(self, time_ns: int) -> None:
        self._usage.steps_ns += time_ns
        self._engine_spent.ns += time_ns

    def used_ns(self) -> dict[Key, int]:
        return self._usage.total_ns()

    # -- a run of decode steps ------------------------------------------------------------------------------

    def _decode_run(self, plan: DecodePlan, num_seqs: int, start: int, step: int, steps: int) -> DecodeRun:
        knots = plan.knots
        last = start + step * (steps - 1)
        if self.strict and max(start, last) > plan.curve.derived_until:
            self.refuse("decode_attention", {"num_seqs": num_seqs, "sum_context": max(start, last)})
        i = bisect_right(knots, start) - 1
        base, slope = plan.base[i], plan.slope[i]
        step_ns: Any
        if steps == 1 or step == 0:
            step_ns = [int(base + slope * start)] * steps
        elif step > 0 and last < knots[i + 1]:  # all of it on one line
            if steps < VECTOR_STEPS:
                step_ns = [floor(base + slope * x) for x in range(start, last + 1, step)]
            else:
                step_ns = (base + slope * np.arange(start, last + 1, step)).astype(np.int64)
        elif steps < VECTOR_STEPS:
            step_ns = []
            for x in range(start, last + (1 if step > 0 else -1), step):
                i = bisect_right(knots, x) - 1
                step_ns.append(int(plan.base[i] + plan.slope[i] * x))
        else:
            sums = start + step * np.arange(steps, dtype=np.int64)
            rows = np.searchsorted(plan.knots_array, sums, side="right") - 1
            step_ns = (plan.base_array[rows] + plan.slope_array[rows] * sums).astype(np.int64)
        return DecodeRun(step_ns, plan, start, step)

    def _plan(self, tokens: int, sampled: int, num_seqs: int) -> DecodePlan:
        found = self._plans.get((tokens, sampled, num_seqs))
        if found is None:
            layers, head, engine_ns = self.linear(tokens, sampled, False, 1.0)
            fixed = (*layers.parts, *head.parts)
            found = DecodePlan(fixed, engine_ns, self.decode_attention.curve(num_seqs))
            self._plans[tokens, sampled, num_seqs] = found
            self._usage.plans.append(found)
        return found

    # -- what all ways share ---------------------------------------------------------------------------------

    def layers(self, tokens: int, factor: float) -> LinearPriced:
        """Linear layers of a step, ``factor`` times what the table has; cached."""
        found = self._layers[factor].get(tokens)
        if found is None:
            found = LinearPriced(0.0, ())
            if tokens:
                at, row = divmod(tokens - 1, BLOCK_TOKENS)
                found = (self._blocks[factor].get(at) or self._block(at, factor)).priced(row)
            self._layers[factor][tokens] = self._noted(found, {"tokens": tokens})
        return found

    def _block(self, at: int, factor: float) -> Block:
        if factor == 1:
            found = self._linear.layers(1 + at * BLOCK_TOKENS)
        else:
            found = (self._blocks[1].get(at) or self._block(at, 1)).scaled(factor)
        self._blocks[factor][at] = found
        return found

    def head(self, sampled: int, factor: float) -> LinearPriced:
        """LM head of a step; cached."""
        found = self._heads[factor].get(sampled)
        if found is None:
            found = scaled(self._linear.head(sampled), factor)
            self._heads[factor][sampled] = self._noted(found, {"sampled": sampled})
        return found

    def linear(
        self, tokens: int, sampled: int, prefills: bool, factor: float
    ) -> tuple[LinearPriced, LinearPriced, float]:
        """Linear layers, LM head and what the engine adds (lattice nanoseconds) of a step."""
        layers, head = self.layers(tokens, factor), self.head(sampled, factor)
        if prefills or not tokens:
            return layers, head, self._engine_ns
        if self._fitted:
            return layers, head, self._beyond_ns(tokens) + self._stall_ns
        if not self._graphs:
            return layers, head, self._engine_ns + self._stall_ns
        found = self._decode_linear.get((tokens, sampled))
        if found is None:
            floor_ns = self.setting.roofline.time_ns(
                2.0 * self._weights * tokens, self._weights * DTYPE_BYTES[self.setting.model.weight_dtype]
            )
            scale = self.terms.graph_factor(tokens) * floor_ns / (layers.total_ns + head.total_ns)
            found = self._decode_linear[tokens, sampled] = (
                self._measured(layers, scale),
                self._measured(head, scale),
            )
        return *found, self._stall_ns

    def _beyond_ns(self, tokens: int) -> float:
        """What a decode-only step of the fitted model takes beyond its kernels; from the largest measured graph on the same."""
        num_seqs = min(tokens, self.terms.graph_factors[-1][0])
        engine, kernels = (
            model.price_decodes(num_seqs, num_seqs * FITTED_CONTEXT, 1) for model in self._fitted
        )
        return quantise(max(0.0, float(engine.step_ns[0] - kernels.step_ns[0])))

    def mixed_linear(self, tokens: int, sampled: int) -> tuple[LinearPriced, LinearPriced, float]:
        """:meth:`linear` of a step with prefill."""
        factor, _, layers_of, head_of = self._mixed
        layers = layers_of.get(tokens) or self.layers(tokens, factor)
        return layers, head_of.get(sampled) or self.head(sampled, factor), self._engine_ns

    def step_linear(self, tokens: int, sampled: int) -> StepLinear:
        """:meth:`linear` of a decode-only step; cached."""
        found = self._step_linear.get((tokens, sampled))
        if found is None:
            found = self._step_linear[tokens, sampled] = StepLinear(*self.linear(tokens, sampled, False, 1.0))
            self._usage.step_linear.append(found)
        return found

    def _measured(self, priced: LinearPriced, factor: float) -> LinearPriced:
        """Kernels of a step whose sum is known from the engine: the table only divides it among them."""
        as_one = scaled(priced, factor)
        parts = tuple(((name, self.terms.provenance), ns) for (name, _), ns in as_one.parts)
        found = LinearPriced(as_one.total_ns, parts)
        self._usage.linear.append(found)
        return found

    def form_plan(self, form: Form, x: Any, kind: int, link_share: Mapping[str, float] | None) -> Plan:
        """How ``form`` is priced in steps of a ``kind`` (see ``form_plans``) of which the first has ``x``; cached."""
        key: Any = form
        if form.lanes and link_share:
            key = form, *[link_share.get(lane, 1.0) for lane in form.lanes]
        plans = self.form_plans[kind]
        found = plans.get(key)
        if found is None:
            found = plan_of(self, form, first_of(x), self._form_ratios[kind], link_share)
            plans[key] = found
        return found

    def pricer(self, name: str) -> Pricer:
        """What prices kernel ``name``: its own price function, its table in the profile, or the roofline."""
        found = self.pricers.get(name)
        if found is None:
            if name in kernel_pricers:
                found = kernel_pricers[name](self.setting)
            elif self.setting.profile.has(name.partition("[")[0]):
                found = TablePricer(name, self.setting)
            else:
                found = RooflinePricer(name, self.setting)
            self.pricers[name] = found
        return found

    @property
    def prefill_launch_ns(self) -> float:
        return self.prefill_attention.launch_ns

    def refuse(self, name: str, sizes: Mapping[str, Any]) -> None:
        """Raise because ``strict`` forbids what the profile ``extrapolated``."""
        found = ", ".join(f"{key}={value}" for key, value in sizes.items())
        raise CalibrationError(
            f"profile {self.setting.profile.name}: kernel {name} with {found} would be extrapolated, "
            "which strict calibration refuses; calibrate it, or allow extrapolation"
        )

    def _noted(self, priced: LinearPriced, sizes: Mapping[str, int]) -> LinearPriced:
        """A price of the linear part, whose uses will count."""
        if self.strict:
            for (name, provenance), _ in priced.parts:
                if provenance == "extrapolated":
                    self.refuse(name, sizes)
        self._usage.linear.append(priced)
        return priced
