"""What the families of rankers share: one table of items for input and output, content for new items, and heads for objectives.

The score of the next item is the product of a hidden state and the item's vector. Objectives (a like, a watch time) are read from
the hidden state at the item itself, which depends on the history and the item: each candidate is appended to the history, and sees
the history but no other candidate (M-FALCON, arXiv 2402.17152, section 3.4).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.attention import document_mask
from tenfold.model.llama import Block, Llama, rope_table
from tenfold.model.loss import cross_entropy
from tenfold.rank.content import Content
from tenfold.spec.model import ModelSpec


def dropped(x: Tensor, share: float) -> Tensor:
    """Dropout of the given share of values, in training only (where gradients are enabled)."""
    return F.dropout(x, share) if share and torch.is_grad_enabled() else x


class ItemModel(Llama):
    """A decoder whose tokens are items. `dropout` and `id_dropout` are applied in training only.

    `content` adds vectors computed from the items' content. In a share `id_dropout` of the training steps an item has this vector
    alone, so that the model can rank new items, which have no other. `objectives` maps hidden states to [..., objectives].
    """

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.dropout = self.id_dropout = 0.0
        self.content: Content | None = None
        self.objectives: nn.Linear | None = None

    def table(self) -> Tensor:
        """The input vectors of all items, [vocab, dim]."""
        table = self.embedding.weight
        if self.content is None:
            return table
        if self.id_dropout and torch.is_grad_enabled():
            table = table * (torch.rand(len(table), 1, device=table.device) >= self.id_dropout)
        return table + self.content(self.content.known)

    def item_vectors(self, table: Tensor) -> Tensor:
        """The output vectors of items, for rows of `table()`."""
        return table

    def forward(self, tokens: Tensor, document: Tensor | None = None, **inputs: Any) -> Tensor:
        return (self.hidden(tokens, document, **inputs) @ self.item_vectors(self.table()).T).float()

    def hidden(  # type: ignore[override]
        self, tokens: Tensor, document: Tensor | None = None, times: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, T, dim] of tokens [B, T], whose products with `item_vectors` are logits of the next item.

        `times` are in seconds. With int64 [B, T + 1], the last one that of the item asked for, a token's state depends on the time
        of the next item. With [B, T] it depends on the token's own time only, for the heads: what a user thinks of an item does
        not depend on when the next one comes. `table` is the result of `self.table()`, where the caller has it.
        """
        T = tokens.shape[1]
        positions = torch.arange(T, device=tokens.device)
        mask = None if document is None else document_mask(document)
        return self.read(tokens, positions, mask, times, self.table() if table is None else table)

    def read(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, times: Tensor | None, table: Tensor) -> Tensor:
        """As `hidden`, for tokens at `positions` [T] and a mask bool [B or 1, 1, T, T]; None is the causal mask."""
        raise NotImplementedError

    def loss(
        self, tokens: Tensor, targets: Tensor, document: Tensor | None = None, z_loss: float = 0.0, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        table = self.table()
        hidden = self.hidden(tokens, document, table=table, **inputs)
        return cross_entropy(hidden.flatten(0, 1), self.item_vectors(table), targets.flatten(), z_loss)

    def beside(self, history: Tensor, candidates: Tensor, times: Tensor | None = None) -> Tensor:
        """Hidden states [candidates, dim] of each candidate as the next item after history [T]; no candidate sees another.

        `times` int64 [T + 1] are those of the history, and the one of all candidates.
        """
        T, C = len(history), len(candidates)
        positions = torch.cat((torch.arange(T), torch.full((C,), T))).to(history.device)
        mask = torch.ones(T + C, T + C, dtype=torch.bool, device=history.device).tril()
        mask[T:, T:] = torch.eye(C, dtype=torch.bool)
        if times is not None:
            times = torch.cat((times[:T], times[T:].expand(C)))[None]
        tokens = torch.cat((history, candidates))[None]
        return self.read(tokens, positions, mask[None, None], times, self.table())[0, T:]


class GatedBlock(Block):
    """Llama's block with a sigmoid gate on each of its two branches (LiGR, arXiv 2502.03417; eSASRec, arXiv 2508.06450).

    h = x + Attention(RMSNorm(x)) * sigmoid(Wa x);   out = h + FeedForward(RMSNorm(h)) * sigmoid(Wf h)
    """

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.attention_gate = nn.Linear(spec.dim, spec.dim, bias=False)
        self.ffn_gate = nn.Linear(spec.dim, spec.dim, bias=False)
        self.dropout = 0.0

    def attended(self, x: Tensor, rope: Tensor | None, mask: Any, temperature: Tensor | None = None) -> Tensor:
        return x + dropped(
            self.attention(self.attention_norm(x), rope, mask, temperature) * self.attention_gate(x).sigmoid(), self.dropout
        )

    def fed(self, h: Tensor) -> Tensor:
        return h + dropped(self.ffn(self.ffn_norm(h)) * self.ffn_gate(h).sigmoid(), self.dropout)


class RankLlama(ItemModel):
    """Llama's decoder of gated blocks."""

    def block(self, layer: int) -> Block:
        return GatedBlock(self.spec)

    def read(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, times: Tensor | None, table: Tensor) -> Tensor:
        x, rope = dropped(F.embedding(tokens, table), self.dropout), rope_table(self.spec, positions)
        for block in self.layers:
            x = block(x, rope, mask)
        return self.norm(x)
