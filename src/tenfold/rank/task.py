"""The task `rank`: predict the next item of a user's history, over the whole catalogue."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from msgspec import Meta, Struct
from torch import Tensor, nn

from tenfold.data.interactions.content import read_features
from tenfold.data.interactions.events import FILE, ITEMS, Interactions
from tenfold.data.interactions.events import Rows as EventRows
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.splits import Split
from tenfold.data.text.batches import share_of
from tenfold.model.loss import cross_entropy
from tenfold.rank.content import ContentTower, SemanticIds, residual_centres
from tenfold.rank.extras import calibrate_objectives, write_extras
from tenfold.rank.family import HSTU_NAME, NAMES
from tenfold.rank.hstu import HSTUBlock
from tenfold.rank.losses import binary_cross_entropy, sampled_softmax
from tenfold.rank.metrics import evaluate, summary
from tenfold.rank.model import GatedBlock, ItemModel
from tenfold.rank.objectives import objective_loss, parse
from tenfold.rank.options import Content, Dropout, DropoutOrNone, Loss, SemanticLevels, SplitKind
from tenfold.rank.ranker import scorer_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.ranges import Count, CountOrNone, NotNegative, Share
from tenfold.train.config import RunConfig
from tenfold.train.contradictions import refuse
from tenfold.train.parallel.processes import on_first_process_then_all
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.run import Run
from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch, LossSums, Rows, TaskBase
from tenfold.train.tasks.pretrain import to_device

UNUSED = ("data.mixture", "data.images", "data.image_share", "data.vocab_size", "data.cache_gib", "data.max_epochs")
TOGETHER = 64  # users in a batch of the validation
VALIDATED = 4096  # validation users of a run at most, evenly spread
DROPOUT, SEEN_AGAIN = 0.3, 2.0  # the default dropout of runs longer than so many epochs


class RankConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that trains a ranking model."""

    name: Annotated[str, Meta(description="The task.")] = "rank"
    split: SplitKind = "temporal"
    test_begin: Annotated[Share, Meta(description="Share of all events that come before the test (temporal).")] = 0.9
    test_end: Annotated[Share, Meta(description="Share of all events that come before the end of the test (temporal).")] = 1.0
    validation: Annotated[
        Share, Meta(description="Share of the events before the test that is for validation, the newest (temporal).")
    ] = 0.1
    loss: Loss = "softmax"
    negatives: Annotated[Count, Meta(description="Sampled negatives, which all targets of a step share.")] = 512
    dropout: DropoutOrNone = None
    times: Annotated[bool, Meta(description="Let the family hstu see the times of the events; the other family never does.")] = True
    objectives: Annotated[
        list[str], Meta(description="Further objectives: columns or tests of columns, e.g. rating>=4, action=like, value.")
    ] = []
    objective_weight: Annotated[
        NotNegative, Meta(description="Weight of the loss of each objective beside that of the next item.")
    ] = 0.2
    content: Content = False
    semantic_ids: SemanticLevels = 0
    id_dropout: Annotated[Dropout, Meta(description="Share of the steps in which an item has the vector of its content alone.")] = (
        0.2
    )
    evaluate_every: Annotated[CountOrNone, Meta(description="Steps between evaluations; 0 evaluates at the end only.")] = 0

    @property
    def held(self) -> Split:
        """The split of the interactions that these settings describe."""
        if self.split == "leave-one-out":
            return Split("leave-one-out")
        return Split("temporal", self.test_begin, self.test_end, self.validation)


@dataclass(frozen=True)
class RankRows:
    """Rows in host memory, as `train.task.Rows`.

    `shared` has the negatives, which are the same for all rows; `values` [rows, T, objectives] are the targets of the objectives,
    and `seed` is that of the dropout.
    """

    rows: EventRows
    shared: dict[str, np.ndarray]
    values: np.ndarray | None
    seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows.tokens)

    def weight(self) -> float:
        return float((self.rows.targets >= 0).sum())

    def on(self, device: torch.device, rows: slice) -> Batch:
        inputs = {name: to_device(values, device) for name, values in self.shared.items()}
        inputs["times"] = to_device(self.rows.times[rows], device)
        inputs["seed"] = torch.tensor(np.random.SeedSequence((*self.seed, rows.start or 0)).generate_state(1).astype(np.int64))
        if self.values is not None:
            inputs["values"] = to_device(self.values[rows], device)
        return Batch(to_device(self.rows.tokens[rows], device), to_device(self.rows.targets[rows], device), None, inputs)


