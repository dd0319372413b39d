"""`config.json` in Hugging Face layout: from a shape, and to one."""

from typing import Any

import torch

from tenfold.model.family import families, family_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.vocabulary import Vocabulary


def spec_from_config(config: dict[str, Any], name: str = "model") -> ModelSpec:
    """The shape that a Hugging Face `config.json` describes. Raises TenfoldError for a `model_type` of no family."""
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
        raise TenfoldError(f"The config.json of {name} describes no model: {error}.") from None
    raise TenfoldError(f"{name} is a {kind!r} model: only {', '.join(map(repr, sorted(known)))} can be read.")


def config_from_spec(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The `config.json` of a shape. Raises TenfoldError for a shape that the Hugging Face layout cannot hold."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if s := spec.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_context,
        }
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
        "attention_bias": False,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return family_of(spec).weights().config(spec, shared)


def config_with_vocabulary(config: dict[str, Any], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The same `config.json` with the ids of the special tokens, and none where there is no vocabulary."""
    ids = (vocabulary or Vocabulary(size=0)).ids
    nested = {"text_config": config["text_config"] | ids} if "text_config" in config else {}
    return config | nested | ids


def shared_fields(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a spec that all families read alike. Raises TenfoldError for rotary positions of an unknown kind."""
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
