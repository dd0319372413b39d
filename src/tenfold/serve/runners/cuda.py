"""The runner for Llama 3 on a GPU: Triton kernels over the paged cache, and CUDA graphs for steps with only replies.

`start` draws on the device and does not wait, so the next step can start with tokens that the host has not seen yet. Without
Triton or a GPU the same code runs on the plain PyTorch operations of `paged.py`, as in the tests.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.model.llama import FeedForward, Llama, rope_table
from tenfold.model.parked import Parked
from tenfold.serve.request import Sampling
from tenfold.serve.runners import paged
from tenfold.serve.runners.paged import Batch
from tenfold.serve.runners.runner import BLOCK, ModelInput
from tenfold.spec.model import ModelSpec

GRAPH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
TILE_ROWS = 16  # rows of a prompt in one program of the attention kernel
_FIELDS = 7  # tokens, positions, starts, first rows of tiles, rows of tiles, seeds, temperatures


def fits(spec: ModelSpec) -> bool:
    """Whether the kernels support the shape."""
    return spec.family == "llama3" and not spec.has_biases and spec.head_dim in (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Draw:
    """The parameters with which the token after a row at `position` is drawn."""

    sampling: Sampling
    seed: int
    position: int

    @property
    def filters(self) -> bool:
        """Whether top-p, top-k or min-p may exclude tokens."""
        s = self.sampling
        return s.temperature > 0 and (s.top_p < 1 or s.top_k > 0 or s.min_p > 0)


class Drawn:
    """Drawn tokens that are being copied to the host."""

    def __init__(self, tokens: Tensor):
        self._event = None
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tokens = tokens.clone()

    def tokens(self) -> list[int]:
        """Wait for the copy, and return the tokens."""
        if self._event is not None:
            self._event.synchronize()
        return self._tokens.tolist()


@dataclass
class _Layer:
    attention_norm: Tensor
    wqkv: Tensor
    wo: Tensor
    ffn_norm: Tensor
    w13: Tensor
    w2: Tensor


@dataclass
class _Graph:
    """A captured CUDA graph of a step with a fixed number of rows; its tensors hold the results until the next replay."""

    graph: Any
    hidden: Tensor
    logits: Tensor


class CudaRunner:
    """A `Runner` that shares the model's weights, with gate and up in one matrix.

    `max_rows` is the largest number of rows in a step of replies, `context` the longest sequence (0 is the model's context).
    Results depend on the other rows of a batch only to rounding.
    """

    def __init__(self, model: Llama, n_blocks: int, max_rows: int = 256, context: int = 0, graphs: bool = True):
        spec = self.spec = model.spec
        assert fits(spec)
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.context = min(context or spec.context, spec.context, n_blocks * BLOCK)
        self.embedding, self.head, self.norm = (p.detach() for p in (weight, model.head.weight, model.norm.weight))
        self.layers = [_share(block) for block in model.layers]
        self.rope = rope_table(spec, torch.arange(self.context, device=self.device))
        self._shape = (spec.n_layers, 2, n_blocks, spec.n_kv_heads, BLOCK, spec.head_dim)
        self.cache = torch.zeros(self._shape, dtype=self.dtype, device=self.device)
        self.weight_bytes = sum(p.nbytes for p in model.parameters()) - (0 if spec.tied else weight.nbytes)
        self.max_rows = max_rows
        self.drawn = torch.zeros(max_rows, dtype=torch.int32, device=self.device)
        self.ops: Any = paged
        self.fused = False
        if self.device.type == "cuda" and find_spec("triton"):
            from tenfold.serve.runners import kernels

            self.ops, self.fused = kernels, True
        self._graphs: dict[int, _Graph] = {}
        self._captures = graphs and self.device.type == "cuda"
        if self._captures:
            self._capture_all()

    def sleep(self) -> None:
        """Free the cache and the graphs, and move the weights to host memory."""
        del self.cache
        self._graphs = {}
        own = (getattr(layer, field.name) for layer in self.layers for field in fields(layer))
        self._parked = Parked([self.embedding, self.head, self.norm, *own])

    def wake_up(self) -> None:
        """Bring the weights back and capture the graphs again, since all addresses have changed."""
        self._parked.bring_back()
        self.cache = torch.zeros(self._shape, dtype=self.dtype, device=self.device)
        if self._captures:
            self._capture_all()

    # A step: `hidden` and `logits` for draws on the host, `start` for draws on the device.

    @torch.inference_mode()
    def hidden(self, rows: ModelInput) -> Tensor:
        n = len(rows.tokens)
        if graph := self._replay(rows, []):
            return graph.hidden[:n].clone()
        return self._forward(self._batch(rows, [])[0])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden).float()

    @torch.inference_mode()
    def start(self, rows: ModelInput, chosen: list[int], draws: list[Draw]) -> Drawn:
        """Compute the rows, and draw the token after each of the `chosen` rows with the parameters in `draws`.

        In the next step's tokens, -1 - i stands for the token of draw i.
        """
        n, filters = len(draws), any(d.filters for d in draws)
        graph = self._replay(rows, draws) if n == len(rows.tokens) else None
        if graph is None:
            batch, seeds, temperatures = self._batch(rows, draws)
            hidden = self._forward(batch)
            if not n:
                return Drawn(self.drawn[:0])
            at = _upload(np.array(chosen, dtype=np.int32), self.device)
            logits, positions = self._head(hidden[at]), batch.positions[at]
        elif filters:
            seeds, temperatures = self._seeds_and_temperatures(draws)
            logits = graph.logits[:n]
            positions = _upload(np.array([d.position for d in draws], dtype=np.int32), self.device)
        if graph is None or filters:
            logits = keep_likely(logits, draws) if filters else logits
            self.drawn[:n] = self.ops.draw(logits, seeds, positions, temperatures)
        return Drawn(self.drawn[:n])

    @torch.inference_mode()
    def draw(self, logits: Tensor, draws: list[Draw]) -> Tensor:
        """Tokens int32 [rows] from logits [rows, vocab], as `start` would draw them."""
        seeds, temperatures = self._seeds_and_temperatures(draws)
        positions = _upload(np.array([d.position for d in draws], dtype=np.int32), self.device)
        if any(d.filters for d in draws):
            logits = keep_likely(logits, draws)
        return self.ops.draw(logits.contiguous(), seeds, positions, temperatures)

    def _forward(self, batch: Batch) -> Tensor:
        """The last hidden states after the final norm [rows, dim]."""
        if self.fused and len(batch.tokens) == 1:
            return self._forward_one(batch)
        ops, spec = self.ops, self.spec
        x, added = ops.embed(batch, self.drawn, self.embedding), None
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            x, h = ops.norm(x, layer.attention_norm, spec.norm_eps, added)
            qkv = F.linear(h, layer.wqkv).view(len(x), spec.n_kv_heads, -1, spec.head_dim)
            q = ops.turn_and_store(qkv, self.rope, batch, keys, values)
            x, h = ops.norm(x, layer.ffn_norm, spec.norm_eps, F.linear(ops.attention(q, keys, values, batch), layer.wo))
            added = F.linear(ops.gate(F.linear(h, layer.w13)), layer.w2)
        return ops.norm(x, self.norm, spec.norm_eps, added)[1]

    def _forward_one(self, batch: Batch) -> Tensor:
        ops, eps = self.ops, self.spec.norm_eps
        x = ops.embed(batch, self.drawn, self.embedding)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            q = ops.qkv_one(x, (layer.attention_norm, eps), layer.wqkv, self.rope, batch, cache)
            x = ops.product_one(ops.attention(q, *cache, batch), layer.wo, residual=x)
            x = ops.product_one(ops.gate_one(x, (layer.ffn_norm, eps), layer.w13), layer.w2, residual=x)
        return ops.norm(x, self.norm, eps)[1]

    def _head(self, hidden: Tensor) -> Tensor:
        if self.fused and len(hidden) == 1:
            return self.ops.product_one(hidden, self.head, dtype=torch.float32)
        return F.linear(hidden, self.head)

    # The input of a step, which is copied to the device as one tensor.

    def _pack(self, rows: ModelInput, draws: list[Draw], size: int, tiles: tuple[list[int], list[int]] | None) -> np.ndarray:
        """The input as int32: `_FIELDS` fields of length `size`, then the block tables. Padding rows have position -1."""
        blocks = np.frombuffer(b"".join([array("i", table) for table in rows.tables]), dtype=np.int32)
        packed = np.zeros(_FIELDS * size + len(blocks), dtype=np.int32)
        fields = packed[: _FIELDS * size].reshape(_FIELDS, size)
        n = len(rows.tokens)
        lengths = np.array([len(table) for table in rows.tables])
        fields[0, :n], fields[1, :n], fields[1, n:] = rows.tokens, rows.positions, -1
        fields[2, :n] = np.repeat(np.cumsum(lengths) - lengths, rows.counts)
        if tiles is None:
            fields[3], fields[4] = np.arange(size), 1
        else:
            fields[3, : len(tiles[0])], fields[4, : len(tiles[1])] = tiles
        if draws:
            fields[5, : len(draws)] = [d.seed for d in draws]
            fields[6, : len(draws)].view(np.float32)[:] = [d.sampling.temperature for d in draws]
        packed[_FIELDS * size :] = blocks
        return packed

    def _views(self, packed: Tensor, size: int, n_tiles: int, rows_per_tile: int) -> tuple[Batch, Tensor, Tensor]:
        """The batch, and the seeds and temperatures of its draws, as views of what `_pack` made."""
        tokens, positions, starts, first, count, seeds, temperatures = packed[: _FIELDS * size].view(_FIELDS, size)
        splits = self._splits(n_tiles) if rows_per_tile == 1 else 1
        tables = packed[_FIELDS * size :]
        batch = Batch(tokens, positions, starts, tables, first[:n_tiles], count[:n_tiles], rows_per_tile, splits)
        return batch, seeds, temperatures.view(torch.float32)

    def _batch(self, rows: ModelInput, draws: list[Draw]) -> tuple[Batch, Tensor, Tensor]:
        n, rows_per_tile = len(rows.tokens), 1 if max(rows.counts) == 1 else TILE_ROWS
        tiles = list(_tiles(rows.counts, rows_per_tile))
        packed = _upload(self._pack(rows, draws, n, ([t[0] for t in tiles], [t[1] for t in tiles])), self.device)
        batch, seeds, temperatures = self._views(packed, n, len(tiles), rows_per_tile)
        return batch, seeds[: len(draws)], temperatures[: len(draws)]

    def _seeds_and_temperatures(self, draws: list[Draw]) -> tuple[Tensor, Tensor]:
        seeds = _upload(np.array([d.seed for d in draws], dtype=np.int32), self.device)
        return seeds, _upload(np.array([d.sampling.temperature for d in draws], dtype=np.float32), self.device)

    def _splits(self, rows: int) -> int:
        """Parts that each sequence's keys are split into, a power of two, so that few long sequences keep the whole GPU busy."""
        wanted = max(1, 512 // (rows * self.spec.n_kv_heads))
        return min(16, max(4, 1 << wanted.bit_length() - 1)) if rows <= 512 else 1

    # CUDA graphs replay a step's kernel launches without work on the host.

    def _replay(self, rows: ModelInput, draws: list[Draw]) -> _Graph | None:
        n = len(rows.tokens)
        size = next((s for s in self._graphs if s >= n), 0) if len(rows.counts) == n else 0
        if not size:
            return None
        packed = self._pack(rows, draws, size, None)
        self._inputs[: len(packed)].copy_(torch.from_numpy(packed).pin_memory(), non_blocking=True)
        self._graphs[size].graph.replay()
        return self._graphs[size]

    def _capture_all(self) -> None:
        """Capture a graph for each size up to `max_rows`; the largest comes first, since the others share its memory."""
        sizes = [s for s in GRAPH_SIZES if s < self.max_rows] + [self.max_rows]
        longest = self.max_rows * -(-self.context // BLOCK)
        self._inputs = torch.zeros(_FIELDS * self.max_rows + longest, dtype=torch.int32, device=self.device)
        pool, made = None, {}
        for size in reversed(sizes):
            self._inputs[size : 2 * size] = -1
            made[size] = self._capture(size, pool)
            pool = pool or made[size].graph.pool()
            self._inputs.zero_()
        self._graphs = {size: made[size] for size in sizes}

    @torch.inference_mode()
    def _capture(self, size: int, pool: Any) -> _Graph:
        batch, seeds, temperatures = self._views(self._inputs, size, size, 1)
        batch.tile_first.copy_(torch.arange(size))
        batch.tile_rows.fill_(1)

        def step() -> tuple[Tensor, Tensor]:
            hidden = self._forward(batch)
            logits = self._head(hidden)
            self.drawn[:size] = self.ops.draw(logits, seeds, batch.positions, temperatures)
            return hidden, logits

        step()  # compiles the kernels
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden, logits = step()
        return _Graph(graph, hidden, logits)


def keep_likely(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits float32 [rows, vocab], minus infinity for tokens that top-k, top-p and min-p exclude (as `sampling.candidates`)."""
    k = [d.sampling.top_k if d.sampling.top_k > 0 else logits.shape[1] for d in draws]
    limits = [(max(d.sampling.temperature, 1e-5), d.sampling.top_p, d.sampling.min_p) for d in draws]
    temperature, top_p, min_p = _upload(np.array(limits, dtype=np.float32).T.copy(), logits.device)[:, :, None]
    values, order = logits.float().sort(-1, descending=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    few = _upload(np.array(k, dtype=np.int64), logits.device)[:, None]
    values = torch.where(rank < few, values / temperature, -torch.inf)
    p = values.softmax(-1)
    keep = (rank < few) & (p.cumsum(-1) - p < top_p) & (p >= min_p * p[:, :1])
    keep[:, 0] = True
    return torch.full_like(values, -torch.inf).scatter(-1, order, torch.where(keep, values * temperature, -torch.inf))


def _share(block: Any) -> _Layer:
    """A layer's weights, with gate and up in one matrix; the module's weights become views of that matrix."""
    ffn = block.ffn
    assert isinstance(ffn, FeedForward)
    w13 = torch.cat((ffn.w1.weight.detach(), ffn.w3.weight.detach()))
    half = len(w13) // 2
    ffn.w1.weight.data, ffn.w3.weight.data = w13[:half], w13[half:]
    own = block.attention_norm, block.attention.wqkv, block.attention.wo, block.ffn_norm
    norm, wqkv, wo, ffn_norm = (m.weight.detach() for m in own)
    return _Layer(norm, wqkv, wo, ffn_norm, w13, ffn.w2.weight.detach())


def _tiles(counts: list[int], rows_per_tile: int) -> Iterator[tuple[int, int]]:
    """The first row and the number of rows of each tile."""
    at = 0
    for count in counts:
        for begin in range(0, count, rows_per_tile):
            yield at + begin, min(rows_per_tile, count - begin)
        at += count


def _upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the device."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
