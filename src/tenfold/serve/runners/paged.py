"""The operations of a step over a paged cache in plain PyTorch, the reference for the Triton kernels of `kernels.py`.

Keys and values of a layer are [blocks, kv heads, BLOCK, head_dim], so the block of one head is contiguous.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.model.llama import rotate


@dataclass
class Batch:
    """The rows of a step on the device, int32. A row of position -1 is padding.

    A token below zero is draw `-1 - token` of the step before. The blocks of row r's sequence begin at `tables[starts[r]]`.
    A tile is up to `rows_per_tile` neighbouring rows of one sequence.
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
    """[rows, dim] from the token table."""
    tokens = batch.tokens
    known = torch.where(tokens < 0, drawn[(-1 - tokens).clamp(min=0)], tokens)
    return table[known.long()]


def norm(x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + added, and its RMSNorm."""
    x = x if added is None else x + added
    return x, F.rms_norm(x, (x.shape[-1],), weight, eps)


def turn_and_store(qkv: Tensor, rope: Tensor, batch: Batch, keys: Tensor, values: Tensor) -> Tensor:
    """Queries [rows, heads, head_dim] of `qkv` [rows, kv heads, group + 2, head_dim], turned; keys and values enter the cache."""
    real = batch.positions >= 0
    position = batch.positions.clamp(min=0).long()
    turned = rotate(qkv[:, :, :-1], rope[position][:, None, None]).to(qkv.dtype)
    size = keys.shape[2]
    block = batch.tables[(batch.starts + position // size).long()].long()[real]
    at = (position % size)[real]
    keys[block, :, at], values[block, :, at] = turned[:, :, -1][real], qkv[:, :, -1][real]
    return turned[:, :, :-1].flatten(1, 2)


def attention(q: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
    """What queries [rows, heads, head_dim] take from the cache, [rows, heads * head_dim]."""
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
    """silu(a) * b for x = [a, b]."""
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def draw(logits: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor) -> Tensor:
    """A token for each row of logits [rows, vocab], int32: the likeliest at temperature 0, else by the Gumbel trick.

    The noise depends on a row's seed and position alone.
    """
    noise = torch.zeros_like(logits, dtype=torch.float32)
    for i in (temperatures > 0).nonzero().flatten().tolist():
        generator = torch.Generator().manual_seed((int(seeds[i]) * 1_000_003 + int(positions[i])) % 2**32)
        noise[i] = -torch.empty(logits.shape[1]).exponential_(generator=generator).log()
    scaled = logits.float() / torch.where(temperatures > 0, temperatures, 1)[:, None] + noise
    return scaled.argmax(-1).int()
