"""From messy sources to a corpus: what is kept, what is left out and said so."""

import gzip
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from transformers import AutoTokenizer

from tenfold.data.corpus import build, open_corpus, require_tokens
from tenfold.data.sources import read_documents
from tenfold.data.tokenizer import fast_encoder
from tenfold.spec.errors import TenfoldError

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "sigma", "tau"]


def prose(seed: int, words: int = 120) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randrange(50)) for _ in range(words)) + ".\n"


def test_every_kind_of_file_gives_its_documents(tmp_path):
    texts = [prose(i) for i in range(12)]
    rows = [json.dumps({"text": t}) for t in texts]
    (tmp_path / "a.txt").write_text(texts[0])
    (tmp_path / "b.jsonl").write_text("\n".join(rows[1:3]) + "\nnot json\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[3:6]).encode()))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress("\n".join(rows[6:9]).encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[9:12]}), tmp_path / "e.parquet")
    found = list(read_documents(tmp_path))
    assert [d.text for d in found if not d.problem] == texts
    assert [d.problem for d in found if d.problem] == ["not JSON"]


def test_what_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path):
    (tmp_path / "binary").write_bytes(b"\0\1\2" * 100)
    (tmp_path / "latin").write_bytes("né".encode("latin-1") * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": prose(1)}).encode() * 50)[:60])
    (tmp_path / "fine.txt").write_text(prose(2))
    problems = {d.name.rsplit("/", 1)[1].split(":")[0]: d.problem for d in read_documents(tmp_path)}
    assert problems["binary"] == "binary"
    assert problems["latin"] == "not UTF-8"
    assert problems["cut.jsonl.gz"].startswith("damaged archive")
    assert problems["fine.txt"] == ""


def test_a_very_long_line_is_cut_without_being_read_whole(tmp_path):
    with (tmp_path / "long.txt").open("w") as stream:
        for _ in range(200):
            stream.write("word " * 200_000)
    (document,) = read_documents(tmp_path)
    assert document.problem == "too long, cut" and len(document.text) == 8 * 2**20


def test_copies_and_near_copies_are_left_out(tmp_path):
    rng = random.Random(0)
    for i in range(80):
        (tmp_path / f"{i:03}.txt").write_text(prose(i, 300))
    (tmp_path / "copy.txt").write_text(prose(5, 300))
    words = prose(7, 300).split()
    words[rng.randrange(300)] = "changed"
    (tmp_path / "near.txt").write_text(" ".join(words))
    manifest = build(tmp_path, tmp_path.parent / "copies", vocab_size=300, quiet=True).manifest
    dropped = manifest["cleaning"]["dropped"]
    assert dropped["exact copy"]["documents"] == 1 and dropped["near copy"]["documents"] == 1
    assert manifest["cleaning"]["kept_documents"] == 80


def test_the_two_splits_share_no_document(corpus):
    documents = {}
    for split in ("train", "validation"):
        tokens = np.asarray(corpus.tokens(split))
        ends = np.flatnonzero(tokens == 1)
        documents[split] = {part.tobytes() for part in np.split(tokens, ends + 1) if len(part)}
        assert len(documents[split]) == corpus.manifest["splits"][split]["documents"]
    assert not documents["train"] & documents["validation"]


def test_the_tokeniser_reads_back_what_it_wrote_in_every_library(corpus):
    text = "def f(x):\n    return x ** 2  # naïve — 12345 日本語\n\n\tif x:\r\n"
    ours = corpus.tokenizer
    theirs = AutoTokenizer.from_pretrained(corpus.directory)
    ids = ours.encode(text, add_special_tokens=False).ids
    assert fast_encoder(ours).encode_ordinary(text) == ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == text
    assert sum(corpus.token_bytes[i] for i in ids) == len(text.encode())


def test_an_existing_corpus_is_opened_and_a_damaged_one_refused(corpus, text_folder, tmp_path):
    copy = build(text_folder, tmp_path / "c", vocab_size=400, quiet=True)
    assert copy.manifest["files"] == corpus.manifest["files"]
    shard = copy.directory / "train.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    open_corpus(copy.directory)
    with pytest.raises(TenfoldError, match=r"train\.bin is damaged"):
        open_corpus(copy.directory, verify=True)
    shard.write_bytes(data[:-2])
    with pytest.raises(TenfoldError, match=r"train\.bin is damaged"):
        open_corpus(copy.directory)


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"short"])
def test_a_corpus_without_usable_text_is_one_sentence(tmp_path, content):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(content)
    with pytest.raises(TenfoldError, match="no usable text"):
        build(tmp_path / "source", tmp_path / "out", quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_unknown_sources_and_columns_suggest_the_nearest(tmp_path):
    with pytest.raises(TenfoldError, match="stdlib"):
        list(read_documents("stdlb"))
    pyarrow.parquet.write_table(pyarrow.table({"texts": ["x"]}), tmp_path / "e.parquet")
    with pytest.raises(TenfoldError, match="'texts'"):
        list(read_documents(tmp_path))


def test_too_little_text_for_the_compute_says_how_much_is_missing(corpus):
    assert require_tokens(corpus, corpus.train_tokens * 2, 4) == pytest.approx(2)
    with pytest.raises(TenfoldError, match=r"8\.0 readings where 4 are allowed: add"):
        require_tokens(corpus, corpus.train_tokens * 8, 4)
