"""The speed of a device by itself: matrix products, grouped products of experts, and copies."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch


def clocked(work: Callable[[], Any], rounds: int, device: torch.device, warm: int = 3) -> Iterator[float]:
    """Seconds of each call of `work`, back to back. On a GPU they are measured by CUDA events, so that the host may run ahead."""
    for _ in range(warm):
        work()
    if device.type != "cuda":
        for _ in range(rounds):
            began = time.perf_counter()
            work()
            yield time.perf_counter() - began
        return
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    for before, after in itertools.pairwise(marks):
        yield before.elapsed_time(after) / 1e3


def rates(work: Callable[[], Any], flops: float, device: torch.device) -> dict[str, float]:
    """Median, slowest and fastest FLOP/s of `work`."""
    taken = list(clocked(work, 40, device))
    return {"median": flops / statistics.median(taken), "least": flops / max(taken), "most": flops / min(taken)}


def matrix_rates(device: torch.device, dtype: torch.dtype, size: int) -> dict[str, float]:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return rates(lambda: torch.mm(a, b), 2.0 * size**3, device)


def grouped_rates(device: torch.device, dtype: torch.dtype, skewed: bool) -> dict[str, float]:
    """FLOP/s of one grouped product at Scout's shape; skewed: shares as 1, 1/2, 1/3, ..."""
    tokens, dim, hidden, experts = 16_384, 5120, 8192, 16
    share = torch.tensor([1 / (i + 1) if skewed else 1.0 for i in range(experts)])
    ends = (share.cumsum(0) / share.sum() * tokens).round().int().to(device)
    x = torch.randn(tokens, dim, device=device, dtype=dtype)
    weight = torch.randn(experts, hidden, dim, device=device, dtype=dtype).transpose(-2, -1)
    return rates(lambda: torch._grouped_mm(x, weight, offs=ends), 2.0 * tokens * dim * hidden, device)


def copy_rate(device: torch.device, size: int) -> float:
    """Bytes per second of a copy of `size` bytes on the device, reading and writing both counted."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / statistics.median(clocked(lambda: target.copy_(source), 20, device))
