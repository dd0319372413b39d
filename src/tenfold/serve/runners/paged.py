"""The operations of a step over a paged cache in plain PyTorch, the reference for the Triton kernels of `kernels.py`.

Keys and values of a layer are [blocks, kv heads, BLOCK, head_dim] each, so the block of one head is contiguous.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.model.llama import rotate


@dataclass
class Batch:
    """The rows of a step, as int32 tensors on the device. A row of position -1 is padding.

    A token below zero stands for draw `-1 - token` of the step before. The block table of row r's sequence begins at
    `tables[starts[r]]`. A tile is up to `rows_per_tile` neighbouring rows of one sequence: tile i has `tile_rows[i]` rows from
    row `tile_first[i]` on. The attention kernel divides the keys of each tile into `splits` parts.
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    tables: Tensor
    tile_first: Tensor
    tile_rows: Tensor
    rows_per_tile: int
    splits: int = 1


def embed(batch: Batch, drawn: Tensor, table: Tensor) -> Tensor:
    """The embeddings [rows, dim] of the batch's tokens; `drawn` are the tokens of the step before, `table` [vocab, dim]."""
    tokens = batch.tokens
    known = torch.where(tokens < 0, drawn[(-1 - tokens).clamp(min=0)], tokens)
    return table[known.long()]


def norm(x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + added, and the RMSNorm of that, both [rows, dim]."""
    x = x if added is None else x + added
    return x, F.rms_norm(x, (x.shape[-1],), weight, eps)


def turn_and_store(qkv: Tensor, rope: Tensor, batch: Batch, keys: Tensor, values: Tensor) -> Tensor:
    """Apply rotary embeddings, and write keys and values into the cache.

    `qkv` is [rows, kv heads, group + 2, head_dim], `rope` [positions, head_dim / 2, 2]. Returns queries [rows, heads, head_dim].
    """
    real = batch.positions >= 0
    position = batch.positions.clamp(min=0).long()
    turned = rotate(qkv[:, :, :-1], rope[position][:, None, None]).to(qkv.dtype)
    size = keys.shape[2]
    block = batch.tables[(batch.starts + position // size).long()].long()[real]
    at = (position % size)[real]
    keys[block, :, at], values[block, :, at] = turned[:, :, -1][real], qkv[:, :, -1][real]
    return turned[:, :, :-1].flatten(1, 2)


def attention(q: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
    """Causal attention of the queries [rows, heads, head_dim] over the cache, [rows, heads * head_dim]."""
    size = keys.shape[2]
    out = torch.zeros_like(q)
    for first, count in zip(batch.tile_first.tolist(), batch.tile_rows.tolist(), strict=True):
        position = batch.positions[first : first + count].long()
        context = int(position[-1]) + 1
        if context == 0:
            continue
        begin = int(batch.starts[first])
        blocks = batch.tables[begin : begin + -(-context // size)].long()
        k, v = (t[blocks].transpose(0, 1).flatten(1, 2)[None, :, :context] for t in (keys, values))
        mask = torch.arange(context, device=q.device) <= position[:, None]
        rows = q[first : first + count].transpose(0, 1)[None]
        out[first : first + count] = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
    return out.flatten(1)


def gate(x: Tensor) -> Tensor:
    """silu(a) * b for x = [a, b] along the last dimension (SwiGLU)."""
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def draw(logits: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor) -> Tensor:
    """A token for each row of logits [rows, vocab], int32: the most likely at temperature 0, else drawn by the Gumbel-max trick.

    The noise depends only on a row's seed and position.
    """
    noise = torch.zeros_like(logits, dtype=torch.float32)
    for i in (temperatures > 0).nonzero().flatten().tolist():
        generator = torch.Generator().manual_seed((int(seeds[i]) * 1_000_003 + int(positions[i])) % 2**32)
        noise[i] = -torch.empty(logits.shape[1]).exponential_(generator=generator).log()
    scaled = logits.float() / torch.where(temperatures > 0, temperatures, 1)[:, None] + noise
    return scaled.argmax(-1).int()
