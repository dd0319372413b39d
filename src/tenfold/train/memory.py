"""Peak memory of this process, in bytes."""

import re
import resource
import sys
from pathlib import Path

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most that PyTorch allocated on a GPU, or the most resident memory the process had on a CPU, since the reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux's own mark comes first: the one of getrusage cannot be reset, and starts at the parent process's peak.
    status = Path("/proc/self/status")
    mark = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if mark:
        return int(mark[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device) -> bool:
    """Let the peak start again from what is in use now; False where the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): reset the peak resident set size
    except OSError:
        return False
    return True
