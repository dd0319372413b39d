"""The family `rank`: Llama's decoder with items as tokens (as in SASRec, arXiv 1808.09781), and one table for input and output.

Its checkpoints have Llama's names in Hugging Face layout under a `model_type` of their own, so that nobody takes one for a model
of text.
"""

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenfold.model.family import Family, llama_role
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import llama_shape

if TYPE_CHECKING:
    from tenfold.model.io.format import CheckpointFormat

NAME = "rank"
MODEL_TYPE = "tenfold_rank"
CONTEXT = 128  # items of a history that a model sees, where a run file says nothing else


def rank_shape(width: int, vocab_size: int) -> ModelSpec:
    """The ranking model of a width: two layers, since what a history says is little beside text."""
    return replace(
        llama_shape(width, vocab_size, CONTEXT, tied=True), name=f"rank-{width}", family=NAME, n_layers=2, rope_theta=10_000.0
    )


def _build(spec: ModelSpec) -> Any:
    from tenfold.model.llama import Llama

    return Llama(spec)


def _weights() -> "CheckpointFormat":
    llama = import_module("tenfold.model.io.llama")

    def config(spec: ModelSpec, shared: dict[str, Any]) -> dict[str, Any]:
        return llama.llama_config(spec, shared) | {"architectures": ["TenfoldRankModel"], "model_type": MODEL_TYPE}

    return llama.llama_format()._replace(model_types=(MODEL_TYPE,), config=config, gguf=None)


RANK = Family(ModelSpec, _build, rank_shape, llama_role, _weights)
