"""Resolve the device that a run or a server computes on, and find the data sheet of its accelerator."""

import re

import torch

from tenfold.spec.accelerator import Accelerator, accelerators, torch_device
from tenfold.spec.errors import TenfoldError, nearest


def resolve_device(name: str) -> str:
    """PyTorch's name of the device `name`: a PyTorch device, the name of an accelerator, or `auto`.

    `auto` is the accelerator that PyTorch finds, else the CPU. Raises TenfoldError for a device that is not available.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        known = {sheet.device for sheet in accelerators().values()}
        return found.type if found is not None and found.type in known else "cpu"
    device = torch_device(name)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise TenfoldError("This machine has no CUDA GPU that PyTorch can use: choose the device cpu.")
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:
        raise TenfoldError(f"There is no device {name!r}{nearest(name, ['auto', 'cpu', 'cuda', *accelerators()])}.") from None
    there = index < max(1, torch.cuda.device_count()) if kind == "cuda" else kind == "cpu" or _computes(device)
    if not there:
        raise TenfoldError(f"PyTorch cannot compute on the device {name!r} of this machine: choose auto or cpu.")
    return device


def _computes(device: str) -> bool:
    try:
        return torch.zeros(1, device=device).item() == 0
    except (RuntimeError, NotImplementedError, AssertionError, ImportError):
        return False


def this_accelerator(device: str = "auto") -> Accelerator | None:
    """The data sheet of the accelerator that `device` names, else of the one in this machine; None if it is unknown."""
    if device.lower() in accelerators():
        return accelerators()[device.lower()]
    found = torch.device(resolve_device(device))
    if found.type == "cuda":
        return published(torch.cuda.get_device_name(found))
    sheets = [sheet for sheet in accelerators().values() if sheet.device == found.type != "cpu"]
    return sheets[0] if len(sheets) == 1 else None


def published(device_name: str) -> Accelerator | None:
    """The data sheet for the driver's name of a device ("NVIDIA H100 80GB HBM3"), or None if there is none.

    A sheet matches if all words of its key are in the name; the longest key wins. NVL cards and MIG slices match none, because
    their rates differ.
    """
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    if words & {"nvl", "mig"}:
        return None
    fitting = [key for key in accelerators() if set(key.split("-")) <= words]
    return accelerators()[max(fitting, key=len)] if fitting else None
