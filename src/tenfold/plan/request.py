"""What a person asks a plan for. Each struct is a table of the command's options."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from tenfold.spec.commands import File
from tenfold.spec.ranges import Count, CountOrNone, Flops, SeqLen, Text, VocabSize

Experts = Annotated[int, Meta(ge=0, le=2**20)]
Tokens = Annotated[float, Meta(ge=1, le=1e24)]
FeedbackTokens = Annotated[float, Meta(ge=0, le=1e24)]
Times = Annotated[float, Meta(ge=1e-6, le=1e9)]
Days = Annotated[float, Meta(ge=1e-3, le=1e6)]
Budget = Annotated[float, Meta(ge=1, le=1e15)]
Confidence = Annotated[float, Meta(ge=0.05, le=0.95)]
Gpus = Annotated[int, Meta(ge=1, le=2**40)]
VOCABULARY = 128_256  # Llama 3's


@dataclass(frozen=True)
class Request:
    """The model: a parent and a factor, or FLOPs, or a shape of one's own; and how to shape it."""

    after: Annotated[Text | None, Meta(description="A published model to follow.")] = None
    times: Annotated[Times | None, Meta(description="How many times its compute (10 where not said).")] = None
    flops: Annotated[Flops | None, Meta(description="Training compute, as 3.8e26.")] = None
    model: Annotated[File | None, Meta(description="A shape of one's own, as TOML (fields of ModelSpec).")] = None
    tokens: Annotated[Tokens | None, Meta(description="Tokens to train on, as 15T, in place of the law's.")] = None
    law: Annotated[Text | None, Meta(description="llama3, chinchilla, besiroglu, or a law.json of `tenfold law fit`.")] = None
    vocab_size: Annotated[VocabSize, Meta(description="Tokens in the vocabulary.")] = VOCABULARY
    experts: Annotated[Experts, Meta(description="Experts of a mixture (0: dense).")] = 0
    experts_per_token: Annotated[
        Experts, Meta(description="Experts per token (0: one in 32).", extra={"flag": "--active-experts"})
    ] = 0
    shared: Annotated[Experts, Meta(description="Experts that every token passes.", extra={"flag": "--shared-experts"})] = 1
    interleave: Annotated[Count, Meta(description="Every how many layers are routed.")] = 1
    unique_tokens: Annotated[Tokens | None, Meta(description="Unique tokens at hand, as 15T.", extra={"flag": "--data-tokens"})] = (
        None
    )
    feedback_tokens: Annotated[FeedbackTokens, Meta(description="Unique tokens that users add for each next generation.")] = 0.0


@dataclass(frozen=True)
class Limits:
    """What a run must hold, as far as something is said: wall-clock days, money."""

    days: float | None = None
    budget_usd: float | None = None


@dataclass(frozen=True)
class GpuRequest:
    """What is fixed: the number of GPUs, the days, or the money for rent; what is None is solved for."""

    gpus: Annotated[Gpus | None, Meta(description="How many; solved for where --days or --budget-usd is given.")] = None
    days: Annotated[Days | None, Meta(description="Days by the clock, failures and what comes beside the steps included.")] = None
    budget_usd: Annotated[
        Budget | None, Meta(description="Money for rent: the compute follows from it, or its probability where that is given.")
    ] = None
    confidence: Annotated[Confidence, Meta(description="Probability with which --days and --budget-usd are to hold.")] = 0.8

    @property
    def limits(self) -> Limits:
        return Limits(self.days, self.budget_usd)


@dataclass(frozen=True)
class StepRequest:
    """A step of the training."""

    seq_len: Annotated[SeqLen, Meta(description="Tokens of a sequence.")] = 8192
    global_batch: Annotated[CountOrNone, Meta(description="Sequences per step (0: from the compute).")] = 0
    dtype: Annotated[str, Meta(description="What matrix products are computed in: bf16, fp8 or fp4 (NVFP4).")] = "bf16"
