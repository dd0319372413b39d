"""Models in the layouts of other tools: read back by other readers than the writer, and opened in llama.cpp and transformers."""

import ctypes
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import chat_model
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from tenfold.cli.commands import run
from tenfold.model.io.compare import PROMPTS, answers
from tenfold.model.io.export import export
from tenfold.model.io.gguf_tokenizer import read_gguf_tokenizer
from tenfold.model.io.gguf_writer import quantised, write_gguf
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.io.runtimes import open_in_llamacpp
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling

TINY = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96, "vocab_size": 300, "context": 128}


def tiny(directory, **changes):
    """A model of random weights without a tokenizer."""
    torch.manual_seed(1)
    write_model(Llama(ModelSpec("tiny", **(TINY | changes))), directory)
    return directory


@pytest.mark.parametrize(("kind", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_gguf_weights_are_those_of_the_model_to_the_bit(tmp_path, kind, dtype):
    source, file = chat_model(tmp_path / "model"), tmp_path / "x.gguf"
    write_gguf(source, file, kind)
    ours, again = read_model(source), read_model(file)
    for (name, p), q in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p if p.ndim < 2 else p.to(dtype).float(), q), name
    tensors = {t.name: t for t in GGUFReader(file).tensors}
    stored = dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
    assert torch.equal(torch.from_numpy(stored.copy()), ours.blocks[1].ffn.w3.weight.detach().to(dtype).float())
    assert again.spec.context == ours.spec.context and again.spec.norm_eps == ours.spec.norm_eps


def test_transformers_reads_the_gguf_file_as_the_same_model(tmp_path):
    source, file = chat_model(tmp_path / "model"), tmp_path / "x.gguf"
    write_gguf(source, file, "f32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(read_model(source)(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_tokenizer_special_tokens_and_template_travel(tmp_path):
    source, file = chat_model(tmp_path / "model"), tmp_path / "x.gguf"
    notes = write_gguf(source, file, "f16")
    ours, again = read_vocabulary(source), read_vocabulary(file)
    assert (again.eos, again.pad, again.chat_template) == (ours.eos, ours.pad, ours.chat_template)
    assert again.special == ours.special and any("'llama-bpe'" in note for note in notes)
    for text in ("Hello there, 3 + 4?\n\n", "naïve 日本語  \t", "<|im_start|>user\nWhat<|im_end|>"):
        assert read_gguf_tokenizer(file).encode(text).ids == read_tokenizer(source).encode(text).ids


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k"])
def test_an_export_is_opened_in_llamacpp_and_says_what_was_found(tmp_path, kind):
    pytest.importorskip("xllamacpp")
    done = export(chat_model(tmp_path / "model"), f"gguf:{kind}", tmp_path / "x.gguf")
    said = " ".join(done.notes)
    assert done.path.exists() and "llama.cpp opens it" in said and "nats a token" in said
    if kind == "f16":
        assert "3 of 3 greedy answers" in said
    assert ("do not fill the blocks" in said) == (kind in ("q4_0", "q4_k"))  # rows of 32 and 64 fill no block of 256


def test_stretched_positions_are_those_of_llamacpp(tmp_path):
    pytest.importorskip("xllamacpp")
    source = chat_model(tmp_path / "model", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16))
    assert "3 of 3 greedy answers" in " ".join(export(source, "gguf:f32", tmp_path / "x.gguf").notes)


STRETCHES = {
    "linear": RopeScaling(4.0, original_context=64, rope_type="linear"),
    "dynamic": RopeScaling(4.0, original_context=64, rope_type="dynamic"),
    "yarn": RopeScaling(4.0, original_context=64, rope_type="yarn"),
    "yarn by its own": RopeScaling(4.0, original_context=64, rope_type="yarn", attention_factor=1.5),
}


@pytest.mark.parametrize("stretch", STRETCHES)
def test_other_stretches_and_biases_are_llamacpp_s(tmp_path, stretch):
    """Answers of llama.cpp to prompts that are longer than the original context."""
    pytest.importorskip("xllamacpp")
    shape = {"context": 512, "rope_scaling": STRETCHES[stretch], "attention_bias": True, "mlp_bias": True}
    source, file = chat_model(tmp_path / "model", **shape), tmp_path / "x.gguf"
    model = read_model(source)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=generator) * 0.3)
    write_model(model, source, source)
    write_gguf(source, file, "f32")
    again = read_model(file)
    assert again.spec.parameters() == model.spec.parameters()
    said = answers(again, read_tokenizer(file), [text * 12 for text in PROMPTS[:3]])
    assert min(answer.begin for answer in said) > 64
    assert "3 of 3 greedy answers are equal" in open_in_llamacpp(file, said, plain=True)
    ours = answers(model, read_tokenizer(source), [text * 12 for text in PROMPTS[:3]])
    for one, other in zip(ours, said, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-4)


