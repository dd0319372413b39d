"""The settings of a run, one struct for each table of its run file; `None` means derived from the compute.

The structs stand apart from the code that they configure, so that the command line has its options without PyTorch.
"""

from typing import Annotated, Any, Literal

from msgspec import NODEFAULT, Meta, Struct, structs

from tenfold.spec.layout import Layout
from tenfold.spec.ranges import Count, CountOrNone, Flops, NotNegative, Positive, Seed, SeqLen, Share, Text, VocabSize

VERSION = 2  # of run files, and of what is written beside them: run.jsonl, time.jsonl, skipped.jsonl


def defaults(table: type[Struct]) -> dict[str, Any]:
    """The defaults of a table's settings, without those that must be given."""
    fields = structs.fields(table)
    return {f.name: f.default_factory() if f.default is NODEFAULT else f.default for f in fields if not f.required}


class MixedCorpus(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `[[data.mixture]]`: a corpus, and its weight: a number, or pairs [step, weight from that step on]."""

    corpus: Text
    weight: NotNegative | list[tuple[CountOrNone, NotNegative]] = 1.0
    name: Text | None = None


class DataConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[data]`: what a run reads, and how much of it in a step."""

    corpus: Annotated[Text, Meta(description="Text (a folder, a file, a name), a corpus, or its address in a store.")] = "stdlib"
    mixture: Annotated[
        Annotated[list[MixedCorpus], Meta(min_length=1)] | None, Meta(description="Several corpora with weights, in place of one.")
    ] = None
    images: Annotated[Text | None, Meta(description="A folder, Parquet file or jsonl of images with words (family llama4).")] = None
    image_share: Annotated[float, Meta(gt=0, le=1, description="Share of the sequences that show images.")] = 0.5
    vocab_size: Annotated[VocabSize, Meta(description="Tokens in the vocabulary of a corpus that is built.")] = 2048
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a sequence.")] = 128
    batch_size: Annotated[Count | None, Meta(description="Sequences a step.")] = None
    max_epochs: Annotated[Positive, Meta(description="How often a corpus may be read.")] = 4.0
    cache_gib: Annotated[float, Meta(ge=0, le=1e9, description="Local disk that each corpus of an object store may take.")] = 16.0


class PretrainingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that pretrains."""

    name: Annotated[str, Meta(description="The task.")] = "pretrain"
    z_loss: Annotated[NotNegative, Meta(description="Weight of the squared log-partition.")] = 0.0
    mtp: Annotated[int, Meta(ge=0, le=64, description="Further tokens that are predicted (multi-token prediction).")] = 0
    mtp_weight: Annotated[NotNegative, Meta(description="Weight of their mean loss.")] = 0.3
    load_balancing: Annotated[
        Literal["aux_loss_free", "aux_loss", "none"], Meta(description="What keeps the load of experts even.")
    ] = "aux_loss_free"
    load_balancing_rate: Annotated[NotNegative, Meta(description="Step of the bias, or weight of the loss.")] = 0.01
    evaluate_every: Annotated[CountOrNone, Meta(description="Steps between evaluations; 0 evaluates at the end alone.")] = 0
    evaluate_tokens: Annotated[Count | None, Meta(description="Validation tokens; all where left out.")] = None


class OptimizerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[optimizer]`; `None` means derived from the compute."""

    name: Annotated[Literal["muon", "adamw"], Meta(description="muon (AdamW for what is no hidden matrix) or adamw.")] = "muon"
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None, Meta(description="Of a hidden matrix of the base width, at the peak.")
    ] = None
    weight_decay: Annotated[Share | None, Meta(description="Share of a matrix that is forgotten each step at the peak.")] = None
    beta2: Annotated[Annotated[float, Meta(ge=0, lt=1)] | None, Meta(description="AdamW's second moment.")] = None
    schedule: Annotated[Literal["wsd", "cosine"], Meta(description="Warm-up, stable, decay; or a half cosine.")] = "wsd"
    warmup: Annotated[Share, Meta(description="Share of the run that the learning rate rises in.")] = 0.1
    decay: Annotated[Share, Meta(description="Share of the run that it falls in (wsd).")] = 0.4
    max_grad_norm: Annotated[Positive, Meta(description="Gradients are scaled to at most this norm.")] = 1.0
    max_skipped: Annotated[Count, Meta(description="Steps in a row that may be skipped before the run ends.")] = 20


class CheckpointConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[checkpoint]`."""

    every_s: Annotated[NotNegative, Meta(description="Seconds between saves.")] = 60.0
    keep_last: Annotated[Count, Meta(description="Checkpoints that are kept.")] = 2
    upload_to: Annotated[
        Text | None, Meta(description="A folder that fsspec can reach (s3://bucket/run): checkpoints are copied there.")
    ] = None


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[log]`."""

    every: Annotated[Count, Meta(description="Steps between lines of run.jsonl.")] = 10
    tensorboard: Annotated[bool, Meta(description="Write for TensorBoard too.")] = False
    wandb: Annotated[Text | None, Meta(description="The project in Weights & Biases, where asked for.")] = None


class HealthConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[health]`."""

    hang_after_s: Annotated[
        float, Meta(ge=1, le=1e9, description="A process that does nothing for so long ends, to be restarted.")
    ] = 900.0
    sdc_check_every: Annotated[CountOrNone, Meta(description="Steps between losses that are worked out twice; 0: never.")] = 0
    loss_spike: Annotated[NotNegative, Meta(description="Nats above its course at which the run goes back; 0: never.")] = 2.0


class RunConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run. One of `flops` and `tokens` is needed; `None` means derived.

    `model` is a published name (`"llama-3.2-1b"`), or a table: fields of ModelSpec, or `width` and `family` alone, and
    `vision`, what differs from the image encoder that is derived from the width. The fields of `task` beside `name` are
    those of the task's own struct. `version` is that of the file's format.
    """

    flops: Annotated[Flops | None, Meta(description="Training compute; tokens follow.")] = None
    tokens: Annotated[Count | None, Meta(description="Training tokens, in place of flops.")] = None
    law: Annotated[Text | None, Meta(description="What sizes a model by flops: own climb's law.json, or a published law.")] = None
    seed: Annotated[Seed, Meta(description="Seed of weights and data order.")] = 0
    init_from: Annotated[Text | None, Meta(description="A Hugging Face directory or GGUF that the run begins from.")] = None
    device: Annotated[Text, Meta(description="auto, cpu, cuda, any device of PyTorch's, or an accelerator.")] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Meta(description="The format of matrix products.")] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], Meta(description="Compile the model; auto does where it pays.")] = "auto"
    fp8: Annotated[bool, Meta(description="Linear and expert layers in 8 bits where the GPU can.")] = False
    threads: Annotated[Annotated[int, Meta(ge=1, le=4096)] | None, Meta(description="CPU threads of each process.")] = None
    task: Annotated[dict[str, Any], Meta(description="What is trained: name, and the task's own settings.")] = {}
    model: Annotated[str | dict[str, Any] | None, Meta(description="A published name, or a shape.")] = None
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: Annotated[Literal["auto"] | Layout, Meta(description="How the run lies on processes; or auto.")] = Layout()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    health: HealthConfig = HealthConfig()
    version: Annotated[int, Meta(description="Version of the run file's format.")] = VERSION
