"""From messy sources to a corpus: what is kept, what is left out and said so."""

import gzip
import json
import random
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tenfold.cli.commands import run
from tenfold.data.text import documents
from tenfold.data.text.batches import train_batch
from tenfold.data.text.corpus import build, open_corpus, require_tokens
from tenfold.data.text.dedup import PERMUTATIONS, near_copies, signature
from tenfold.data.text.encode import TextEncoder
from tenfold.data.text.sources import read_documents
from tenfold.spec.errors import TenfoldError

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
]


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
    rows = "".join(json.dumps({"text": prose(i, 2000)}) + "\n" for i in range(10)).encode()
    table = pyarrow.table({"text": [prose(i) for i in range(100)]})
    pyarrow.parquet.write_table(table, tmp_path / "whole")
    files = {
        "binary": b"\0\1\2" * 100,
        "cut.jsonl.gz": gzip.compress(rows)[:-2000],
        "cut.jsonl.zst": zstandard.compress(rows)[:-2000],
        "cut.parquet": (tmp_path / "whole").read_bytes()[:-10],
        "latin": "né".encode("latin-1") * 100,
        "latin.jsonl": b'{"text": "n\xe9"}\n' + rows,
        "other.jsonl": b'{"body": 1}\n' + rows,
    }
    (tmp_path / "whole").unlink()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "fine.txt").write_text(prose(2))
    problems, kept = {}, {}
    for document in read_documents(tmp_path):
        name = document.name.rsplit("/", 1)[1].split(":")[0]
        kept[name] = kept.get(name, 0) + (not document.problem)
        if document.problem:
            problems[name] = document.problem
    assert problems == {
        "binary": "binary",
        "cut.jsonl.gz": "damaged or cut archive",
        "cut.jsonl.zst": "damaged or cut archive",
        "cut.parquet": "damaged or cut Parquet",
        "latin": "not UTF-8",
        "latin.jsonl": "not UTF-8",
        "other.jsonl": "no text in 'text'",
    }
    # What came before the damage is kept, but for the little that was being read; what comes after a bad row is too.
    assert kept["cut.jsonl.gz"] >= 5 and kept["fine.txt"] == 1 and kept["latin.jsonl"] == kept["other.jsonl"] == 10


def test_archives_behind_one_another_are_all_read(tmp_path):
    for ending, compress in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        parts = [compress(json.dumps({"text": prose(i)}).encode() + b"\n") for i in range(3)]
        (tmp_path / f"a.jsonl{ending}").write_bytes(b"".join(parts))
        assert [d.text for d in read_documents(tmp_path / f"a.jsonl{ending}")] == [prose(i) for i in range(3)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("ab \né日😀"), max_size=120))
def test_a_long_text_is_parted_and_nothing_is_lost(tmp_path, monkeypatch, text):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 16)
    (tmp_path / "long.txt").write_bytes(text.encode())
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": text}))
    for name in ("long.txt", "long.jsonl"):
        parts = list(read_documents(tmp_path / name))
        assert "".join(d.text for d in parts) == text and not any(d.problem for d in parts)
        assert all(len(d.text.encode()) <= 16 for d in parts)


def test_a_line_of_200_mb_takes_little_memory_and_loses_nothing(tmp_path):
    line = b"word " * 200_000
    with (tmp_path / "long.txt").open("wb") as text, (tmp_path / "long.jsonl").open("wb") as rows:
        rows.write(b'{"text": "')
        for _ in range(200):
            text.write(line)
            rows.write(line)
        rows.write(b'"}\n' + json.dumps({"text": prose(0)}).encode())
    tracemalloc.start()
    documents = list(map(lambda d: (len(d.text), d.problem), read_documents(tmp_path / "long.txt")))
    rows = [(d.name.rsplit(":")[1], d.problem) for d in read_documents(tmp_path / "long.jsonl")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(length for length, _ in documents) == 200_000_000 and not any(problem for _, problem in documents)
    assert rows == [("1", "a line longer than 16 MiB"), ("2", "")]
    assert peak < 64 * 2**20


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


def jaccard(a: str, b: str) -> float:
    """Of word 5-grams, exactly."""
    first, second = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (re.findall(r"\w+", t) for t in (a, b)))
    return len(first & second) / max(1, len(first | second))


