"""Llama 4 in PyTorch: Llama 3's block with experts, chunked attention and layers without positions.

In the published models, three of every four layers are local: they use rotary positions and attend within chunks. Every fourth
layer (`nope_every`) is global: it attends to the whole sequence and uses no positions. For the mask, a chunk is treated like a
document. Every `moe_every`-th feed-forward has experts (`tenfold.model.moe`). Reference: llama-models `models/llama4/model.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tenfold.model.attention import Cache
from tenfold.model.llama import AttentionInputs, Block, Llama, rope_table
from tenfold.model.moe import Experts, expert_layers
from tenfold.model.vision import Vision
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec


def positions_within(document: Tensor) -> Tensor:
    """Each token's position in its own document, int64 [B, T], from document numbers [B, T]."""
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values


def chunk_numbers(document: Tensor, position: Tensor, chunk: int) -> Tensor:
    """A number per token [B, T] that is the same for two tokens of a row only if they share document and chunk.

    `position` [B, T] is the token's position in its document; the first chunk of a document begins at position 0.
    """
    return document * (document.shape[1] // chunk + 1) + position // chunk


def attention_temperature(spec: ModelSpec, position: Tensor) -> Tensor | None:
    """The factors for the queries of layers without positions, float32 with the shape of `position`; None if the spec has none.

    A factor is 1 below `temperature_floor`, and grows with the logarithm of the position from there (llama-models
    `attn_temperature_tuning`).
    """
    if not spec.temperature_floor:
        return None
    return 1.0 + spec.temperature_scale * torch.log1p(torch.floor((position.float() + 1.0) / spec.temperature_floor))


class Llama4(Llama):
    """The decoder, with an image encoder if the spec has one. Attention temperature applies in evaluation mode only."""

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.vision = Vision(spec.vision, spec.dim) if spec.vision else None

    def block(self, layer: int) -> Block:
        return Block(self.spec, Experts(self.spec) if self.spec.has_experts(layer) else None)

    def embed(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Embedded tokens [B, T, dim].

        `pixels` [tiles, 3, S, S] are the tiles of all images, in the order of their patch tokens. The image encoder computes the
        embeddings of the patch tokens. Raises TenfoldError if the number of patch tokens does not match the number of tiles.
        """
        if pixels is None or self.vision is None:
            return super().embed(tokens, pixels)
        x = super().embed(tokens)
        is_patch = tokens == self.vision.spec.patch_token
        patches = self.vision(pixels).flatten(0, 1)
        if int(is_patch.sum()) != len(patches):
            raise TenfoldError(
                f"The text has {int(is_patch.sum())} patch tokens, but its {len(pixels)} image tiles need {len(patches)}: write "
                f"{self.vision.spec.tokens_per_tile} patch tokens for each tile."
            )
        return x.masked_scatter(is_patch[..., None], patches.to(x.dtype))

    def attention_inputs(self, positions: Tensor, document: Tensor | None, cache: Cache | None) -> Callable[[int], AttentionInputs]:
        spec, chunk = self.spec, self.spec.attention_chunk
        rope = rope_table(spec, positions)
        if document is None:
            document, everywhere = torch.zeros_like(positions)[None], None
            position = positions[None]
        else:
            everywhere, position = self.document_mask(document), positions_within(document)
        divided = cache is None and 0 < chunk < len(positions)
        nearby = self.document_mask(chunk_numbers(document, position, chunk)) if divided else everywhere
        temperature = None if self.training else attention_temperature(spec, position)

        def inputs(layer: int) -> AttentionInputs:
            local = spec.is_local(layer)
            mask = (nearby if local else everywhere) if cache is None else cache.layer(layer, chunk if local else 0)
            return (rope, mask, None) if local else (None, mask, temperature)

        return inputs

    def extra_loss(self, hidden: Tensor, tokens: Tensor, targets: Tensor, document: Tensor | None) -> Tensor:
        extra = super().extra_loss(hidden, tokens, targets, document)
        layers = [layer for layer in expert_layers(self) if layer.aux_loss is not None]
        if not layers:
            return extra
        mean = torch.stack([layer.aux_loss for layer in layers if layer.aux_loss is not None]).mean()
        return extra + layers[0].aux_loss_weight * (targets >= 0).sum() * mean
