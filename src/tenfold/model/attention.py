"""Attention: one function for every mask, and for a cache of keys and values. Masks are made once a pass for all layers.

A mask is None (plain causal), a tensor [B, 1, T, T] where True attends, or blocks: which tiles of the square hold
anything at all, so that a kernel skips the others (FlexAttention, Dong et al., arXiv 2412.05496). That kernel trains
on GPUs alone; on a CPU, which only tests use, blocks are made into a tensor. Where text is generated, a layer's cache
stands in the place of the mask.
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
    """Keys and values of the tokens before, for all layers. `positions` [T] are those of the new tokens."""

    positions: Tensor

    def layer(self, number: int, chunk: int = 0) -> "LayerCache":
        """The cache of a layer whose queries attend within chunks of `chunk` positions; 0 is no chunks."""
        ...


# Stores keys and values of new tokens, and gives what their queries take from all values; shapes as in `attend`.
LayerCache = Callable[[Tensor, Tensor, Tensor], Tensor]
Mask = Tensor | BlockMask | LayerCache | None


def document_mask(document: Tensor) -> Tensor:
    """Causal attention within each document: bool [B, 1, T, T] from document numbers [B, T]; True attends."""
    T = document.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=document.device).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


def document_blocks(document: Tensor) -> BlockMask:
    """The same mask as blocks; T must be a multiple of `BLOCK`.

    Which tiles are empty, full or mixed follows from the least and largest document number in each `BLOCK` tokens, so
    the square of T by T is never made.
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
    """For each row of bool [B, rows, columns]: how many tiles are set, and the columns ordered so that these come first."""
    first = tiles.int().argsort(stable=True, dim=-1, descending=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], first.int()[:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention [B, heads, T, head_dim] of queries over keys and values, which may have fewer heads."""
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        if q.is_cuda:
            return _flex_kernel()(q, k, v, block_mask=mask, enable_gqa=grouped)
        mask = dense(mask)
    if callable(mask):
        return mask(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)


def dense(blocks: BlockMask) -> Tensor:
    """Blocks as bool [B, 1, T, T]: where the kernel attends."""
    looked_at = blocks.to_dense().bool().repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    B, H, Q, KV = looked_at.shape
    return looked_at & create_mask(blocks.mask_mod, B, H, Q, KV, str(looked_at.device))


def _flex_kernel() -> Any:
    return flex_attention if torch.compiler.is_compiling() else _compiled_flex()


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def fastest_attention(device: torch.device) -> AbstractContextManager:
    """A context in which PyTorch's attention tries cuDNN's kernel first, which on Hopper is faster than FlashAttention 2."""
    return sdpa_kernel(FASTEST_FIRST, set_priority=True) if device.type == "cuda" else nullcontext()
