"""Resolve a run file: model spec, tokens, hyperparameters, device and number format."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, structs

from tenfold.spec.errors import TenfoldError
from tenfold.spec.laws import own_law
from tenfold.spec.model import ModelSpec, RopeScaling, published_model
from tenfold.spec.plugins import load
from tenfold.spec.ranges import VocabSize, convert, require, require_keys
from tenfold.spec.shapes import shape_for_flops, shape_of
from tenfold.spec.vision import IMAGE_TOKENS, PATCH, VisionSpec, small_vision
from tenfold.train.config import RunConfig
from tenfold.train.contradictions import gives_model_size
from tenfold.train.device import resolve_device
from tenfold.train.optim.hyperparameters import Hyperparameters, derive
from tenfold.train.precision import choose_dtype
from tenfold.train.run_file import read_config

TABLE = "The table [model]"
Width = Annotated[int, Meta(ge=16, le=2**20)]
CONTINUED_LEARNING_RATE = 3e-4  # default with `init_from`, for a hidden matrix of the base width (see `Hyperparameters`)


@dataclass(frozen=True)
class Resolved:
    """The settings of a run after everything that its run file leaves out has been derived. `h` are the hyperparameters."""

    spec: ModelSpec
    tokens: int
    h: Hyperparameters
    device: torch.device
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        return self.h.steps


def resolve(config: RunConfig, vocab_size: int) -> Resolved:
    """Derive what `config` leaves out. Raises TenfoldError for an impossible model or a device that is not available."""
    spec, tokens = resolve_model(config, vocab_size)
    device = torch.device(resolve_device(config.device))
    dtype = choose_dtype(device, spec.dim) if config.dtype == "auto" else getattr(torch, config.dtype)
    return Resolved(spec, tokens, resolve_hyperparameters(config, tokens), device, dtype)


def check_settings(config: RunConfig) -> None:
    """Raises TenfoldError for an impossible model or batch, or a device that is not available, before any data is prepared."""
    resolve_device(config.device)
    fields = config.model if isinstance(config.model, dict) else {}
    # A stored model has its own vocabulary size, so any smaller one will do.
    vocab_size = fields.get("vocab_size", 1 if config.init_from else config.data.vocab_size)
    require(vocab_size, VocabSize, "vocab_size in the table [model]")
    _, tokens = resolve_model(config, vocab_size)
    resolve_hyperparameters(config, tokens)


def resolve_hyperparameters(config: RunConfig, tokens: int) -> Hyperparameters:
    """The batch size, steps, learning rates and weight decay of a run on `tokens` tokens."""
    o, learning_rate, weight_decay, reasons = config.optimizer, config.optimizer.learning_rate, config.optimizer.weight_decay, {}
    if config.init_from is not None and learning_rate is None:
        learning_rate = CONTINUED_LEARNING_RATE
        reasons["learning_rate"] = "a usual value for training stored weights further; a small upcycled model needs a higher one"
    if config.init_from is not None and weight_decay is None:
        weight_decay = 0.0
        reasons["weight_decay"] = "none, so that a short run does not shrink the stored weights"
    h = derive(
        tokens, config.data.seq_len, batch_size=config.data.batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
        beta2=o.beta2,
    )  # fmt: skip
    if h.batch_size * config.data.seq_len > 2 * tokens:
        raise TenfoldError(f"A step of batch_size = {h.batch_size} has more tokens than the whole run, {tokens}: lower batch_size.")
    return replace(h, reasons={**h.reasons, **reasons})


def resolve_model(config: RunConfig, vocab_size: int) -> tuple[ModelSpec, int]:
    """The model spec and the number of training tokens of a config, for a corpus with `vocab_size` tokens in its vocabulary.

    With images, the vocabulary grows by `IMAGE_TOKENS` and the model has an image encoder. The context is that of the published
    or stored model, else `seq_len`.
    """
    images = config.data.images is not None
    fields = dict(config.model) if isinstance(config.model, dict) else {}
    vision = fields.pop("vision", {})
    spec = _spec(config, fields, vocab_size + (len(IMAGE_TOKENS) if images else 0))
    if images and config.init_from is None:
        spec = replace(spec, vision=_vision_spec(vision, spec, vocab_size + IMAGE_TOKENS.index(PATCH)))
    if spec.vocab_size < vocab_size:
        raise TenfoldError(f"{TABLE} gives vocab_size {spec.vocab_size}, but the corpus has {vocab_size}: leave vocab_size out.")
    seq_len = config.data.seq_len
    tokens = config.tokens or round((config.flops or 0) / spec.train_flops_per_token(seq_len))
    if tokens < seq_len:
        raise TenfoldError(f"The run has {tokens} tokens, fewer than a sequence (seq_len = {seq_len}): increase tokens or flops.")
    return spec, tokens


def _spec(config: RunConfig, fields: dict[str, Any], vocab_size: int) -> ModelSpec:
    seq_len = config.data.seq_len
    if config.init_from is not None:
        return _stored_spec(config.init_from, vocab_size)
    if isinstance(config.model, str):
        return replace(published_model(config.model), vocab_size=vocab_size)
    fields = _checked(fields)
    family = fields.get("family", "llama3")
    if "width" in fields:
        others = {key: value for key, value in fields.items() if key not in ("width", "family")}
        return replace(shape_of(family, fields["width"], vocab_size), **{"context": seq_len} | others)
    if set(fields) - {"family"}:
        return _spec_from_fields({"context": seq_len, **fields}, vocab_size)
    if config.flops is None:
        raise TenfoldError("A run that gives tokens instead of flops must also give the model: add it, or give flops.")
    spec = shape_for_flops(config.flops, vocab_size, seq_len, family=family, law=config.law)[0]
    return replace(spec, context=seq_len)


def with_own_law(config: RunConfig, home: Path, directory: Path) -> RunConfig:
    """`config` with the law of the newest climb in `home`, if its model is sized by a law and it names none.

    A run that was already started in `directory` keeps the law that it was started with.
    """
    fields = config.model if isinstance(config.model, dict) else {}
    if config.law is not None or config.flops is None or gives_model_size(config):
        return config
    begun = directory / "run.toml"
    law = read_config(begun).law if begun.exists() else own_law(home, config.flops, fields.get("family", "llama3"))
    return structs.replace(config, law=law)


def _stored_spec(path: str, vocab_size: int) -> ModelSpec:
    from tenfold.model.io.huggingface import read_spec

    spec = read_spec(Path(path))
    if spec.vocab_size < vocab_size:
        raise TenfoldError(
            f"The model in {path} has {spec.vocab_size} tokens in its vocabulary, but the corpus has {vocab_size}: build the "
            f"corpus with `tenfold data build --tokenizer-from {path}`."
        )
    return spec


def _vision_spec(fields: dict[str, Any], spec: ModelSpec, patch_token: int) -> VisionSpec:
    require(fields, dict, "vision in the table [model]")
    require_keys(fields, VisionSpec.__dataclass_fields__.keys() - {"patch_token"}, "The table [model.vision]")
    return replace(spec.vision or small_vision(spec.dim, spec.n_layers), **fields, patch_token=patch_token)


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the table `[model]` after their keys and types are checked, with `rope_scaling` as a RopeScaling."""
    require_keys(fields, [*ModelSpec.__dataclass_fields__, "width"], TABLE)
    for key, kind in {"family": str, "width": Width, "rope_scaling": dict}.items():
        if key in fields:
            require(fields[key], kind, f"{key} in the table [model]")
    if {"width", "dim"} <= fields.keys():
        raise TenfoldError(f"{TABLE} gives both width and dim: keep one.")
    if "rope_scaling" not in fields:
        return fields
    where = "The table [model.rope_scaling]"
    require_keys(fields["rope_scaling"], RopeScaling.__dataclass_fields__, where)
    return {**fields, "rope_scaling": convert(fields["rope_scaling"], RopeScaling, where)}


def _spec_from_fields(fields: dict[str, Any], vocab_size: int) -> ModelSpec:
    values = {"name": "custom", "vocab_size": vocab_size, **fields}
    try:
        return load("families", values.get("family", "llama3")).spec(**values)
    except TypeError as error:
        raise TenfoldError(f"{TABLE} is incomplete: {error}.") from None
