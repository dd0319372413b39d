"""GGUF files of experts and of SentencePiece: opened in llama.cpp, and read again."""

import io
import json
from dataclasses import replace

import pytest
import torch
from chat_models import WORDS, chat_model
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer

from tenfold.model.io.ask_llamacpp import ask
from tenfold.model.io.export import export
from tenfold.model.io.gguf_tokenizer import read_gguf_tokenizer
from tenfold.model.io.gguf_writer import write_gguf
from tenfold.model.io.huggingface import read_model, read_spec, write_model
from tenfold.model.io.tokenizer import read_tokenizer, save_tokenizer
from tenfold.model.llama import rope_frequencies
from tenfold.model.llama4 import Llama4
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.vocabulary import Vocabulary

EXPERTS = ModelSpec(
    "experts", family="llama4", dim=64, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=96, vocab_size=302, context=256, n_experts=4,
    experts_per_token=2, expert_ffn_dim=32, moe_every=2, attention_chunk=8192, nope_every=4, qk_norm=True, temperature_floor=8192,
)  # fmt: skip
TEXTS = ["What is 3 + 4?", " two  spaces\n\nand lines\t", "naïve 日本語 😀", "<s>not a beginning</s>", "<b>bold</b>"]


def experts(directory, **changes):
    """A model with experts whose answers depend on which of them are chosen."""
    source = chat_model(directory)
    torch.manual_seed(0)
    model = Llama4(replace(EXPERTS, **changes))
    for p in model.parameters():
        p.data.mul_(2)
    write_model(model, source, source)
    return source


@pytest.mark.parametrize("stretch", [None, RopeScaling(16.0, 1.0, 1.0, 32)], ids=["plain", "stretched"])
def test_experts_answer_in_llamacpp_as_here_and_are_read_again(tmp_path, stretch):
    pytest.importorskip("xllamacpp")
    source = experts(tmp_path / "model", rope_scaling=stretch)
    done = export(source, "gguf:f32", tmp_path / "x.gguf")
    assert "3 of 3 greedy answers are equal to ours, token for token" in " ".join(done.notes)
    one, other = read_model(source), read_model(done.path)
    assert replace(other.spec, name=one.spec.name, rope_scaling=stretch) == one.spec
    assert torch.allclose(rope_frequencies(other.spec), rope_frequencies(one.spec))
    for name, p in other.state_dict().items():
        assert torch.equal(p, one.state_dict()[name]), name
    for kind in ("q8_0", "q4_0"):
        assert "llama.cpp opens it" in " ".join(export(source, f"gguf:{kind}", tmp_path / f"{kind}.gguf").notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_chunk": 64}, "attention in chunks of 64 tokens"),
        ({"nope_every": 2}, "other global layers"),
        ({"qk_norm": False}, "qk_norm = False with 4 experts"),
        ({"temperature_floor": 100}, "differs from temperature_floor = 8192"),
    ],
)
def test_a_model_that_llamacpp_would_compute_otherwise_is_refused(tmp_path, changes, said):
    with pytest.raises(TenfoldError, match=said):
        write_gguf(experts(tmp_path / "model", **changes), tmp_path / "x.gguf", "f16")


def sentencepiece_model(directory, **options):
    """A tiny model with a tokenizer.model of its own."""
    source, trained = chat_model(directory), io.BytesIO()
    lines = [line for line in (WORDS * 20).splitlines() if line] + ["naïve 日本語"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, vocab_size=350, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, **options,
    )  # fmt: skip
    for file in source.glob("token*"):
        file.unlink()
    (source / "tokenizer.model").write_bytes(trained.getvalue())
    spec = replace(read_spec(source), vocab_size=read_tokenizer(source).get_vocab_size())
    torch.manual_seed(0)
    write_model(type(read_model(source))(spec), source, source)
    return source


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_goes_out_and_llamacpp_has_the_same_tokens(tmp_path, prefix):
    pytest.importorskip("xllamacpp")
    source = sentencepiece_model(tmp_path / "model", add_dummy_prefix=prefix, user_defined_symbols=[] if prefix else ["<b>"])
    done = export(source, "gguf:f32", tmp_path / "x.gguf")
    assert "3 of 3 greedy answers are equal to ours, token for token" in " ".join(done.notes)
    ours, again = read_tokenizer(source), read_gguf_tokenizer(done.path)
    found = [ours.encode(text).ids for text in TEXTS]
    assert [again.encode(text).ids for text in TEXTS] == found
    assert [count for count, _ in ask(str(done.path), [(text, 1) for text in TEXTS])] == [len(ids) for ids in found]


def test_a_tokenizer_that_scores_do_not_say_is_refused(tmp_path):
    source = sentencepiece_model(tmp_path / "model")
    stored = json.loads((source / "tokenizer.json").read_text())
    for change, said in (
        ({"merges": stored["model"]["merges"][:-1]}, "merges that cannot be expressed as scores"),
        ({"vocab": {k: v for k, v in stored["model"]["vocab"].items() if k != "<0x00>"}}, "no tokens for some bytes"),
    ):
        other = Tokenizer.from_str(json.dumps(stored | {"model": stored["model"] | change}))
        save_tokenizer(other, Vocabulary(size=other.get_vocab_size(), eos=(2,)), source)
        with pytest.raises(TenfoldError, match=said):
            write_gguf(source, tmp_path / "x.gguf", "f16")
