"""Write a Hugging Face model from a checkpoint of any layout, part by part, so that no process holds the whole model."""

from pathlib import Path

import torch
from torch import nn

from tenfold.model.io.huggingface import write_parts
from tenfold.spec.model import ModelSpec
from tenfold.train.checkpoint import read_weights


def export_model(
    checkpoint: Path, spec: ModelSpec, directory: Path, tokenizer_directory: Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights of `checkpoint` as a model with `spec`. Raises TenfoldError if the checkpoint is of another model.

    The memory needed is that of one block or of the embedding table, plus the shard of at most 4 GiB that is being written.
    """

    def fill(name: str, part: nn.Module) -> None:
        read_weights(checkpoint, {f"{name}.{key}": p.data for key, p in part.named_parameters()})

    write_parts(spec, fill, directory, tokenizer_directory, dtype)
