"""RecTools' side of `bench.rank.speed`, in an environment of its own: seconds of an epoch, as JSON.

python rectools_side.py EVENTS.parquet hstu 64 2 50 64
"""

import json
import sys
import time
import warnings
from typing import Any, ClassVar

import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel

EPOCHS = 4
warnings.simplefilter("ignore")


class Clock(Callback):
    """When each epoch ended, and how many rows it had."""

    ends: ClassVar[list[tuple[float, float]]] = []  # by the clock, in seconds of the processor; callbacks are copied
    rows: ClassVar[int] = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        Clock.rows += len(batch["x"])

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def main() -> None:
    events, kind = sys.argv[1:3]
    width, layers, seq_len, batch = map(int, sys.argv[3:])
    table = pd.read_parquet(events, columns=["user", "token", "time"])
    frame = pd.DataFrame({Columns.User: table["user"].cat.codes, Columns.Item: table["token"], Columns.Weight: 1.0})
    frame[Columns.Datetime] = pd.to_datetime(table["time"], unit="s")

    def trainer() -> Trainer:
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[Clock()], **options)

    model = {"sasrec": SASRecModel, "hstu": HSTUModel}[kind](
        n_factors=width, n_blocks=layers, n_heads=2, session_max_len=seq_len, batch_size=batch, loss="softmax",
        dataloader_num_workers=0, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(frame))
    tokens = Clock.rows / EPOCHS * seq_len * (EPOCHS - 1)
    rates = [tokens / (end - begin) for begin, end in zip(Clock.ends[0], Clock.ends[-1], strict=True)]
    print(json.dumps(dict(zip(("tokens_per_s", "tokens_per_cpu_s"), rates, strict=True))))


if __name__ == "__main__":
    main()
