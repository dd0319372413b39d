"""The options of `tenfold rank train`, and the run that they describe; apart from PyTorch, so that the command line loads fast."""

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
    Literal["temporal", "leave-one-out"],
    Meta(description="What is held out: events after a moment (temporal), or each user's last event."),
]
Loss = Annotated[
    Literal["softmax", "sampled_softmax", "bce"],
    Meta(description="Softmax over the whole catalogue or over sampled negatives (logQ-corrected), or binary cross-entropy."),
]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
DropoutOrNone = Annotated[
    Dropout | None, Meta(description="Dropout of the residual stream; by default 0.3 where users are seen more than twice, else 0.")
]
SemanticLevels = Annotated[
    int,
    Meta(ge=0, le=16, description="Levels of semantic ids, from residual k-means of the items' content; 0: none."),
]
Content = Annotated[bool, Meta(description="Train a tower on the items' content, so that new items can be ranked.")]


class RankOptions(Struct, frozen=True):
    """The model, and how long it is trained. A run file of `tenfold train` with `name = "rank"` in `[task]` can say more."""

    family: Annotated[
        Literal["llama", "hstu"], Meta(description="Llama's decoder with gated blocks, or HSTU, which also sees the times.")
    ] = "hstu"
    width: Annotated[Width, Meta(description="Width of the model.")] = 64
    layers: Annotated[Layers, Meta(description="Layers of the model.")] = 2
    seq_len: Annotated[SeqLen, Meta(description="Items of a history that the model sees.")] = 100
    epochs: Annotated[Positive, Meta(description="Rows of training for each user.")] = 50.0
    batch_size: Annotated[Count, Meta(description="Users in a step.")] = USERS_PER_STEP
    learning_rate: Annotated[LearningRate, Meta(description="Peak learning rate.")] = 0.01
    seed: Annotated[Seed, Meta(description="Seed of the initial weights and the order of the users.")] = 0

    def run(self, source: str, users: int, task: dict[str, Any]) -> RunConfig:
        """The run on the interactions `source` with so many training users; `task` is its table `[task]`."""
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
