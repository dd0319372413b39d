"""Tokenizers that are stored otherwise than as tokenizer.json: their tokens are those of who published the form."""

import base64
import io
import itertools
import json
import sysconfig
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import AutoTokenizer

from tenfold.data.text.corpus import build
from tenfold.data.text.encode import TextEncoder, token_bytes
from tenfold.model.io.tokenizer import copy_tokenizer, has_tokenizer, read_tokenizer, read_vocabulary
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import LLAMA3_SPLIT, LLAMA4_SPLIT

STDLIB = Path(sysconfig.get_path("stdlib"))
TEXTS = [(STDLIB / name).read_text() for name in ("json/decoder.py", "asyncio/tasks.py")] + ["日本語の文章とnaïve café. " * 30]
LINES = [line.strip() for text in TEXTS for line in text.splitlines() if line.strip()]
WORDS = st.text(st.sampled_from("abcdefinorst  \n\t05._日本é😀ﬁ\u3000"), max_size=30)
PIECES = {  # options of SentencePieceTrainer
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
              "add_dummy_prefix": False, "user_defined_symbols": ["<b>"]},
    "bpe": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram", "hard_vocab_limit": False},
    "unigram of bytes": {"model_type": "unigram", "byte_fallback": True, "hard_vocab_limit": False, "user_defined_symbols": ["<b>"],
                         "add_dummy_prefix": False},
}  # fmt: skip


def trained(**options) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, vocab_size=700, minloglevel=2, **options)
    return model.getvalue()


@pytest.fixture(scope="module")
def sentencepieces(tmp_path_factory):
    found = {}
    for name, options in PIECES.items():
        file = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
        file.write_bytes(trained(**options))
        found[name] = SentencePieceProcessor(model_file=str(file)), read_tokenizer(file), read_vocabulary(file.parent)
    return found


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(list(PIECES)), texts=st.lists(st.one_of(WORDS, st.sampled_from(LINES)), max_size=4))
def test_tokens_are_those_of_sentencepiece(sentencepieces, kind, texts):
    theirs, ours, _ = sentencepieces[kind]
    texts = [*texts, "<b>bold</b> of </s> and <s>"]
    assert TextEncoder(ours)(texts) == [theirs.encode(text) for text in texts]


def test_special_tokens_are_those_of_sentencepiece(sentencepieces):
    for theirs, ours, vocabulary in sentencepieces.values():
        assert (vocabulary.bos, vocabulary.eos, vocabulary.size) == (theirs.bos_id(), (theirs.eos_id(),), theirs.vocab_size())
        assert vocabulary.begin == (theirs.bos_id(),) and ours.encode("abc").ids == [theirs.bos_id(), *theirs.encode("abc")]
        assert ours.decode(ours.encode("the end").ids) == theirs.decode(theirs.encode("the end")) == "the end"


