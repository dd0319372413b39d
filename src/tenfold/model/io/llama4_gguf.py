"""How GGUF files store Llama 4. They lack its attention settings: llama.cpp assumes those of the published models
(`src/models/llama4.cpp`)."""

from typing import Any

from tenfold.model.io.format import GGUFNames
from tenfold.model.io.llama import GGUF_TOP, gguf_part
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

_LENGTH = 8192  # tokens in an attention chunk, and the temperature_floor
_SCALE = 0.1  # temperature_scale
_GLOBAL = 4  # every so manyth layer is global
_WITHOUT_NORM = 128  # number of experts of the one published model without qk_norm
_EXPERTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def llama4_gguf() -> GGUFNames:
    ffn = "feed_forward"
    shared = {f"ffn_{name}_shexp": f"{ffn}.shared_expert.{theirs}" for name, theirs in _EXPERTS.items()}
    return GGUFNames(
        "llama4",
        gguf_part(ffn) | shared | {"ffn_gate_inp": f"{ffn}.router"},
        GGUF_TOP,
        stacks={
            f"{ffn}.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
            f"{ffn}.experts.down_proj": ("ffn_down_exps",),
        },
        read=("expert_count", "expert_used_count", "expert_feed_forward_length", "interleave_moe_layer_step"),
        spec_fields=_spec_fields,
        header=_header,
    )


def _spec_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_experts": fields["expert_count"],
        "experts_per_token": fields["expert_used_count"],
        "expert_ffn_dim": fields["expert_feed_forward_length"],
        "moe_every": fields["interleave_moe_layer_step"],
        "attention_chunk": _LENGTH,
        "nope_every": _GLOBAL,
        "qk_norm": fields["expert_count"] != _WITHOUT_NORM,
        "temperature_floor": _LENGTH,
        "temperature_scale": _SCALE,
    }


def _header(spec: ModelSpec) -> dict[str, int]:
    """The family's own header fields. Raises TenfoldError for a model that llama.cpp would compute differently in its context."""
    chunk = min(spec.attention_chunk or spec.context, spec.context)
    grows = 0 < spec.temperature_floor <= spec.context
    for differs, what in (
        (spec.vision is not None, "an image encoder, which llama.cpp reads from a separate file"),
        (not spec.n_experts or spec.n_shared_experts != 1, "no layers with routed experts and one shared expert"),
        (chunk != min(_LENGTH, spec.context), f"attention in chunks of {chunk} tokens instead of {_LENGTH}"),
        (
            any(spec.is_local(i) != bool((i + 1) % _GLOBAL) for i in range(spec.n_layers)),
            f"other global layers than every {_GLOBAL}th",
        ),
        (
            (spec.temperature_floor, spec.temperature_scale) != (_LENGTH, _SCALE) if grows else spec.context >= _LENGTH,
            f"an attention temperature that differs from temperature_floor = {_LENGTH} and temperature_scale = {_SCALE}",
        ),
        (spec.qk_norm == (spec.n_experts == _WITHOUT_NORM), f"qk_norm = {spec.qk_norm} with {spec.n_experts} experts"),
    ):
        if differs:
            raise TenfoldError(f"{spec.name} has {what}, so llama.cpp would compute another model: export it --to hf.")
    return {
        "expert_count": spec.n_experts,
        "expert_used_count": spec.experts_per_token,
        "expert_feed_forward_length": spec.expert_ffn_dim,
        "interleave_moe_layer_step": spec.moe_every,
    }
