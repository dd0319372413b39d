"""Tuned rounding (AutoRound, arXiv 2309.05516): weights are rounded so that each block's output on text changes least.

The package auto-round learns, block by block, whether each weight is rounded up or down, and the scale of each group.
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tenfold.model.io.huggingface import slots_of, write_model
from tenfold.model.llama import Llama
from tenfold.model.quantised import GROUP
from tenfold.spec.errors import NotInstalled

BATCH = 8  # rows in a step


@torch.no_grad()
def round_by_blocks(model: Llama, rows: Tensor, steps: int, tokenizer: Path) -> None:
    """Round the layers' matrices to 4 bits in groups of 32, in place, after `steps` of tuning for each block on tokens [rows, T].

    Routers, and matrices whose rows are no multiple of 32, stay as they are. `tokenizer` is a model's directory with its tokenizer,
    which the package needs. Raises NotInstalled where the package is missing.
    """
    found = _tuned(model, rows, steps, tokenizer)
    for name, slot in slots_of(model).items():
        module = found.get_submodule(name.removesuffix(".weight"))
        scale = getattr(module, "scale", None)
        if scale is None or slot.shape[-1] % GROUP or ".router." in name:
            continue
        scale = scale.half().float()[..., None]
        whole = module.weight.float().unflatten(-1, (-1, GROUP))  # rounded to bfloat16 by the package
        slot.set(((whole / scale).round().clamp(-8, 7) * scale).flatten(-2))


def _tuned(model: Llama, rows: Tensor, steps: int, tokenizer: Path) -> Any:
    """The rounded model as a module of transformers; its matrices have an attribute `scale` [out, groups]."""
    try:
        from auto_round import AutoRound
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise NotInstalled("Tuned rounding needs a package: pip install 'tenfold[quantise]'.") from None
    logging.getLogger("autoround").setLevel(logging.ERROR)
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(BATCH)]
    with TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        write_model(model, place, tokenizer_directory=tokenizer)
        theirs = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        with torch.enable_grad():
            tuner = AutoRound(
                theirs, tokenizer=AutoTokenizer.from_pretrained(place), scheme="W4A16", group_size=GROUP, sym=True, iters=steps,
                nsamples=len(rows), seqlen=rows.shape[1], batch_size=BATCH, dataset=batches, device_map="cpu",
                enable_torch_compile=False, low_cpu_mem_usage=False,
            )  # fmt: skip
            found, _ = tuner.quantize()
    return found
