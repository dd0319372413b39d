"""Convert between a `ModelSpec` and Hugging Face's `config.json`."""

from collections.abc import Iterable
from typing import Any

import torch

from tenfold.model.family import families, family_of
from tenfold.model.io.huggingface_keys import FIXED, HARMLESS, READ, ROPE_KEYS
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.ranges import shown
from tenfold.spec.vocabulary import Vocabulary


def spec_from_config(config: dict[str, Any], name: str = "model") -> ModelSpec:
    """The spec that a Hugging Face `config.json` describes; `name` becomes the spec's name.

    Raises TenfoldError for a `model_type` that no family has, and for an unknown key or value that might change the model.
    """
    known: list[str] = []
    try:
        kind = config.get("model_type")
        for family_name, family in families():
            checkpoint = family.weights()
            if kind in checkpoint.model_types:
                return family.spec(name=name, family=family_name, **checkpoint.spec_fields(config, name))
            known += checkpoint.model_types
    except KeyError as error:
        raise TenfoldError(f"The config.json of {name} lacks {error}.") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise TenfoldError(f"The config.json of {name} does not describe a model: {error}.") from None
    raise TenfoldError(f"{name} is a {kind!r} model: only {', '.join(map(repr, sorted(known)))} can be read.")


def config_from_spec(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The `config.json` of a spec. Raises TenfoldError for a spec that the Hugging Face layout cannot hold."""
    rope = _rope_config(spec)
    shared: dict[str, Any] = {
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
        "attention_bias": spec.attention_bias,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return family_of(spec).weights().config(spec, shared)


def config_with_vocabulary(config: dict[str, Any], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """`config` with the ids of the special tokens of `vocabulary`; null ids where there is no vocabulary."""
    ids = (vocabulary or Vocabulary(size=0)).ids
    nested = {"text_config": config["text_config"] | ids} if "text_config" in config else {}
    return config | nested | ids


def shared_fields(config: dict[str, Any], name: str, own: Iterable[str] = ()) -> dict[str, Any]:
    """The ModelSpec fields that all families read in the same way; `own` are the keys that the family reads in addition.

    Raises TenfoldError for an unknown key, and for a value that is not supported.
    """
    require_known(config, {*READ, *own}, f"The config.json of {name}")
    # transformers 5 has both in rope_parameters; earlier versions have rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads, context = config["num_attention_heads"], config.get("max_position_embeddings", 2048)
    return {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn_dim": config.get("intermediate_size_mlp") or config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "tied": config.get("tie_word_embeddings", False),
        "context": context,
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta", 10000.0)),
        "rope_scaling": _rope_scaling(rope, context, name),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
    }


def require_known(config: dict[str, Any], read: Iterable[str], where: str) -> None:
    """Raises TenfoldError for a key, other than null, that is neither read nor known to have no effect on the logits."""
    for key, value in config.items():
        if value is None or key in HARMLESS or key.startswith("_"):
            continue
        if key in FIXED and value not in FIXED[key]:
            supported = " or ".join(map(repr, FIXED[key]))
            raise TenfoldError(f"{where} has {key} = {shown(value)}, and only {supported} is supported.")
        if key not in FIXED and key not in read:
            raise TenfoldError(f"{where} has an unknown key, {key} = {shown(value)}: remove it if it does not change the model.")


def _rope_scaling(rope: dict[str, Any], context: int, name: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ROPE_KEYS:
        raise TenfoldError(f"{name} has the rope_type {kind!r}: only {', '.join(ROPE_KEYS)} are supported.")
    require_known(rope, {"rope_type", "type", "rope_theta", *ROPE_KEYS[kind]}, f"The rotary positions of {name}")
    given = {ours: rope[key] for key, ours in ROPE_KEYS[kind].items() if rope.get(key) is not None}
    # transformers has no defaults for Llama 3.1's scaling.
    missing = [key for key, ours in ROPE_KEYS[kind].items() if ours not in given] if kind == "llama3" else []
    if missing or "factor" not in given:
        raise KeyError((missing or ["factor"])[0])
    return RopeScaling(**{"original_context": context} | given, rope_type=kind)


def _rope_config(spec: ModelSpec) -> dict[str, Any]:
    s = spec.rope_scaling
    if s is None:
        return {"rope_type": "default", "rope_theta": spec.rope_theta}
    values = {key: getattr(s, ours) for key, ours in ROPE_KEYS[s.rope_type].items()}
    kept = {key: value for key, value in values.items() if value is not None}
    return {"rope_type": s.rope_type, "rope_theta": spec.rope_theta, **kept}
