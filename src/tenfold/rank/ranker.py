"""A trained ranker: histories in, scores of items out. Serving, batches and off-policy estimates are built on it.

A score is the product of a vector of the user, computed from the history, and one of the item, so that any index for maximum
inner products finds the best items.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tenfold.data.interactions.content import features, first_rows
from tenfold.data.interactions.events import Queries, item_names
from tenfold.model.io.huggingface import read_model
from tenfold.rank.extras import Extras, read_extras
from tenfold.rank.family import NAMES
from tenfold.rank.model import ItemModel
from tenfold.spec.errors import TenfoldError

Scorer = Callable[[Queries], np.ndarray]  # queries -> scores [queries, vocabulary], of which the largest are the best


class History(NamedTuple):
    """The items that a user had, as tokens, the oldest first; it may be empty.

    `times` are in seconds since 1970, or empty where they are not known. `now` is the time at which the next item is asked for.
    """

    items: Sequence[int]
    times: Sequence[float] = ()
    now: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the times of all items and `now` are known; an empty history counts as timed."""
        return not self.items or (self.now is not None and len(self.times) == len(self.items))


def read_ranker(path: Path) -> ItemModel:
    """The model in a folder, in evaluation mode. Raises TenfoldError where it is no ranker."""
    model = read_model(path).eval()
    if model.spec.family not in NAMES:
        raise TenfoldError(f"The model in {path} is no ranker: train one with `tenfold rank train`.")
    return cast(ItemModel, model)


