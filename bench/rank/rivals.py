"""RecTools' SASRec and HSTU on the same split, with the same metrics and users.

Each is trained on the training events and evaluated at several stops. The stop with the best NDCG on the validation is tested.
"""

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tenfold.data.interactions.events import Interactions, Queries
from tenfold.rank.metrics import Evaluation, evaluate, summary
from tenfold.rank.ranker import Scorer

KINDS = ("sasrec", "hstu")
SIDE = Path(__file__).with_name("rectools_side.py")


class Training(NamedTuple):
    """How RecTools' models are trained: `shape` is width, layers, row length, batch size; `every` is epochs between stops."""

    python: str
    shape: tuple[int, int, int, int]
    every: int
    stops: int


def rival(kind: str, interactions: Interactions, training: Training, seed: int) -> tuple[Evaluation, int]:
    """(RecTools' model of this kind, evaluated on the test; the epochs after which it was best on the validation)."""
    queries = {held: interactions.held_out(held) for held in ("validation", "test")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        events = interactions.training
        columns = {"user": interactions.user_of, "token": interactions.items, "time": interactions.times}
        pa.parquet.write_table(pa.table({name: of[events] for name, of in columns.items()}), folder / "train.parquet")
        for held, asked in queries.items():
            table = pa.table({"history": asked.histories, "times": asked.times, "now": asked.now})
            pa.parquet.write_table(table, folder / f"{held}.parquet")
        how = ["--every", training.every, "--stops", training.stops, "--seed", seed, "--shape", *training.shape]
        command = [str(part) for part in (training.python, SIDE, "lists", folder, "--kind", kind, *how)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)  # Lightning writes logs here
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)}: {done.stderr}")

        def at(stop: int, held: str) -> Evaluation:
            scorer = of_lists(pa.parquet.read_table(folder / f"{held}-{stop}.parquet"), queries[held], interactions.vocab_size)
            return evaluate(scorer, interactions, queries[held], logits=False)

        best = max(range(training.stops), key=lambda stop: summary(at(stop, "validation"))["ndcg_10"])
        return at(best, "test"), (best + 1) * training.every


def of_lists(table: pa.Table, asked: Queries, vocab_size: int) -> Scorer:
    """A scorer that reads a table of query, token, score, for queries in their order; items without a score come last."""
    query, token, score = (table[name].to_numpy() for name in ("query", "token", "score"))
    order = np.argsort(query, kind="stable")
    parts = iter(np.split(order, np.searchsorted(query[order], np.arange(1, len(asked.targets)))))

    def scores(some: Queries) -> np.ndarray:
        found = np.full((len(some.targets), vocab_size), -np.inf)
        for row in found:
            places = next(parts)
            row[token[places]] = score[places]
        return found

    return scores
