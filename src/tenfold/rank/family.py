"""The family `rank`: Llama's decoder with items as tokens (as SASRec, arXiv 1808.09781), one table for input and output.

Checkpoints have Llama's names under a `model_type` of their own, so that nobody takes one for a model of text.
"""

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenfold.model.family import LLAMA3, Family, llama_role
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import llama_shape

if TYPE_CHECKING:
    from tenfold.model.io.format import CheckpointFormat

NAME = "rank"
MODEL_TYPE = "tenfold_rank"
CONTEXT = 129  # a history of 128 and the item after, where a run file says nothing else


def rank_shape(width: int, vocab_size: int) -> ModelSpec:
    """The ranking model of a width: of two layers, since histories say less than text."""
    shape = llama_shape(width, vocab_size, CONTEXT, tied=True)
    return replace(shape, name=f"rank-{width}", family=NAME, n_layers=2, rope_theta=10_000.0)


def _weights() -> "CheckpointFormat":
    llama = import_module("tenfold.model.io.llama")

    def config(spec: ModelSpec, shared: dict[str, Any]) -> dict[str, Any]:
        return llama.llama_config(spec, shared) | {"architectures": ["TenfoldRankModel"], "model_type": MODEL_TYPE}

    return llama.llama_format()._replace(model_types=(MODEL_TYPE,), config=config, gguf=None)


RANK = Family(ModelSpec, LLAMA3.build, rank_shape, llama_role, _weights)
