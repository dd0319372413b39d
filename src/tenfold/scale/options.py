"""The settings of a climb."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from tenfold.spec.ranges import Flops, Seed, SeqLen, Text, VocabSize

PRETRAIN = "pretrain"


@dataclass(frozen=True)
class ClimbSettings:
    """The settings of a climb. `top_flops` is the training compute of its last run, the one that is forecast."""

    corpus: Annotated[
        Text, Meta(description="Text to train on: a folder or file, a built corpus, or one of stdlib, torch-headers, docstrings.")
    ] = "stdlib"
    top_flops: Annotated[
        Flops,
        Meta(description="Training compute in FLOPs of the largest run, the one that is forecast.", extra={"flag": "--top"}),
    ] = 5e12
    vocab_size: Annotated[VocabSize, Meta(description="Tokens in the vocabulary.")] = 2048
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a sequence.")] = 128
    seed: Annotated[Seed, Meta(description="Seed of weights and data order.")] = 0
    device: Annotated[Text, Meta(description="auto, cpu, cuda, or the name of another accelerator.")] = "auto"
    optimizer: Annotated[Literal["muon", "adamw"], Meta(description="The optimizer of all runs.")] = "muon"
    family: Annotated[
        Text, Meta(description="llama3 (dense) or llama4 (16 experts, one per token); with --task rank: rank or hstu.")
    ] = "llama3"
    task: Annotated[Text, Meta(description="pretrain, or rank with a table of interactions as --corpus.")] = PRETRAIN

    def __post_init__(self) -> None:
        if self.task == "rank" and self.family == "llama3":
            object.__setattr__(self, "family", "rank")

    @property
    def is_text(self) -> bool:
        """Whether the runs are trained on text: their loss is then in bits per byte, otherwise in nats."""
        return self.task == PRETRAIN
