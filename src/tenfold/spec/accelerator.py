"""Accelerators: peak rates, memory, links, power, as published; and those that plugins add."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.plugins import load, plugins

Spread = float | tuple[float, float, float]  # a figure, or its low, mid and high


@dataclass(frozen=True)
class Accelerator:
    """One accelerator's data sheet. Rates are dense (no sparsity); `None` is unknown.

    `measured_bf16_tflops` is the rate of the fastest matrix product that anybody measured on it, the ceiling in practice.
    `device` is the torch device that it trains and serves on; `guessed` names figures that nobody has published. Prices are
    those of `plan/data/prices.toml` where they are not given.
    """

    key: str
    name: str
    memory_gb: float
    memory_gb_per_s: float
    source: str
    bf16_tflops: float
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    scaleup_gb_per_s: float | None = None
    tdp_w: float | None = None
    measured_bf16_tflops: float | None = None
    device: str = "cuda"
    rent_usd_per_h: Spread | None = None
    purchase_usd: Spread | None = None
    guessed: tuple[str, ...] = ()

    def peak_flops(self, dtype: str = "bf16") -> float:
        """Peak FLOP/s in `bf16`, `fp8` or `fp4`. Raises TenfoldError where the part has no such unit."""
        tflops = {"bf16": self.bf16_tflops, "fp8": self.fp8_tflops, "fp4": self.fp4_tflops}.get(dtype)
        if tflops is None:
            raise TenfoldError(f"{self.name} has no published {dtype} rate: choose bf16.")
        return tflops * 1e12


def _published() -> dict[str, Accelerator]:
    text = resources.files("tenfold.spec").joinpath("data/accelerators.toml").read_text()
    return {
        key: Accelerator(key=key, **fields | {"guessed": tuple(fields.get("guessed", ()))})
        for key, fields in tomllib.loads(text).items()
    }


PUBLISHED = _published()  # an entry point of `tenfold.accelerators`


@cache
def accelerators() -> dict[str, Accelerator]:
    """All known accelerators by key (`h100`, `mi300x`, ...): the entry points of `tenfold.accelerators`.

    Each refers to an Accelerator or to a dict of them. A plugin's takes the place of a published one of its key.
    """
    found: dict[str, Accelerator] = {}
    for name in plugins("accelerators"):  # the built-in ones first
        parts = load("accelerators", name)
        found |= {part.key: part for part in ([parts] if isinstance(parts, Accelerator) else parts.values())}
    return found


def accelerator(key: str) -> Accelerator:
    """One accelerator. Raises TenfoldError with the nearest key where it is unknown."""
    known = accelerators()
    if key.lower() not in known:
        raise TenfoldError(f"There is no accelerator {key!r}{nearest(key, known)}.")
    return known[key.lower()]


def torch_device(name: str) -> str:
    """PyTorch's name of a device: that of the accelerator `name`, or `name` itself (`cuda:1`)."""
    sheet = accelerators().get(name.lower())
    return sheet.device if sheet else name
