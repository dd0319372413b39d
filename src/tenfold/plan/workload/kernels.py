"""The time of single operations: matrix products (tiles and waves), memory-bound kernels, attention, collectives."""

import math
from functools import lru_cache

from tenfold.plan.workload.machine import Machine

TILES = ((256, 128, 1.0), (128, 128, 0.93), (128, 64, 0.8), (64, 64, 0.6))  # (rows, columns, share of the best rate)
BLOCK = 128  # tokens per side of an attention kernel's blocks
OPERAND_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}  # per value of a product's operand; NVFP4 has an 8-bit scale per 16 values


@lru_cache(maxsize=200_000)
def matmul_s(m: int, n: int, k: int, machine: Machine, dtype: str = "bf16") -> float:
    """Seconds of one product (m, k) x (k, n).

    The output is cut into tiles, which the processors compute in waves; the last wave may be partly empty. Each tile also takes
    the time to fill its pipeline (`fill_k`); where there are few tiles, they may be split along k. The fastest tile size counts,
    but not less than the time to move the operands.
    """
    c = machine.constants
    rate = machine.matmul_flops(dtype) / c.units
    best = math.inf
    for rows, columns, relative in TILES:
        tiles = math.ceil(m / rows) * math.ceil(n / columns)
        splits = (1, 2, 4, 8) if tiles < 2 * c.units else (1,)
        for split in splits:
            waves = math.ceil(tiles * split / c.units)
            seconds = waves * 2 * rows * columns * (k / split + c.fill_k) / (rate * relative)
            best = min(best, seconds)
    moved = (OPERAND_BYTES[dtype] * (m * k + k * n) + 2 * m * n) / machine.memory_bytes_per_s
    return max(best, moved) + c.kernel_s


def moved_s(bytes_moved: float, machine: Machine, kernels: int = 1) -> float:
    """Seconds of `kernels` element-wise kernels that move `bytes_moved` in total."""
    return bytes_moved / machine.memory_bytes_per_s + kernels * machine.constants.kernel_s


def fused_attention_s(heads: float, queries: float, keys: float, head_dim: int, machine: Machine) -> tuple[float, float]:
    """(forward, backward) seconds of a fused attention kernel over `heads` (times sequences), each query over `keys` on average.

    The backward pass has five products, the forward pass two. Blocks on the diagonal are computed whole, which adds half a block.
    """
    flops = 4.0 * heads * queries * (keys + BLOCK / 2) * head_dim
    rate = machine.accelerator.peak_flops("bf16") * machine.constants.attention_efficiency * machine.stack.attention
    rate *= min(1.0, (head_dim / 128) ** 0.5)
    moved = 8 * heads * queries * head_dim / machine.memory_bytes_per_s
    forward = max(flops / rate, moved) + machine.constants.kernel_s
    return forward, 2.5 * flops / (rate * 0.85) + 2 * machine.constants.kernel_s


def unfused_attention_s(heads: float, tokens: int, head_dim: int, machine: Machine) -> tuple[float, float]:
    """(forward, backward) seconds of attention with all scores in memory, for `heads` of `tokens` each.

    The forward pass moves 13 bytes per score (product, masked softmax, dropout with its mask, product), the backward pass 19.
    """
    scores = heads * tokens * tokens
    flops = 4.0 * scores * head_dim / (machine.matmul_flops("bf16") * head_dim / (head_dim + machine.constants.fill_k))
    forward = flops + moved_s(13 * scores, machine, 4)
    return forward, 2 * flops + moved_s(19 * scores, machine, 6)


@lru_cache(maxsize=50_000)
def ring_s(bytes_whole: float, ranks: int, stride: int, machine: Machine) -> float:
    """Seconds of a ring all-gather or reduce-scatter of `bytes_whole` over `ranks` that are `stride` ranks apart.

    Each link carries (n - 1) / n of the bytes. Within a scale-up domain each rank has its own link; a ring over several domains
    uses the network cards of all its ranks in a domain. An all-reduce takes twice as long.
    """
    if ranks <= 1:
        return 0.0
    c = machine.constants
    local = max(1, min(ranks, c.domain_gpus // stride))
    nodes = math.ceil(ranks / local)
    rate = machine.scaleup_bytes_per_s
    latency = (local - 1) * c.scaleup_latency_s
    if nodes > 1:
        rate = min(rate, local * machine.scaleout_bytes_per_s) if local > 1 else machine.scaleout_bytes_per_s
        latency += min(nodes - 1, 8 * math.log2(nodes)) * c.scaleout_latency_s
    return bytes_whole * (ranks - 1) / ranks / rate + latency


def all_to_all_s(bytes_sent: float, ranks: int, stride: int, machine: Machine, copies: int = 1) -> float:
    """Seconds of an all-to-all in which each rank sends `bytes_sent` in equal parts to all, outside of the domain by its own card.

    Where a token is sent to `copies` ranks, one copy is sent to each other domain and is distributed there.
    """
    if ranks <= 1:
        return 0.0
    c = machine.constants
    local = max(1, min(ranks, c.domain_gpus // stride))
    domains = math.ceil(ranks / local)
    distinct = domains * (1 - (1 - 1 / domains) ** copies) / copies
    inside = bytes_sent * (local - 1) / local / machine.scaleup_bytes_per_s
    outside = bytes_sent * distinct * (domains - 1) / domains / machine.scaleout_bytes_per_s
    return max(inside, outside) + c.scaleup_latency_s + (c.scaleout_latency_s if domains > 1 else 0.0)


def point_to_point_s(bytes_sent: float, stride: int, machine: Machine) -> float:
    """Seconds to send `bytes_sent` to the rank that is `stride` ranks away."""
    c = machine.constants
    if stride < c.domain_gpus:
        return bytes_sent / machine.scaleup_bytes_per_s + c.scaleup_latency_s
    return bytes_sent / machine.scaleout_bytes_per_s + c.scaleout_latency_s
