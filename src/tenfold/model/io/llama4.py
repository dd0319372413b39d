"""How Hugging Face stores Llama 4. Its rotary embedding rotates adjacent pairs, as ours does; experts' matrices are transposed."""

from typing import Any

from torch import nn

from tenfold.model.io.format import CheckpointFormat, Slot, Stack
from tenfold.model.io.huggingface_config import require_known, shared_fields
from tenfold.model.io.llama import ffn_slots, llama_slots
from tenfold.model.io.llama4_gguf import llama4_gguf
from tenfold.model.llama4 import Llama4
from tenfold.model.moe import Experts
from tenfold.model.vision import Vision
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.vision import VisionSpec

_OWN = (
    "intermediate_size_mlp", "num_local_experts", "num_experts_per_tok", "moe_layers", "interleave_moe_layer_step", "layer_types",
    "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size", "use_qk_norm", "attn_temperature_tuning", "floor_scale",
    "attn_scale",
)  # fmt: skip
_TOP = (
    "text_config", "vision_config", "image_token_index", "image_token_id", "boi_token_index", "eoi_token_index", "boi_token_id",
    "eoi_token_id", "tie_word_embeddings",
)  # fmt: skip
_VISION = {"hidden_act": "gelu", "num_channels": 3, "norm_eps": 1e-5, "vision_feature_select_strategy": "default",
           "multi_modal_projector_bias": False}  # fmt: skip


