"""Our Llama against Hugging Face's, with random weights of every variant and with real ones."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tenfold.model.io import huggingface
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.llama import Llama
from tenfold.serve.complete import generate
from tenfold.serve.engine.engine import Engine
from tenfold.serve.request import Sampling
from tenfold.serve.runners.runner import TorchRunner
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling

BASE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 96, "vocab_size": 300, "context": 512, "head_dim": 16}
VARIANTS = {
    "llama 3": {"n_kv_heads": 2},
    "all heads": {},
    "one key-value head": {"n_kv_heads": 1},
    "3.1 with stretched positions": {"n_kv_heads": 2, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
    "3.2, tied": {"n_kv_heads": 2, "tied": True, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 64)},
    "wide heads": {"head_dim": 32, "n_heads": 2, "n_kv_heads": 1},
}


def random_model(**changes) -> Llama:
    torch.manual_seed(0)
    model = Llama(ModelSpec("model", **(BASE | changes)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_agree_with_transformers(variant, tmp_path):
    model = random_model(**VARIANTS[variant])
    write_model(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.randint(0, 300, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shard_bytes", [huggingface.SHARD_BYTES, 40_000])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", shard_bytes)
    model = random_model(**VARIANTS["3.2, tied"])
    write_model(model, tmp_path / "model")
    again = read_model(tmp_path / "model")
    assert again.spec == model.spec
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > (shard_bytes < 10**6)
    for ours, read in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, read)


def test_documents_do_not_see_each_other():
    model = random_model()
    a, b = torch.randint(0, 300, (1, 20)), torch.randint(0, 300, (1, 30))
    document = torch.tensor([[0] * 20 + [1] * 30])
    with torch.no_grad():
        together = model(torch.cat((a, b), 1), document)
        torch.testing.assert_close(together[:, :20], model(a), rtol=0, atol=1e-5)
        torch.testing.assert_close(together[:, 20:], model(b), rtol=0, atol=1e-5)


def written_by(model, tokens, **sampling) -> list[int]:
    return generate(Engine(TorchRunner(model, 2), 2), tokens, Sampling(**sampling))


def test_the_cache_changes_nothing():
    model = random_model(n_kv_heads=2)
    tokens = [5, 17, 200, 3]
    with torch.no_grad():
        written = written_by(model, tokens, max_tokens=12, temperature=0)
        plain = list(tokens)
        for _ in range(12):
            plain.append(int(model(torch.tensor([plain]))[0, -1].argmax()))
    assert plain[4:] == written
    assert written_by(model, tokens, max_tokens=9, seed=1) == written_by(model, tokens, max_tokens=9, seed=1)


def damage(directory, kind):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    if kind == "no config":
        (directory / "config.json").unlink()
    elif kind == "missing tensor":
        del tensors["model.norm.weight"]
        save_file(tensors, file)
    elif kind == "wrong shape":
        tensors["model.norm.weight"] = torch.ones(65)
        save_file(tensors, file)
    elif kind == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "missing file":
        file.unlink()
    else:
        config = directory / "config.json"
        config.write_text(config.read_text().replace('"llama"', '"mamba"'))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("no config", "no config.json"),
        ("missing tensor", "lacks the tensor 'model.norm.weight'"),
        ("wrong shape", r"model.norm.weight has shape \(65,\), its config says \(64,\)"),
        ("cut short", "damaged or cut short"),
        ("missing file", "lacks model.safetensors"),
        ("another family", "'mamba' model"),
    ],
)
def test_a_damaged_directory_is_one_sentence(tmp_path, kind, sentence):
    write_model(random_model(), tmp_path)
    damage(tmp_path, kind)
    with pytest.raises(TenfoldError, match=sentence):
        read_model(tmp_path)