@dataclass
class Ranker:
    """A model with the names of its items by token, and their vectors `items`, float32 [tokens, dim].

    Token 0 is no item: it stands before the first item of a history. Items that were added later have the tokens after the others.
    """

    model: ItemModel
    names: list[str]
    items: Tensor
    extras: Extras

    @classmethod
    def load(cls, path: Path) -> "Ranker":
        """The ranker in a finished run, or in its folder `model`. Raises TenfoldError where there is none."""
        path = path / "model" if (path / "model").is_dir() else path
        model = read_ranker(path)
        items = model.item_vectors(model.table()).detach().float()
        return cls(model, item_names(path), items, read_extras(path.parent, model.spec.dim))

    @cached_property
    def _token(self) -> dict[str, int]:
        return {name: token for token, name in enumerate(self.names)}

    def tokens(self, names: Iterable[str]) -> list[int]:
        """Tokens of items by their names; 0 for those that are not known."""
        return [self._token.get(name, 0) for name in names]

    def history(self, names: Sequence[str], times: Sequence[float] = (), now: float | None = None) -> History:
        """The history of a user by the items' names, without unknown items."""
        known = [(i, token) for i, token in enumerate(self.tokens(names)) if token]
        return History(tuple(token for _, token in known), tuple(times[i] for i, _ in known) if times else (), now)

    @property
    def objectives(self) -> list[str]:
        """The objectives that are predicted of a candidate, as they were written in the run file."""
        return [objective.name for objective in self.extras.objectives]

    def new_rows(self, items: pa.Table) -> dict[str, int]:
        """The row numbers of unknown items of a table, by name; of several rows with the same item the first."""
        return {name: row for name, row in first_rows(items).items() if name not in self._token}

    @torch.no_grad()
    def add_items(self, items: pa.Table) -> None:
        """Add items that were not in the training data: a table with their names in `item`, and their content in the columns that
        the model was trained with. Of several rows with the same item the first counts; known items are ignored.

        Raises TenfoldError where the model was trained without content, or on other columns.
        """
        content = self.extras.content
        if content is None:
            raise TenfoldError("The model has no content tower and no semantic ids: train it with --content or --semantic-ids 3.")
        new = items.take(pa.array(list(self.new_rows(items).values()), pa.int64()))
        if not len(new):
            return
        known = features(new)
        if known.shape[1] != content.n_features:
            raise TenfoldError(
                f"The new items have {known.shape[1]} features, and the model was trained with {content.n_features}: give the "
                "columns of the training, and an item_vector of its length."
            )
        table = content(content.read(known))
        self.model.embedding.weight = torch.nn.Parameter(torch.cat((self.model.embedding.weight, table)), requires_grad=False)
        self.items = torch.cat((self.items, self.model.item_vectors(table).float()))
        self.names += new["item"].to_pylist()
        self._token.update({name: token for token, name in enumerate(self.names)})

    @torch.inference_mode()
    def users(self, histories: Sequence[History]) -> Tensor:
        """The vector of each history, float32 [histories, dim]; its products with `items` are logits of the next item."""
        vectors = torch.empty(len(histories), self.items.shape[1])
        for timed in (True, False):  # the rows of a batch all have times, or none has
            if some := [i for i, history in enumerate(histories) if history.is_timed == timed]:
                tokens, times, last = _padded([histories[i] for i in some], self.model.spec.context - 1)
                vectors[some] = self.model.hidden(tokens, times=times)[torch.arange(len(last)), last].float()
        return vectors

    @torch.inference_mode()
    def score(self, histories: Sequence[History], candidates: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Logits of the next item, float32 [histories, candidates]; without `candidates` for every token."""
        items = self.items if candidates is None else self.items[torch.as_tensor(np.asarray(candidates), dtype=torch.int64)]
        return (self.users(histories) @ items.T).numpy()

    @torch.inference_mode()
    def predict(self, history: History, candidates: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Calibrated predictions [candidates] for each objective: probabilities, or amounts in the unit of their column.

        A prediction depends on the history and the candidate, not on the other candidates.
        """
        tokens, times, _ = _padded([history], self.model.spec.context - 1)
        asked = torch.as_tensor(np.asarray(candidates), dtype=torch.int64)
        hidden = self.model.beside(tokens[0], asked, None if times is None else times[0])
        return self.extras.predict(hidden)


def _padded(histories: Sequence[History], context: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """As `newest`; the times are None where some history has none."""
    timed = all(h.is_timed for h in histories)
    times = [h.times if timed else [0] * len(h.items) for h in histories]
    now = np.array([(timed and h.now) or 0 for h in histories], np.int64)
    tokens, when, last = newest([h.items for h in histories], times, now, context)
    return tokens, when if timed else None, last


def newest(
    histories: Sequence[Sequence[int] | np.ndarray], times: Sequence[Sequence[float] | np.ndarray], now: np.ndarray, context: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The newest items of each history, as many as fit in `context` tokens, padded at the end.

    Returns tokens int64 [histories, T], times int64 [histories, T + 1], which are `now` int64 [histories] after the last token, and
    the position of each history's last token, int64 [histories].
    """
    T = min(context, 1 + max(map(len, histories), default=0))
    tokens, when = np.zeros((len(now), T), np.int64), np.repeat(now[:, None], T + 1, 1)
    last = np.empty(len(now), np.int64)
    for row, (history, known) in enumerate(zip(histories, times, strict=True)):
        kept = min(len(history), T)
        start = int(kept < T)  # token 0 precedes the first item, where there is room
        last[row] = kept - 1 + start
        tokens[row, start : start + kept] = history[len(history) - kept :]
        when[row, start : start + kept] = known[len(known) - kept :]
        if start and kept:
            when[row, 0] = known[0]
    return torch.from_numpy(tokens), torch.from_numpy(when), torch.from_numpy(last)


def scorer_of(model: ItemModel, times: bool = True) -> Scorer:
    """A scorer that gives a model's logits; with `times` the model sees when things happened.

    Histories are cut to the newest items that fit in the context.
    """

    @torch.inference_mode()
    def scores(queries: Queries) -> np.ndarray:
        tokens, when, last = newest(queries.histories, queries.times, queries.now, model.spec.context - 1)
        table = model.table()
        hidden = model.hidden(tokens.to(table.device), times=when.to(table.device) if times else None, table=table)
        return (hidden[torch.arange(len(last)), last] @ model.item_vectors(table).T).float().cpu().numpy()

    return scores