def test_what_tokenizers_cannot_do_of_sentencepiece_is_refused(tmp_path):
    for options, sentence in (
        ({"model_type": "char"}, "is a model of words or characters"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "writes spaces at the end of words"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(trained(**options, hard_vocab_limit=False))
        with pytest.raises(TenfoldError, match=sentence):
            read_tokenizer(tmp_path)
    unknown = sentencepiece_model_pb2.ModelProto.FromString(trained(model_type="bpe"))
    unknown.trainer_spec.unk_id = 10**6
    for damaged in (b"", b"no model", trained(model_type="bpe")[:-3000], unknown.SerializeToString()):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(TenfoldError, match=r"tokenizer.model cannot be read as a SentencePiece model"):
            read_tokenizer(tmp_path)


# Ranks


def ranks_of(count: int) -> dict[bytes, int]:
    """All bytes, and then pairs and threes of letters that occur, until there are `count` tokens."""
    words = sorted(
        {text[i : i + size] for text in TEXTS for size in (2, 3, 4) for i in range(len(text))}, key=lambda w: (len(w), w)
    )
    pairs = (bytes(pair) for pair in itertools.product(range(256), repeat=2))
    threes = (bytes(three) for three in itertools.product(range(97, 97 + 60), repeat=3))
    tokens = itertools.chain((bytes([b]) for b in range(256)), pairs, (word.encode() for word in words), threes)
    return dict(zip(itertools.islice(dict.fromkeys(tokens), count), range(count), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "split", "size", "named"), [
    (128_000, LLAMA3_SPLIT, 128_256, {"<|eot_id|>": 128_009, "<|reserved_special_token_2|>": 128_012, "<|reserved_special_token_245|>": 128_255}),
    (200_000, LLAMA4_SPLIT, 202_048, {"<|eot|>": 200_008, "<|image_start|>": 200_080, "<|patch|>": 200_092,
                                      "<|reasoning_thinking_end|>": 201_143, "<|reserved_special_token_0|>": 201_144}),
])  # fmt: skip
def test_tokens_are_those_of_tiktoken_and_special_ones_those_of_llama(tmp_path, count, split, size, named):
    ranks = ranks_of(count)
    (tmp_path / "tokenizer.model").write_bytes(b"".join(base64.b64encode(t) + f" {rank}\n".encode() for t, rank in ranks.items()))
    theirs = tiktoken.Encoding("theirs", pat_str=split, mergeable_ranks=ranks, special_tokens={})
    assert has_tokenizer(tmp_path)
    vocabulary, ours = read_vocabulary(tmp_path), read_tokenizer(tmp_path)
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos) == (size, count, (count + 1,)) and vocabulary.add_bos
    assert {name: vocabulary.special[name] for name in named} == named and len(vocabulary.special) == size - count
    texts = [*LINES[:400], "<|eot_id|> 12345 'S", "  \n\n x"]
    expected = [theirs.encode_ordinary(text) for text in texts]
    assert TextEncoder(ours)(texts) == expected
    assert [e.ids for e in ours.encode_batch(texts[:400], add_special_tokens=False)] == expected[:400]
    assert int(token_bytes(ours)[expected[0]].sum()) == len(texts[0].encode())


def test_tiktoken_files_of_other_models_and_damaged_ones_are_refused(tmp_path):
    ranks = ranks_of(300)
    rows = b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items())
    (tmp_path / "tokenizer.model").write_bytes(rows)
    with pytest.raises(TenfoldError, match="has 300 tokens, and does not say how text is split"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(rows + b"no row at all\n")
    with pytest.raises(TenfoldError, match="is damaged: it must have a token in base64 and its rank in every line"):
        read_tokenizer(tmp_path)


def test_tekken_has_its_split_and_special_tokens_first(tmp_path):
    ranks = ranks_of(800)
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None} for token, rank in ranks.items()]
    config = {"pattern": r"\p{L}+|\s+|\p{N}|[^\s\p{L}\p{N}]", "default_vocab_size": 760, "default_num_special_tokens": 30}
    theirs = tiktoken.Encoding(
        "theirs", pat_str=config["pattern"], mergeable_ranks={t: r for t, r in ranks.items() if r < 730}, special_tokens={}
    )
    for special in (None, [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(("<unk>", "<s>", "</s>"))]):
        stored = {"config": config, "vocab": vocab} | ({"special_tokens": special} if special else {})
        (tmp_path / "tekken.json").write_text(json.dumps(stored))
        vocabulary = read_vocabulary(tmp_path)
        assert (vocabulary.bos, vocabulary.eos, vocabulary.size) == (1, (2,), 760)
        assert vocabulary.pad == (None if special else 11) and vocabulary.special["<SPECIAL_29>"] == 29
        expected = [[token + 30 for token in theirs.encode_ordinary(text)] for text in LINES]
        assert TextEncoder(read_tokenizer(tmp_path))(LINES) == expected
    for damaged in ({}, {"config": config | {"pattern": "("}, "vocab": vocab}):
        (tmp_path / "tekken.json").write_text(json.dumps(damaged))
        with pytest.raises(TenfoldError, match=r"tekken.json cannot be read as a Mistral tokenizer"):
            read_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(TenfoldError, match=r"generation_config.json is not a JSON object"):
        read_tokenizer(tmp_path)


def test_two_files_of_gpt2_are_read_and_those_of_other_classes_refused(tmp_path):
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(tmp_path))
    assert read_vocabulary(tmp_path).document_end == tokenizer.token_to_id("<|endoftext|>")
    assert TextEncoder(read_tokenizer(tmp_path))(LINES) == [tokenizer.encode(line).ids for line in LINES]
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(TenfoldError, match="belongs to a CLIPTokenizer"):
        read_tokenizer(tmp_path)


def test_a_corpus_takes_a_foreign_tokenizer_and_transformers_reads_it(sentencepieces, tmp_path):
    file = tmp_path / "model" / "tokenizer.model"
    file.parent.mkdir()
    file.write_bytes(trained(**PIECES["llama"]))
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{i} {TEXTS[0][i * 99 : i * 99 + 900]}"}) for i in range(20))
    )
    corpus = build(tmp_path / "rows.jsonl", tmp_path / "corpus", tokenizer_from=file.parent, quiet=True)
    theirs = SentencePieceProcessor(model_file=str(file))
    document = corpus.tokens("train").document(0).tolist()
    assert document == [theirs.bos_id(), *theirs.encode(corpus.text("train", 0)), theirs.eos_id()]
    read = AutoTokenizer.from_pretrained(corpus.directory)
    assert read.encode("the end") == [theirs.bos_id(), *theirs.encode("the end")]
    assert (read.bos_token_id, read.eos_token_id) == (theirs.bos_id(), theirs.eos_id())
    # What the directory says beside the file comes first.
    (file.parent / "tokenizer_config.json").write_text('{"add_bos_token": false, "chat_template": "words"}')
    vocabulary = copy_tokenizer(file.parent, tmp_path)
    assert not vocabulary.add_bos and read_vocabulary(tmp_path) == vocabulary and vocabulary.chat_template == "words"
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("the end").ids == theirs.encode("the end")
