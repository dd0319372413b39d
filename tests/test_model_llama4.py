"""Our Llama 4 against Hugging Face's on random small models of every branch."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig

from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama import Llama
from tenfold.model.llama4 import Llama4
from tenfold.model.moe import Experts
from tenfold.model.upcycle import upcycle
from tenfold.serve.complete import generate
from tenfold.serve.engine.engine import Engine
from tenfold.serve.request import Sampling
from tenfold.serve.runners.runner import TorchRunner
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling

BASE = {
    "family": "llama4",
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "ffn_dim": 128,
    "expert_ffn_dim": 48,
    "vocab_size": 300,
    "context": 512,
    "n_experts": 4,
    "attention_chunk": 32,
    "nope_every": 4,
    "qk_norm": True,
    "temperature_floor": 50,
}
VARIANTS = {
    "scout": {"rope_scaling": RopeScaling(16.0, 1.0, 1.0, 64)},
    "maverick": {"moe_every": 2, "qk_norm": False, "n_experts": 8},
    "two experts a token": {"experts_per_token": 2},
    "one expert": {"n_experts": 1},
    "dense": {"n_experts": 0, "expert_ffn_dim": 0},
    "all local": {"nope_every": 0},
    "all global": {"nope_every": 1},
    "no chunks": {"attention_chunk": 0},
    "no temperature": {"temperature_floor": 0},
    "tied": {"tied": True},
    "shallow": {"n_layers": 2},
}


def random_model(**changes) -> Llama4:
    torch.manual_seed(0)
    model = Llama4(ModelSpec("model", **(BASE | changes))).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def tokens_of(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree_with_transformers_over_several_chunks(variant, tmp_path):
    model = random_model(**VARIANTS[variant])
    write_model(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert isinstance(theirs, Llama4ForCausalLM)
    tokens = tokens_of(150)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
    again = read_model(tmp_path / "model")
    assert again.spec == model.spec
    for ours, read in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, read)


def test_a_directory_that_transformers_wrote_is_read(tmp_path):
    torch.manual_seed(0)
    theirs = Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=300, hidden_size=64, intermediate_size=48, intermediate_size_mlp=128, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4, attention_chunk_size=40,
            interleave_moe_layer_step=2, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    model = read_model(tmp_path).eval()
    tokens = tokens_of(130)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def test_gradients_agree_with_transformers(tmp_path):
    model = random_model(n_layers=2)
    write_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = tokens_of(60)
    nats, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
    nats.backward()
    logits = theirs(tokens[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").backward()
    ours, other = model.layers[0].ffn, theirs.model.layers[0].feed_forward
    assert isinstance(ours, Experts)
    pairs = [
        (ours.router.weight.grad, other.router.weight.grad),
        (ours.w2.weight.grad, other.experts.down_proj.grad.mT),
        (torch.cat((ours.w1.weight.grad, ours.w3.weight.grad), 1), other.experts.gate_up_proj.grad.mT),
        (ours.shared.w1.weight.grad, other.shared_expert.gate_proj.weight.grad),
        (model.embedding.weight.grad, theirs.model.embed_tokens.weight.grad),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_documents_in_a_row_are_as_if_alone_whatever_the_chunks():
    model = random_model(temperature_floor=10)
    a, b = tokens_of(37, 1), tokens_of(70, 1) + 1
    b = b % 300
    document = torch.tensor([[3] * 37 + [4] * 70])
    with torch.no_grad():
        together = model(torch.cat((a, b), 1), document)
        torch.testing.assert_close(together[:, :37], model(a), rtol=0, atol=1e-4)
        torch.testing.assert_close(together[:, 37:], model(b), rtol=0, atol=1e-4)


def test_a_local_layer_forgets_at_the_chunk_and_a_global_one_does_not():
    tokens = tokens_of(64, 1)
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % 300
    with torch.no_grad():
        local, everywhere = random_model(nope_every=0), random_model()
        torch.testing.assert_close(local(tokens)[:, 32:], local(other)[:, 32:], rtol=0, atol=1e-5)
        assert (local(tokens)[:, 31] - local(other)[:, 31]).abs().max() > 1e-3
        assert (everywhere(tokens)[:, 63] - everywhere(other)[:, 63]).abs().max() > 1e-4


@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_the_cache_changes_nothing(variant):
    model = random_model(**VARIANTS[variant], attention_chunk=8) if variant == "scout" else random_model(**VARIANTS[variant])
    tokens = tokens_of(5, 1)[0].tolist()
    with torch.no_grad():
        written = generate(Engine(TorchRunner(model, 8), 8), tokens, Sampling(temperature=0, max_tokens=60))
        plain = list(tokens)
        for _ in range(60):
            plain.append(int(model(torch.tensor([plain]))[0, -1].argmax()))
    assert plain[5:] == written


def test_upcycling_begins_as_the_dense_model_and_then_lets_experts_differ():
    torch.manual_seed(0)
    dense = Llama(ModelSpec("dense", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=300))
    tokens = tokens_of(50)
    exact = upcycle(dense, 8, router_std=0.0)
    routed = upcycle(dense, 8)
    with torch.no_grad():
        torch.testing.assert_close(exact(tokens), dense(tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(routed(tokens), dense(tokens), rtol=0, atol=0.02)
    assert routed.spec.parameters().matrix_active == pytest.approx(dense.spec.parameters().matrix_active, rel=0.02)
    nats, _ = routed.loss(tokens[:, :-1], tokens[:, 1:])
    nats.backward()
    grads = routed.layers[0].ffn.w1.weight.grad
    assert len({g.sum().item() for g in grads}) > 3


def test_upcycling_refuses_what_does_not_divide():
    odd = Llama(ModelSpec("odd", dim=64, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=97, vocab_size=300))
    with pytest.raises(TenfoldError, match="must divide into a shared and a routed half"):
        upcycle(odd, 8)
    with pytest.raises(TenfoldError, match="only a dense Llama 3 can be made into experts"):
        upcycle(random_model(), 8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"experts_per_token": 5}, "experts_per_token 5 must lie between 1 and n_experts 4"),
        ({"expert_ffn_dim": 0}, "needs expert_ffn_dim"),
        ({"moe_every": 9}, "moe_every 9 must lie between 1 and n_layers 4"),
        ({"family": "llama5"}, "no family 'llama5' .did you mean 'llama"),
        ({"family": "llama3"}, "need family = 'llama4'"),
    ],
)
def test_a_shape_that_cannot_be_is_one_sentence(changes, sentence):
    with pytest.raises(TenfoldError, match=sentence):
        ModelSpec("model", **(BASE | changes))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c | {"no_rope_layers": [1, 0, 0, 1]}, "global layers of .* must be every k-th layer"),
        (lambda c: c | {"moe_layers": [0, 3]}, "layers with experts of .* must be every k-th layer"),
        (lambda c: c | {"num_local_experts": 3}, "has shape .4, .*its config says .3, "),
        (lambda c: c | {"model_type": "mixtral"}, "'mixtral' model: only 'llama', 'llama4', 'llama4_text'.* can be read"),
        (lambda c: {k: v for k, v in c.items() if k != "num_local_experts"}, "lacks 'num_local_experts'"),
    ],
)
def test_a_directory_of_another_shape_is_one_sentence(tmp_path, change, sentence):
    import json

    write_model(random_model(), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(change(json.loads(config.read_text()))))
    with pytest.raises(TenfoldError, match=sentence):
        read_model(tmp_path)


def test_a_missing_expert_weight_is_named(tmp_path):
    write_model(random_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.feed_forward.experts.down_proj"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TenfoldError, match=r"lacks the tensor 'model.layers.1.feed_forward.experts.down_proj'"):
        read_model(tmp_path)


SHAPES = """
import sys
from tenfold.model.build import make_model, make_shapes
from tenfold.spec.model import ModelSpec
for family in ({}, {"family": "llama4", "n_experts": 4, "expert_ffn_dim": 40, "attention_chunk": 8, "nope_every": 4}):
    spec = ModelSpec(name="s", dim=32, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=64, **family)
    shapes = make_shapes(spec)
    assert {n: p.shape for n, p in shapes.named_parameters()} == {n: p.shape for n, p in make_model(spec).named_parameters()}
    assert all(t.is_meta for t in (*shapes.parameters(), *shapes.buffers()))
assert "torch._dynamo" not in sys.modules
"""


def test_shapes_are_those_of_a_model_and_import_no_compiler():
    done = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-400:]
