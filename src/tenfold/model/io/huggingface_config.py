"""`config.json` as Hugging Face has it, from a shape and to one: Llama 3 and Llama 4."""

from typing import Any

import torch

from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.vision import VisionSpec
from tenfold.spec.vocabulary import Vocabulary


def spec_from_config(config: dict[str, Any], name: str = "model") -> ModelSpec:
    """The shape that a Hugging Face `config.json` describes. Raises TenfoldError for another family than Llama 3 and 4."""
    family = config.get("model_type")
    if family not in ("llama", "llama4", "llama4_text"):
        raise TenfoldError(f"{name} is a {family!r} model: only Llama 3 ('llama') and Llama 4 ('llama4') can be read.")
    try:
        text = config["text_config"] if family == "llama4" else config
        fields = _shared_fields(text, name)
        if family != "llama":
            fields |= _llama4_fields(text, name)
        if family == "llama4":
            fields["vision"] = _vision_spec(config["vision_config"], config.get("image_token_index", 200092))
        return ModelSpec(name=name, **fields)
    except KeyError as error:
        raise TenfoldError(f"The config.json of {name} lacks {error}.") from None


def config_from_spec(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The `config.json` of a shape. Raises TenfoldError for a Llama 4 without exactly one shared expert."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if s := spec.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_context,
        }
    shared = {
        "hidden_size": spec.dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": rope,
        "rope_scaling": rope if spec.rope_scaling else None,
        "tie_word_embeddings": spec.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if spec.family == "llama4":
        text = {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", **shared, **_llama4_config(spec)}
        return text if spec.vision is None else _with_images(text, spec.vision)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": spec.ffn_dim,
        "mlp_bias": False,
        **shared,
    }


def config_with_vocabulary(config: dict[str, Any], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The same `config.json` with the ids of the special tokens, and none where there is no vocabulary."""
    ids = (vocabulary or Vocabulary(size=0)).ids
    nested = {"text_config": config["text_config"] | ids} if "text_config" in config else {}
    return config | nested | ids


def _shared_fields(config: dict[str, Any], name: str) -> dict[str, Any]:
    # transformers 5 keeps both under rope_parameters, earlier ones rope_theta and rope_scaling apart.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise TenfoldError(f"{name} stretches its rotary positions by {kind!r}: only 'llama3' is known.")
    heads = config["num_attention_heads"]
    return {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn_dim": config.get("intermediate_size_mlp") or config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "tied": config.get("tie_word_embeddings", False),
        "context": config.get("max_position_embeddings", 2048),
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta", 10000.0)),
        "rope_scaling": RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_context=rope["original_max_position_embeddings"],
        )
        if kind == "llama3"
        else None,
        "norm_eps": config.get("rms_norm_eps", 1e-6),
    }


def _llama4_fields(config: dict[str, Any], name: str) -> dict[str, Any]:
    layers, context = config["num_hidden_layers"], config.get("max_position_embeddings", 0)
    interval = config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
    step = config.get("interleave_moe_layer_step", 1)
    routed = config.get("moe_layers")
    routed = list(range(step - 1, layers, step)) if routed is None else routed
    chunk = config.get("attention_chunk_size", 8192) or 0
    return {
        "family": "llama4",
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


def _llama4_config(spec: ModelSpec) -> dict[str, Any]:
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
            f"The image encoder's intermediate_size must be {spec.mlp_dim}, its width times {shuffle**2}, and its "
            "projector_input_dim its projector_output_dim: other shapes are not known."
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
    """The k with which `chosen` are the layers k - 1, 2k - 1, ...; 0 for none. Raises TenfoldError where there is none."""
    if not chosen:
        return stated if layers < stated != layers + 1 else 0
    k = chosen[0] + 1
    if list(chosen) != list(range(k - 1, layers, k)):
        raise TenfoldError(f"{what} must stand at equal distances, not at {chosen}.")
    return k
