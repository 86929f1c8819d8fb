"""``cache.codec``: KV held in fewer bits or dimensions. docs/methods.md has the meaning of every key."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[float, Field(gt=0, le=16)]


class CodecPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Important(CodecPart):
    """Tokens that are kept in more bits than the others."""

    share: Share
    bits: Bits


class Sparse(CodecPart):
    """Elements that are zeroed, and the format that holds the others: a bitmap and packed values, tile by tile."""

    kept: Annotated[float, Field(gt=0, le=1)]
    """Of all elements."""
    tile: Positive = 64
    """Elements under one bitmap."""
    padding: Positive = 8
    """The values of a tile are padded to a multiple of so many."""
    count_bytes: Annotated[int, Field(ge=0)] = 4
    """Offset or number of values of a tile."""


class Tensor(CodecPart):
    """How one of keys, values and layer inputs is held."""

    bits: Bits = 16
    axis: Literal["channel", "token"] = "token"
    """channel: a scale for one channel over ``group`` tokens; token: for one token over ``group`` channels."""
    group: Positive | Literal["token"] | None = None
    """Elements that share a scale and zero; token = all of a token's in a layer; null = none stored (found offline)."""
    metadata_bits: Annotated[int, Field(ge=0)] = 32
    """Scale and zero of a group."""
    important: Important | None = None
    outliers: Share = 0.0
    """Of all elements, kept beside the packed ones."""
    outlier_bits: Positive = 32
    """Value and index of an outlier."""
    error_rank: Annotated[int, Field(ge=0)] = 0
    """Rank, for each head, of a 16-bit correction of what quantising lost."""
    channels: Positive | None = None
    """Channels of each head that are kept; null = all."""
    rank: Positive | None = None
    """Width of the latent that is kept in place of a token's channels; null = no projection."""
    sparse: Sparse | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Tensor:
        forms = [self.channels is not None, self.rank is not None, self.sparse is not None]
        if sum(forms) > 1:
            raise ValueError("channels, rank and sparse exclude each other; give one of the three")
        if self.axis == "channel" and isinstance(self.group, str):
            raise ValueError("axis channel shares scales over a number of tokens; give group a number")
        if self.sparse is not None and self.bits < 16:
            raise ValueError("sparse values are held in 16 bits; leave bits out")
        return self


class MergeLayers(CodecPart):
    """Neighbouring layers that hold one common direction for each token, and its lengths."""

    layers: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the layers, the last ones; rounded to whole groups."""
    size: Annotated[int, Field(ge=2)] = 2
    """Layers of a group."""
    retained: Share = 0.0
    """Tokens that are too different and are held by each layer."""
    norm_bits: Annotated[int, Field(ge=0)] = 16
    """Of a token's length, for each layer and for keys and values; 0 = not counted."""


class Codec(CodecPart):
    """Stages that are left out change nothing."""

    place: Literal["hbm", "tiers"] = "hbm"
    """hbm: everywhere; tiers: packed on the way to them and unpacked on the way back."""
    trigger: Literal["token", "group", "chunk", "prefill"] = "chunk"
    """When prompt KV is packed: prefill = all of it when the prompt is through, which holds it at 16 bits until then;
    otherwise as it is computed. What is generated is packed token by token (token), else a group at a time."""
    window: Annotated[int, Field(ge=0)] = 0
    """Newest tokens, at 16 bits."""
    sinks: Annotated[int, Field(ge=0)] = 0
    """First tokens, at 16 bits."""
    keys: Tensor = Tensor()
    values: Tensor = Tensor()
    input: Tensor | None = None
    """The layers' inputs X are held in place of keys and values, which are computed from them in every step."""
    joint_layers: Positive = 1
    """Neighbouring layers that share one latent (``rank``)."""
    factors: Literal["offline", "request"] = "offline"
    """Projections to latents (``rank``): a part of the model, or found for each prompt and held beside it."""
    read: Literal["reconstruct", "absorb"] = "reconstruct"
    """Latents: keys and values are rebuilt in every step, or queries are projected and attend to latents."""
    transform: Literal["hadamard"] | None = None
    """Rotation of keys before they are quantised, and of queries."""
    merge_layers: MergeLayers | None = None
    entropy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Bytes after an entropy code for each byte before it."""

    @model_validator(mode="after")
    def _agree(self) -> Codec:
        ranks = [tensor.rank for tensor in (self.keys, self.values)]
        if self.input is not None and (self.keys != Tensor() or self.values != Tensor()):
            raise ValueError("input replaces keys and values; leave these two out")
        if self.joint_layers > 1 and not any(ranks):
            raise ValueError("joint_layers share a latent; give keys or values a rank, or leave it out")
        if self.place == "tiers" and (self.window or self.sinks):
            raise ValueError("what tiers hold has no window and no sinks; leave them out, or set place: hbm")
        if self.joint_layers > 1 and self.merge_layers is not None:
            raise ValueError("joint_layers and merge_layers both share layers; leave one of them out")
        return self
