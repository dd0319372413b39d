"""Compiling a model where it pays, and attention that skips what documents mask out."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tenfold.model.attention import BLOCK, document_blocks
from tenfold.model.llama import Llama

COMPILE_SECONDS = 40.0  # what compiling a model costs on two cores
COMPILE_GAIN = 0.2  # the share of a step that it saves on a CPU


def compile_model(model: Llama, asked: str, device: torch.device, ideal_seconds: float) -> str:
    """Compile a model on one process where `asked` ("on", "off", "auto") says so; returns what was done and why, in words.

    `ideal_seconds` is what the run would take at the device's peak.
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
    """Compile each block, and the last norm, by itself: all of one kind share one graph, so that time does not grow with depth.

    What was compiled is kept between runs, in `~/.cache/tenfold/compiled` unless TORCHINDUCTOR_CACHE_DIR says where.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "tenfold" / "compiled"))
    for module in (*model.layers, model.norm):
        module.compile(**options)


def use_document_blocks(model: Llama, seq_len: int) -> bool:
    """Let `model` skip what documents mask out, where rows divide into whole tiles; says whether they do."""
    fits = seq_len % BLOCK == 0
    if fits:
        model.document_mask = document_blocks
    return fits
