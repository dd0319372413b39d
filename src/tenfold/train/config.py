"""The settings of a run, one struct for each table of its run file. A setting that is `None` is derived from the compute.

The structs are separate from the code that they configure, so that the command line can list its options without importing
PyTorch.
"""

from typing import Annotated, Any, Literal

from msgspec import NODEFAULT, Meta, Struct, structs

from tenfold.spec.layout import Layout
from tenfold.spec.ranges import Count, CountOrNone, Flops, NotNegative, Positive, Seed, SeqLen, Share, Text, VocabSize

VERSION = 2  # of run files, and of the files in a run's directory: run.jsonl, time.jsonl, skipped.jsonl


def defaults(table: type[Struct]) -> dict[str, Any]:
    """The defaults of a table's settings, without the settings that are required."""
    fields = structs.fields(table)
    return {f.name: f.default_factory() if f.default is NODEFAULT else f.default for f in fields if not f.required}


class MixedCorpus(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table `[[data.mixture]]`: a corpus, its weight in the mixture, and its name in the records, by default that of its folder.

    The weight is a number, or a list of pairs [step, weight from that step on].
    """

    corpus: Text
    weight: NotNegative | list[tuple[CountOrNone, NotNegative]] = 1.0
    name: Text | None = None


class DataConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[data]`: what a run reads, and how much of it per step."""

    corpus: Annotated[
        Text,
        Meta(
            description="What to train on: text (a folder, a file, a built-in name), a built corpus, or a corpus's URL in a store."
        ),
    ] = "stdlib"
    mixture: Annotated[
        Annotated[list[MixedCorpus], Meta(min_length=1)] | None, Meta(description="Several corpora with weights, instead of one.")
    ] = None
    images: Annotated[
        Text | None, Meta(description="Images with texts: a folder, Parquet file or JSON-lines file (family llama4 only).")
    ] = None
    image_share: Annotated[float, Meta(gt=0, le=1, description="Share of the sequences that contain images.")] = 0.5
    vocab_size: Annotated[VocabSize, Meta(description="Vocabulary size of a tokenizer that is trained for a new corpus.")] = 2048
    seq_len: Annotated[SeqLen, Meta(description="Tokens per sequence.")] = 128
    batch_size: Annotated[Count | None, Meta(description="Sequences per step.")] = None
    max_epochs: Annotated[Positive, Meta(description="How many times a corpus may be read at most.")] = 4.0
    cache_gib: Annotated[
        float, Meta(ge=0, le=1e9, description="Local disk space for the cache of each corpus in an object store, in GiB.")
    ] = 16.0


class PretrainingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that pretrains."""

    name: Annotated[str, Meta(description="Name of the task, such as pretrain.")] = "pretrain"
    z_loss: Annotated[NotNegative, Meta(description="Weight of the z-loss, the squared log-partition; 0 is off.")] = 0.0
    mtp: Annotated[
        int, Meta(ge=0, le=64, description="Multi-token prediction: tokens after the next one that are predicted too; 0 is off.")
    ] = 0
    mtp_weight: Annotated[NotNegative, Meta(description="Weight of the mean loss of multi-token prediction.")] = 0.3
    load_balancing: Annotated[
        Literal["aux_loss_free", "aux_loss", "none"],
        Meta(description="How the load of experts is kept even: by a bias on router scores, by a loss, or not at all."),
    ] = "aux_loss_free"
    load_balancing_rate: Annotated[
        NotNegative, Meta(description="Change of the bias per step (aux_loss_free), or weight of the loss (aux_loss).")
    ] = 0.01
    evaluate_every: Annotated[CountOrNone, Meta(description="Steps between evaluations; 0 evaluates only at the end.")] = 0
    evaluate_tokens: Annotated[Count | None, Meta(description="Validation tokens per evaluation; by default all.")] = None


class OptimizerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[optimizer]`. A setting that is `None` is derived from the compute."""

    name: Annotated[
        Literal["muon", "adamw"], Meta(description="adamw, or muon: Muon for hidden matrices and AdamW for the rest.")
    ] = "muon"
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None,
        Meta(description="Peak AdamW learning rate of a hidden matrix with fan-in 128; those of other weights follow from it."),
    ] = None
    weight_decay: Annotated[
        Share | None, Meta(description="Share by which matrices shrink per step at the peak learning rate.")
    ] = None
    beta2: Annotated[Annotated[float, Meta(ge=0, lt=1)] | None, Meta(description="AdamW's decay rate of the second moment.")] = None
    schedule: Annotated[
        Literal["wsd", "cosine"], Meta(description="Learning-rate schedule: wsd (warm-up, stable, decay) or cosine.")
    ] = "wsd"
    warmup: Annotated[Share, Meta(description="Share of the run's steps with linear warm-up.")] = 0.1
    decay: Annotated[Share, Meta(description="Share of the run's steps in which the learning rate falls to 0 (wsd).")] = 0.4
    max_grad_norm: Annotated[Positive, Meta(description="Gradients are clipped to this norm.")] = 1.0
    max_skipped: Annotated[
        Count, Meta(description="Consecutive steps that may be skipped, for bad losses or gradients, before the run ends.")
    ] = 20


class CheckpointConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[checkpoint]`: how often a run is saved, and where."""

    every_s: Annotated[NotNegative, Meta(description="Seconds between saves.")] = 60.0
    keep_last: Annotated[Count, Meta(description="Number of newest checkpoints to keep.")] = 2
    upload_to: Annotated[
        Text | None, Meta(description="URL or folder for fsspec, such as s3://bucket/run, that checkpoints are also copied to.")
    ] = None


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[log]`: where metrics are written, and how often."""

    every: Annotated[Count, Meta(description="Steps between lines of run.jsonl.")] = 10
    tensorboard: Annotated[bool, Meta(description="Also write metrics for TensorBoard.")] = False
    wandb: Annotated[Text | None, Meta(description="Project in Weights & Biases to also send metrics to.")] = None


class HealthConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[health]`: checks on a run while it trains."""

    hang_after_s: Annotated[
        float, Meta(ge=1, le=1e9, description="Seconds without progress after which a process ends itself, to be restarted.")
    ] = 900.0
    sdc_check_every: Annotated[
        CountOrNone, Meta(description="Steps between checks for silent data corruption, which compute a loss twice; 0 is never.")
    ] = 0
    loss_spike: Annotated[
        NotNegative,
        Meta(description="Nats above its usual value at which a loss makes the run go back to a checkpoint; 0 is never."),
    ] = 2.0


class RunConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run. One of `flops` and `tokens` is required; other settings that are `None` are derived.

    `model` is the name of a published model (`"llama-3.2-1b"`), or a table with fields of `ModelSpec`. The table may give only
    `width` and `family`; `vision` in it holds the fields in which the image encoder differs from the one derived from the width.
    The fields of `task` other than `name` are those of the task's own struct. `version` is that of the file's format.
    """

    flops: Annotated[Flops | None, Meta(description="Training compute in FLOPs; the number of tokens follows from it.")] = None
    tokens: Annotated[Count | None, Meta(description="Training tokens, instead of flops.")] = None
    law: Annotated[
        Text | None,
        Meta(description="Scaling law that chooses the model size for flops: law.json of your climb, or a published law."),
    ] = None
    seed: Annotated[Seed, Meta(description="Random seed of weights and data order.")] = 0
    init_from: Annotated[
        Text | None, Meta(description="Hugging Face directory or GGUF file whose weights the run starts from.")
    ] = None
    device: Annotated[
        Text, Meta(description="auto, cpu, cuda, another device of PyTorch, or the name of an accelerator, such as h100.")
    ] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Meta(description="Number format of matrix products.")] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"], Meta(description="Compile the model with torch.compile; auto does so where it saves time.")
    ] = "auto"
    fp8: Annotated[bool, Meta(description="Compute linear and expert layers in 8 bits if the GPU can.")] = False
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None, Meta(description="CPU threads per process; by default a suitable number.")
    ] = None
    task: Annotated[dict[str, Any], Meta(description="The task: its name, and its own settings.")] = {}
    model: Annotated[
        str | dict[str, Any] | None, Meta(description="The model: the name of a published one, or a table with its shape.")
    ] = None
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: Annotated[
        Literal["auto"] | Layout, Meta(description="How the run is distributed over processes; auto asks the planner.")
    ] = Layout()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    health: HealthConfig = HealthConfig()
    version: Annotated[int, Meta(description="Version of the run file's format.")] = VERSION
