"""Multi-token prediction: during training, a model also predicts the tokens after the next one.

Each depth projects the hidden state of the previous depth together with the embedding of the next token, and applies one more
block; embedding and head are shared with the model (DeepSeek-V3, arXiv 2412.19437, section 2.2). The weights of this module are
for training only: they are not exported with the model.
"""

from typing import cast

import torch
from torch import Tensor, nn

from tenfold.model.attention import Mask, document_mask
from tenfold.model.initialize import initialize
from tenfold.model.llama import Block, Llama, rope_table
from tenfold.model.loss import cross_entropy
from tenfold.model.norm import RMSNorm
from tenfold.spec.model import ModelSpec


class MTPDepth(nn.Module):
    """Predicts one further token: h' = Block(join [RMSNorm(h); RMSNorm(embedding of the next token)])."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.hidden_norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.token_norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.join = nn.Linear(2 * spec.dim, spec.dim, bias=False)
        self.block = Block(spec)
        self.norm = RMSNorm(spec.dim, eps=spec.norm_eps)

    def forward(self, hidden: Tensor, following: Tensor, rope: Tensor, mask: Mask) -> Tensor:
        """The normed state [B, T, dim] of this depth, from that of the previous one and the embeddings of the next tokens."""
        x = self.join(torch.cat((self.hidden_norm(hidden), self.token_norm(following)), -1))
        return self.norm(self.block(x, rope, mask))


class MTP(nn.Module):
    """Predicts `depths` tokens after the next one; `weight` times the mean loss of these predictions is the module's loss."""

    def __init__(self, spec: ModelSpec, depths: int, weight: float):
        super().__init__()
        self.spec, self.weight = spec, weight
        self.depths = nn.ModuleList([MTPDepth(spec) for _ in range(depths)])
        initialize(self, spec, prefix="mtp.")

    def forward(
        self, hidden: Tensor, tokens: Tensor, targets: Tensor, document: Tensor | None, embedding: nn.Embedding, head: nn.Linear
    ) -> Tensor:
        """The weighted loss, summed over the targets. `hidden` [B, T, dim] is the model's last state after its final norm; tokens,
        targets and document are [B, T]."""
        rope = rope_table(self.spec, torch.arange(tokens.shape[1], device=tokens.device))
        mask = None if document is None else document_mask(document)
        total = torch.zeros((), device=hidden.device)
        for depth in cast(list[MTPDepth], list(self.depths)):
            tokens = shifted(tokens, targets[:, -1:].clamp(min=0))
            targets = further(targets, document)
            hidden = depth(hidden, embedding(tokens), rope, mask)
            total = total + cross_entropy(hidden.flatten(0, 1), head.weight, targets.flatten())[0]
        return self.weight / len(self.depths) * total


def shifted(rows: Tensor, last: Tensor) -> Tensor:
    """Rows [B, T] shifted one position to the left, with `last` [B, 1] at the end."""
    return torch.cat((rows[:, 1:], last), 1)


def further(targets: Tensor, document: Tensor | None) -> Tensor:
    """The targets one token further on, and -100 where the document or the row ends before that token."""
    moved = shifted(targets, torch.full_like(targets[:, :1], -100))
    if document is None:
        return moved
    same = shifted(document, document[:, -1:]) == document
    return moved.masked_fill(~same, -100)


def add_mtp(model: Llama, depths: int, weight: float) -> None:
    """Make `model` also train on `depths` tokens after the next one; `weight` times their mean loss is added to its loss."""
    model.mtp = MTP(model.spec, depths, weight).to(model.embedding.weight)


def mtp_weights(spec: ModelSpec, depths: int) -> int:
    """The additional matrix parameters used for each training token, for counting FLOPs; the head counts once per depth."""
    block = spec.attention_weights + 3 * spec.dim * spec.ffn_dim
    return depths * (2 * spec.dim**2 + block + spec.dim * spec.vocab_size)
