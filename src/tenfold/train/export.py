"""A Hugging Face model from a checkpoint of any layout, a part at a time: no process ever holds the whole."""

from pathlib import Path

import torch
from torch import nn

from tenfold.model.io.huggingface import write_parts
from tenfold.spec.model import ModelSpec
from tenfold.train.checkpoint import read_weights


def export_model(
    checkpoint: Path, spec: ModelSpec, directory: Path, tokenizer_directory: Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights of `checkpoint` as a model of shape `spec`. Raises TenfoldError where they are another model's.

    The largest part in memory is one block, or the table of the vocabulary, and the shard of 4 GiB being written.
    """

    def fill(name: str, part: nn.Module) -> None:
        read_weights(checkpoint, {f"{name}.{key}": p.data for key, p in part.named_parameters()})

    write_parts(spec, fill, directory, tokenizer_directory, dtype)
