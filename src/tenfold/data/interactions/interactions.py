"""Interactions ready to train on: each user's items in the order of time as tokens, the last two held out.

Token 0 begins every history; item i is token i + 1. The items' names are kept as a tokenizer, so that a model of items has its
vocabulary in the files beside it as a model of text does.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from tokenizers import Tokenizer, models

from tenfold.data.fingerprint import digest
from tenfold.data.interactions.read import MOVIELENS, movielens, read_histories
from tenfold.data.interactions.synthetic import SYNTHETIC, ClusterChain
from tenfold.data.text.batches import Batch, shuffled
from tenfold.model.io.tokenizer import read_tokenizer, save_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256, whole_folder
from tenfold.spec.vocabulary import Vocabulary

START = "<start>"
FILE = "histories.json"
Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Interactions:
    """Users' histories in tokens, split by leave-one-out: the last item is the test's, the one before it the validation's."""

    directory: Path
    histories: list[list[int]]
    vocab_size: int

    @cached_property
    def training(self) -> list[list[int]]:
        """What may be trained on; whole histories of users who have fewer than 3 items, who are asked about nowhere."""
        return [h[:-2] if len(h) > 2 else h for h in self.histories]

    def held_out(self, split: Split) -> tuple[list[list[int]], np.ndarray]:
        """For each user who has at least 3 items, what came before the one that is held out, and this one."""
        last = {"validation": 2, "test": 1}[split]
        long = [h for h in self.histories if len(h) > 2]
        return [h[:-last] for h in long], np.array([h[-last] for h in long])

    def batch(self, step: int, rows: slice, *, batch_size: int, seq_len: int, seed: int) -> Batch:
        """`rows` of the `batch_size` rows of a step, a pure function of (seed, step): in every epoch each user has one, which
        begins anywhere in what may be trained on."""
        users = shuffled(np.arange(batch_size, dtype=np.int64) + step * batch_size, len(self.training), seed)[rows]
        places = np.random.default_rng((seed, step)).random(batch_size)[rows]
        tokens, targets = np.zeros((len(users), seq_len), np.int64), np.full((len(users), seq_len), -100, np.int64)
        for i, (user, place) in enumerate(zip(users, places, strict=True)):
            whole = [0, *self.training[user]]
            first = int(place * max(1, len(whole) - seq_len))
            window = whole[first : first + seq_len + 1]
            tokens[i, : len(window) - 1], targets[i, : len(window) - 1] = window[:-1], window[1:]
        return Batch(tokens, targets, np.zeros_like(tokens, np.int32))


def last_inputs(histories: list[list[int]], seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The newest tokens of each history, int64 [histories, seq_len], and where the last of them stands."""
    newest = [[0, *history][-seq_len:] for history in histories]
    tokens = np.array([history + [0] * (seq_len - len(history)) for history in newest])
    return tokens, np.array([len(history) - 1 for history in newest])


def open_interactions(source: str, home: Path) -> Interactions:
    """The interactions of a file, or of `synthetic` or `movielens-100k`, made ready in `home`.

    Raises TenfoldError where they cannot be had, or nobody has three of them.
    """
    path = None if source == SYNTHETIC else movielens() if source == MOVIELENS else Path(source)
    if path is not None and not path.is_file():
        raise TenfoldError(f"There is no file of interactions {source}: give one, or the name {SYNTHETIC} or {MOVIELENS}.")
    chain = ClusterChain()
    mark = digest([repr(chain)] if path is None else _content(path))[:8]
    directory = home / f"interactions-{Path(source).stem}-{mark}"
    if not directory.exists():
        names = [f"item-{i}" for i in range(chain.clusters * chain.per_cluster)]
        _write(directory, *((chain.histories(), names) if path is None else read_histories(path)))
    histories = msgspec.json.decode((directory / FILE).read_bytes(), type=list[list[int]])
    return Interactions(directory, histories, read_tokenizer(directory).get_vocab_size())


def _content(path: Path) -> list[str]:
    """What the histories of a file depend on: its bytes, and its ending, which says how they are read."""
    return [path.suffix, file_sha256(path)]


def _write(directory: Path, histories: list[list[int]], names: list[str]) -> None:
    if START in names or not any(len(history) > 2 for history in histories):
        raise TenfoldError(f"{directory.name} needs a user with three interactions, and no item called {START!r}.")
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate([START, *names])}, unk_token=START))
    tokenizer.add_special_tokens([START])
    with whole_folder(directory) as scratch:
        save_tokenizer(tokenizer, Vocabulary(size=len(names) + 1, bos=0, eos=(0,), special={START: 0}), scratch)
        (scratch / FILE).write_bytes(msgspec.json.encode([[item + 1 for item in history] for history in histories]))
