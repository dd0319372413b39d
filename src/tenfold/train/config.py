"""A run, as a person writes it down. Everything left out is derived from the compute and printed with its reason."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli_w

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.model import ModelSpec, RopeScaling, published_model
from tenfold.spec.shapes import shape_for_flops, shape_of
from tenfold.spec.vision import IMAGE_TOKENS, PATCH, VisionSpec, small_vision
from tenfold.train.parallel.parallelize import LayoutConfig


class MixedCorpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `[[mixture]]` of `run.toml`: a corpus, and its weight: a number, or pairs [step, weight from that step on]."""

    corpus: str
    weight: float | list[tuple[int, float]] = 1.0
    name: str | None = None


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`run.toml`. One of `flops` and `tokens` is needed; `None` means derived.

    `model` is a published name (`"llama-3.2-1b"`), a table of ModelSpec's fields, `{ width = 256 }`, or left out, and
    then chosen for the compute; `{ width = 256, family = "llama4" }` and `{ family = "llama4" }` have experts.
    `balance` says what keeps their load even: a `bias` on the choice that learns at `balance_rate` and fades as the
    learning rate does, a `loss` of weight `balance_rate`, or nothing. `batch_size` counts sequences of `seq_len` tokens a
    step; `micro_batch` those that go through the model at once. Times are in seconds. `upload_to` is a folder that fsspec can
    reach (`s3://bucket/run`): every checkpoint is copied there, and a run with none of its own goes on from there.
    A process that does nothing for `hang_after_s` ends itself, so that its elastic agent starts the run again. Every
    `replay_every` steps (0: never) a loss is worked out twice, and must come out the same to the bit. Where the loss stays
    more than `rollback_above` nats above its course (0: whatever it does), the run goes back to a checkpoint from before and
    leaves out the batches since.

    `init_from` is a Hugging Face directory whose shape and weights the run begins from. `ahead` further tokens are
    predicted beside the next one, with the weight `ahead_weight` (multi-token prediction; 0 is none). `fp8` trains
    linear and expert layers in 8 bits where the GPU can, and says so where it cannot. `recompute` works out again, rather
    than keep for the backward pass, what is inside of every feed-forward or every block. `images` is a folder, a Parquet
    file or jsonl of images with words, `image_share` the share of the sequences that show them (the others are text
    of the corpus), `vision` what differs from the encoder that is derived from the width; they need family "llama4".

    `corpus` is text (a folder, a file, a name), the folder of a corpus, or the address of one in an object store; `mixture`
    takes its place where there are several. `cache_gib` is what each corpus of a store may occupy on local disk.
    """

    flops: float | None = None
    tokens: int | None = None
    model: str | dict[str, Any] | None = None
    init_from: str | None = None
    corpus: str = "stdlib"
    mixture: list[MixedCorpus] | None = None
    cache_gib: float = 16.0
    vocab_size: int = 2048
    seq_len: int = 128
    seed: int = 0
    max_epochs: float = 4.0
    batch_size: int | None = None
    micro_batch: int | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float | None = None
    weight_decay: float | None = None
    beta2: float | None = None
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: float = 0.1
    decay: float = 0.4
    clip: float = 1.0
    z_loss: float = 0.0
    max_skipped: int = 20
    balance: Literal["bias", "loss", "none"] = "bias"
    balance_rate: float = 0.01
    ahead: int = 0
    ahead_weight: float = 0.3
    fp8: bool = False
    recompute: Literal["none", "feed-forward", "block"] = "none"
    images: str | None = None
    image_share: float = 0.5
    vision: dict[str, Any] | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_tokens: int | None = None
    checkpoint_every_s: float = 60.0
    keep: int = 2
    upload_to: str | None = None
    hang_after_s: float = 900.0
    replay_every: int = 0
    rollback_above: float = 2.0
    tensorboard: bool = False
    wandb: str | None = None
    layout: LayoutConfig = LayoutConfig()


def read_config(path: Path) -> RunConfig:
    """Read `run.toml`. Raises TenfoldError for a missing file, bad TOML, an unknown key (with the nearest) or value."""
    try:
        fields = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise TenfoldError(f"There is no run file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TenfoldError(f"{path} is not valid TOML: {error}.") from None
    return config_from_fields(fields, str(path))


def config_from_fields(fields: dict[str, Any], where: str) -> RunConfig:
    """A RunConfig from plain values. Raises TenfoldError that names `where` and the offending key."""
    known = RunConfig.__struct_fields__
    for key in fields:
        if key not in known:
            raise TenfoldError(f"{where} has no setting {key!r}{nearest(key, known)}.")
    if fields.get("layout") == "auto":
        fields = {**fields, "layout": {"auto": True}}
    try:
        config = msgspec.convert(fields, RunConfig)
    except msgspec.ValidationError as error:
        raise TenfoldError(f"{where}: {str(error).replace('`$.', '`')}.") from None
    if config.flops is None and config.tokens is None:
        raise TenfoldError(f"{where} must give flops or tokens.")
    if config.flops is not None and config.tokens is not None:
        raise TenfoldError(f"{where} gives both flops and tokens: keep one, the other follows from the model.")
    for key in ("flops", "tokens", "seq_len", "vocab_size", "batch_size", "micro_batch", "log_every", "keep", "hang_after_s"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            raise TenfoldError(f"{where}: {key} must be positive, not {value}.")
    if config.rollback_above < 0:
        raise TenfoldError(f"{where}: rollback_above is in nats and cannot be {config.rollback_above:g}.")
    if config.replay_every < 0:
        raise TenfoldError(f"{where}: replay_every counts steps and cannot be {config.replay_every}.")
    if config.ahead < 0:
        raise TenfoldError(f"{where}: ahead counts tokens and cannot be {config.ahead}.")
    if not 0 < config.image_share <= 1:
        raise TenfoldError(f"{where}: image_share must be above 0 and at most 1, not {config.image_share:g}.")
    if config.vision is not None and config.images is None:
        raise TenfoldError(f"{where} describes an image encoder (vision) but names no images: add images, or leave it out.")
    if not 0 <= config.cache_gib < float("inf"):
        raise TenfoldError(f"{where}: cache_gib must be 0 or more, not {config.cache_gib:g}.")
    if config.mixture is not None and config.images is not None:
        raise TenfoldError(f"{where} gives both a mixture and images: keep one.")
    if config.model is not None and config.init_from is not None:
        raise TenfoldError(f"{where} gives both model and init_from: keep one, the shape is that of the weights.")
    return config


def write_config(config: RunConfig, path: Path) -> None:
    """Write the settings that differ from `None` as TOML."""
    fields = {k: v for k, v in msgspec.to_builtins(config).items() if v is not None}
    path.write_text(tomli_w.dumps(fields))


def resolve_model(config: RunConfig, vocab_size: int) -> tuple[ModelSpec, int]:
    """The model and the number of training tokens that a config asks for, with the corpus's vocabulary.

    With images the vocabulary grows by `IMAGE_TOKENS`, and the model has an encoder.
    """
    text_vocab = vocab_size
    vocab_size += len(IMAGE_TOKENS) if config.images else 0
    family = config.model.get("family", "llama3") if isinstance(config.model, dict) else "llama3"
    if config.init_from is not None:
        spec = _stored_spec(config.init_from, vocab_size)
    elif config.model is None or set(config.model) == {"family"}:
        if config.flops is None:
            raise TenfoldError("A run that gives tokens must give the model too.")
        spec = shape_for_flops(config.flops, vocab_size, config.seq_len, family=family)[0]
    elif isinstance(config.model, str):
        spec = replace(published_model(config.model), vocab_size=vocab_size)
    elif "width" in config.model:
        spec = shape_of(family, int(config.model["width"]), vocab_size)
    else:
        spec = _spec_from_fields(config.model, vocab_size)
    if config.images and config.init_from is None:
        patch_token = text_vocab + IMAGE_TOKENS.index(PATCH)
        spec = replace(spec, vision=_vision_spec(config.vision or {}, spec, patch_token))
    if config.tokens is not None:
        return spec, config.tokens
    assert config.flops is not None
    return spec, max(1, round(config.flops / spec.train_flops_per_token(config.seq_len)))


def _stored_spec(directory: str, vocab_size: int) -> ModelSpec:
    from tenfold.model.io.huggingface import read_spec

    spec = read_spec(Path(directory))
    if spec.vocab_size != vocab_size:
        raise TenfoldError(
            f"The model in {directory} has a vocabulary of {spec.vocab_size} and the run one of {vocab_size}: train it on the "
            "corpus that its tokenizer was made with."
        )
    return spec


def _vision_spec(fields: dict[str, Any], spec: ModelSpec, patch_token: int) -> VisionSpec:
    known = VisionSpec.__dataclass_fields__
    for key in fields:
        if key not in known or key == "patch_token":
            raise TenfoldError(f"The table [vision] has no setting {key!r}{nearest(key, known)}.")
    if spec.vision is not None:
        return replace(spec.vision, **fields, patch_token=patch_token)
    return replace(small_vision(spec.dim, spec.n_layers), **fields, patch_token=patch_token)


def _spec_from_fields(fields: dict[str, Any], vocab_size: int) -> ModelSpec:
    known = ModelSpec.__dataclass_fields__
    for key in fields:
        if key not in known:
            raise TenfoldError(f"The table [model] has no setting {key!r}{nearest(key, known)}.")
    values = {"name": "custom", "vocab_size": vocab_size, **fields}
    if isinstance(values.get("rope_scaling"), dict):
        values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
    try:
        return ModelSpec(**values)
    except TypeError as error:
        raise TenfoldError(f"The table [model] is incomplete: {error}.") from None