class Ranking(TaskBase):
    """The task `rank`. It evaluates on the validation events; only `tenfold rank evaluate` and `compare` use the test."""

    settings: RankConfig

    def __init__(self, config: RunConfig, interactions: Interactions):
        """Raises TenfoldError for a model of another family, or whose context does not fit the rows."""
        self.settings = task_settings(config, RankConfig)
        for key in UNUSED:
            refuse(config, key, 'the task is "rank"')
        self.interactions = interactions
        self.vocab_size, self.directory = interactions.vocab_size, interactions.directory
        self.spec, tokens = resolve_model(config, self.vocab_size)
        self.seq_len, self.seed = config.data.seq_len, config.seed
        _check(config, self.spec, self.seq_len)
        self.adds_modules = bool(self.settings.objectives or self.settings.content or self.settings.semantic_ids)
        self.objectives = [parse(text) for text in self.settings.objectives]
        self.values = np.stack([o.of(interactions) for o in self.objectives], 1) if self.objectives else None
        h = resolve_hyperparameters(config, tokens)
        self.epoch_tokens = len(interactions.users) * self.seq_len
        epochs = h.steps * h.batch_size * self.seq_len / self.epoch_tokens
        derived = DROPOUT if epochs > SEEN_AGAIN else 0.0
        self._dropout = derived if self.settings.dropout is None else self.settings.dropout
        self._draw: dict[str, Any] = {"batch_size": h.batch_size, "seq_len": self.seq_len, "seed": config.seed}
        share = (interactions.counts[1:] + 1.0) / (interactions.counts[1:] + 1.0).sum()  # negatives are drawn by popularity
        self._reached, self._log_q = share.cumsum(), np.log(share).astype(np.float32)

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "Ranking":
        """The task of a run file. One process prepares the interactions in `home`, where they are not there yet."""
        held = task_settings(config, RankConfig).held
        return cls(config, on_first_process_then_all(lambda: open_interactions(config.data.corpus, home, held)))

    def fingerprint(self) -> dict[str, str]:
        return {name: file_sha256(self.directory / file)[:16] for name, file in (("interactions", FILE), ("items", ITEMS))}

    def prepare(self, model: nn.Module) -> None:
        """Set the dropout; add the content module and the heads of the objectives to the model."""
        assert isinstance(model, ItemModel)
        if self.adds_modules and dist.is_initialized() and dist.get_world_size() > 1:
            raise TenfoldError(
                "Objectives, content and semantic ids are trained on one process only: leave them out, or start without --launch."
            )
        model.id_dropout = self.settings.id_dropout
        for part in model.modules():
            if isinstance(part, ItemModel | GatedBlock | HSTUBlock):
                part.dropout = self._dropout
        device = model.embedding.weight.device
        if self.settings.content or self.settings.semantic_ids:
            model.content = self._content(model.spec.dim).to(device)
        if self.objectives:
            model.objectives = nn.Linear(model.spec.dim, len(self.objectives)).to(device)
            nn.init.zeros_(model.objectives.weight)
            nn.init.zeros_(model.objectives.bias)

    def _content(self, dim: int) -> ContentTower | SemanticIds:
        features, levels = read_features(self.directory, self.vocab_size), self.settings.semantic_ids
        made: ContentTower | SemanticIds
        if levels:
            made = SemanticIds(torch.from_numpy(residual_centres(features, levels, self.seed)), dim)
        else:
            made = ContentTower(features.shape[1], dim)
        made.known = made.read(features)
        return made

    def finish(self, model: nn.Module, directory: Path) -> None:
        """Write content, heads and calibration to `directory`, and add the content's vectors to the model's table."""
        assert isinstance(model, ItemModel)
        if self.adds_modules:
            curves = calibrate_objectives(model, self.interactions, self.objectives, self.values, self.seq_len)
            write_extras(model, self.objectives, curves, directory)

    def rows(self, step: int, rows: slice) -> RankRows:
        found = self.interactions.batch(step, rows, **self._draw)
        shared = {}
        if self.settings.loss != "softmax":
            drawn = np.random.default_rng((self.seed, step, 1)).random(self.settings.negatives)
            place = np.searchsorted(self._reached, drawn * self._reached[-1])
            shared = {"negatives": place + 1, "log_q": self._log_q[place]}
        values = None if self.values is None else np.where(found.events[..., None] >= 0, self.values[found.events], np.nan)
        return RankRows(found, shared, values, (self.seed, step, rows.start or 0))

    def loss(self, model: Any, batch: Batch) -> LossSums:
        """The loss of the settings in training; without gradients always that of the full softmax, so that runs compare."""
        training, i = torch.is_grad_enabled(), batch.inputs
        if training:
            torch.manual_seed(int(i["seed"]))
        table = model.table()
        times = self._times(batch)
        hidden = model.hidden(batch.tokens, batch.document, times=times, table=table)
        items, flat, targets = model.item_vectors(table), hidden.flatten(0, 1), batch.targets.flatten()
        if not training or self.settings.loss == "softmax":
            nats = cross_entropy(flat, items, targets)[0]
        elif self.settings.loss == "bce":
            nats = binary_cross_entropy(flat, items, targets, i["negatives"])
        else:
            nats = sampled_softmax(flat, items, targets, i["negatives"], i["log_q"])
        extra = torch.zeros((), device=nats.device)
        if training and "values" in i:
            if times is not None:
                hidden = model.hidden(batch.tokens, batch.document, times=times[:, :-1], table=table)
            extra = self.settings.objective_weight * objective_loss(model.objectives(hidden), i["values"], self.objectives)
        return LossSums(nats, extra)

    def _times(self, batch: Batch) -> Tensor | None:
        times = batch.inputs.get("times") if self.settings.times and self.spec.family == HSTU_NAME else None
        if times is None or len(times) == len(batch.tokens):
            return times
        return torch.cat((times, times.new_zeros(len(batch.tokens) - len(times), times.shape[1])))  # for padding rows

    def flops(self, rows: Rows) -> float:
        """FLOPs of the items only, without the padding of short rows."""
        return rows.weight() * self.spec.train_flops_per_token(self.seq_len)

    def evaluate(self, run: Run) -> dict[str, float]:
        """`loss` in nats per validation item; where one process has the whole model, also the measures of `rank evaluate`."""
        found = {"loss": self._validation_loss(run)}
        if run.dims.alone:
            queries = self.interactions.held_out("validation", VALIDATED)
            found |= summary(evaluate(scorer_of(cast(Any, run.model), times=self.settings.times), self.interactions, queries))
        return found

    @torch.no_grad()
    def _validation_loss(self, run: Run) -> float:
        """The mean loss of the held-out items in each user's newest row that have a token; others have no probability."""
        interactions = self.interactions
        users, (first, last) = interactions.asked("validation", VALIDATED), interactions.span("validation")
        mine, own = share_of(len(users), (run.dims.data_rank, run.dims.data))
        nats = count = 0.0
        for some in (slice(start, start + TOGETHER) for start in range(0, len(mine), TOGETHER)):
            asked = users[mine[some]]
            rows = interactions.newest(asked, first[asked], last[asked], self.seq_len)
            rows.targets[~own[some]] = -100
            count += float((rows.targets >= 0).sum())
            nats += run.loss_of(RankRows(rows, {}, None, (0,)).on(run.device, slice(None)))
        return run.dims.total(nats)[0] / max(1.0, run.dims.total_of_rows(count)[0])


def _check(config: RunConfig, spec: Any, seq_len: int) -> None:
    if spec.family not in NAMES:
        raise TenfoldError(f"The task rank trains models of the families {' and '.join(NAMES)}: write one as family in [model].")
    if spec.context != seq_len + 1:
        raise TenfoldError(f"Rows of seq_len = {seq_len} items and the next item need context = {seq_len + 1} in [model].")
    if config.task.get("content") and config.task.get("semantic_ids"):
        raise TenfoldError(
            "The content of items is read by a tower or by semantic ids: leave content or semantic_ids out of [task]."
        )
    if config.parallel != "auto" and (
        config.parallel.pp > 1 or (spec.family == HSTU_NAME and config.parallel.cp * config.parallel.tp > 1)
    ):
        raise TenfoldError(
            "Rankers are not trained with pipeline parallelism: set pp = 1, and for hstu also cp = 1 and tp = 1, in [parallel]."
        )
