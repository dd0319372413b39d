"""The task `rank`: the next item of a user's history, over the whole catalogue, by the trainer of all tasks."""

from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
from msgspec import Meta, Struct

from tenfold.data.interactions.interactions import FILE, Interactions, last_inputs, open_interactions
from tenfold.data.text.batches import Batch as TokenRows
from tenfold.data.text.batches import share_of
from tenfold.rank.family import NAME
from tenfold.rank.metrics import USERS, popularity, quality_of, scorer_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.train.config import RunConfig
from tenfold.train.contradictions import refuse
from tenfold.train.parallel.processes import on_first_process_then_all
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.run import Run
from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch, LossSums, Rows, TaskBase
from tenfold.train.tasks.pretrain import HostRows

UNUSED = ("data.mixture", "data.images", "data.image_share", "data.vocab_size", "data.cache_gib", "data.max_epochs")


class RankConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that trains a ranking model."""

    name: Annotated[str, Meta(description="The task.")] = NAME
    evaluate_every: Annotated[int, Meta(ge=0, description="Steps between evaluations; 0 evaluates at the end alone.")] = 0


class Ranking(TaskBase):
    """The task. It evaluates on the validation items; those of the test are for `tenfold rank evaluate` alone."""

    def __init__(self, config: RunConfig, interactions: Interactions):
        """Raises TenfoldError for a model of another family, or of another context than the rows have."""
        task_settings(config, RankConfig)
        for key in UNUSED:
            refuse(config, key, f'the task is "{NAME}"')
        self.interactions = interactions
        self.vocab_size, self.directory = interactions.vocab_size, interactions.directory
        self.spec, tokens = resolve_model(config, self.vocab_size)
        self.seq_len = config.data.seq_len
        if self.spec.family != NAME:
            raise TenfoldError(f'The task {NAME} trains models of the family {NAME}: write family = "{NAME}" in [model].')
        if self.spec.context != self.seq_len + 1:
            raise TenfoldError(f"Rows of {self.seq_len} and the item after need context = {self.seq_len + 1} in [model].")
        h = resolve_hyperparameters(config, tokens)
        self._draw: dict[str, Any] = {"batch_size": h.batch_size, "seq_len": self.seq_len, "seed": config.seed}

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "Ranking":
        """The task of a run file: its interactions are made ready in `home`, by one process, where they are not there yet."""
        return cls(config, on_first_process_then_all(lambda: open_interactions(config.data.corpus, home)))

    def fingerprint(self) -> dict[str, str]:
        return {"interactions": file_sha256(self.directory / FILE)[:16]}

    def rows(self, step: int, rows: slice) -> HostRows:
        return HostRows(self.interactions.batch(step, rows, **self._draw))

    def loss(self, model: Any, batch: Batch) -> LossSums:
        return LossSums(*model.loss(batch.tokens, batch.targets, batch.document))

    def flops(self, rows: Rows) -> float:
        """Of the items alone, not of what fills short rows."""
        return rows.weight() * self.spec.train_flops_per_token(self.seq_len)

    def evaluate(self, run: Run) -> dict[str, float]:
        """`loss` in nats per validation item; where one process has the whole model also hit rate and NDCG at 10."""
        found = {"loss": self._validation_loss(run)}
        if run.dims.alone:
            for prefix, scorer in (("", scorer_of(cast(Any, run.model))), ("popularity_", popularity(self.interactions))):
                of = quality_of(scorer, self.interactions, "validation")
                found |= {f"{prefix}{name}": float(each.mean()) for name, each in of.items()}
        return found

    @torch.no_grad()
    def _validation_loss(self, run: Run) -> float:
        histories, items = self.interactions.held_out("validation")
        mine, own = share_of(len(items), (run.dims.data_rank, run.dims.data))
        nats = 0.0
        for some in (slice(first, first + USERS) for first in range(0, len(mine), USERS)):
            users, counts = mine[some], own[some]
            tokens, last = last_inputs([histories[u] for u in users], self.seq_len)
            targets = np.full_like(tokens, -100)
            targets[np.flatnonzero(counts), last[counts]] = items[users[counts]]
            rows = TokenRows(tokens, targets, np.zeros_like(tokens, np.int32))
            nats += run.loss_of(HostRows(rows).on(run.device, slice(None)))
        return run.dims.total(nats)[0] / len(items)
