"""Which number format to train in, and the machine's own limit in it: asked of the machine, not assumed."""

import time
from functools import cache

import torch

from tenfold.spec.accelerator import accelerators

WORTH_IT = 1.5  # bfloat16 must be this much faster than float32 on a CPU


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, and on a CPU whose matrix products are faster in it (AMX); float32 otherwise."""
    if device.type == "cuda":
        return torch.bfloat16
    faster = cpu_matmul_flops(torch.bfloat16) / cpu_matmul_flops(torch.float32)
    return torch.bfloat16 if faster > WORTH_IT else torch.float32


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that MFU is a share of, and where the figure is from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        for key, chip in sorted(accelerators().items(), key=lambda item: -len(item[0])):
            if key.split("-")[0] in name.replace(" ", ""):
                return chip.peak_flops("bf16"), f"{chip.name}'s published dense bf16 rate"
    return cpu_matmul_flops(dtype), f"this machine's own 1024-cubed {str(dtype).removeprefix('torch.')} product"


@cache
def cpu_matmul_flops(dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of the fastest of a few square matrix products (about 0.2 s)."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, end = float("inf"), time.perf_counter() + 0.2
    a @ b
    while time.perf_counter() < end:
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
