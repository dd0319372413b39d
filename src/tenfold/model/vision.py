"""Llama 4's image encoder: from tiles of pixels to embeddings in the text model's sequence.

Each tile is split into patches, followed by a class token. Learned positions are added to the embeddings, and queries and keys
are rotated by two-dimensional rotary positions. After the blocks, the class token is dropped, `shuffle` x `shuffle` neighbouring
patches are concatenated (pixel shuffle), and an adapter of two layers and a projection map them to the text model's width.
Reference: llama-models `models/llama4/vision/{encoder,embedding}.py`.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.llama import rotate
from tenfold.spec.vision import VisionSpec


def rope_table_2d(spec: VisionSpec) -> Tensor:
    """Cosines and sines for each patch, row by row, and then the class token: float32 [grid^2 + 1, head_dim / 2, 2].

    Half of the pairs rotate with the patch's column, half with its row, both counted from 1; the class token is not rotated.
    """
    half = spec.head_dim // 2
    frequencies = spec.rope_theta ** -(torch.arange(0, half, 2).float() / half)
    place = torch.arange(spec.grid**2)
    columns, rows = place % spec.grid + 1, place // spec.grid + 1
    angles = torch.cat((columns[:, None] * frequencies, rows[:, None] * frequencies), -1)
    angles = torch.cat((angles, torch.zeros_like(angles[:1])))
    return torch.stack((angles.cos(), angles.sin()), -1)


def patches_of(pixels: Tensor, size: int) -> Tensor:
    """Pixels [tiles, 3, S, S] as patches, row by row: [tiles, (S / size)^2, 3 * size^2]."""
    grid = pixels.unflatten(2, (-1, size)).unflatten(4, (-1, size))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def join_neighbours(x: Tensor, shuffle: int) -> Tensor:
    """x [tiles, grid^2, dim] with `shuffle` x `shuffle` neighbours concatenated: [tiles, (grid / shuffle)^2, dim * shuffle^2]."""
    grid = round(x.shape[1] ** 0.5)
    cells = x.unflatten(1, (grid // shuffle, shuffle, grid // shuffle, shuffle))
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class VisionBlock(nn.Module):
    """Pre-norm block with biases, attention over the whole tile, and GELU. The rows of `wqkv` are queries, keys, values."""

    def __init__(self, spec: VisionSpec):
        super().__init__()
        self.n_heads = spec.n_heads
        self.attention_norm = nn.LayerNorm(spec.dim)
        self.wqkv = nn.Linear(spec.dim, 3 * spec.dim)
        self.wo = nn.Linear(spec.dim, spec.dim)
        self.ffn_norm = nn.LayerNorm(spec.dim)
        self.w1 = nn.Linear(spec.dim, spec.mlp_dim)
        self.w2 = nn.Linear(spec.mlp_dim, spec.dim)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """The output [tiles, patches + 1, dim] for x of that shape; rope [patches + 1, head_dim / 2, 2]."""
        q, k, v = self.wqkv(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, rope), rotate(k, rope), v))
        h = x + self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.w2(F.gelu(self.w1(self.ffn_norm(h))))


class Vision(nn.Module):
    """Encoder, adapter and projection to the width `text_dim` of a text model. `last` is the class token."""

    def __init__(self, spec: VisionSpec, text_dim: int):
        super().__init__()
        self.spec = spec
        self.patch = nn.Linear(3 * spec.patch_size**2, spec.dim, bias=False)
        self.last = nn.Parameter(torch.randn(spec.dim) * spec.dim**-0.5)
        self.positions = nn.Parameter(torch.randn(spec.grid**2 + 1, spec.dim) * spec.dim**-0.5)
        self.norm_before = nn.LayerNorm(spec.dim)
        self.blocks = nn.ModuleList([VisionBlock(spec) for _ in range(spec.n_layers)])
        self.norm_after = nn.LayerNorm(spec.dim)
        self.adapter1 = nn.Linear(spec.mlp_dim, spec.adapter_dim, bias=False)
        self.adapter2 = nn.Linear(spec.adapter_dim, spec.adapter_dim, bias=False)
        self.projection = nn.Linear(spec.adapter_dim, text_dim, bias=False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = (2 * spec.n_layers) ** 0.5 if name.endswith((".wo", ".w2")) else 1.0
                nn.init.normal_(module.weight, std=module.in_features**-0.5 / residual)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def layers(self) -> list[VisionBlock]:
        """The blocks as a list with their type."""
        return cast(list[VisionBlock], list(self.blocks))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings [tiles, tokens_per_tile, text_dim] of pixels [tiles, 3, image_size, image_size] between -1 and 1."""
        x = self.patch(patches_of(pixels, self.spec.patch_size))
        x = torch.cat((x, self.last.to(x.dtype).expand(len(x), 1, -1)), 1) + self.positions
        x = self.norm_before(x)
        rope = rope_table_2d(self.spec).to(x.device)
        for block in self.layers:
            x = block(x, rope)
        x = join_neighbours(self.norm_after(x)[:, :-1], self.spec.shuffle)
        return self.projection(F.gelu(self.adapter2(F.gelu(self.adapter1(x)))))
