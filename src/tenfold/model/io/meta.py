"""Write Meta's own layout: `consolidated.00.pth`, `params.json` (llama-models `models/llama3`), and the tokenizer's files."""

from pathlib import Path

import torch
from torch import Tensor

from tenfold.model.io.huggingface import read_slots, read_spec
from tenfold.model.io.tokenizer import copy_tokenizer, has_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json
from tenfold.spec.model import ModelSpec, RopeScaling

_TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_PART = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_SCALED = RopeScaling(8.0, 1.0, 4.0, 8192)  # the only scaling in Meta's code, where it is called `use_scaled_rope`


def write_meta(source: Path, directory: Path, dtype: torch.dtype) -> None:
    """Write the model in `source`, a Hugging Face directory or GGUF file. Raises TenfoldError if Meta's layout cannot hold it."""
    spec = read_spec(source)
    write_json(directory / "params.json", params_of(spec))
    weights: dict[str, Tensor] = {}
    for part in read_slots(source):
        weights |= {meta_name(name): slot.pairs().detach().to(dtype, copy=True) for name, slot in part.items()}
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    torch.save(weights, directory / "consolidated.00.pth")
    if has_tokenizer(source):
        copy_tokenizer(source, directory)


def meta_name(name: str) -> str:
    """Meta's name of a weight, from its Hugging Face name."""
    if name in _TOP:
        return _TOP[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"layers.{layer}.{_PART[part]}.weight"


def params_of(spec: ModelSpec) -> dict[str, int | float | bool]:
    """The `params.json` of a spec. Raises TenfoldError if Meta's layout cannot hold it.

    Meta's code computes the width of the feed-forward as int(ffn_dim_multiplier * int(2 * 4 * dim / 3)), rounded up to a multiple
    of `multiple_of`. With a `multiple_of` of 1, the multiplier below gives exactly `ffn_dim`.
    """
    refused = "Meta's layout has no place for"
    if spec.family != "llama3":
        raise TenfoldError(
            f"{spec.name} is of the family {spec.family!r}: Meta's layout is written for llama3 only; export it --to hf."
        )
    if spec.has_biases:
        raise TenfoldError(f"{refused} the biases of {spec.name}: export it --to hf.")
    if spec.head_dim * spec.n_heads != spec.dim:
        raise TenfoldError(f"{refused} heads of {spec.head_dim} dimensions in {spec.name}, only dim / n_heads: export it --to hf.")
    if spec.rope_scaling not in (None, _SCALED):
        raise TenfoldError(f"{refused} the rope scaling of {spec.name}, only for Llama 3.1's factor of 8: export it --to hf.")
    return {
        "dim": spec.dim,
        "n_layers": spec.n_layers,
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "vocab_size": spec.vocab_size,
        "ffn_dim_multiplier": (spec.ffn_dim + 0.5) / int(2 * 4 * spec.dim / 3),
        "multiple_of": 1,
        "norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "use_scaled_rope": spec.rope_scaling is not None,
    }