def test_signatures_estimate_the_similarity_of_word_5_grams():
    first = prose(0, 1000)
    words = first.split()
    for changed in (2, 10, 30, 100, 1000):
        draw = random.Random(changed)
        second = " ".join(w if draw.randrange(1000) >= changed else w + "x" for w in words)
        estimate = np.mean(signature(first.encode()) == signature(second.encode()))
        assert estimate == pytest.approx(jaccard(first, second), abs=0.2)  # 64 places: a standard error of at most 0.063
    # Spaces and punctuation between the words do not count.
    assert np.array_equal(signature(first.encode()), signature(first.replace(" ", ",\n").encode()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(groups=st.lists(st.integers(0, 12), min_size=1, max_size=60), ignored=st.integers(0, 60))
def test_near_copies_are_those_of_a_direct_search(tmp_path, groups, ignored):
    draw = np.random.default_rng(0)
    base = draw.integers(0, 2**32, (13, PERMUTATIONS), dtype=np.uint32)
    signatures = base[groups]
    # Each keeps 58 of the 64 places of its group, so that two of one group agree in 52 or more: 0.81.
    for row in signatures:
        row[draw.choice(PERMUTATIONS, 6, replace=False)] = draw.integers(0, 2**32, 6)
    candidates = np.arange(len(groups)) != ignored
    (tmp_path / "signatures").write_bytes(signatures.tobytes())
    found = near_copies(tmp_path / "signatures", candidates)
    seen: set[int] = set()
    expected = []
    for group, candidate in zip(groups, candidates, strict=True):
        expected.append(bool(candidate and group in seen))
        seen |= {group} if candidate else set()
    assert found.tolist() == expected


def test_the_two_splits_hold_no_near_copies(tmp_path):
    (tmp_path / "source").mkdir()
    for i in range(300):
        words = prose(i // 2, 300).split()
        words[i % 300] = "changed"  # two versions of each text, 150 texts
        (tmp_path / "source" / f"{i}.txt").write_text(" ".join(words))
    corpus = build(tmp_path / "source", tmp_path / "out", vocab_size=300, quiet=True)
    train, validation = (
        [corpus.text(split, i) for i in range(corpus.manifest["splits"][split]["documents"])] for split in ("train", "validation")
    )
    assert corpus.manifest["cleaning"]["dropped"]["near copy"]["documents"] == 150
    assert len(train) + len(validation) == 150 and validation
    assert max(jaccard(a, b) for a in validation for b in train) < 0.5


def test_the_shards_decode_to_the_kept_documents(tmp_path, monkeypatch):
    texts = {prose(i, 60 + i) for i in range(60)} | {
        "".join(random.Random(i).choices("日本語のテキスト、", k=180)) for i in range(3)
    }
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in sorted(texts)))
    one = build(tmp_path / "a.jsonl", tmp_path / "one", vocab_size=300, quiet=True)
    monkeypatch.setattr("tenfold.data.text.corpus.SHARD_TOKENS", 1000)
    many = build(tmp_path / "a.jsonl", tmp_path / "many", vocab_size=300, quiet=True)
    assert len(list(many.directory.glob("train-0*.bin"))) > 5
    found = []
    for split, sizes in many.manifest["splits"].items():
        stream = np.asarray(many.tokens(split))
        assert np.array_equal(stream, one.tokens(split)) and len(stream) == sizes["tokens"] == len(many.tokens(split))
        written = [many.text(split, i) for i in range(sizes["documents"])]
        assert sum(len(text.encode()) for text in written) == sizes["bytes"]
        # Tokens are those of `tokenizers` itself, which is another implementation than the one that wrote them.
        assert stream.tolist() == [t for text in written for t in [*many.tokenizer.encode(text).ids, 1]]
        found += written
    assert set(found) == texts and len(found) == len(texts)
    for step in range(3):
        batches = [train_batch(c, step, batch_size=4, seq_len=300, seed=1).tokens for c in (one, many)]
        assert np.array_equal(*batches)


def test_documents_do_not_stand_in_the_order_of_the_source(tmp_path):
    texts = [prose(i) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in reversed(texts)))
    streams = [build(tmp_path / n, tmp_path / f"{n}.out", vocab_size=300, quiet=True) for n in ("a.jsonl", "b.jsonl")]
    order = [texts.index(streams[0].text("train", i)) for i in range(streams[0].manifest["splits"]["train"]["documents"])]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.3
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.05
    # The order is the documents' own: another order of the source gives the same corpus.
    assert streams[0].manifest["files"] == streams[1].manifest["files"]


MEASURE = """
import resource, sys
from pathlib import Path
from tenfold.data.text.corpus import build
build(sys.argv[1], Path(sys.argv[2]), vocab_size=400, quiet=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = []
    for megabytes in (20, 80):
        with (tmp_path / f"{megabytes}.jsonl").open("w") as stream:
            for i in range(megabytes * 100):
                stream.write(json.dumps({"text": prose(i, 1250)}) + "\n")  # 10 kB
        command = [sys.executable, "-c", MEASURE, tmp_path / f"{megabytes}.jsonl", tmp_path / f"{megabytes}"]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024)
    assert peaks[1] < peaks[0] + 20


def test_the_tokenizer_reads_back_what_it_wrote_in_every_library(corpus):
    text = "def f(x):\n    return x ** 2  # naïve — 12345 日本語\n\n\tif x:\r\n"
    ours = corpus.tokenizer
    theirs = AutoTokenizer.from_pretrained(corpus.directory)
    ids = ours.encode(text, add_special_tokens=False).ids
    assert TextEncoder(ours)([text]) == [ids] == [theirs.encode(text, add_special_tokens=False)]
    assert ours.decode(ids) == text
    assert sum(corpus.token_bytes[i] for i in ids) == len(text.encode())


def test_an_existing_corpus_is_opened_and_a_damaged_one_refused(corpus, text_folder, tmp_path):
    copy = build(text_folder, tmp_path / "c", vocab_size=400, quiet=True)
    assert copy.manifest["files"] == corpus.manifest["files"]
    shard = copy.directory / "train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    open_corpus(copy.directory)
    with pytest.raises(TenfoldError, match=r"train-00000.bin is damaged"):
        open_corpus(copy.directory, verify=True)
    run(["data", "show", str(copy.directory)])
    with pytest.raises(TenfoldError):
        run(["data", "show", str(copy.directory), "--verify"])
    shard.write_bytes(data[:-2])
    with pytest.raises(TenfoldError, match=r"train-00000.bin is damaged"):
        open_corpus(copy.directory)
    shard.unlink()
    with pytest.raises(TenfoldError, match=r"train-00000.bin is missing"):
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
