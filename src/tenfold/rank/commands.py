"""Train and evaluate ranking models; a run file of `tenfold train` with `name = "rank"` in `[task]` can say more."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from tenfold.rank.family import NAME
from tenfold.spec.commands import Folder, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import LearningRate, Positive, SeqLen, Text
from tenfold.train.commands import RunOptions
from tenfold.train.commands import run as run_training
from tenfold.train.config import RunConfig
from tenfold.train.run_file import config_from_fields, read_config

Width = Annotated[int, Meta(ge=16, le=2**20)]
USERS_PER_STEP = 64


class RankOptions(Struct, frozen=True):
    """The model, and how long it is trained."""

    width: Annotated[Width, Meta(description="Width of the model.")] = 32
    seq_len: Annotated[SeqLen, Meta(description="Items of a history that it sees.")] = 50
    epochs: Annotated[Positive, Meta(description="Rows for each user.")] = 10.0
    learning_rate: Annotated[LearningRate, Meta(description="At the peak.")] = 0.01

    def run(self, source: str, users: int) -> RunConfig:
        """The run on the interactions `source` of so many users."""
        fields: dict[str, Any] = {
            "tokens": max(1, round(self.epochs * users)) * self.seq_len,
            "task": {"name": NAME},
            "model": {"family": NAME, "width": self.width, "context": self.seq_len + 1},
            "data": {"corpus": source, "seq_len": self.seq_len, "batch_size": min(USERS_PER_STEP, users)},
            "optimizer": {"learning_rate": self.learning_rate},
        }
        return config_from_fields(fields, "The run")


def train(
    interactions: Annotated[Text, Meta(description="A table of user, item and time; or synthetic, or movielens-100k.")],
    /,
    *,
    model: RankOptions = RankOptions(),
    options: RunOptions = RunOptions(),
) -> None:
    """Train a model that says what a user takes next.

    Example: tenfold rank train interactions.parquet
    """
    from tenfold.data.interactions.interactions import open_interactions

    config = model.run(interactions, len(open_interactions(interactions, options.home).histories))
    run_training(config, options.out or options.home / f"rank-{Path(interactions).stem}", options)


def evaluate(
    generation: Annotated[Folder, Meta(description="The directory of a finished run of the task rank.")],
    /,
    *,
    home: Annotated[Folder | None, Meta(description="Where the interactions are kept; by default beside the run.")] = None,
    json: Json = False,
) -> None:
    """Hit rate and NDCG at 10 on the test items, over the whole catalogue, beside what needs no model.

    Example: tenfold rank evaluate generations/rank-synthetic
    """
    found = evaluated(generation, home or generation.parent, "test")
    if json:
        print_json(found)
        return
    print(f"{found['users']} users, {found['items']} items.\n{'':14} HR@10  NDCG@10")
    for name in ("model", "popularity", "markov", "best_possible"):
        if name in found:
            print(f"{name:14} {found[name]['hit_rate_10']:.4f}  {found[name]['ndcg_10']:.4f}")
    print("Above popularity by {hit_rate_10:.4f} (95 %: {low:.4f} to {high:.4f}).".format(**found["above_popularity"]))


def evaluated(generation: Path, home: Path, split: Literal["validation", "test"]) -> dict[str, Any]:
    """`metrics.compare` for the model of a finished run. Raises TenfoldError where it is of another task, or other interactions."""
    from tenfold.data.interactions.interactions import open_interactions
    from tenfold.model.io.huggingface import read_model
    from tenfold.rank.metrics import compare, scorer_of

    source, model = read_config(generation / "run.toml").data.corpus, read_model(generation / "model")
    if model.spec.family != NAME:
        raise TenfoldError(f"The model in {generation} ranks no items: train one with `tenfold rank train`.")
    interactions = open_interactions(source, home)
    if model.spec.vocab_size != interactions.vocab_size:
        raise TenfoldError(f"{source} has other items than {generation} was trained on: train again.")
    return compare(scorer_of(model), interactions, source, split)
