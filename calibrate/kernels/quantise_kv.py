"""Quantising and packing new KV at 8, 4 and 2 bits, and the packed form that attention reads (KIVI's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvsim.calibrate.bench import Bench, relative_error, worst
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

BITS = (8, 4, 2)
GROUP = 32  # tokens that share a scale of K, channels that share one of V
META = torch.float16  # scale and zero
META_BYTES = 4  # scale and zero together
QUICK = (32, 128, 512, 2048, 8192, 32768)
FULL = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
SAMPLE = 4  # groups of tokens that are checked


class Packed(NamedTuple):
    """``codes``: uint8 (..., tokens, head_dim * bits / 8), neighbouring channels in one byte, the first lowest.

    ``scale`` and ``zero``, float16: of K (..., tokens / 32, head_dim), of V (..., tokens, head_dim / 32).
    A number is code * scale + zero.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


class QuantiseKv(Kernel):
    """K by channel over groups of 32 tokens, V by token over 32 channels; both in one launch."""

    name = "quantise_kv"
    columns = ("bits", "head_dim", "kv_heads", "tokens")
    needs = ("triton",)
    summary = "new K (per channel) and V (per token) quantised to 8, 4 or 2 bits and packed"

    def points(self, plan: Plan) -> Sequence[Point]:
        tokens = plan.pick(FULL, QUICK, (32, 96))
        return [
            {"bits": bits, "head_dim": head_dim, "kv_heads": kv_heads, "tokens": count}
            for kv_heads, head_dim in kv_widths(plan)
            for bits in BITS
            for count in tokens
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        bits, count = int(point["bits"]), int(point["tokens"])
        head_dim, kv_heads = int(point["head_dim"]), int(point["kv_heads"])
        each = 2 * count * kv_heads * head_dim * 2
        sets = bench.sets(each)
        keys = bench.randn(sets, count, kv_heads, head_dim)
        values = bench.randn(sets, count, kv_heads, head_dim)
        found_keys = empty(bits, (kv_heads, count, head_dim), True, bench)
        found_values = empty(bits, (kv_heads, count, head_dim), False, bench)

        def run(i: int) -> None:
            if bench.on_gpu:
                from kvsim.calibrate.triton.quantise_kv import quantise_kv

                quantise_kv(bits, keys[i], values[i], [*found_keys], [*found_values])
                return
            for new, found, by_channel in ((keys[i], found_keys, True), (values[i], found_values, False)):
                for stored, part in zip(found, quantise(new.transpose(0, 1), bits, by_channel), strict=True):
                    stored.copy_(part)

        def error() -> float:
            run(0)
            groups = sorted({*range(min(SAMPLE, count // GROUP)), count // GROUP - 1})
            errors = [
                packed_error(new[0].transpose(0, 1), found, bits, by_channel, groups)
                for new, found, by_channel in ((keys, found_keys, True), (values, found_values, False))
            ]
            return worst(errors)

        # The codes may stay in L2; the input does not, as its sets outgrow it.
        return Launch(run, error, tolerance=5e-3, num_bytes=each, sets=sets)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        widths = kv_widths(plan)
        return [
            {
                "bits": BITS[i % 3],
                "head_dim": widths[i % len(widths)][1],
                "kv_heads": widths[i % len(widths)][0],
                "tokens": min(-(-tokens // GROUP) * GROUP, FULL[-1]),  # only full groups are packed
            }
            for i, tokens in enumerate(draw.tokens)
        ]

    def source(self, point: Point) -> str:
        return "triton: kvsim.calibrate.triton.quantise_kv"


def kv_widths(plan: Plan) -> list[tuple[int, int]]:
    """(KV heads, head_dim) of one GPU, every combination of the plan's shapes once, most heads first."""
    if plan.size == "tiny":
        return [(2, 64)]
    return sorted({(kv_heads, head_dim) for _, kv_heads, head_dim in plan.heads()}, reverse=True)


def empty(bits: int, shape: tuple[int, ...], by_channel: bool, bench: Bench) -> Packed:
    """Room for packed K (``by_channel``) or V of ``shape`` (..., tokens, head_dim)."""
    *lead, tokens, head_dim = shape
    facts = (*lead, tokens // GROUP, head_dim) if by_channel else (*lead, tokens, head_dim // GROUP)
    return Packed(
        torch.empty(*lead, tokens, head_dim * bits // 8, dtype=torch.uint8, device=bench.device),
        torch.empty(facts, dtype=META, device=bench.device),
        torch.empty(facts, dtype=META, device=bench.device),
    )


def packed_bytes(bits: int, head_dim: int) -> int:
    """Bytes of K and V of one packed token of one KV head, scales and zeros included."""
    return 2 * head_dim * bits // 8 + 2 * META_BYTES * head_dim // GROUP


def quantise(values: torch.Tensor, bits: int, by_channel: bool) -> Packed:
    """(..., tokens, head_dim) to its packed form, codes nearest to what float16 scale and zero give."""
    groups = _grouped(values.float(), by_channel)
    axis = -2 if by_channel else -1
    low, high = groups.amin(axis, keepdim=True), groups.amax(axis, keepdim=True)
    scale, zero = ((high - low) / (2**bits - 1)).to(META), low.to(META)
    codes = ((groups - zero.float()) / scale.float().clamp_min(1e-6) + 0.5).floor().clamp(0, 2**bits - 1)
    return Packed(
        pack(codes.to(torch.uint8).reshape(values.shape), bits), scale.squeeze(axis), zero.squeeze(axis)
    )


def dequantise(packed: Packed, bits: int, by_channel: bool) -> torch.Tensor:
    """Float32 (..., tokens, head_dim) of a packed form."""
    axis = -2 if by_channel else -1
    codes = unpack(packed.codes, bits)
    groups = _grouped(codes.float(), by_channel)
    return (groups * packed.scale.float().unsqueeze(axis) + packed.zero.float().unsqueeze(axis)).reshape(
        codes.shape
    )


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Uint8 codes (..., n) to bytes (..., n * bits / 8)."""
    each = 8 // bits
    apart = codes.reshape(*codes.shape[:-1], -1, each)
    packed = apart[..., 0].clone()
    for j in range(1, each):
        packed |= apart[..., j] << (bits * j)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """What :func:`pack` was given."""
    return torch.stack([(packed >> (bits * j)) & (2**bits - 1) for j in range(8 // bits)], dim=-1).flatten(-2)


def packed_error(
    values: torch.Tensor, found: Packed, bits: int, by_channel: bool, groups: Sequence[int]
) -> float:
    """How far the packed form of ``groups`` of 32 tokens is from what it should be; NaN if it holds one.

    The larger of the relative errors of scale and zero, and of how many steps a number lies further than half a
    step from its code. Codes themselves are not compared: at a tie either neighbour is right.
    """
    rows = torch.tensor([g * GROUP + t for g in groups for t in range(GROUP)], device=values.device)
    facts = torch.tensor(groups, device=values.device) if by_channel else rows
    some = Packed(found.codes[..., rows, :], found.scale[..., facts, :], found.zero[..., facts, :])
    true = values[..., rows, :].float()
    apart = _grouped(true, by_channel)
    axis = -2 if by_channel else -1
    low, high = apart.amin(axis), apart.amax(axis)
    scale = (high - low) / (2**bits - 1)
    steps = _grouped((dequantise(some, bits, by_channel) - true).abs(), by_channel) / scale.unsqueeze(axis)
    errors = (
        relative_error(some.scale, scale),
        relative_error(some.zero, low),
        float(steps.max()) - 0.5,
        0.0,
    )
    return float("nan") if any(e != e for e in errors) else max(errors)


def _grouped(values: torch.Tensor, by_channel: bool) -> torch.Tensor:
    """(..., groups, 32, head_dim) by channel, else (..., tokens, groups, 32)."""
    *lead, tokens, head_dim = values.shape
    if by_channel:
        return values.reshape(*lead, tokens // GROUP, GROUP, head_dim)
    return values.reshape(*lead, tokens, head_dim // GROUP, GROUP)
