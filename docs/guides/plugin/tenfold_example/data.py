"""A task with its own data: random rows whose second half repeats the first."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from msgspec import Struct

from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch, LossSums, TaskBase
from tenfold.train.text import open_text


class CopyingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[task]`: `words` is the number of different tokens that rows are drawn from."""

    name: str
    words: int = 50


@dataclass
class CopyRows:
    """The rows of one step: `tokens` int64 [rows, seq_len]."""

    tokens: np.ndarray

    def __len__(self):
        return len(self.tokens)

    def weight(self):
        return float(self.on(torch.device("cpu"), slice(None)).targets.ge(0).sum())

    def on(self, device, rows):
        tokens = torch.from_numpy(self.tokens[rows]).to(device)
        targets = tokens.roll(-1, 1)
        targets[:, : tokens.shape[1] // 2] = targets[:, -1] = -100
        return Batch(tokens, targets)


class Copying(TaskBase):
    """A model learns to copy: only the second half of a row is learned."""

    def __init__(self, config, text):
        self.settings = task_settings(config, CopyingConfig)
        self.vocab_size, self.directory = text.vocab_size, text.directory
        self.seed, self.half = config.seed, config.data.seq_len // 2

    @classmethod
    def open(cls, config, home, *, quiet=False):
        return cls(config, open_text(config, home, quiet=quiet))

    def rows(self, step, rows):
        drawn = np.random.default_rng([self.seed, step]).integers(self.settings.words, size=(rows.stop, self.half))
        return CopyRows(np.tile(drawn, 2)[rows])

    def loss(self, model, batch):
        return LossSums(*model.loss(batch.tokens, batch.targets))

    def flops(self, rows):
        return 1e6 * rows.tokens.size  # a round figure for this example; `Pretraining` counts those of its model

    def progress(self, step):
        return {"words": self.settings.words}

    def evaluate(self, run):
        rows = self.rows(10**6, slice(0, 8))
        with torch.no_grad():
            nats = run.loss_of(rows.on(run.device, slice(None)))
        loss = nats / rows.weight()
        return {"loss": loss, "copied": math.exp(-loss)}  # the geometric mean of the right tokens' probabilities
