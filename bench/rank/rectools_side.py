"""RecTools' side of `bench.rank.speed` and `bench.rank.accuracy`; runs in a separate environment with RecTools.

    python rectools_side.py speed EVENTS.parquet --kind hstu --shape 64 2 50 64
    python rectools_side.py lists FOLDER --kind sasrec --shape 64 2 50 64 --every 10 --stops 5

`speed` prints tokens per second as JSON. `lists` trains on FOLDER/train.parquet. At each stop it writes the best items for the
histories in validation.parquet and test.parquet.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel

EPOCHS = 4  # of `speed`; the first is a warm-up
BEST = 200  # items per list
warnings.simplefilter("ignore")


class Clock(Callback):
    """Records when each epoch ended, and the number of rows of all epochs."""

    ends: ClassVar[list[tuple[float, float]]] = []  # (wall-clock, processor seconds); class variables, since callbacks are copied
    rows: ClassVar[int] = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        Clock.rows += len(batch["x"])

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def dataset(user: pd.Series, token: pd.Series, seconds: pd.Series) -> Dataset:
    frame = pd.DataFrame({Columns.User: user, Columns.Item: token, Columns.Weight: 1.0})
    return Dataset.construct(frame.assign(**{Columns.Datetime: pd.to_datetime(seconds, unit="s")}))


def model_of(kind: str, shape: Sequence[int], trainer: Callable[[], Trainer]) -> Any:
    width, layers, seq_len, batch = shape
    return {"sasrec": SASRecModel, "hstu": HSTUModel}[kind](
        n_factors=width, n_blocks=layers, n_heads=2, session_max_len=seq_len, batch_size=batch, loss="softmax",
        dataloader_num_workers=0, get_trainer_func=trainer,
    )  # fmt: skip


def trainer() -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[Clock()], **quiet)


def speed(asked: argparse.Namespace) -> None:
    table = pd.read_parquet(asked.source, columns=["user", "token", "time"])
    model_of(asked.kind, asked.shape, trainer).fit(dataset(table["user"].cat.codes, table["token"], table["time"]))
    tokens = Clock.rows / EPOCHS * asked.shape[2] * (EPOCHS - 1)
    rates = [tokens / (end - begin) for begin, end in zip(Clock.ends[0], Clock.ends[-1], strict=True)]
    print(json.dumps(dict(zip(("tokens_per_s", "tokens_per_cpu_s"), rates, strict=True))))


def lists(asked: argparse.Namespace) -> None:
    seed_everything(asked.seed)
    table, model = pd.read_parquet(asked.source / "train.parquet"), model_of(asked.kind, asked.shape, trainer)
    train = dataset(table["user"], table["token"], table["time"])
    for stop in range(asked.stops):
        model.fit_partial(train, min_epochs=asked.every, max_epochs=asked.every)
        for held in ("validation", "test"):
            found = best(model, pd.read_parquet(asked.source / f"{held}.parquet"))
            found.to_parquet(asked.source / f"{held}-{stop}.parquet")


def best(model: Any, queries: pd.DataFrame) -> pd.DataFrame:
    """The best items for each query: columns query, token, score. A query counts as a user; one without a known item gets none."""
    events = queries[["history", "times"]].explode(["history", "times"]).dropna().astype("int64").reset_index(names="query")
    context = {Columns.User: queries.index, Columns.Datetime: pd.to_datetime(queries["now"], unit="s"), Columns.Weight: 1.0}
    found = model.recommend(
        users=events["query"].unique(), dataset=dataset(events["query"], events["history"], events["times"]), k=BEST,
        filter_viewed=True, on_unsupported_targets="ignore",
        context=pd.DataFrame(context) if model.require_recommend_context else None,
    )  # fmt: skip
    return found.rename(columns={Columns.User: "query", Columns.Item: "token"})[["query", "token", Columns.Score]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "lists"])
    parser.add_argument("source", type=Path)
    parser.add_argument("--kind", choices=["sasrec", "hstu"], required=True)
    parser.add_argument("--shape", type=int, nargs=4, required=True, metavar=("WIDTH", "LAYERS", "SEQ_LEN", "BATCH"))
    parser.add_argument("--every", type=int, default=10, help="epochs between two stops")
    parser.add_argument("--stops", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    {"speed": speed, "lists": lists}[asked.what](asked)


if __name__ == "__main__":
    main()
