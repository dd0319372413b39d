"""Shapes of the ladder: one family of small Llama models, each given by its width alone."""

from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

HEAD_DIMS = ((128, 16), (512, 32), (2048, 64), (10**9, 128))  # (widest model, dimensions of its heads)
WIDTH_PER_LAYER = 40
TOKENS_PER_PARAMETER = 20.0


def llama_shape(width: int, vocab_size: int, context: int = 2048, tied: bool = False) -> ModelSpec:
    """The Llama-3-shaped model of a width, which must be a multiple of its heads' dimensions (`HEAD_DIMS`).

    Depth follows width at `WIDTH_PER_LAYER` (published Llamas: 128; nanochat: 64; the smallest models want to be
    deeper), at least 2, so that a ladder has one dimension. The feed-forward is 8/3 of the width, to a multiple of 8.
    """
    head_dim = next(size for widest, size in HEAD_DIMS if width <= widest)
    if width < 16 or width % head_dim:
        raise TenfoldError(f"A width near {width} must be a multiple of {head_dim}.")
    return ModelSpec(
        name=f"width-{width}",
        dim=width,
        n_layers=max(2, round(width / WIDTH_PER_LAYER)),
        n_heads=width // head_dim,
        n_kv_heads=width // head_dim,
        head_dim=head_dim,
        ffn_dim=round(width * 8 / 3 / 8) * 8,
        vocab_size=vocab_size,
        tied=tied,
        context=context,
    )


def widths() -> list[int]:
    """The widths that a ladder may use: sixteenths of a power of two or more apart, from 16 to 8192."""
    small = list(range(16, 129, 16)) + list(range(160, 257, 32)) + list(range(320, 513, 64))
    return small + list(range(640, 1025, 128)) + list(range(1280, 2049, 256)) + list(range(2560, 8193, 512))


def shape_for_flops(flops: float, vocab_size: int, seq_len: int, tokens_per_parameter: float = TOKENS_PER_PARAMETER):
    """The shape and tokens whose training FLOPs are `flops` at nearly `tokens_per_parameter` (matrix parameters).

    Returns (ModelSpec, tokens).
    """
    best = min(
        (llama_shape(width, vocab_size) for width in widths()),
        key=lambda spec: abs(
            flops / spec.train_flops_per_token(seq_len) / spec.parameters().matrix_active / tokens_per_parameter - 1
        ),
    )
    return best, round(flops / best.train_flops_per_token(seq_len))
