"""Settings of what makes a model smaller."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.learn.options import Rent
from tenfold.spec.ranges import Count, LearningRate, Seed, SeqLen


class DistilSettings(Struct, frozen=True):
    """How far a model is pruned, and how long it is taught."""

    keep: Annotated[float, Meta(gt=0, le=1, description="Share of the parameters that is kept.")] = 0.5
    layers: Annotated[Count | None, Meta(description="Layers that are kept; all, and narrower ones, where left out.")] = None
    tokens: Annotated[Count, Meta(description="Tokens that the student is taught on.")] = 100_000
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row.")] = 128
    batch_size: Annotated[Count | None, Meta(description="Rows in a step; by the rule of pretraining where left out.")] = None
    learning_rate: Annotated[
        LearningRate | None, Meta(description="Of a hidden matrix of the base width, at the peak; by the rule where left out.")
    ] = None
    top_k: Annotated[int, Meta(ge=0, description="Tokens of the teacher that count each, and the rest as one; 0 takes all.")] = 0
    teachers: Annotated[
        tuple[Path, ...],
        Meta(description="Further teachers of the same tokens: the student learns the mean of their probabilities."),
    ] = ()
    store: Annotated[bool, Meta(description="Keep what the teachers say (--top-k), for later students.")] = False
    seed: Annotated[Seed, Meta(description="Seed of the order of the text.")] = 0
    rent_usd_per_h: Rent = 0.0


class QuantiseOptions(Struct, frozen=True):
    """How weights are rounded."""

    to: Annotated[Literal["int4", "int8"], Meta(description="Bits of the layers' matrices, in groups of 32.")] = "int4"
    qat: Annotated[bool, Meta(description="Train for the grid first, by the model's own probabilities.")] = False
    rounding: Annotated[
        Literal["nearest", "tuned"], Meta(description="To the nearest, or so that each block's output changes least (AutoRound).")
    ] = "nearest"
    rounding_steps: Annotated[Count, Meta(description="Steps of tuning for each block.")] = 200
    samples: Annotated[Count, Meta(description="Rows of text that the rounding is tuned on.")] = 128
    rotate: Annotated[bool, Meta(description="Turn the channels first, so that none stands out; unties the head.")] = False
