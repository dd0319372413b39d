"""Llama 4 in PyTorch: Llama 3's block with experts, chunked attention and layers without positions.

Three layers of four turn their positions and attend within chunks; the fourth attends to the whole sequence and
knows no positions. Attention is the same code for all: a chunk is to the mask what a document is. Every `moe_every`-th
feed-forward is routed (`tenfold.model.moe`). Reference: llama-models `models/llama4/model.py`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tenfold.model.llama import Block, FeedForward, Llama, rope_table
from tenfold.model.moe import Experts, expert_layers
from tenfold.model.vision import Vision
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec


def make_model(spec: ModelSpec) -> Llama:
    """A model of the spec's family with fresh weights."""
    return Llama4(spec) if spec.family == "llama4" else Llama(spec)


def make_shapes(spec: ModelSpec) -> Llama:
    """The same on the device `meta`: weights that have a shape and no memory, none of them drawn."""
    with torch.device("meta"), _NothingDrawn():
        return make_model(spec)


class _NothingDrawn(TorchFunctionMode):
    """Leaves weights as they come. To draw on `meta` changes nothing, but makes PyTorch import its compiler: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def positions_within(document: Tensor) -> Tensor:
    """Each token's position in its own document, int64 [B, T], from document numbers [B, T]."""
    index = torch.arange(document.shape[1], device=document.device).expand_as(document)
    begins = torch.ones_like(document, dtype=torch.bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values


def chunk_numbers(document: Tensor, position: Tensor, chunk: int) -> Tensor:
    """Numbers [B, T] that differ where the document or the chunk does; chunks begin anew with every document."""
    return document * (document.shape[1] // chunk + 1) + position // chunk


def attention_temperature(spec: ModelSpec, position: Tensor) -> Tensor | None:
    """What queries without positions are multiplied with, float32 like `position`; None where the spec has none.

    1 below `temperature_floor`, then growing with the logarithm of the length (llama-models `attn_temperature_tuning`).
    """
    if not spec.temperature_floor:
        return None
    return 1.0 + spec.temperature_scale * torch.log1p(torch.floor((position.float() + 1.0) / spec.temperature_floor))


class Llama4(Llama):
    """The decoder. Attention temperature is for inference: it is left out in training mode.

    `balance_weight` times the mean balance loss of the expert layers is added to the training loss.
    """

    balance_weight = 0.0

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.vision = Vision(spec.vision, spec.dim) if spec.vision else None

    def block(self, layer: int) -> Block:
        return Block(self.spec, Experts(self.spec) if self.spec.has_experts(layer) else None)

    def hidden(self, tokens: Tensor, document: Tensor | None = None, pixels: Tensor | None = None) -> Tensor:
        """Normed last hidden state [B, T, dim] for tokens [B, T]; attention stays within each document.

        `pixels` [tiles, 3, S, S] are the tiles of all images in the order of their patch tokens. Raises TenfoldError
        where there are more or fewer patch tokens than the tiles give.
        """
        x = self.embed(tokens)
        return self.norm(self.through(x if pixels is None else self.see(x, tokens, pixels), document))

    def see(self, x: Tensor, tokens: Tensor, pixels: Tensor) -> Tensor:
        """x [B, T, dim] with what the encoder saw in place of the patch tokens."""
        if self.vision is None:
            raise TenfoldError(f"{self.spec.name} has no image encoder: give it text alone.")
        here = tokens == self.vision.spec.patch_token
        seen = self.vision(pixels).flatten(0, 1)
        if int(here.sum()) != len(seen):
            raise TenfoldError(
                f"The text has {int(here.sum())} patch tokens, but {len(pixels)} tiles of images give {len(seen)}: write "
                f"{self.vision.spec.tokens_per_tile} for each tile."
            )
        return x.masked_scatter(here[..., None], seen.to(x.dtype))

    def forward(self, tokens: Tensor, document: Tensor | None = None, pixels: Tensor | None = None) -> Tensor:
        """Logits float32 [B, T, vocab]."""
        return self.head(self.hidden(tokens, document, pixels)).float()

    def through(
        self, x: Tensor, document: Tensor | None, blocks: list[tuple[int, Block]] | None = None, length: int | None = None
    ) -> Tensor:
        """Embedded tokens x [B, T, dim] after all blocks, or after some, as in Llama 3."""
        T, chunk = length or x.shape[1], self.spec.attention_chunk
        index = torch.arange(T, device=x.device)
        rope = rope_table(self.spec, index)
        if document is None:
            document, everywhere = torch.zeros_like(index)[None], None
            position = index[None]
        else:
            everywhere, position = self.document_mask(document), positions_within(document)
        nearby = self.document_mask(chunk_numbers(document, position, chunk)) if 0 < chunk < T else everywhere
        temperature = None if self.training else attention_temperature(self.spec, position)
        for layer, block in blocks or enumerate(self.layers):
            x = block(x, rope, nearby) if self.spec.is_local(layer) else block(x, None, everywhere, temperature)
        return x

    def auxiliary_loss(self, hidden: Tensor, tokens: Tensor, targets: Tensor, document: Tensor | None) -> Tensor:
        extra = super().auxiliary_loss(hidden, tokens, targets, document)
        if self.balance_weight:
            losses = [layer.balance_loss for layer in expert_layers(self) if layer.balance_loss is not None]
            extra = extra + self.balance_weight * (targets >= 0).sum() * torch.stack(losses).mean()
        return extra

    def use_balance_loss(self, weight: float) -> None:
        """Add `weight` times the balance loss to the training loss; 0 leaves it out."""
        self.balance_weight = weight
        for layer in expert_layers(self):
            layer.wants_balance_loss = bool(weight)


def upcycled_spec(old: ModelSpec, n_experts: int) -> ModelSpec:
    """The shape that a dense Llama 3 of shape `old` is upcycled to. Raises TenfoldError where it cannot be."""
    if old.family != "llama3":
        raise TenfoldError(f"{old.name} is of family {old.family}: only a dense Llama 3 can be made into experts.")
    if n_experts < 1 or old.ffn_dim % 2:
        raise TenfoldError(
            f"{old.name} cannot be made into {n_experts} experts: its feed-forward of {old.ffn_dim} must divide into a "
            "shared and a routed half, and there must be at least one expert."
        )
    return replace(old, family="llama4", n_experts=n_experts, expert_ffn_dim=old.ffn_dim // 2)


@torch.no_grad()
def upcycle(dense: Llama, n_experts: int, router_std: float = 1e-3, seed: int = 0) -> Llama4:
    """A Llama 4 with experts in every layer that begins as the function of a dense Llama, at the same active compute.

    Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055) for a shared expert: half of each feed-forward's hidden units
    become the shared expert, the other half every routed one. A fresh router gives nearly 1/2 to every token, which
    the routed experts' first weights, doubled, undo. Raises TenfoldError where the feed-forward has no half.
    """
    new = Llama4(upcycled_spec(dense.spec, n_experts)).to(dense.embedding.weight.dtype)
    half = new.spec.expert_ffn_dim
    generator = torch.Generator().manual_seed(seed)
    ours = dict(new.named_parameters())
    for name, p in dense.named_parameters():
        if ".ffn." not in name:
            ours[name].copy_(p)
    for block, source in zip(new.layers, dense.layers, strict=True):
        experts, ffn = block.ffn, source.ffn
        assert isinstance(experts, Experts) and isinstance(ffn, FeedForward) and experts.shared is not None
        experts.router.weight.normal_(std=router_std, generator=generator)
        for name in ("w1", "w3"):
            weight = getattr(ffn, name).weight
            getattr(experts.shared, name).weight.copy_(weight[:half])
            getattr(experts, name).weight.copy_(2 * weight[half:].expand(n_experts, -1, -1))
        experts.shared.w2.weight.copy_(ffn.w2.weight[:, :half])
        experts.w2.weight.copy_(ffn.w2.weight[:, half:].expand(n_experts, -1, -1))
    return new
