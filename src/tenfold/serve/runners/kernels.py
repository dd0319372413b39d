"""Triton kernels for the operations of `paged.py`, and for products with a single row, fused with the operations around them.

Functions without a docstring have the shapes and meanings of those in `paged.py`.

A step of one row reads every weight once and computes little, so memory bandwidth is its limit if there are few launches without
gaps. With `pdl` (programmatic dependent launch, on Hopper and later), each program of such a product loads its weights before it
waits for the previous launch, so that the next kernel's weights are loaded while the current kernel ends.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from tenfold.serve.runners.paged import Batch

pdl = False  # set it only on a device that has it, and on which the results have been checked
INTERPRETED = triton.knobs.runtime.interpret
VOCAB_TILE = 4096  # logits in one program of `_draw`


@cache
def _configs() -> list[triton.Config]:
    """Candidates for the matrix rows and warps of one program of a one-row product; the autotuner times them at the first use."""
    if INTERPRETED:
        return [triton.Config({"ROWS": 4})]
    return [triton.Config({"ROWS": rows}, num_warps=warps) for rows in (2, 4, 8) for warps in (4, 8)]


def _launch() -> dict[str, bool]:
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}


# Steps of many rows.


@triton.jit
def _embed(tokens, drawn, table, out, DIM: tl.constexpr):
    row = tl.program_id(0)
    token = tl.load(tokens + row)
    if token < 0:
        token = tl.load(drawn - 1 - token)
    d = tl.arange(0, triton.next_power_of_2(DIM))
    tl.store(out + row * DIM + d, tl.load(table + token.to(tl.int64) * DIM + d, mask=d < DIM), mask=d < DIM)


def embed(batch: Batch, drawn: Tensor, table: Tensor) -> Tensor:
    out = table.new_empty(len(batch.tokens), table.shape[1])
    _embed[len(out),](batch.tokens, drawn, table, out, out.shape[1])
    return out


@triton.jit
def _norm(x, added, weight, out, eps, DIM: tl.constexpr):
    """RMSNorm of `x`. With `added`, `out` holds x + added for all rows, then their norms."""
    d = tl.arange(0, triton.next_power_of_2(DIM))
    at = tl.program_id(0).to(tl.int64) * DIM + d
    value = tl.load(x + at, mask=d < DIM, other=0.0)
    if added is not None:
        value = value + tl.load(added + at, mask=d < DIM, other=0.0)
        tl.store(out + at, value, mask=d < DIM)
        at += tl.num_programs(0).to(tl.int64) * DIM
    value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / DIM + eps)
    tl.store(out + at, value * scale * tl.load(weight + d, mask=d < DIM, other=0.0).to(tl.float32), mask=d < DIM)


def norm(x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    out = x.new_empty(1 if added is None else 2, *x.shape)
    _norm[len(x),](x, added, weight, out, eps, x.shape[1], num_warps=8)
    return x if added is None else out[0], out[-1]


@triton.jit
def _turn_and_store(
    qkv, rope, tables, starts, positions, q, keys, values,
    KV: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + row)
    part = tl.arange(0, PARTS)[:, None]
    pair = tl.arange(0, DIM // 2)[None, :]
    at = ((row * KV + head) * (GROUP + 2) + part) * DIM + 2 * pair
    known = (part < GROUP + 2) & (position >= 0)
    a = tl.load(qkv + at, mask=known, other=0.0).to(tl.float32)
    b = tl.load(qkv + at + 1, mask=known, other=0.0).to(tl.float32)
    angle = (tl.maximum(position, 0) * (DIM // 2) + pair) * 2
    turns = part <= GROUP
    cos = tl.where(turns, tl.load(rope + angle), 1.0)
    sin = tl.where(turns, tl.load(rope + angle + 1), 0.0)
    first, second = a * cos - b * sin, a * sin + b * cos
    to = ((row * KV + head) * GROUP + part) * DIM + 2 * pair
    tl.store(q + to, first, mask=part < GROUP)
    tl.store(q + to + 1, second, mask=part < GROUP)
    block = tl.load(tables + tl.load(starts + row) + position // BLOCK, mask=position >= 0, other=0).to(tl.int64)
    slot = ((block * KV + head) * BLOCK + position % BLOCK) * DIM + 2 * pair
    for_keys, for_values = known & (part == GROUP), known & (part == GROUP + 1)
    slots = slot + part * 0
    tl.store(keys + slots, first, mask=for_keys)
    tl.store(keys + slots + 1, second, mask=for_keys)
    tl.store(values + slots, first, mask=for_values)
    tl.store(values + slots + 1, second, mask=for_values)


def turn_and_store(qkv: Tensor, rope: Tensor, batch: Batch, keys: Tensor, values: Tensor) -> Tensor:
    rows, kv, parts, dim = qkv.shape
    q = qkv.new_empty(rows, kv * (parts - 2), dim)
    _turn_and_store[rows, kv](
        qkv, rope, batch.tables, batch.starts, batch.positions, q, keys, values,
        kv, parts - 2, triton.next_power_of_2(parts), dim, keys.shape[2], num_warps=2,
    )  # fmt: skip
    return q


@triton.jit
def _attention(
    q, keys, values, tables, starts, positions, tile_first, tile_rows, out, sums, scale,
    KV: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Online softmax of one tile's queries over one part of its keys.

    With several parts, `out` and `sums` (logarithms of the softmax's denominators) are float32, one for each part.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count = tl.load(tile_first + tile), tl.load(tile_rows + tile)
    m, d, t = tl.arange(0, M), tl.arange(0, DIM), tl.arange(0, TILE)
    row, valid = (first + m // GROUP).to(tl.int64), m // GROUP < count
    position = tl.load(positions + row, mask=valid, other=-1)
    end = tl.max(position, 0) + 1
    part = tl.cdiv(tl.cdiv(end, SPLITS), TILE) * TILE
    begin = split * part
    end = tl.minimum(end, begin + part)
    at = (row * KV + head) * GROUP + m % GROUP
    query = tl.load(q + at[:, None] * DIM + d[None, :], mask=valid[:, None], other=0.0)
    table = tables + tl.load(starts + first)
    most = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, DIM), tl.float32)
    for n in range(begin, end, TILE):
        key = n + t
        block = tl.load(table + key // BLOCK, mask=key < end, other=0).to(tl.int64)
        slot = ((block * KV + head) * BLOCK + key % BLOCK) * DIM
        k = tl.load(keys + slot[None, :] + d[:, None], mask=(key < end)[None, :], other=0.0)
        score = tl.dot(query, k, input_precision=PRECISION) * scale
        score = tl.where((key[None, :] <= position[:, None]) & (key < end)[None, :], score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp(score - base[:, None])
        fade = tl.exp(most - base)
        total = total * fade + tl.sum(p, 1)
        v = tl.load(values + slot[:, None] + d[None, :], mask=(key < end)[:, None], other=0.0)
        acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        most = new
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    if SPLITS == 1:
        tl.store(out + at[:, None] * DIM + d[None, :], result, mask=valid[:, None])
    else:
        to = at * SPLITS + split
        tl.store(out + to[:, None] * DIM + d[None, :], result, mask=valid[:, None])
        tl.store(sums + to, tl.where(total > 0, most + tl.log(total), float("-inf")), mask=valid)


@triton.jit
def _join(parts, sums, out, DIM: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr):
    """Combine the parts of one head of one row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, SPLITS), tl.arange(0, DIM)
    log = tl.load(sums + at * SPLITS + s)
    most = tl.max(log, 0)
    weight = tl.exp(log - tl.where(most == float("-inf"), 0.0, most))
    part = tl.load(parts + (at * SPLITS + s)[:, None] * DIM + d[None, :])
    tl.store(out + at * DIM + d, tl.sum(part * weight[:, None], 0) / tl.maximum(tl.sum(weight, 0), 1e-30))


