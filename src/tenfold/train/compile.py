"""Compile a model where that saves time, and use attention that skips tiles masked out by documents."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tenfold.model.attention import BLOCK, document_blocks
from tenfold.model.llama import Llama

COMPILE_SECONDS = 40.0  # time to compile a model on two cores
COMPILE_GAIN = 0.2  # share of the step time that it saves on a CPU


def compile_model(model: Llama, asked: str, device: torch.device, ideal_seconds: float) -> str:
    """Compile a model that is on one process, as `asked` ("on", "off", "auto"); returns in words what was done and why.

    `ideal_seconds` is how long the run would take at the device's peak FLOP/s; "auto" assumes that it takes twice as long.
    """
    if asked == "off":
        return "eager, as asked"
    if device.type == "cpu":
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            return "eager: no C++ compiler was found"
        if asked == "auto" and 2 * ideal_seconds * COMPILE_GAIN < COMPILE_SECONDS:
            return "eager: the run is too short for compiling to pay"
    if device.type == "cuda":
        compile_blocks(model)
        return "compiled block by block"
    model.hidden = torch.compile(model.hidden)  # type: ignore[method-assign]
    return "compiled"


def compile_blocks(model: Llama, **options: Any) -> None:
    """Compile each block and the final norm separately. Equal blocks share one graph, so compile time does not grow with depth.

    Compiled code is cached between runs in `~/.cache/tenfold/compiled`, or in TORCHINDUCTOR_CACHE_DIR where that is set.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "tenfold" / "compiled"))
    for module in (*model.layers, model.norm):
        module.compile(**options)


def use_document_blocks(model: Llama, seq_len: int) -> bool:
    """Make `model` use block masks for documents, which skip masked tiles, if `seq_len` is a multiple of the tile size.

    Returns whether it is.
    """
    fits = seq_len % BLOCK == 0
    if fits:
        model.document_mask = document_blocks
    return fits
