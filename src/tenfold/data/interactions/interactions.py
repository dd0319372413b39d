"""Interactions ready to train on: each user's items in the order of time as tokens, and who is asked about at the end.

Token 0 begins every history; item i of the names is token i + 1. The names are kept as a tokenizer, so that a model that is
trained on items has, like any other, its vocabulary in the files beside it.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from tokenizers import Tokenizer, models

from tenfold.data.interactions.read import MOVIELENS, movielens, read_histories
from tenfold.data.interactions.synthetic import SYNTHETIC, ClusterChain
from tenfold.data.text.batches import Batch, shuffled
from tenfold.model.io.tokenizer import save_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import Vocabulary

START = "<start>"
FILE = "histories.json"
Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Interactions:
    """Users' histories in tokens, split by leave-one-out: the last item is the test, the one before it the validation."""

    directory: Path
    histories: list[list[int]]
    vocab_size: int

    @cached_property
    def training(self) -> list[list[int]]:
        """What may be trained on: histories without the two items that are held out; whole ones of users who have fewer than 3."""
        return [h[:-2] if len(h) > 2 else h for h in self.histories]

    def held_out(self, split: Split) -> tuple[list[list[int]], np.ndarray]:
        """What came before the item that is held out, and this item, for each user who has at least 3."""
        last = {"validation": 2, "test": 1}[split]
        long = [h for h in self.histories if len(h) > 2]
        return [h[:-last] for h in long], np.array([h[-last] for h in long])

    def counts(self) -> np.ndarray:
        """How often each token occurs in what may be trained on, [vocabulary]."""
        return np.bincount(np.concatenate([np.array(h, np.int64) for h in self.training]), minlength=self.vocab_size)

    def batch(self, step: int, rows: slice, *, batch_size: int, seq_len: int, seed: int) -> Batch:
        """`rows` of the `batch_size` rows of a step, a pure function of (seed, step): every epoch has each user once, with
        `seq_len` items in a row from anywhere in what may be trained on."""
        sample = np.arange(batch_size, dtype=np.int64) + step * batch_size
        users, places = shuffled(sample, len(self.training), seed), np.random.default_rng((seed, step)).random(batch_size)
        windows = [_window(self.training[u], seq_len, p) for u, p in zip(users[rows], places[rows], strict=True)]
        return next_item_rows(windows, seq_len)


def _window(history: list[int], seq_len: int, place: float) -> list[int]:
    whole = [0, *history]
    first = int(place * max(1, len(whole) - seq_len))
    return whole[first : first + seq_len + 1]


def next_item_rows(windows: list[list[int]], seq_len: int) -> Batch:
    """Each window of at most `seq_len` + 1 tokens as a row: its tokens, and after each the next one as target."""
    tokens, targets = np.zeros((len(windows), seq_len), np.int64), np.full((len(windows), seq_len), -100, np.int64)
    for i, window in enumerate(windows):
        tokens[i, : len(window) - 1], targets[i, : len(window) - 1] = window[:-1], window[1:]
    return Batch(tokens, targets, np.zeros_like(tokens, np.int32))


def last_inputs(histories: list[list[int]], seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The newest tokens of each history, int64 [histories, seq_len], and where the last of them stands."""
    newest = [[0, *history][-seq_len:] for history in histories]
    tokens = np.zeros((len(newest), seq_len), np.int64)
    for row, history in zip(tokens, newest, strict=True):
        row[: len(history)] = history
    return tokens, np.array([len(history) - 1 for history in newest])


def open_interactions(source: str, home: Path) -> Interactions:
    """The interactions of a file, or of `synthetic` or `movielens-100k`, made ready in `home`.

    Raises TenfoldError where they cannot be had, or nobody has three of them.
    """
    path = None if source == SYNTHETIC else movielens() if source == MOVIELENS else Path(source)
    if path is not None and not path.is_file():
        raise TenfoldError(f"There is no file of interactions {source}: give one, or the name {SYNTHETIC} or {MOVIELENS}.")
    mark = sha256(repr(ClusterChain()).encode() if path is None else path.read_bytes()).hexdigest()[:8]
    directory = home / f"interactions-{Path(source).stem}-{mark}"
    if not directory.exists():
        chain = ClusterChain()
        made = (chain.histories(), [f"item-{i}" for i in range(chain.items)]) if path is None else read_histories(path)
        _write(directory, *made)
    return _open(directory)


def _write(directory: Path, histories: list[list[int]], names: list[str]) -> None:
    if not any(len(history) > 2 for history in histories):
        raise TenfoldError(f"Nobody in {directory.name} has three interactions: one is trained on, and two are held out.")
    vocabulary = {START: 0, **{name: i + 1 for i, name in enumerate(names)}}
    if len(vocabulary) != len(names) + 1:
        raise TenfoldError(f"An item of {directory.name} is called {START!r}, which begins every history: give it another name.")
    aside = directory.with_name(f".{directory.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=START))
    tokenizer.add_special_tokens([START])
    save_tokenizer(tokenizer, Vocabulary(size=len(vocabulary), bos=0, eos=(0,), special={START: 0}), aside)
    (aside / FILE).write_bytes(msgspec.json.encode([[item + 1 for item in history] for history in histories]))
    aside.rename(directory)


def _open(directory: Path) -> Interactions:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    histories = msgspec.json.decode((directory / FILE).read_bytes(), type=list[list[int]])
    return Interactions(directory, histories, tokenizer.get_vocab_size())