def attention(q: Tensor, keys: Tensor, values: Tensor, batch: Batch) -> Tensor:
    rows, heads, dim = q.shape
    _, kv, block, _ = keys.shape
    group, splits = heads // kv, batch.splits
    out = q.new_empty(rows, heads * dim)
    parts = out if splits == 1 else q.new_empty(rows * heads * splits, dim, dtype=torch.float32)
    sums = out if splits == 1 else q.new_empty(rows * heads * splits, dtype=torch.float32)
    m = max(16, triton.next_power_of_2(batch.rows_per_tile * group))
    _attention[len(batch.tile_first), kv, splits](
        q, keys, values, batch.tables, batch.starts, batch.positions, batch.tile_first, batch.tile_rows, parts, sums, dim**-0.5,
        kv, group, m, dim, block, splits, 64, "ieee" if q.dtype == torch.float32 else "tf32", num_stages=3, **_launch(),
    )  # fmt: skip
    if splits > 1:
        _join[rows * heads,](parts, sums, out, dim, splits, num_warps=1, **_launch())
    return out


@triton.jit
def _gate(x, out, width, TILE: tl.constexpr):
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    a = tl.load(x + 2 * row * width + n, mask=n < width, other=0.0).to(tl.float32)
    b = tl.load(x + (2 * row + 1) * width + n, mask=n < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + n, a * tl.sigmoid(a) * b, mask=n < width)


