"""A trained ranker: histories in, scores of items out. What serves, batches, or weighs policies takes it from here.

A score is a product of a user's vector, made of the history, and an item's: the best of a million items are the largest products,
and any index of vectors may find them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold.model.io.huggingface import read_model
from tenfold.model.io.tokenizer import read_tokenizer
from tenfold.model.llama import Llama


class History(NamedTuple):
    """What a user had, in tokens, the oldest first; it may be empty. `times` are in seconds, or empty where they are not known;
    `now` is when the next item is asked for."""

    items: Sequence[int]
    times: Sequence[float] = ()
    now: float | None = None


@dataclass(frozen=True)
class Ranker:
    """A model and the names of its items by token; token 0 is no item, it begins every history."""

    model: Llama
    names: list[str]

    @classmethod
    def load(cls, path: Path) -> "Ranker":
        """The ranker in a finished run, or in its folder `model`. Raises TenfoldError where there is none."""
        path = path / "model" if (path / "model").is_dir() else path
        tokenizer = read_tokenizer(path)
        names = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
        return cls(read_model(path).eval(), names)

    @cached_property
    def _token(self) -> dict[str, int]:
        return {name: token for token, name in enumerate(self.names)}

    def tokens(self, names: Iterable[str]) -> list[int]:
        """Tokens of items by their names; 0 for those that are not known."""
        return [self._token.get(name, 0) for name in names]

    @cached_property
    def items(self) -> Tensor:
        """The items' vectors, float32 [vocab, dim]."""
        return self.model.head.weight.detach().float()

    @torch.inference_mode()
    def users(self, histories: Sequence[History]) -> Tensor:
        """The vector of each history, float32 [histories, dim]: products with `items` are logits of the next item."""
        context = min(self.model.spec.context - 1, 1 + max((len(h.items) for h in histories), default=0))
        newest = [[0, *h.items][-context:] for h in histories]
        tokens = torch.tensor([row + [0] * (context - len(row)) for row in newest])
        hidden = self.model.hidden(tokens.to(self.items.device))
        return hidden[torch.arange(len(newest)), torch.tensor([len(row) - 1 for row in newest])].float()

    def score(self, histories: Sequence[History], candidates: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Logits of the next item, float32 [histories, candidates]; without `candidates` of every token."""
        items = self.items if candidates is None else self.items[torch.as_tensor(np.asarray(candidates), dtype=torch.int64)]
        return (self.users(histories) @ items.T).cpu().numpy()
