"""What a climb is asked for."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from tenfold.spec.ranges import Flops, Seed, SeqLen, Text, VocabSize

PRETRAIN = "pretrain"


@dataclass(frozen=True)
class ClimbSettings:
    """What a climb is asked for. `top_flops` is the compute of the model at the top, the one that is forecast."""

    corpus: Annotated[Text, Meta(description="Text (a folder or file), a corpus, or stdlib, torch-headers, docstrings.")] = "stdlib"
    top_flops: Annotated[
        Flops, Meta(description="FLOPs of the model at the top, the one that is forecast.", extra={"flag": "--top"})
    ] = 5e12
    vocab_size: Annotated[VocabSize, Meta(description="Tokens in the vocabulary.")] = 2048
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a sequence.")] = 128
    seed: Annotated[Seed, Meta(description="Seed of weights and data order.")] = 0
    device: Annotated[Text, Meta(description="auto, cpu, cuda or an accelerator.")] = "auto"
    optimizer: Annotated[Literal["muon", "adamw"], Meta(description="The optimizer of all runs.")] = "muon"
    family: Annotated[Text, Meta(description="llama3 or llama4 (16 experts, one a token); of rank: rank or hstu.")] = "llama3"
    task: Annotated[Text, Meta(description="pretrain; or rank, with interactions for --corpus.")] = PRETRAIN

    def __post_init__(self) -> None:
        if self.task == "rank" and self.family == "llama3":
            object.__setattr__(self, "family", "rank")

    @property
    def is_text(self) -> bool:
        """Whether the climb is of a text, whose loss is in bits per byte; that of others is in nats."""
        return self.task == PRETRAIN
