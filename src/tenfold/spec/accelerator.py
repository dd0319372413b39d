"""Accelerators: published peak rates, memory, links and power, and those that plugins add."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.plugins import load, plugins

Spread = float | tuple[float, float, float]  # one figure, or a low, a middle and a high one


@dataclass(frozen=True)
class Accelerator:
    """The data sheet of one accelerator. Rates are dense (no sparsity), in TFLOP/s; `None` is unknown.

    `measured_bf16_tflops` is the highest published rate of a matrix product measured on it, the ceiling in practice. `device` is
    the torch device that it trains and serves on. `guessed` names the fields that no source has published. Prices that are None
    are taken from `plan/data/prices.toml`.
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
        """Peak FLOP/s in `bf16`, `fp8` or `fp4`. Raises TenfoldError if no rate is published for it."""
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
    """All known accelerators by key (`h100`, `mi300x`, ...), from the entry points `tenfold.accelerators`.

    Each entry point refers to an Accelerator or to a dict of them. A plugin's replaces a published one with the same key.
    """
    found: dict[str, Accelerator] = {}
    for name in plugins("accelerators"):  # in this order: the built-in ones come first
        parts = load("accelerators", name)
        found |= {part.key: part for part in ([parts] if isinstance(parts, Accelerator) else parts.values())}
    return found


def accelerator(key: str) -> Accelerator:
    """The accelerator of a key, in upper or lower case. Raises TenfoldError, with the nearest key, if it is unknown."""
    known = accelerators()
    if key.lower() not in known:
        raise TenfoldError(f"There is no accelerator {key!r}{nearest(key, known)}.")
    return known[key.lower()]


def torch_device(name: str) -> str:
    """The torch device of the accelerator `name`; any other name (`cuda:1`) is returned as it is."""
    sheet = accelerators().get(name.lower())
    return sheet.device if sheet else name
