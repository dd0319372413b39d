"""Shapes of the ladder: small models of each family, each given by its width alone."""

from dataclasses import replace

from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.plugins import load

HEAD_DIMS = ((128, 16), (512, 32), (2048, 64), (10**9, 128))  # (widest model, dimensions of its heads, nearly)
WIDTH_PER_LAYER = 40
TOKENS_PER_PARAMETER = 20.0
EXPERTS = 16


def llama_shape(width: int, vocab_size: int, context: int = 2048, tied: bool = False) -> ModelSpec:
    """The Llama-3-shaped model of a width, which must divide into heads of nearly `HEAD_DIMS` and of an even size.

    Depth follows width at `WIDTH_PER_LAYER` (published Llamas: 128; nanochat: 64; the smallest models want to be
    deeper), at least 2, so that a ladder has one dimension. The feed-forward is 8/3 of the width, to a multiple of 8.
    """
    head_dim = next(size for widest, size in HEAD_DIMS if width <= widest)
    n_heads = max(1, round(width / head_dim))
    if width < 16 or width % (2 * n_heads):
        raise TenfoldError(f"A width near {width} must be a multiple of {head_dim}.")
    return ModelSpec(
        name=f"width-{width}",
        dim=width,
        n_layers=max(2, round(width / WIDTH_PER_LAYER)),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=width // n_heads,
        ffn_dim=round(width * 8 / 3 / 8) * 8,
        vocab_size=vocab_size,
        tied=tied,
        context=context,
    )


def llama4_shape(width: int, vocab_size: int, context: int = 2048, tied: bool = False) -> ModelSpec:
    """The Llama-4-shaped model of a width: `llama_shape` with the feed-forward of every layer cut in a shared half and
    one of `EXPERTS` routed halves (as Scout's and Maverick's are), so that a token's compute stays what it was."""
    dense = llama_shape(width, vocab_size, context, tied)
    return replace(
        dense,
        family="llama4",
        n_experts=EXPERTS,
        expert_ffn_dim=round(dense.ffn_dim / 2 / 8) * 8,
        attention_chunk=8192,
        nope_every=4,
        qk_norm=True,
        temperature_floor=8192,
    )


def shape_of(family: str, width: int, vocab_size: int) -> ModelSpec:
    """The model of a family and width. Raises TenfoldError where there is no such family or width."""
    return load("families", family).shape(width, vocab_size)


def widths() -> list[int]:
    """The widths that a ladder may use: sixteenths of a power of two or more apart, from 24 to 8192."""
    small = list(range(24, 49, 8)) + list(range(64, 129, 16)) + list(range(160, 257, 32)) + list(range(320, 513, 64))
    return small + list(range(640, 1025, 128)) + list(range(1280, 2049, 256)) + list(range(2560, 8193, 512))


def shape_for_flops(
    flops: float,
    vocab_size: int,
    seq_len: int,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    family: str = "llama3",
) -> tuple[ModelSpec, int]:
    """The shape and tokens whose training FLOPs are `flops` at nearly `tokens_per_parameter` (matrix parameters).

    Returns (ModelSpec, tokens).
    """
    best = min(
        (shape_of(family, width, vocab_size) for width in widths()),
        key=lambda spec: abs(
            flops / spec.train_flops_per_token(seq_len) / spec.parameters().matrix_active / tokens_per_parameter - 1
        ),
    )
    return best, round(flops / best.train_flops_per_token(seq_len))
