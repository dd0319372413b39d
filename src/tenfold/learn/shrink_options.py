"""The settings of pruning, distillation and quantisation, apart from their code."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.learn.options import Rent
from tenfold.spec.ranges import Count, LearningRate, Seed, SeqLen


class DistilSettings(Struct, frozen=True):
    """How far a model is pruned, and how long the student is trained."""

    keep: Annotated[float, Meta(gt=0, le=1, description="Share of the parameters that is kept, at most.")] = 0.5
    layers: Annotated[
        Count | None, Meta(description="Layers that are kept; by default all, so that only their widths are cut.")
    ] = None
    tokens: Annotated[Count, Meta(description="Tokens that the student is trained on.")] = 100_000
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row.")] = 128
    batch_size: Annotated[Count | None, Meta(description="Rows in a step; by default the rule of pretraining.")] = None
    learning_rate: Annotated[
        LearningRate | None,
        Meta(description="Peak learning rate of a hidden matrix of the base width; by default the rule of pretraining."),
    ] = None
    top_k: Annotated[
        int, Meta(ge=0, description="Likeliest tokens of the teacher that count each, the rest as one; 0 takes all.")
    ] = 0
    teachers: Annotated[
        tuple[Path, ...],
        Meta(description="Further teachers with the same tokenizer: the student learns the mean of all probabilities."),
    ] = ()
    store: Annotated[bool, Meta(description="Store the teachers' --top-k likeliest tokens in the home, for later students.")] = (
        False
    )
    seed: Annotated[Seed, Meta(description="Seed of the order of the text.")] = 0
    rent_usd_per_h: Rent = 0.0


class QuantiseOptions(Struct, frozen=True):
    """How weights are rounded."""

    to: Annotated[
        Literal["int4", "int8"], Meta(description="Bits of the layers' matrices, with a scale for each group of 32 weights.")
    ] = "int4"
    qat: Annotated[bool, Meta(description="Train for the grid first (quantisation-aware), on the model's own probabilities.")] = (
        False
    )
    rounding: Annotated[
        Literal["nearest", "tuned"],
        Meta(description="To the nearest value, or so that each block's output changes least (AutoRound)."),
    ] = "nearest"
    rounding_steps: Annotated[Count, Meta(description="Steps of tuned rounding for each block.")] = 200
    samples: Annotated[Count, Meta(description="Rows of text for tuned rounding.")] = 128
    rotate: Annotated[bool, Meta(description="Rotate the channels first, so that none has outlying weights; unties the head.")] = (
        False
    )
