"""What a person asks a plan for. Each struct is a table of the command's options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
VOCABULARY = 128_256  # Llama 3's


@dataclass(frozen=True)
class Request:
    """The model: a parent and a factor, or FLOPs, or a shape of one's own; and how to shape it."""

    after: Annotated[str | None, Meta(description="A published model to follow.")] = None
    times: Annotated[float | None, Meta(description="How many times its compute (10 where not said).")] = None
    flops: Annotated[Positive | None, Meta(description="Training compute, as 3.8e26.")] = None
    model: Annotated[Path | None, Meta(description="A shape of one's own, as TOML (fields of ModelSpec).")] = None
    tokens: Annotated[Positive | None, Meta(description="Tokens to train on, as 15T, in place of the law's.")] = None
    law: Annotated[str | None, Meta(description="llama3, chinchilla, besiroglu, or a law.json of `tenfold law fit`.")] = None
    vocab_size: Annotated[int, Meta(description="Tokens in the vocabulary.", ge=1)] = VOCABULARY
    experts: Annotated[int, Meta(description="Experts of a mixture (0: dense).")] = 0
    experts_per_token: Annotated[int, Meta(description="Experts per token (0: one in 32).", extra={"flag": "--active-experts"})] = 0
    shared: Annotated[int, Meta(description="Experts that every token passes.", extra={"flag": "--shared-experts"})] = 1
    interleave: Annotated[int, Meta(description="Every how many layers are routed.")] = 1
    unique_tokens: Annotated[
        Positive | None, Meta(description="Unique tokens at hand, as 15T.", extra={"flag": "--data-tokens"})
    ] = None


@dataclass(frozen=True)
class GpuRequest:
    """What is fixed: the number of GPUs, the days, or the money for rent; what is None is solved for."""

    gpus: Annotated[int | None, Meta(description="How many; solved for where --days or --budget-usd is given.")] = None
    days: Annotated[float | None, Meta(description="Days of training, failures apart.")] = None
    budget_usd: Annotated[float | None, Meta(description="Money for rent: the compute follows from it.")] = None


@dataclass(frozen=True)
class StepRequest:
    """A step of the training."""

    seq_len: Annotated[int, Meta(description="Tokens of a sequence.")] = 8192
    global_batch: Annotated[int, Meta(description="Sequences per step (0: from the compute).")] = 0
    dtype: Annotated[str, Meta(description="What matrix products are computed in: bf16 or fp8.")] = "bf16"
