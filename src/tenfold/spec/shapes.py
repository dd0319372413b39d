"""Shapes of the ladder: one family of small Llama models, each given by its width alone."""

from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

HEAD_DIM = 32
WIDTH_PER_LAYER = 48
TOKENS_PER_PARAMETER = 20.0


def llama_shape(width: int, vocab_size: int, context: int = 2048, tied: bool = False) -> ModelSpec:
    """The Llama-3-shaped model of a width (a multiple of 32): heads of 32 to width 512, 64 to 2048, 128 above.

    Depth follows width at `WIDTH_PER_LAYER` (published Llamas: 128; nanochat: 64; the smallest models want to be
    deeper), so that a ladder has one dimension. The feed-forward is 8/3 of the width, to a multiple of 32.
    """
    if width < HEAD_DIM or width % HEAD_DIM:
        raise TenfoldError(f"A width must be a multiple of {HEAD_DIM}, not {width}.")
    head_dim = HEAD_DIM if width <= 512 else 64 if width <= 2048 and width % 64 == 0 else 128
    if width % head_dim:
        raise TenfoldError(f"A width above 512 must be a multiple of {head_dim}, not {width}.")
    return ModelSpec(
        name=f"width-{width}",
        dim=width,
        n_layers=max(1, round(width / WIDTH_PER_LAYER)),
        n_heads=width // head_dim,
        n_kv_heads=width // head_dim,
        head_dim=head_dim,
        ffn_dim=round(width * 8 / 3 / 32) * 32,
        vocab_size=vocab_size,
        tied=tied,
        context=context,
    )


def widths() -> list[int]:
    """The widths that a ladder may use: steps of about a fifth, from 32 to 8192."""
    fine = list(range(32, 257, 32)) + list(range(320, 513, 64)) + list(range(640, 1025, 128))
    return fine + list(range(1280, 2049, 256)) + list(range(2560, 8193, 512))


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
