"""The interface of runners, which compute steps of a model over a paged KV cache, and one in PyTorch for any device and family.

Keys and values are stored in blocks of `BLOCK` tokens; a sequence's block table lists its blocks in order.
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
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

BLOCK = 16  # tokens
SEEN = 16_384  # patches of images whose embeddings are kept


@dataclass
class ModelInput:
    """The tokens of one step. A row is a token at a position; sequence i has `counts[i]` neighbouring rows and blocks `tables[i]`.

    The first `prompts[i]` of its rows belong to its prompt, which a runner may compute by other kernels. It uses the adapter
    `adapters[i]`, '' for none. `pictures` are pairs of a sequence's number and an image that has patches among its rows.
    """

    tokens: list[int]
    positions: list[int]
    counts: list[int]
    tables: list[Sequence[int]]
    prompts: list[int] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    pictures: list[tuple[int, Picture]] = field(default_factory=list)


class Runner(Protocol):
    """A model as the engine uses it. `weight_bytes` are read in each step, however many rows it has."""

    spec: ModelSpec
    weight_bytes: int

    def hidden(self, rows: ModelInput) -> Tensor:
        """The last hidden states after the final norm [rows, dim]; writes the keys and values of the rows into the cache."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [n, vocab] on the CPU or the model's device, for hidden states [n, dim]."""
        ...

    def sleep(self) -> None:
        """Free the cache and what else can be restored; `wake_up` is called before the next step."""
        ...

    def wake_up(self) -> None:
        """Allocate an empty cache, and restore what `sleep` freed."""
        ...


def cache_blocks(kv_cache_gib: float, spec: ModelSpec, dtype: torch.dtype) -> int:
    """How many blocks a cache of `kv_cache_gib` GiB has. Raises TenfoldError if it has fewer than two."""
    n_blocks = int(kv_cache_gib * 2**30 / cache_block_bytes(spec, dtype))
    if n_blocks < 2:
        raise TenfoldError(f"A cache of {kv_cache_gib} GiB holds no two blocks of {spec.name}: allow more with --kv-cache-gib.")
    return n_blocks


def cache_block_bytes(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of one block of keys and values over all layers."""
    return 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * BLOCK * dtype.itemsize


class TorchRunner:
    """A `Runner` by the model's own PyTorch modules."""

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
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()  # patch embeddings by an image's digest, the last used last

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
        """The embeddings of an image's patches [patches, dim]."""
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
    """The paged cache as the model's attention uses it in one step, sequence by sequence.

    `keys_values` is [layers, 2, slots, kv heads, head_dim]; a slot holds one token.
    """

    def __init__(self, keys_values: Tensor, rows: ModelInput):
        self.keys_values = keys_values
        self.positions = torch.tensor(rows.positions, device=keys_values.device)
        self.sequences: list[tuple[slice, Tensor]] = []  # rows, and the slots of the tokens up to the last row
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
        """The attention function of a layer; with a `chunk`, attention stays within chunks of that many positions (Llama 4)."""
        if chunk not in self._masks:
            self._masks[chunk] = [self._mask(self.positions[own, None], len(slots), chunk) for own, slots in self.sequences]
        keys, values = self.keys_values[number]
        return partial(self._attend, keys, values, self._masks[chunk])

    def _attend(self, keys: Tensor, values: Tensor, masks: list[Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write k and v of the new tokens into keys and values [slots, kv heads, head_dim], then `attend` sequence by sequence."""
        keys[self.new], values[self.new] = k[0].transpose(0, 1), v[0].transpose(0, 1)
        mixed = []
        for (own, slots), mask in zip(self.sequences, masks, strict=True):
            all_k, all_v = (t[slots].transpose(0, 1)[None] for t in (keys, values))
            mixed.append(attend(q[:, :, own], all_k, all_v, mask))
        return torch.cat(mixed, 2)

    def _mask(self, position: Tensor, context: int, chunk: int) -> Tensor:
        """The mask bool [rows, context] of a sequence's rows at the positions [rows, 1]: True for what a row attends to."""
        at = torch.arange(context, device=position.device)
        mask = at <= position
        return mask & (at // chunk == position // chunk) if chunk else mask