def gate(x: Tensor) -> Tensor:
    rows, width = len(x), x.shape[1] // 2
    out = x.new_empty(rows, width)
    _gate[rows, triton.cdiv(width, 1024)](x, out, width, 1024)
    return out


@triton.jit
def _draw(logits, noise, best, which, vocab, TILE: tl.constexpr):
    seeds, positions, temperatures = noise
    row, part = tl.program_id(0), tl.program_id(1)
    n = part * TILE + tl.arange(0, TILE)
    value = tl.load(logits + row.to(tl.int64) * vocab + n, mask=n < vocab, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        zero = n * 0
        bits, _, _, _ = tl.philox(tl.load(seeds + row), n, zero + tl.load(positions + row), zero, zero)
        uniform = tl.maximum(tl.uint_to_uniform_float(bits), 1e-10)
        value = value / temperature - tl.log(-tl.log(uniform))
    most, index = tl.max(value, 0, return_indices=True)
    tl.store(best + row * tl.num_programs(1) + part, most)
    tl.store(which + row * tl.num_programs(1) + part, part * TILE + index)


@triton.jit
def _choose(best, which, out, parts, PARTS: tl.constexpr):
    row, p = tl.program_id(0), tl.arange(0, PARTS)
    value = tl.load(best + row * parts + p, mask=p < parts, other=float("-inf"))
    _, index = tl.max(value, 0, return_indices=True)
    tl.store(out + row, tl.load(which + row * parts + index))


def draw(logits: Tensor, seeds: Tensor, positions: Tensor, temperatures: Tensor) -> Tensor:
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, VOCAB_TILE)
    best = torch.empty(rows, parts, device=logits.device)
    which, out = torch.empty_like(best, dtype=torch.int32), torch.empty_like(seeds)
    _draw[rows, parts](logits, (seeds, positions, temperatures), best, which, vocab, VOCAB_TILE)
    _choose[rows,](best, which, out, parts, triton.next_power_of_2(parts))
    return out


# Steps of one row: a program computes ROWS whole rows of a matrix [N, K], or ROWS rows of each of two such matrices.


