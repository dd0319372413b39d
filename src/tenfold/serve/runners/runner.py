"""One step of a model over a paged cache, in PyTorch: any device, any family.

Keys and values stand in blocks of `BLOCK` tokens; a sequence's table says which blocks are its own, in order.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from tenfold.data.images.tiles import normalised
from tenfold.model.attention import LayerCache, attend
from tenfold.model.llama import Llama
from tenfold.serve.request import Picture
from tenfold.serve.runners.adapters import Adapters
from tenfold.spec.model import ModelSpec

BLOCK = 16
SEEN = 16_384  # patches of pictures whose embeddings are kept


@dataclass
class ModelInput:
    """The tokens of one step: sequence i has `counts[i]` rows, one after another, and the blocks `tables[i]`.

    The first `prompts[i]` of its rows are of its prompt; a runner may compute those in another way. The weights are those beside
    which the adapter `adapters[i]` stands, if it is not ''. `pictures` are those that rows of a sequence, by its number, show.
    """

    tokens: list[int]
    positions: list[int]
    counts: list[int]
    tables: list[Sequence[int]]
    prompts: list[int] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    pictures: list[tuple[int, Picture]] = field(default_factory=list)


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

    def sleep(self) -> None:
        """Free the cache and what else can be had again; `wake_up` comes before the next step."""
        ...

    def wake_up(self) -> None:
        """Have an empty cache."""
        ...


def cache_block_bytes(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that one block of keys and values takes in all layers."""
    return 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * BLOCK * dtype.itemsize


class TorchRunner:
    """The model's own forward pass over a paged cache."""

    def __init__(self, model: Llama, n_blocks: int, adapters: Adapters | None = None):
        self.model, self.spec, self._adapters = model.eval().requires_grad_(False), model.spec, adapters
        weight = model.embedding.weight
        self.device = weight.device
        self._shape = (self.spec.n_layers, 2, n_blocks * BLOCK, self.spec.n_kv_heads, self.spec.head_dim)
        self._dtype = weight.dtype
        self.wake_up()
        unread = 0 if self.spec.tied else weight.nbytes
        self.weight_bytes = sum(p.nbytes for p in model.parameters()) - unread

    def sleep(self) -> None:
        del self.cache, self._seen

    def wake_up(self) -> None:
        self.cache = torch.zeros(self._shape, dtype=self._dtype, device=self.device)
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()  # embeddings by a picture's digest, the last used last

    @torch.inference_mode()
    def hidden(self, rows: ModelInput) -> Tensor:
        cache = PagedCache(self.cache, rows)
        if self._adapters is not None:
            self._adapters.begin(rows.adapters, rows.counts)
        x = self.model.embed(torch.tensor([rows.tokens], device=self.device))
        firsts = [0, *accumulate(rows.counts)]
        for i, picture in rows.pictures:
            first, begin = firsts[i], rows.positions[firsts[i]]
            low, high = (bisect_left(picture.patches, position) for position in (begin, begin + rows.counts[i]))
            x[0, [first + at - begin for at in picture.patches[low:high]]] = self._see(picture)[low:high]
        return self.model.norm(self.model.through(x, cache=cache))[0]

    def _see(self, picture: Picture) -> Tensor:
        """The embeddings of a picture's patches [patches, dim]."""
        if (found := self._seen.get(picture.digest)) is None:
            assert self.spec.vision is not None
            tokens = torch.full((1, len(picture.patches)), self.spec.vision.patch_token, device=self.device)
            pixels = torch.from_numpy(normalised(picture.tiles)).to(self.device, self._dtype)
            found = self._seen[picture.digest] = self.model.embed(tokens, pixels=pixels)[0]
        self._seen.move_to_end(picture.digest)
        while len(self._seen) > 1 and sum(map(len, self._seen.values())) > SEEN:
            self._seen.popitem(last=False)
        return found

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.head(hidden).float()


class PagedCache:
    """What the rows of one step attend to: `keys_values` [layers, 2, slots, kv heads, head_dim], sequence by sequence."""

    def __init__(self, keys_values: Tensor, rows: ModelInput):
        self.keys_values = keys_values
        self.positions = torch.tensor(rows.positions, device=keys_values.device)
        self.sequences: list[tuple[slice, Tensor]] = []  # its rows, and the slots of its context
        within, first = torch.arange(BLOCK, device=keys_values.device), 0
        for table, count in zip(rows.tables, rows.counts, strict=True):
            end = first + count
            blocks = torch.tensor(table, device=keys_values.device)
            slots = (blocks[:, None] * BLOCK + within).flatten()[: rows.positions[end - 1] + 1]
            self.sequences.append((slice(first, end), slots))
            first = end
        self.new = torch.cat([slots[self.positions[own]] for own, slots in self.sequences])
        self._masks: dict[int, list[Tensor]] = {}

    def layer(self, number: int, chunk: int = 0) -> LayerCache:
        if chunk not in self._masks:
            self._masks[chunk] = [self._mask(self.positions[own, None], len(slots), chunk) for own, slots in self.sequences]
        keys, values = self.keys_values[number]
        return partial(self._attend, keys, values, self._masks[chunk])

    def _attend(self, keys: Tensor, values: Tensor, masks: list[Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` for each sequence over keys and values [slots, kv heads, head_dim], which k and v of the new tokens enter."""
        keys[self.new], values[self.new] = k[0].transpose(0, 1), v[0].transpose(0, 1)
        mixed = []
        for (own, slots), mask in zip(self.sequences, masks, strict=True):
            all_k, all_v = (t[slots].transpose(0, 1)[None] for t in (keys, values))
            mixed.append(attend(q[:, :, own], all_k, all_v, mask))
        return torch.cat(mixed, 2)

    def _mask(self, position: Tensor, context: int, chunk: int) -> Tensor:
        """bool [rows, context] for the positions [rows, 1] of a sequence's rows."""
        at = torch.arange(context, device=position.device)
        mask = at <= position
        return mask & (at // chunk == position // chunk) if chunk else mask
