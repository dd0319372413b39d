"""Attention: one function for every kind of mask, and for a cache of keys and values.

A mask is made once per forward pass and shared by all layers. It is one of:

- None: plain causal attention.
- A bool tensor [B, 1, T, T]: True where a query attends to a key.
- A `BlockMask`: the non-empty tiles of the [T, T] square, so that the kernel skips the others (FlexAttention, Dong et
  al., arXiv 2412.05496). That kernel computes gradients on GPUs only. On a CPU, where only tests use a `BlockMask`, it is
  expanded to a bool tensor.
- A `LayerCache`: during generation, the layer's cache is given in place of the mask.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention

BLOCK = 128  # tokens on each side of a tile
FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Cache(Protocol):
    """Keys and values of the preceding tokens, for all layers. `positions` [T] are the positions of the new tokens."""

    positions: Tensor

    def layer(self, number: int, chunk: int = 0) -> "LayerCache":
        """The cache of layer `number`, whose queries attend within chunks of `chunk` positions; 0 means no chunks."""
        ...


# Called with the queries, keys and values of the new tokens: stores the keys and values, and returns the attention of the
# queries over everything stored. Shapes are those of `attend`.
LayerCache = Callable[[Tensor, Tensor, Tensor], Tensor]
Mask = Tensor | BlockMask | LayerCache | None


def document_mask(document: Tensor) -> Tensor:
    """Causal attention within each document: bool [B, 1, T, T] from document numbers [B, T]; True attends."""
    T = document.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


def document_blocks(document: Tensor) -> BlockMask:
    """The mask of `document_mask` as a `BlockMask`; T must be a multiple of `BLOCK`.

    The smallest and largest document number in each run of `BLOCK` tokens decide which tiles are empty, full or mixed, so
    no T x T tensor is allocated.
    """
    B, T = document.shape
    number = document.unflatten(1, (T // BLOCK, BLOCK))
    least, largest = number.amin(-1), number.amax(-1)
    index = torch.arange(T // BLOCK, device=document.device)
    before = index[:, None] > index
    meets = (least[:, :, None] <= largest[:, None, :]) & (least[:, None, :] <= largest[:, :, None])
    one = (least == largest)[:, :, None] & (least == largest)[:, None, :]
    full = before & one & (least[:, :, None] == least[:, None, :])
    mixed = (before | (index[:, None] == index)) & meets & ~full

    def attends(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        row = b if B > 1 else b * 0  # a single row of document numbers holds for every row of the batch
        return (q >= kv) & (document[row, q] == document[row, kv])

    return BlockMask.from_kv_blocks(*_listed(mixed), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=attends, seq_lengths=(T, T))


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of bool [B, rows, columns]: the number of tiles that are set, and the column numbers, set ones first."""
    first = tiles.int().argsort(stable=True, dim=-1, descending=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], first.int()[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention [B, heads, T, head_dim] of queries q over keys k and values v, which may have fewer heads (grouped queries)."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        if q.is_cuda:
            return _flex_kernel()(q, k, v, block_mask=mask, enable_gqa=grouped)
        mask = dense(mask)
    if callable(mask):
        return mask(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def dense(blocks: BlockMask) -> Tensor:
    """A `BlockMask` as a bool tensor [B, 1, T, T], True where the kernel attends."""
    tiles = blocks.to_dense().bool().repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    B, H, Q, KV = tiles.shape
    return tiles & create_mask(blocks.mask_mod, B, H, Q, KV, str(tiles.device))


def _flex_kernel() -> Any:
    return flex_attention if torch.compiler.is_compiling() else _compiled_flex()


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def fastest_attention(device: torch.device) -> AbstractContextManager:
    """A context in which PyTorch's attention tries cuDNN's kernel first, because it is faster than FlashAttention 2 on Hopper."""
    return sdpa_kernel(FASTEST_FIRST, set_priority=True) if device.type == "cuda" else nullcontext()