@triton.jit
def _weights(matrix, n, N, K: tl.constexpr):
    k = tl.arange(0, triton.next_power_of_2(K))
    return tl.load(matrix + n.to(tl.int64)[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _input(x, weight, eps, K: tl.constexpr, PDL: tl.constexpr):
    """The row x [1, K] in float32, with RMSNorm if there is a `weight`, after the previous launch has written it."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = tl.arange(0, triton.next_power_of_2(K))
    loaded = tl.load(x + k, mask=k < K, other=0.0)
    value = loaded.to(tl.float32)
    if weight is not None:
        scale = tl.rsqrt(tl.sum(value * value, 0) / K + eps)
        value = value * scale * tl.load(weight + k, mask=k < K, other=0.0).to(tl.float32)
        value = value.to(loaded.dtype).to(tl.float32)
    return value[None, :]


@triton.jit
def _product_one(x, matrix, residual, out, N, K: tl.constexpr, PDL: tl.constexpr, ROWS: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    w = _weights(matrix, n, N, K)
    y = tl.sum(w.to(tl.float32) * _input(x, None, 0.0, K, PDL), 1)
    if residual is not None:
        y = y.to(out.dtype.element_ty).to(tl.float32) + tl.load(residual + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, y, mask=n < N)


@triton.jit
def _gate_one(x, weight, matrix, out, eps, N, K: tl.constexpr, PDL: tl.constexpr, ROWS: tl.constexpr):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    gates, ups = _weights(matrix, n, N, K), _weights(matrix + N.to(tl.int64) * K, n, N, K)
    value = _input(x, weight, eps, K, PDL)
    a = tl.sum(gates.to(tl.float32) * value, 1).to(out.dtype.element_ty).to(tl.float32)
    b = tl.sum(ups.to(tl.float32) * value, 1).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + n, (a * tl.sigmoid(a)).to(out.dtype.element_ty).to(tl.float32) * b, mask=n < N)


@triton.jit
def _qkv_one(
    x, weight, matrix, rope, tables, starts, positions, q, keys, values, eps, N, K: tl.constexpr,
    KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """N pairs of rows of `wqkv`. A rotary pair is two neighbouring rows, so each program rotates and stores its own results."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    even, odd = _weights(matrix, 2 * n, 2 * N, K), _weights(matrix, 2 * n + 1, 2 * N, K)
    value = _input(x, weight, eps, K, PDL)
    a = tl.sum(even.to(tl.float32) * value, 1).to(q.dtype.element_ty).to(tl.float32)
    b = tl.sum(odd.to(tl.float32) * value, 1).to(q.dtype.element_ty).to(tl.float32)
    position = tl.load(positions)
    within = 2 * n % DIM
    part, head = 2 * n // DIM % (GROUP + 2), 2 * n // DIM // (GROUP + 2)
    angle = tl.maximum(position, 0) * DIM + within
    cos = tl.where(part <= GROUP, tl.load(rope + angle), 1.0)
    sin = tl.where(part <= GROUP, tl.load(rope + angle + 1), 0.0)
    first, second = a * cos - b * sin, a * sin + b * cos
    for_q = (n < N) & (part < GROUP)
    to = (head * GROUP + part) * DIM + within
    tl.store(q + to, first, mask=for_q)
    tl.store(q + to + 1, second, mask=for_q)
    block = tl.load(tables + tl.load(starts) + tl.maximum(position, 0) // BLOCK).to(tl.int64)
    slot = ((block * KV + head) * BLOCK + tl.maximum(position, 0) % BLOCK) * DIM + within
    for_keys = (n < N) & (part == GROUP) & (position >= 0)
    for_values = (n < N) & (part == GROUP + 1) & (position >= 0)
    tl.store(keys + slot, first, mask=for_keys)
    tl.store(keys + slot + 1, second, mask=for_keys)
    tl.store(values + slot, first, mask=for_values)
    tl.store(values + slot + 1, second, mask=for_values)


@cache
def _tuned(kernel: str) -> triton.runtime.Autotuner:
    return triton.autotune(_configs(), key=["N", "K"])({"product": _product_one, "gate": _gate_one, "qkv": _qkv_one}[kernel])


def product_one(x: Tensor, matrix: Tensor, residual: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """matrix [N, K] @ x [1, K], plus `residual` [1, N] if there is one, as [1, N]."""
    n, k = matrix.shape
    out = x.new_empty(1, n, dtype=dtype)
    _tuned("product")[lambda config: (triton.cdiv(n, config["ROWS"]),)](x, matrix, residual, out, n, k, **_launch())
    return out


def gate_one(x: Tensor, norm: tuple[Tensor, float], matrix: Tensor) -> Tensor:
    """silu(a) * b of [a, b] = matrix @ RMSNorm(x [1, K]); `norm` is the weight and the eps of the RMSNorm."""
    n, k = len(matrix) // 2, matrix.shape[1]
    out = x.new_empty(1, n)
    weight, eps = norm
    _tuned("gate")[lambda config: (triton.cdiv(n, config["ROWS"]),)](x, weight, matrix, out, eps, n, k, **_launch())
    return out


def qkv_one(x: Tensor, norm: tuple[Tensor, float], matrix: Tensor, rope: Tensor, batch: Batch, cache: Tensor) -> Tensor:
    """Queries [1, heads, head_dim] of RMSNorm(x [1, K]), with rotary embeddings; writes key and value into the layer's `cache`."""
    keys, values = cache
    _, kv, block, dim = keys.shape
    n, k = len(matrix) // 2, matrix.shape[1]
    heads = len(matrix) // dim - 2 * kv
    q = x.new_empty(1, heads, dim)
    weight, eps = norm
    _tuned("qkv")[lambda config: (triton.cdiv(n, config["ROWS"]),)](
        x, weight, matrix, rope, batch.tables, batch.starts, batch.positions, q, keys, values, eps, n, k,
        kv, heads // kv, dim, block, **_launch(),
    )  # fmt: skip
    return q
