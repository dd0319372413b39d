"""The shape of a model, and what follows from the shape alone: parameters, FLOPs, bytes.

The planner, the trainer and the server share these formulas. A multiply-add counts as two FLOPs, and the backward pass as twice the
forward pass. Norms, activations, RoPE, the softmax and the embedding look-up (a gather) are not counted, in any of the conventions
below.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from msgspec import Meta

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.plugins import plugins
from tenfold.spec.ranges import Positive, require_fields
from tenfold.spec.vision import VisionSpec

Convention = Literal["exact", "full_attention", "6n"]
RopeType = Literal["llama3", "linear", "dynamic", "yarn"]
Size = Annotated[int, Meta(ge=1, le=2**24)]
SizeOrNone = Annotated[int, Meta(ge=0, le=2**24)]
Length = Annotated[int, Meta(ge=0, le=2**40)]  # in tokens


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are scaled for a longer context; by default as in Llama 3.1 (llama-models `apply_scaling`).

    `linear` divides all frequencies by `factor`. `yarn` (arXiv 2309.00071) divides those that make less than `beta_slow` turns in
    `original_context`, keeps those that make more than `beta_fast`, interpolates between, and scales cosines and sines by
    `attention_factor`, by default 0.1 ln(factor) + 1. `dynamic` scales only for positions beyond the original context, which models
    of this package never have, so it changes nothing. Raises TenfoldError for values out of range.
    """

    factor: Positive = 8.0
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_context: Annotated[int, Meta(ge=1, le=2**40)] = 8192
    rope_type: RopeType = "llama3"
    attention_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        require_fields(self, "rope_scaling")
        if self.low_freq_factor > self.high_freq_factor:
            raise TenfoldError(
                f"rope_scaling: low_freq_factor {self.low_freq_factor:g} exceeds high_freq_factor {self.high_freq_factor:g}."
            )


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights. `active` are those that compute one token; `matrix_active` are the active ones without norms, biases and,
    unless it is also the output head, the embedding table."""

    total: int
    active: int
    embedding: int
    matrix_active: int


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a Llama 3 or Llama 4 text model. Raises TenfoldError for an impossible one.

    A dense model has `n_experts = 0`. With experts, every `moe_every`-th layer routes each token to `experts_per_token` of
    `n_experts` feed-forward blocks of width `expert_ffn_dim`, beside `n_shared_experts` that every token passes through. Every
    `nope_every`-th layer attends to the whole sequence without rotary positions (NoPE); the others attend within chunks of
    `attention_chunk` tokens; 0 turns each of these off. In the NoPE layers, the query at position p is multiplied by
    1 + `temperature_scale` ln(1 + floor((p + 1) / `temperature_floor`)), unless `temperature_floor` is 0. `attention_bias` and
    `mlp_bias` add bias vectors to the projections of attention and feed-forward. `vision` is the image encoder, which the counts
    below leave out.
    """

    name: str
    dim: Size
    n_layers: Size
    n_heads: Size
    n_kv_heads: Size
    ffn_dim: Size
    vocab_size: Size
    head_dim: SizeOrNone = 0
    tied: bool = False
    context: Annotated[int, Meta(ge=1, le=2**40)] = 8192
    rope_theta: Positive = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    family: str = "llama3"
    n_experts: SizeOrNone = 0
    experts_per_token: Size = 1
    n_shared_experts: SizeOrNone = 1
    expert_ffn_dim: SizeOrNone = 0
    moe_every: Size = 1
    attention_chunk: Length = 0
    nope_every: SizeOrNone = 0
    qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    temperature_floor: Length = 0
    temperature_scale: Annotated[float, Meta(ge=0)] = 0.1
    vision: VisionSpec | None = None

    def __post_init__(self) -> None:
        require_fields(self, self.name if isinstance(self.name, str) else "The model")
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise TenfoldError(f"{self.name}: n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}.")
        if self.head_dim % 2 or not self.head_dim:
            raise TenfoldError(f"{self.name}: head_dim {self.head_dim} must be even, and at least 2, for rotary positions.")
        families = plugins("families")
        if self.family not in families:
            raise TenfoldError(f"{self.name}: there is no family {self.family!r}{nearest(self.family, families)}.")
        if self.family == "llama3" and (self.n_experts or self.attention_chunk or self.nope_every or self.qk_norm or self.vision):
            raise TenfoldError(
                f"{self.name}: experts, chunked attention, layers without positions, qk_norm and vision need family = 'llama4'."
            )
        if self.family != "llama3" and (self.attention_bias or self.mlp_bias):
            raise TenfoldError(f"{self.name}: attention_bias and mlp_bias need family = 'llama3'.")
        if self.n_experts and self.expert_ffn_dim < 1:
            raise TenfoldError(f"{self.name}: a model with experts needs expert_ffn_dim.")
        if self.n_experts and not 1 <= self.experts_per_token <= self.n_experts:
            raise TenfoldError(
                f"{self.name}: experts_per_token {self.experts_per_token} must lie between 1 and n_experts {self.n_experts}."
            )
        if self.n_experts and not 1 <= self.moe_every <= self.n_layers:
            raise TenfoldError(
                f"{self.name}: moe_every {self.moe_every} must lie between 1 and n_layers {self.n_layers}, or no layer has experts."
            )

    @property
    def has_biases(self) -> bool:
        return self.attention_bias or self.mlp_bias

    @property
    def _layer_biases(self) -> int:
        attention = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim + self.dim
        return self.attention_bias * attention + self.mlp_bias * (2 * self.ffn_dim + self.dim)

    @property
    def attention_weights(self) -> int:
        """The number of weights in the four attention projections of one layer, without biases."""
        return self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)

    def is_local(self, layer: int) -> bool:
        """Whether `layer` (from 0) has rotary positions (and chunks, with `attention_chunk`); else it is a NoPE layer."""
        return not (self.nope_every and (layer + 1) % self.nope_every == 0)

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward of `layer` (from 0) has experts."""
        return bool(self.n_experts) and (layer + 1) % self.moe_every == 0

    @property
    def n_expert_layers(self) -> int:
        """The number of layers with experts: layer i (from 0) where (i + 1) % moe_every == 0."""
        return self.n_layers // self.moe_every if self.n_experts else 0

    def _expert_layer_weights(self, experts: int) -> int:
        swiglu = 3 * self.dim * self.expert_ffn_dim
        return swiglu * (experts + self.n_shared_experts) + self.dim * self.n_experts

    def parameters(self) -> Parameters:
        """Exact numbers of weights, as in a checkpoint (tied weights count once)."""
        embedding = self.vocab_size * self.dim
        dense_layers = self.n_layers - self.n_expert_layers
        shared = self.n_layers * self.attention_weights + dense_layers * 3 * self.dim * self.ffn_dim
        experts_total = self.n_expert_layers * self._expert_layer_weights(self.n_experts)
        experts_active = self.n_expert_layers * self._expert_layer_weights(self.experts_per_token)
        vectors = (2 * self.n_layers + 1) * self.dim + self.n_layers * self._layer_biases
        head = 0 if self.tied else embedding
        return Parameters(
            total=shared + experts_total + vectors + embedding + head,
            active=shared + experts_active + vectors + embedding + head,
            embedding=embedding,
            matrix_active=shared + experts_active + embedding,
        )

    def attended(self, seq_len: int, layer: int, causal: bool = True) -> float:
        """Mean number of keys that a query of `layer` attends to in a sequence of `seq_len` tokens.

        Causal: (T + 1) / 2, or less where a layer attends within chunks. Not causal: T (or the chunk).
        """
        span = seq_len
        if self.attention_chunk and self.is_local(layer):
            span = min(seq_len, self.attention_chunk)
        if not causal:
            return float(span)
        whole, rest = divmod(seq_len, span)
        return (whole * span * (span + 1) / 2 + rest * (rest + 1) / 2) / seq_len

    def attention_flops_per_token(self, seq_len: int, causal: bool = True) -> float:
        """Forward FLOPs per token of the two matrix products in attention (scores, and scores times values)."""
        keys = sum(self.attended(seq_len, layer, causal) for layer in range(self.n_layers))
        return 4.0 * self.n_heads * self.head_dim * keys

    def forward_flops_per_token(self, seq_len: int, convention: Convention = "exact") -> float:
        """Forward FLOPs per token at sequence length `seq_len`.

        - `exact`: every matrix product including the output head; of the attention scores only those below the causal mask.
          Used by Tenfold, MaxText, and the Llama 3 paper's model FLOPs.
        - `full_attention`: the same with the whole square of attention scores (PaLM appendix B, Megatron-LM, torchtitan,
          nanochat).
        - `6n`: two FLOPs per active parameter, embedding included, and no attention (Chinchilla's C = 6ND, model cards).
        """
        if convention == "6n":
            return 2.0 * self.parameters().active
        return 2.0 * self.parameters().matrix_active + self.attention_flops_per_token(seq_len, causal=convention == "exact")

    def train_flops_per_token(self, seq_len: int, convention: Convention = "exact") -> float:
        """Training FLOPs per token: three times the forward pass (one forward, two backward)."""
        return 3.0 * self.forward_flops_per_token(seq_len, convention)


@cache
def published_models() -> dict[str, ModelSpec]:
    """The published shapes by name, from `spec/data/models.toml`, which also names the source of each."""
    text = resources.files("tenfold.spec").joinpath("data/models.toml").read_text()
    models = {}
    for name, fields in tomllib.loads(text).items():
        fields.pop("source")
        scaling = fields.pop("rope_scaling", None)
        models[name] = ModelSpec(name=name, rope_scaling=RopeScaling(**scaling) if scaling else None, **fields)
    return models


def published_model(name: str) -> ModelSpec:
    """The published shape of a name, in upper or lower case. Raises TenfoldError, with the nearest name, if it is unknown."""
    models = published_models()
    if name.lower() not in models:
        raise TenfoldError(f"There is no published model {name!r}{nearest(name, models)}.")
    return models[name.lower()]


def with_depth(spec: ModelSpec, n_layers: int) -> ModelSpec:
    """The same shape with another number of layers."""
    return replace(spec, n_layers=n_layers)
