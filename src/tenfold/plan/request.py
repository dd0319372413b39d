"""The request of a plan. Each class is a group of the command's options."""

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
    """The model: its compute (a published model and a factor, or FLOPs) or its shape, its tokens, and its experts."""

    after: Annotated[
        Text | None, Meta(description="Published model to follow, such as llama-3.1-405b: plan --times its training compute.")
    ] = None
    times: Annotated[Times | None, Meta(description="Factor on the compute of --after; default: 10.")] = None
    flops: Annotated[Flops | None, Meta(description="Training compute in FLOPs, such as 3.8e26.")] = None
    model: Annotated[
        File | None, Meta(description="Shape of the model: a TOML file with the fields of ModelSpec, or a published model's name.")
    ] = None
    tokens: Annotated[Tokens | None, Meta(description="Tokens to train on, such as 15T, in place of the law's.")] = None
    law: Annotated[
        Text | None,
        Meta(description="Law for the best size: llama3, chinchilla, besiroglu, or a law.json of `tenfold law fit`."),
    ] = None
    vocab_size: Annotated[VocabSize, Meta(description="Tokens in the vocabulary.")] = VOCABULARY
    experts: Annotated[Experts, Meta(description="Routed experts per layer (0: a dense model).")] = 0
    experts_per_token: Annotated[
        Experts, Meta(description="Routed experts per token (0: one in 32 of --experts).", extra={"flag": "--active-experts"})
    ] = 0
    shared: Annotated[
        Experts, Meta(description="Shared experts per layer, which every token uses.", extra={"flag": "--shared-experts"})
    ] = 1
    interleave: Annotated[Count, Meta(description="A layer has experts every so many layers (1: all layers).")] = 1
    unique_tokens: Annotated[
        Tokens | None,
        Meta(
            description="Unique tokens in the corpus, such as 15T; default: the largest published one.",
            extra={"flag": "--data-tokens"},
        ),
    ] = None
    feedback_tokens: Annotated[
        FeedbackTokens, Meta(description="Unique tokens that users' feedback adds to the corpus for each next generation.")
    ] = 0.0


@dataclass(frozen=True)
class Limits:
    """The limits that a run must keep: wall-clock days, and USD; None where not given."""

    days: float | None = None
    budget_usd: float | None = None


@dataclass(frozen=True)
class GpuRequest:
    """The constraints: the number of GPUs, the days, or the budget for rent; what is None is solved for."""

    gpus: Annotated[
        Gpus | None, Meta(description="Number of GPUs at most; without it, as many as --days or --budget-usd need.")
    ] = None
    days: Annotated[
        Days | None, Meta(description="Wall-clock days of the run, with failures and all that it takes beside its steps.")
    ] = None
    budget_usd: Annotated[
        Budget | None,
        Meta(description="USD for rent. Without a known compute it determines the compute; with one, its probability is printed."),
    ] = None
    confidence: Annotated[Confidence, Meta(description="Probability (0.05 to 0.95) with which --days and --budget-usd hold.")] = 0.8

    @property
    def limits(self) -> Limits:
        return Limits(self.days, self.budget_usd)


@dataclass(frozen=True)
class StepRequest:
    """The size and precision of a training step."""

    seq_len: Annotated[SeqLen, Meta(description="Tokens in a sequence.")] = 8192
    global_batch: Annotated[CountOrNone, Meta(description="Sequences per step (0: derived from the compute).")] = 0
    dtype: Annotated[str, Meta(description="Data type of the matrix products: bf16, fp8 or fp4 (NVFP4).")] = "bf16"
