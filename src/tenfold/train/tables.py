"""The tables of a run file that configure optimizer and hooks, apart from their code: they are read without importing PyTorch."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class OptimizerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[optimizer]`; `None` means derived from the compute."""

    name: Annotated[Literal["muon", "adamw"], Meta(description="muon (AdamW for what is no hidden matrix) or adamw.")] = "muon"
    learning_rate: Annotated[float | None, Meta(description="Of a hidden matrix of the base width, at the peak.")] = None
    weight_decay: Annotated[float | None, Meta(description="Share of a matrix that is forgotten each step at the peak.")] = None
    beta2: Annotated[Annotated[float, Meta(ge=0, lt=1)] | None, Meta(description="AdamW's second moment.")] = None
    schedule: Annotated[Literal["wsd", "cosine"], Meta(description="Warm-up, stable, decay; or a half cosine.")] = "wsd"
    warmup: Annotated[float, Meta(ge=0, le=1, description="Share of the run that the learning rate rises in.")] = 0.1
    decay: Annotated[float, Meta(ge=0, le=1, description="Share of the run that it falls in (wsd).")] = 0.4
    max_grad_norm: Annotated[float, Meta(gt=0, description="Gradients are scaled to at most this norm.")] = 1.0
    max_skipped: Annotated[int, Meta(gt=0, description="Steps in a row that may be skipped before the run ends.")] = 20


class CheckpointConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[checkpoint]`."""

    every_s: Annotated[float, Meta(ge=0, description="Seconds between saves.")] = 60.0
    keep_last: Annotated[int, Meta(gt=0, description="Checkpoints that are kept.")] = 2
    upload_to: Annotated[
        str | None, Meta(description="A folder that fsspec can reach (s3://bucket/run): checkpoints are copied there.")
    ] = None


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[log]`."""

    every: Annotated[int, Meta(gt=0, description="Steps between lines of run.jsonl.")] = 10
    tensorboard: Annotated[bool, Meta(description="Write for TensorBoard too.")] = False
    wandb: Annotated[str | None, Meta(description="The project in Weights & Biases, where asked for.")] = None


class HealthConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[health]`."""

    hang_after_s: Annotated[float, Meta(gt=0, description="A process that does nothing for so long ends, to be restarted.")] = 900.0
    sdc_check_every: Annotated[int, Meta(ge=0, description="Steps between losses that are worked out twice; 0: never.")] = 0
    loss_spike: Annotated[float, Meta(ge=0, description="Nats above its course at which the run goes back; 0: never.")] = 2.0
