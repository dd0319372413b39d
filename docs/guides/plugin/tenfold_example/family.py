"""A model family whose blocks compute attention and feed-forward side by side, from one norm (as GPT-J and PaLM do)."""

from dataclasses import replace

from tenfold.model.family import Family, llama_role
from tenfold.model.io.format import CheckpointFormat, Slot
from tenfold.model.io.huggingface_config import shared_fields
from tenfold.model.llama import Block, Llama
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import llama_shape


class ParallelBlock(Block):
    def __init__(self, spec):
        super().__init__(spec)
        del self.ffn_norm

    def forward(self, x, rope, mask, temperature=None):
        h = self.attention_norm(x)
        return x + self.attention(h, rope, mask, temperature) + self.ffn(h)


class Parallel(Llama):
    def block(self, layer):
        return ParallelBlock(self.spec)


def slots(model):
    found = {
        "wte": Slot(model.embedding.weight.data),
        "ln_f": Slot(model.norm.weight.data),
        "lm_head": Slot(model.head.weight.data),
    }
    for i, block in enumerate(model.layers):
        found |= {f"h.{i}.{n.removesuffix('.weight')}": Slot(p.data) for n, p in block.named_parameters()}
    return found


def config(spec, shared):
    return {**shared, "model_type": "parallel", "intermediate_size": spec.ffn_dim}


PARALLEL = Family(
    spec=ModelSpec,
    build=Parallel,
    shape=lambda width, vocab_size: replace(llama_shape(width, vocab_size), family="parallel"),
    role=llama_role,
    weights=lambda: CheckpointFormat(("parallel",), shared_fields, config, slots),
)
