"""How Hugging Face and llama.cpp store Llama 3."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tenfold.model.io.format import CheckpointFormat, GGUFNames, Slot, Stack
from tenfold.model.io.huggingface_config import shared_fields
from tenfold.model.llama import Attention, FeedForward, Llama
from tenfold.spec.model import ModelSpec


def llama_config(spec: ModelSpec, shared: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Llama 3."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": spec.ffn_dim,
        "mlp_bias": spec.mlp_bias,
        **shared,
    }


def ffn_slots(name: str, ffn: nn.Module) -> dict[str, Slot | Stack]:
    """The three matrices of a dense feed-forward, and their biases."""
    assert isinstance(ffn, FeedForward)
    matrices = {"gate_proj": ffn.w1, "up_proj": ffn.w3, "down_proj": ffn.w2}
    return {f"{name}.{part}.{kind}": Slot(p) for part, w in matrices.items() for kind, p in _tensors(w).items()}


def llama_slots(
    model: Llama, ffn: str = "mlp", of_ffn: Callable[[str, nn.Module], dict[str, Slot | Stack]] = ffn_slots, halves: bool = True
) -> dict[str, Slot | Stack]:
    """Every weight of a Llama by its Hugging Face name.

    `ffn` is Hugging Face's name of a layer's feed-forward, and `of_ffn` gives its weights. `halves` is as in `Slot`, for queries
    and keys.
    """
    slots: dict[str, Slot | Stack] = {"model.embed_tokens.weight": Slot(model.embedding.weight.data)}
    for i, block in enumerate(model.layers):
        layer = f"model.layers.{i}"
        slots |= {
            f"{layer}.input_layernorm.weight": Slot(block.attention_norm.weight.data),
            f"{layer}.post_attention_layernorm.weight": Slot(block.ffn_norm.weight.data),
            **_attention_slots(f"{layer}.self_attn", block.attention, model.spec, halves),
            **of_ffn(f"{layer}.{ffn}", block.ffn),
        }
    slots["model.norm.weight"] = Slot(model.norm.weight.data)
    return slots if model.spec.tied else slots | {"lm_head.weight": Slot(model.head.weight.data)}


def _attention_slots(name: str, attention: Attention, spec: ModelSpec, halves: bool) -> dict[str, Slot | Stack]:
    group = spec.n_heads // spec.n_kv_heads
    slots: dict[str, Slot | Stack] = {}
    for kind, p in _tensors(attention.wqkv).items():
        vector = p.ndim == 1
        rows = p.view(spec.n_kv_heads, group + 2, spec.head_dim, -1)
        slots[f"{name}.q_proj.{kind}"] = Slot(rows[:, :group], halves, vector)
        slots[f"{name}.k_proj.{kind}"] = Slot(rows[:, group : group + 1], halves, vector)
        slots[f"{name}.v_proj.{kind}"] = Slot(rows[:, group + 1 :], vector=vector)
    return slots | {f"{name}.o_proj.{kind}": Slot(p) for kind, p in _tensors(attention.wo).items()}


def _tensors(linear: nn.Linear) -> dict[str, Tensor]:
    """The weight of a linear layer, and its bias if it has one."""
    return {kind: p.data for kind in ("weight", "bias") if (p := getattr(linear, kind)) is not None}


GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def gguf_part(ffn: str = "mlp") -> dict[str, str]:
    """Hugging Face's names of a layer's weights by their GGUF names; `ffn` is Hugging Face's name of the dense feed-forward."""
    return {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": f"{ffn}.gate_proj",
        "ffn_up": f"{ffn}.up_proj",
        "ffn_down": f"{ffn}.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }


def llama_format() -> CheckpointFormat:
    names = GGUFNames("llama", gguf_part(), GGUF_TOP, turned=("attn_q", "attn_k"))
    return CheckpointFormat(("llama",), shared_fields, llama_config, llama_slots, names)
