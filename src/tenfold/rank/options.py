"""What a ranker is asked for: from the command's options to a run."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from tenfold.rank.family import HSTU_NAME, NAME
from tenfold.spec.ranges import Count, LearningRate, Positive, Seed, SeqLen
from tenfold.train.config import RunConfig
from tenfold.train.run_file import config_from_fields

Width = Annotated[int, Meta(ge=16, le=2**20)]
Layers = Annotated[int, Meta(ge=1, le=1000)]
USERS_PER_STEP = 64
SplitKind = Annotated[
    Literal["temporal", "leave-one-out"], Meta(description="What is held out: what comes after a moment, or last.")
]
Loss = Annotated[
    Literal["softmax", "sampled_softmax", "bce"], Meta(description="Over the whole catalogue, or over negatives, with logQ.")
]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
DropoutOrNone = Annotated[
    Dropout | None, Meta(description="Share of the residual stream that is left out; 0.3 where users are seen again, else 0.")
]
SemanticLevels = Annotated[
    int,
    Meta(ge=0, le=16, description="Codes of an item, by residual k-means of its content, in place of a tower; 0: none."),
]
Content = Annotated[bool, Meta(description="A tower of what is known of items, so that new ones can be ranked.")]


class RankOptions(Struct, frozen=True):
    """The model, and how long it is trained. A run file of `tenfold train` with `name = "rank"` in `[task]` can say more."""

    family: Annotated[Literal["llama", "hstu"], Meta(description="Llama's block, gated; or HSTU, which sees times.")] = "hstu"
    width: Annotated[Width, Meta(description="Width of the model.")] = 64
    layers: Annotated[Layers, Meta(description="Its layers.")] = 2
    seq_len: Annotated[SeqLen, Meta(description="Items of a history that it sees.")] = 100
    epochs: Annotated[Positive, Meta(description="Rows for each user.")] = 50.0
    batch_size: Annotated[Count, Meta(description="Users a step.")] = USERS_PER_STEP
    learning_rate: Annotated[LearningRate, Meta(description="At the peak.")] = 0.01
    seed: Annotated[Seed, Meta(description="Seed of weights and order.")] = 0

    def run(self, source: str, users: int, task: dict[str, Any]) -> RunConfig:
        """The run on the interactions `source`, of which so many users may be learned from; `task` is the table `[task]`."""
        fields: dict[str, Any] = {
            "tokens": max(1, round(self.epochs * users)) * self.seq_len,
            "seed": self.seed,
            "task": {"name": "rank", **task},
            "model": {
                "family": NAME if self.family == "llama" else HSTU_NAME,
                "width": self.width,
                "n_layers": self.layers,
                "context": self.seq_len + 1,
            },
            "data": {"corpus": source, "seq_len": self.seq_len, "batch_size": min(self.batch_size, users)},
            "optimizer": {"learning_rate": self.learning_rate},
        }
        return config_from_fields(fields, "The run")
