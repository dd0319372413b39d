"""The families of rankers: `rank`, Llama's decoder with items as tokens and gated blocks (after SASRec, arXiv 1808.09781, and
eSASRec, arXiv 2508.06450), and `hstu` (arXiv 2402.17152). One table of items serves input and output.

Checkpoints have parameter names like Llama's, but a `model_type` of their own, so that no tool takes one for a text model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenfold.model.family import Family, Role, llama_role
from tenfold.spec.model import ModelSpec, Parameters
from tenfold.spec.shapes import llama_shape

if TYPE_CHECKING:
    from tenfold.model.io.format import CheckpointFormat, Slot

NAME, HSTU_NAME = "rank", "hstu"
NAMES = (NAME, HSTU_NAME)
MODEL_TYPE, HSTU_TYPE = "tenfold_rank", "tenfold_hstu"
CONTEXT = 129  # the default: a history of 128 items and the next one
BUCKETS = 129  # of HSTU's bias by time differences


@dataclass(frozen=True)
class RankSpec(ModelSpec):
    """Llama's shape with a gate on each of a block's two branches."""

    @property
    def attention_weights(self) -> int:
        return super().attention_weights + 2 * self.dim**2


@dataclass(frozen=True)
class HSTUSpec(ModelSpec):
    """HSTU's shape; `ffn_dim` is unused, since its blocks have no feed-forward layer."""

    @property
    def attention_weights(self) -> int:
        return 5 * self.dim * self.n_heads * self.head_dim

    def parameters(self) -> Parameters:
        embedding, matrices = self.vocab_size * self.dim, self.n_layers * self.attention_weights
        biases = self.n_layers * (self.dim + 2 * self.context - 1 + BUCKETS)
        total = matrices + embedding + biases + self.context * self.dim
        return Parameters(total=total, active=total, embedding=embedding, matrix_active=matrices + embedding)


def rank_shape(width: int, vocab_size: int) -> ModelSpec:
    """The shape of a `rank` model of a width. It has two layers, since histories have less structure than text."""
    return _shape(RankSpec, NAME, width, vocab_size)


def hstu_shape(width: int, vocab_size: int) -> ModelSpec:
    """The shape of an `hstu` model of a width; it has two layers, too."""
    return _shape(HSTUSpec, HSTU_NAME, width, vocab_size)


def _shape(kind: type[ModelSpec], family: str, width: int, vocab_size: int) -> ModelSpec:
    llama = llama_shape(width, vocab_size, CONTEXT, tied=True)
    fields = {name: getattr(llama, name) for name in ModelSpec.__dataclass_fields__}
    return kind(**fields | {"name": f"{family}-{width}", "family": family, "n_layers": 2, "rope_theta": 10_000.0})


def rank_role(name: str) -> Role:
    """The role of a weight of a ranker."""
    if name.endswith(("bias", "_bias")):
        return Role.BIAS
    if name.startswith(("content.w", "objectives.")):
        return Role.MATRIX
    return Role.EMBEDDING if name.startswith(("positions.", "content.codes.")) else llama_role(name)


def _later(module: str, name: str) -> Callable[..., Any]:
    return lambda *arguments: getattr(import_module(f"tenfold.rank.{module}"), name)(*arguments)


def _format(kind: str, architecture: str, slots: Callable[[Any], dict[str, Any]]) -> "CheckpointFormat":
    llama = import_module("tenfold.model.io.llama")

    def config(spec: ModelSpec, shared: dict[str, Any]) -> dict[str, Any]:
        return llama.llama_config(spec, shared) | {"architectures": [architecture], "model_type": kind}

    return llama.llama_format()._replace(model_types=(kind,), config=config, slots=slots, gguf=None)


def _rank_slots(model: Any) -> dict[str, Any]:
    llama, slot = import_module("tenfold.model.io.llama"), _slot()
    gates = {
        f"model.layers.{i}.{part}.gate.weight": slot(gate.weight.data)
        for i, block in enumerate(model.blocks)
        for part, gate in (("self_attn", block.attention_gate), ("mlp", block.ffn_gate))
    }
    return llama.llama_slots(model) | gates


def _hstu_slots(model: Any) -> dict[str, Any]:
    slot = _slot()
    slots = {"model.embed_tokens.weight": slot(model.embedding.weight.data), "model.positions": slot(model.positions[0].data)}
    for i, block in enumerate(model.blocks):
        slots |= {f"model.layers.{i}.{name}": slot(p.data) for name, p in block.named_parameters()}
    return slots


def _slot() -> "type[Slot]":
    return import_module("tenfold.model.io.format").Slot


RANK = Family(RankSpec, _later("model", "RankLlama"), rank_shape, rank_role,
              lambda: _format(MODEL_TYPE, "TenfoldRankModel", _rank_slots))  # fmt: skip
HSTU = Family(HSTUSpec, _later("hstu", "HSTU"), hstu_shape, rank_role,
              lambda: _format(HSTU_TYPE, "TenfoldHSTUModel", _hstu_slots))  # fmt: skip