def test_another_model_is_told_by_its_answers_in_llamacpp(tmp_path):
    pytest.importorskip("xllamacpp")
    write_gguf(chat_model(tmp_path / "one"), tmp_path / "x.gguf", "f16")
    other = chat_model(tmp_path / "other", seed=1)
    with pytest.raises(TenfoldError, match="less likely here"):
        open_in_llamacpp(tmp_path / "x.gguf", answers(read_model(other), read_tokenizer(other)), plain=True)


def test_meta_layout_gives_the_logits_of_metas_formulas(tmp_path):
    source = tiny(tmp_path / "model")
    done = export(source, "meta:f32", tmp_path / "meta")
    assert sorted(p.name for p in done.path.iterdir()) == ["consolidated.00.pth", "params.json"]
    params = json.loads((done.path / "params.json").read_text())
    weights = torch.load(done.path / "consolidated.00.pth", weights_only=True)
    hidden = int(2 * 4 * params["dim"] / 3)
    hidden = params["multiple_of"] * -(-int(params["ffn_dim_multiplier"] * hidden) // params["multiple_of"])
    assert weights["layers.0.feed_forward.w1.weight"].shape == (hidden, params["dim"])
    tokens = torch.arange(20)
    with torch.no_grad():
        torch.testing.assert_close(meta_forward(params, weights, tokens), read_model(source)(tokens[None])[0], rtol=0, atol=1e-5)


def meta_forward(params, w, tokens):
    """llama-models `models/llama3/model.py`, on one sequence."""
    T, heads, kv = len(tokens), params["n_heads"], params["n_kv_heads"]
    head = params["dim"] // heads
    freqs = 1.0 / params["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
    turn = torch.polar(torch.ones(T, head // 2), torch.outer(torch.arange(T).float(), freqs))[:, None]

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weight

    def rotate(x):
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(-2)

    h = w["tok_embeddings.weight"][tokens]
    for layer in (f"layers.{i}." for i in range(params["n_layers"])):
        x = norm(h, w[layer + "attention_norm.weight"])
        q, k, v = (
            (x @ w[f"{layer}attention.w{n}.weight"].T).view(T, count, head) for n, count in (("q", heads), ("k", kv), ("v", kv))
        )
        k, v = (t.repeat_interleave(heads // kv, 1) for t in (rotate(k), v))
        scores = torch.einsum("qhd,khd->hqk", rotate(q), k) / head**0.5 + torch.full((T, T), -torch.inf).triu(1)
        h = h + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ w[layer + "attention.wo.weight"].T
        x = norm(h, w[layer + "ffn_norm.weight"])
        w1, w2, w3 = (w[f"{layer}feed_forward.w{n}.weight"] for n in "123")
        h = h + (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T
    return norm(h, w["norm.weight"]) @ w["output.weight"].T


def test_hugging_face_layout_is_opened_in_transformers(tmp_path):
    done = export(chat_model(tmp_path / "model"), "hf:bf16", tmp_path / "out")
    assert "transformers opens it" in " ".join(done.notes)
    assert AutoModelForCausalLM.from_pretrained(done.path).dtype == torch.bfloat16
    assert re.search(r'chkhsh == "[0-9a-f]{64}": res = "llama-bpe"', " ".join(done.notes))


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(tmp_path):
    source, out = tiny(tmp_path / "model", head_dim=32), tmp_path / "out"
    for to, said in [
        ("gguf:q9", "no format 'q9' of gguf"),
        ("onnx", "no layout 'onnx'"),
        ("meta", "no place for heads of 32"),
        ("gguf", r"is not a name for a GGUF file"),
    ]:
        with pytest.raises(TenfoldError, match=said):
            export(source, to, out)
        assert not out.exists()


def test_a_foreign_split_is_refused_by_name(tmp_path):
    source = chat_model(tmp_path / "model")
    stored = json.loads((source / "tokenizer.json").read_text())
    stored["pre_tokenizer"] = {"type": "Whitespace"}
    (source / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(TenfoldError, match="no name in GGUF"):
        export(source, "gguf", tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def test_the_command_says_what_it_did_and_files_follow_the_umask(tmp_path, capsys):
    source, out = chat_model(tmp_path / "model"), tmp_path / "out"
    before = os.umask(0o027)
    try:
        assert run(["export", str(source), "--to", "hf:f32", "--out", str(out)]) in (0, None)
    finally:
        os.umask(before)
    assert "is done" in capsys.readouterr().out
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in out.iterdir()}
    assert set(modes.values()) == {"0o640"}, modes


def test_a_model_without_a_tokenizer_is_exported(tmp_path):
    done = export(tiny(tmp_path / "model"), "gguf:f16", tmp_path / "x.gguf")
    assert "has no tokenizer" in " ".join(done.notes)
    assert all(torch.equal(p.half().float() if p.ndim > 1 else p, q) for p, q in zip(
        read_model(tmp_path / "model").parameters(), read_model(done.path).parameters(), strict=True))  # fmt: skip


def test_a_shape_that_groups_of_32_do_not_fill_goes_to_phones_as_floats_alone(tmp_path):
    with pytest.raises(TenfoldError, match="dim = 48, which is not a multiple of the group size 32: give --to executorch:f32"):
        export(tiny(tmp_path / "model", dim=48, head_dim=16), "executorch:8da4w", tmp_path / "phone")
    assert not (tmp_path / "phone").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "8da4w"])
def test_a_program_for_phones_says_what_the_model_does(tmp_path, kind):
    """ExecuTorch's own runtime runs the file, and its cache; 4 bits stay near the model."""
    pytest.importorskip("executorch")
    done = export(chat_model(tmp_path / "model"), f"executorch:{kind}", tmp_path / "phone")
    assert {file.name for file in (tmp_path / "phone").iterdir()} >= {"model.pte", "tokenizer.json"}
    (said,) = done.notes
    far = float(said.split("from the model ")[1].split()[0])
    assert far < (1e-6 if kind == "f32" else 0.05)
    if kind == "f32":
        assert "6 of 6 greedy answers are equal" in said


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q5_K", "Q6_K"])
def test_what_is_written_are_the_bytes_of_llama_cpp_s_own_quantiser(kind):
    xllamacpp, rows = pytest.importorskip("xllamacpp"), np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    quantize_chunk = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so")))).ggml_quantize_chunk
    quantize_chunk.restype = ctypes.c_size_t
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    theirs = np.zeros((len(rows), rows.shape[1] // block * size), np.uint8)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (rows, theirs))
    counts = (ctypes.c_int64(count) for count in (0, *rows.shape))
    assert quantize_chunk(int(GGMLQuantizationType[kind]), *pointers, *counts, None) == theirs.size
    assert np.array_equal(quantised(rows, kind), theirs)


def test_a_text_that_the_context_cuts_off_says_so(tmp_path, capsys):
    source = chat_model(tmp_path / "model", context=16)
    arguments = ["sample", str(source), "Hello there", "--temperature", "0"]
    run([*arguments, "--max-new-tokens", "100"])
    assert "at the 16 tokens that the model was trained on" in capsys.readouterr().err
    run([*arguments, "--max-new-tokens", "1"])
    assert capsys.readouterr().err == ""


def test_upcycled_from_a_gguf_file_a_model_keeps_its_tokenizer_and_ids(tmp_path, capsys):
    source, file = chat_model(tmp_path / "model"), tmp_path / "x.gguf"
    write_gguf(source, file, "f32")
    for model, out in ((source, "one"), (file, "other")):
        run(["upcycle", str(model), "--out", str(tmp_path / out), "--experts", "2"])
        ours, again = read_vocabulary(model), read_vocabulary(tmp_path / out)
        assert (again.eos, again.pad, again.chat_template, again.special) == (ours.eos, ours.pad, ours.chat_template, ours.special)
        assert json.loads((tmp_path / out / "config.json").read_text())["eos_token_id"] == ours.eos[0]
        theirs = AutoTokenizer.from_pretrained(tmp_path / out)
        assert theirs("Hello there").input_ids == read_tokenizer(model).encode("Hello there").ids
