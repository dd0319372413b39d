"""From a run file to what is trained: shape, tokens, hyperparameters, device and number format."""

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
from tenfold.train.device import resolve_device
from tenfold.train.optim.hyperparameters import Hyperparameters, derive
from tenfold.train.precision import choose_dtype
from tenfold.train.run_file import read_config

TABLE = "The table [model]"
Width = Annotated[int, Meta(ge=16, le=2**20)]
CONTINUED_LEARNING_RATE = 3e-4  # of a hidden matrix of the base width, as `Hyperparameters.learning_rate`


@dataclass(frozen=True)
class Resolved:
    """What a run file comes to with the vocabulary of its corpus."""

    spec: ModelSpec
    tokens: int
    h: Hyperparameters
    device: torch.device
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        return self.h.steps


def resolve(config: RunConfig, vocab_size: int) -> Resolved:
    """Derive what `config` leaves out. Raises TenfoldError for a shape or a device that cannot be."""
    spec, tokens = resolve_model(config, vocab_size)
    device = torch.device(resolve_device(config.device))
    dtype = choose_dtype(device, spec.dim) if config.dtype == "auto" else getattr(torch, config.dtype)
    return Resolved(spec, tokens, resolve_hyperparameters(config, tokens), device, dtype)


def check_settings(config: RunConfig) -> None:
    """Raises TenfoldError for a shape, a batch or a device that cannot be, before any data is made."""
    resolve_device(config.device)
    fields = config.model if isinstance(config.model, dict) else {}
    vocab_size = fields.get("vocab_size", 1 if config.init_from else config.data.vocab_size)  # stored weights have their own
    require(vocab_size, VocabSize, "vocab_size in the table [model]")
    _, tokens = resolve_model(config, vocab_size)
    resolve_hyperparameters(config, tokens)


def resolve_hyperparameters(config: RunConfig, tokens: int) -> Hyperparameters:
    """Batch, steps, learning rates and decay of a run of `tokens`."""
    o, learning_rate, weight_decay, reasons = config.optimizer, config.optimizer.learning_rate, config.optimizer.weight_decay, {}
    if config.init_from is not None and learning_rate is None:
        learning_rate = CONTINUED_LEARNING_RATE
        reasons["learning_rate"] = "usual where stored weights are trained on; those of a small upcycled model want more"
    if config.init_from is not None and weight_decay is None:
        weight_decay = 0.0
        reasons["weight_decay"] = "none, so that a short run forgets nothing of the stored weights"
    h = derive(
        tokens, config.data.seq_len, batch_size=config.data.batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
        beta2=o.beta2,
    )  # fmt: skip
    if h.batch_size * config.data.seq_len > 2 * tokens:
        raise TenfoldError(f"A step of batch_size = {h.batch_size} has more tokens than the whole run, {tokens}: lower batch_size.")
    return replace(h, reasons={**h.reasons, **reasons})


def resolve_model(config: RunConfig, vocab_size: int) -> tuple[ModelSpec, int]:
    """The model and the number of training tokens that a config asks for, with the corpus's vocabulary.

    With images the vocabulary grows by `IMAGE_TOKENS`, and the model has an encoder. The context is the length of the rows, where
    neither a published nor a stored model says one.
    """
    images = config.data.images is not None
    fields = dict(config.model) if isinstance(config.model, dict) else {}
    vision = fields.pop("vision", {})
    spec = _spec(config, fields, vocab_size + (len(IMAGE_TOKENS) if images else 0))
    if images and config.init_from is None:
        spec = replace(spec, vision=_vision_spec(vision, spec, vocab_size + IMAGE_TOKENS.index(PATCH)))
    if spec.vocab_size < vocab_size:
        raise TenfoldError(f"{TABLE} gives vocab_size {spec.vocab_size}, and the corpus has {vocab_size} tokens: leave it out.")
    seq_len = config.data.seq_len
    tokens = config.tokens or round((config.flops or 0) / spec.train_flops_per_token(seq_len))
    if tokens < seq_len:
        raise TenfoldError(f"The run has {tokens} tokens, fewer than a sequence (seq_len = {seq_len}): raise tokens or flops.")
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
        raise TenfoldError("A run that gives tokens must give the model too.")
    spec = shape_for_flops(config.flops, vocab_size, seq_len, family=family, law=config.law)[0]
    return replace(spec, context=seq_len)


def with_own_law(config: RunConfig, home: Path, directory: Path) -> RunConfig:
    """`config` with the law of the newest climb in `home`, where a law sizes its model and none is named.

    A run that has begun in `directory` keeps the law that it began with, whatever was climbed since.
    """
    fields = config.model if isinstance(config.model, dict) else {}
    given = config.init_from is not None or isinstance(config.model, str) or bool(set(fields) - {"family"})
    if config.law is not None or config.flops is None or given:
        return config
    begun = directory / "run.toml"
    law = read_config(begun).law if begun.exists() else own_law(home, config.flops, fields.get("family", "llama3"))
    return structs.replace(config, law=law)


def _stored_spec(path: str, vocab_size: int) -> ModelSpec:
    from tenfold.model.io.huggingface import read_spec

    spec = read_spec(Path(path))
    if spec.vocab_size < vocab_size:
        raise TenfoldError(
            f"The model in {path} has a vocabulary of {spec.vocab_size} and the corpus one of {vocab_size}: build the "
            f"corpus with `tenfold data build --tokenizer-from {path}`."
        )
    return spec


def _vision_spec(fields: dict[str, Any], spec: ModelSpec, patch_token: int) -> VisionSpec:
    require(fields, dict, "vision in the table [model]")
    require_keys(fields, VisionSpec.__dataclass_fields__.keys() - {"patch_token"}, "The table [model.vision]")
    return replace(spec.vision or small_vision(spec.dim, spec.n_layers), **fields, patch_token=patch_token)


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a ModelSpec, and the width, from those of the table `[model]`."""
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
