"""Keys of a config.json: what changes the mathematics is computed as `transformers` does, or refused by its name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tenfold.model.io.export import export
from tenfold.model.io.huggingface import read_model, read_parts, read_spec, write_model
from tenfold.model.llama import rope_frequencies
from tenfold.spec.errors import TenfoldError

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
    "vocab_size": 300, "max_position_embeddings": 256,
}  # fmt: skip
VARIANTS = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "attention's biases": {"attention_bias": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn with all it takes": {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3, "beta_fast": 16.0,
        "beta_slow": 2.0, "truncate": False}},
}  # fmt: skip


def theirs(directory, **changes):
    """A model of transformers with random weights, biases too, written by transformers."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(directory)
    return model


def configured(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return directory


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_transformers_is_the_same_here_and_when_it_is_written_again(tmp_path, variant):
    model = theirs(tmp_path / "in", **VARIANTS[variant])
    write_model(read_model(tmp_path / "in"), tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.randint(0, 300, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(tokens).logits
        torch.testing.assert_close(read_model(tmp_path / "in")(tokens), logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(again(tokens).logits, logits, rtol=0, atol=1e-5)
    assert read_spec(tmp_path / "in").parameters().total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("changes", "named"), [
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"sliding_window": 128}, "sliding_window = 128"),
    ({"nobody_thought_of": 1}, "nobody_thought_of = 1"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"auto_map": {"AutoModel": "other.py"}}, "auto_map"),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale = 1.0"),
])  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(tmp_path, changes, named):
    theirs(tmp_path)
    with pytest.raises(TenfoldError, match=named):
        read_model(configured(tmp_path, **changes))


def test_what_changes_nothing_is_let_pass(tmp_path):
    """A config as earlier versions of transformers wrote it, every field of `PretrainedConfig` in it."""
    model = theirs(tmp_path)
    odd = {"pruned_heads": {}, "id2label": {"0": "A"}, "temperature": 1.0, "_name_or_path": "x", "sliding_window": None}
    configured(tmp_path, **LlamaConfig(**SHAPE).to_dict() | odd | {"rope_parameters": None, "rope_theta": 10000.0})
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(read_model(tmp_path)(tokens), model(tokens).logits, rtol=0, atol=1e-5)


def with_tensors(directory, **changes):
    file = directory / "model.safetensors"
    save_file(load_file(file) | changes, file, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("read", [read_model, lambda path: list(read_parts(path))], ids=["whole", "in parts"])
def test_tensors_that_say_something_else_are_refused_and_others_pass(tmp_path, read):
    model = theirs(tmp_path, tie_word_embeddings=True)
    name, head = "model.layers.0.self_attn.rotary_emb.inv_freq", model.lm_head.weight.detach()
    plain = rope_frequencies(read_spec(tmp_path))
    read(with_tensors(tmp_path, **{name: plain.bfloat16(), "lm_head.weight": head.clone()}))
    for more, said in (
        ({"lm_head.weight": head + 1e-3}, "ties the output head to the embedding but holds lm_head.weight, which differs"),
        ({name: plain / 2}, "other rotary frequencies than the config says"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "has a tensor 'model.layers.0.self_attn.q_proj.bias'"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, "stored as torch.int8"),
        ({"model.norm.weight": torch.ones(64).to(torch.float8_e4m3fn)}, "stored as torch.float8_e4m3fn"),
    ):
        kept = (tmp_path / "model.safetensors").read_bytes()
        with pytest.raises(TenfoldError, match=said):
            read(with_tensors(tmp_path, **more))
        (tmp_path / "model.safetensors").write_bytes(kept)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_pytorch_files_are_read_in_shards(tmp_path, zipped):
    model = theirs(tmp_path)
    tensors = list(model.state_dict().items())
    shards = {"pytorch_model-00001-of-00002.bin": tensors[:5], "pytorch_model-00002-of-00002.bin": tensors[5:]}
    for file, shard in shards.items():
        torch.save(dict(shard), tmp_path / file, _use_new_zipfile_serialization=zipped)
    index = {"weight_map": {name: file for file, shard in shards.items() for name, _ in shard}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        tokens = torch.arange(9)[None]
        torch.testing.assert_close(read_model(tmp_path)(tokens), model(tokens).logits, rtol=0, atol=1e-5)


class Evil:
    def __reduce__(self):
        return (print, ("run by unpickling",))


def test_a_pickle_runs_nothing(tmp_path, capsys):
    theirs(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TenfoldError, match="holds more than tensors"):
        read_model(tmp_path)
    assert "run by" not in capsys.readouterr().out


def test_biases_have_no_place_in_metas_layout(tmp_path):
    theirs(tmp_path / "in", attention_bias=True, mlp_bias=True)
    with pytest.raises(TenfoldError, match="has no place for the biases of in"):
        export(tmp_path / "in", "meta", tmp_path / "out")
    assert not (tmp_path / "out").exists()
