"""Peak memory of this process, in bytes."""

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most that PyTorch allocated on a GPU, or the most resident memory the process had on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
