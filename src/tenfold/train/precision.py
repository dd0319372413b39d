"""Choose the number format to train in, and find the device's peak FLOP/s in it, by measurement where there is no data sheet."""

import time
from collections.abc import Callable
from functools import cache

import torch

from tenfold.spec.accelerator import Accelerator

WORTH_IT = 1.5  # a CPU trains in bfloat16 if its products are this many times as fast as in float32
NARROW = 160  # width below which casts cost a CPU more than bfloat16 gains: with AMX 0.7x the speed at width 128, 1.3x at 192
PROBE_SIZE = 512  # of the square matrices by which a CPU's formats are compared
PROBE_SECONDS = 0.05  # for this comparison
CPU_SIZES = (512, 1024, 2048)  # of the square matrices by which peak FLOP/s are measured
GPU_SIZES = (4096, 8192)
SIZE_SECONDS = 0.1  # for each of these sizes


def choose_dtype(device: torch.device, width: int) -> torch.dtype:
    """The format that a model of this width trains in: bfloat16 on a device that is faster in it, else float32."""
    if device.type == "cpu" and width < NARROW:
        return torch.float32
    return fastest_dtype(device)


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that supports it, and on a CPU whose matrix products are much faster in it (AMX); else float32.

    On a CPU this is measured once per process, in about `PROBE_SECONDS`.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    plain, half = (_product(PROBE_SIZE, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    plain_s, half_s, end = _seconds(plain), _seconds(half), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:  # alternately, so that a disturbance affects both
        plain_s, half_s = min(plain_s, _seconds(plain)), min(half_s, _seconds(half))
    return torch.bfloat16 if plain_s > WORTH_IT * half_s else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """An autocast context: matrix products in `dtype`, weights kept in float32.

    Weights are cast at every use, without autocast's cache. The cache is only emptied when the context ends, and this context
    spans many steps, so cached casts would be those of outdated weights.
    """
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)


def peak_flops(device: torch.device, dtype: torch.dtype, sheet: Accelerator | None = None) -> tuple[float, str]:
    """The peak FLOP/s that MFU refers to, and in words where it comes from.

    In bfloat16 on an accelerator with a data sheet, its published dense rate; otherwise the best rate of a matrix product measured
    on this device, once per process, in about 0.3 s.
    """
    if sheet is not None and dtype == torch.bfloat16:
        return sheet.peak_flops("bf16"), f"{sheet.name}'s published dense bf16 rate"
    flops, size = _measured_flops(device, dtype, torch.get_num_threads())
    return flops, f"this machine's own {size}-cubed {str(dtype).removeprefix('torch.')} product"


@cache
def _measured_flops(device: torch.device, dtype: torch.dtype, threads: int) -> tuple[float, int]:
    """The best FLOP/s over a few sizes of square matrix products, and the size that gave it."""
    best = (0.0, 0)
    for size in GPU_SIZES if device.type == "cuda" else CPU_SIZES:
        flops = 2.0 * size**3
        if best[0] and flops / best[0] > SIZE_SECONDS:
            break  # larger sizes would take long, and such a slow machine does not gain from them
        product = _product(size, device, dtype)
        _seconds(product)
        end = time.perf_counter() + SIZE_SECONDS
        while True:
            best = max(best, (flops / _seconds(product), size))
            if time.perf_counter() > end:
                break
    return best


def _product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    # A separate generator, because measuring must not change the state of the one that a run draws from.
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=draw).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return multiply


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
