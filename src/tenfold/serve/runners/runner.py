"""One step of a model over a paged cache, in PyTorch: any device, Llama 3 and Llama 4.

Keys and values stand in blocks of `BLOCK` tokens; a sequence's table says which blocks are its own, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.model.llama import Llama, rope_table
from tenfold.model.llama4 import attention_temperature
from tenfold.spec.model import ModelSpec

BLOCK = 16


@dataclass
class ModelInput:
    """The tokens of one step: sequence i has `counts[i]` rows, one after another, and the blocks `tables[i]`.

    The first `prompts[i]` of its rows are of its prompt; a runner may compute those in another way.
    """

    tokens: list[int]
    positions: list[int]
    counts: list[int]
    tables: list[Sequence[int]]
    prompts: list[int] = field(default_factory=list)


class Runner(Protocol):
    """What the engine asks of a model. `weight_bytes` are read once per step, whatever the rows."""

    spec: ModelSpec
    weight_bytes: int

    def hidden(self, rows: ModelInput) -> Tensor:
        """Normed last hidden states [rows, dim]; keys and values of the rows enter the cache."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [n, vocab] on the CPU or the model's device, for hidden states [n, dim]."""
        ...


def cache_block_bytes(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that one block of keys and values takes in all layers."""
    return 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * BLOCK * dtype.itemsize


class TorchRunner:
    """The model's own modules; attention runs sequence by sequence over gathered blocks."""

    def __init__(self, model: Llama, n_blocks: int):
        self.model, self.spec = model.eval().requires_grad_(False), model.spec
        weight = model.embedding.weight
        self.device = weight.device
        shape = (self.spec.n_layers, 2, n_blocks * BLOCK, self.spec.n_kv_heads, self.spec.head_dim)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        unread = 0 if self.spec.tied else weight.nbytes
        self.weight_bytes = sum(p.nbytes for p in model.parameters()) - unread

    @torch.inference_mode()
    def hidden(self, rows: ModelInput) -> Tensor:
        spec, model = self.spec, self.model
        position = torch.tensor(rows.positions, device=self.device)
        rope, temperature = rope_table(spec, position), attention_temperature(spec, position[None])
        slots = [self._slots(table, count) for table, count in zip(rows.tables, self._contexts(rows), strict=True)]
        new = torch.cat([s[rows.positions[at] : rows.positions[at] + n] for s, at, n in self._each(rows, slots)])
        x = model.embedding(torch.tensor(rows.tokens, device=self.device))[None]
        for i, block in enumerate(model.layers):
            local = spec.is_local(i)
            q, k, v = block.attention.qkv(block.attention_norm(x), rope if local else None, None if local else temperature)
            keys, values = self.cache[i]
            keys[new], values[new] = k[0].transpose(0, 1), v[0].transpose(0, 1)
            mixed = [
                self._attend(q[:, :, at : at + n], keys[s], values[s], position[at : at + n], spec.attention_chunk if local else 0)
                for s, at, n in self._each(rows, slots)
            ]
            h = x + block.attention.wo(torch.cat(mixed, 2).transpose(1, 2).flatten(2))
            x = h + block.ffn(block.ffn_norm(h))
        return model.norm(x)[0]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor, chunk: int) -> Tensor:
        """q [1, heads, n, head_dim] over keys and values [context, kv heads, head_dim]."""
        at = torch.arange(len(keys), device=self.device)
        mask = at <= position[:, None]
        if chunk:
            mask &= at // chunk == position[:, None] // chunk
        k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden).float()

    def _contexts(self, rows: ModelInput) -> list[int]:
        ends, at = [], 0
        for count in rows.counts:
            at += count
            ends.append(rows.positions[at - 1] + 1)
        return ends

    def _slots(self, table: Sequence[int], context: int) -> Tensor:
        """Where each of the first `context` tokens of a sequence stands in the cache."""
        blocks = torch.tensor(table, device=self.device)
        return (blocks[:, None] * BLOCK + torch.arange(BLOCK, device=self.device)).flatten()[:context]

    def _each(self, rows: ModelInput, slots: list[Tensor]) -> list[tuple[Tensor, int, int]]:
        """Slots, first row and rows of each sequence."""
        found, at = [], 0
        for s, count in zip(slots, rows.counts, strict=True):
            found.append((s, at, count))
            at += count
        return found
