"""Settings of what makes a model smaller."""

from typing import Annotated

from msgspec import Meta, Struct

from tenfold.spec.ranges import Count, LearningRate, Seed, SeqLen


class DistilSettings(Struct, frozen=True):
    """How far a model is pruned, and how long it is taught."""

    keep: Annotated[float, Meta(gt=0, le=1, description="Share of the parameters that is kept.")] = 0.5
    layers: Annotated[Count | None, Meta(description="Layers that are kept; all, and narrower ones, where left out.")] = None
    tokens: Annotated[Count, Meta(description="Tokens that the student is taught on.")] = 100_000
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row.")] = 128
    batch_size: Annotated[Count, Meta(description="Rows in a step.")] = 8
    learning_rate: Annotated[LearningRate, Meta(description="Of a hidden matrix of the base width, at the peak.")] = 1e-3
    top_k: Annotated[int, Meta(ge=0, description="Tokens of the teacher that count each; 0 takes all.")] = 0
    seed: Annotated[Seed, Meta(description="Seed of the order of the text.")] = 0