def llama4_fields(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The ModelSpec fields of a Llama 4's config, text-only or with an image encoder; `name` is for error messages."""
    if config["model_type"] == "llama4":
        require_known(config, _TOP, f"The config.json of {name}")
        vision = _vision_spec(config["vision_config"], config.get("image_token_index", 200092))
        return _text_fields(config["text_config"], name) | {"vision": vision}
    return _text_fields(config, name)


def llama4_config(spec: ModelSpec, shared: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Llama 4. Raises TenfoldError for one without exactly one shared expert."""
    text = {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", **shared, **_text_config(spec)}
    return text if spec.vision is None else _with_images(text, spec.vision)


def _text_fields(config: dict[str, Any], name: str) -> dict[str, Any]:
    layers, context = config["num_hidden_layers"], config.get("max_position_embeddings", 0)
    interval = config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
    step = config.get("interleave_moe_layer_step", 1)
    routed = config.get("moe_layers")
    routed = list(range(step - 1, layers, step)) if routed is None else routed
    chunk = config.get("attention_chunk_size", 8192) or 0
    kinds = [("full_attention", "chunked_attention")[bool(kind)] for kind in turned]
    if (config.get("layer_types") or kinds) != kinds:
        raise TenfoldError(f"The config.json of {name} has layer_types that its no_rope_layers contradict.")
    return {
        **shared_fields(config, name, _OWN),
        "n_experts": config["num_local_experts"] if routed else 0,
        "experts_per_token": config.get("num_experts_per_tok", 1),
        "expert_ffn_dim": config["intermediate_size"] if routed else 0,
        "moe_every": _interval(routed, layers, step, f"The layers with experts of {name}") or 1,
        "attention_chunk": 0 if chunk == context else chunk,
        "nope_every": _interval([i for i in range(layers) if not turned[i]], layers, interval, f"The global layers of {name}"),
        "qk_norm": config.get("use_qk_norm", True),
        "temperature_floor": config.get("floor_scale", 8192) if config.get("attn_temperature_tuning", True) else 0,
        "temperature_scale": config.get("attn_scale", 0.1),
    }


def _text_config(spec: ModelSpec) -> dict[str, Any]:
    if spec.n_experts and spec.n_shared_experts != 1:
        raise TenfoldError(f"{spec.name} has {spec.n_shared_experts} shared experts: Hugging Face's Llama 4 has exactly one.")
    return {
        "intermediate_size": spec.expert_ffn_dim or spec.ffn_dim,
        "intermediate_size_mlp": spec.ffn_dim,
        "num_local_experts": max(1, spec.n_experts),
        "num_experts_per_tok": spec.experts_per_token,
        "moe_layers": [i for i in range(spec.n_layers) if spec.has_experts(i)],
        "interleave_moe_layer_step": spec.moe_every,
        "no_rope_layers": [int(spec.is_local(i)) for i in range(spec.n_layers)],
        "no_rope_layer_interval": spec.nope_every or spec.n_layers + 1,
        "attention_chunk_size": spec.attention_chunk or spec.context,
        "use_qk_norm": spec.qk_norm,
        "attn_temperature_tuning": bool(spec.temperature_floor),
        "floor_scale": spec.temperature_floor or 8192,
        "attn_scale": spec.temperature_scale,
    }


def _vision_spec(config: dict[str, Any], patch_token: int) -> VisionSpec:
    for key, value in _VISION.items():
        if config.get(key, value) != value:
            raise TenfoldError(f"The image encoder has {key} = {config[key]!r}, and only {value!r} is supported.")
    shuffle = round(1 / config.get("pixel_shuffle_ratio", 0.5))
    spec = VisionSpec(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        dim=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        shuffle=shuffle,
        adapter_dim=config["projector_output_dim"],
        rope_theta=float((config.get("rope_parameters") or config).get("rope_theta", 10_000.0)),
        patch_token=patch_token,
    )
    if config["intermediate_size"] != spec.mlp_dim or config["projector_input_dim"] != spec.adapter_dim:
        raise TenfoldError(
            f"The image encoder's intermediate_size must be {spec.mlp_dim} (its width times {shuffle**2}) and its "
            "projector_input_dim equal to its projector_output_dim: other shapes are not supported."
        )
    return spec


def _with_images(text: dict[str, Any], vision: VisionSpec) -> dict[str, Any]:
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": text,
        "vision_config": {
            "model_type": "llama4_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.dim,
            "intermediate_size": vision.mlp_dim,
            "num_hidden_layers": vision.n_layers,
            "num_attention_heads": vision.n_heads,
            "pixel_shuffle_ratio": 1 / vision.shuffle,
            "projector_input_dim": vision.adapter_dim,
            "projector_output_dim": vision.adapter_dim,
            "vision_output_dim": vision.adapter_dim,
            "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
            "norm_eps": 1e-5,
        },
        "image_token_index": vision.patch_token,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "dtype": text["dtype"],
    }


def _interval(chosen: list[int], layers: int, stated: int, what: str) -> int:
    """The k for which `chosen` are the layers k - 1, 2k - 1, ... Raises TenfoldError where there is no such k.

    Where no layer is chosen, it is the interval that the config states, if that is longer than the model; else 0, "never".
    `_text_config` writes layers + 1 for "never".
    """
    if not chosen:
        return stated if layers < stated != layers + 1 else 0
    k = chosen[0] + 1
    if list(chosen) != list(range(k - 1, layers, k)):
        raise TenfoldError(f"{what} must be every k-th layer for some k, not the layers {chosen}.")
    return k


def llama4_slots(model: Llama4) -> dict[str, Slot | Stack]:
    """Every weight of a Llama 4 by its Hugging Face name."""
    slots = llama_slots(model, "feed_forward", _ffn_slots, halves=False)
    if model.vision is None:
        return slots
    return {f"language_model.{name}": slot for name, slot in slots.items()} | _vision_slots(model.vision)


def _ffn_slots(name: str, ffn: nn.Module) -> dict[str, Slot | Stack]:
    if not isinstance(ffn, Experts):
        return ffn_slots(name, ffn)
    assert ffn.shared is not None  # `llama4_config` refuses a model without one
    return {
        f"{name}.router.weight": Slot(ffn.router.weight.data),
        f"{name}.experts.gate_up_proj": Stack((ffn.w1.weight.data, ffn.w3.weight.data)),
        f"{name}.experts.down_proj": Stack((ffn.w2.weight.data,)),
        **ffn_slots(f"{name}.shared_expert", ffn.shared),
    }


def _vision_slots(vision: Vision) -> dict[str, Slot | Stack]:
    ours = {
        "vision_model.class_embedding": vision.last,
        "vision_model.positional_embedding_vlm": vision.positions,
        "vision_model.patch_embedding.linear.weight": vision.patch.weight,
        "vision_model.vision_adapter.mlp.fc1.weight": vision.adapter1.weight,
        "vision_model.vision_adapter.mlp.fc2.weight": vision.adapter2.weight,
        "multi_modal_projector.linear_1.weight": vision.projection.weight,
    }
    modules: dict[str, nn.Module] = {"layernorm_pre": vision.norm_before, "layernorm_post": vision.norm_after}
    for i, block in enumerate(vision.layers):
        layer = f"model.layers.{i}"
        modules |= {
            f"{layer}.input_layernorm": block.attention_norm,
            f"{layer}.post_attention_layernorm": block.ffn_norm,
            f"{layer}.self_attn.o_proj": block.wo,
            f"{layer}.mlp.fc1": block.w1,
            f"{layer}.mlp.fc2": block.w2,
        }
        for part in ("weight", "bias"):
            rows = getattr(block.wqkv, part).chunk(3)
            ours |= {f"vision_model.{layer}.self_attn.{n}_proj.{part}": r for n, r in zip("qkv", rows, strict=True)}
    for name, module in modules.items():
        ours |= {f"vision_model.{name}.{part}": p for part, p in module.named_parameters()}
    return {name: Slot(p.data) for name, p in ours.items()}


def llama4_format() -> CheckpointFormat:
    return CheckpointFormat(("llama4", "llama4_text"), llama4_fields, llama4_config, llama4_slots, llama4_gguf())
