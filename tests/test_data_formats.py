"""Files as other tools write them: their rows are read, or they are named; nothing is taken for text that is none."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import datasets
import pandas
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tenfold.cli.commands import run
from tenfold.data.text.corpus import build
from tenfold.data.text.dedup import word_shingles
from tenfold.data.text.options import ReadOptions, TextOptions
from tenfold.data.text.sources import read_documents
from tenfold.spec.errors import TenfoldError

TEXTS = [
    'Plain words, with a comma, a "quotation" and a tab\there; a semicolon | and a bar.',
    "Two lines,\nthe second of them with \\ and 'single' marks.\n\nA blank line before this one.",
    "日本語の文章、中文的句子，한국어 문장, ελληνικά, हिन्दी, ไทย 😀",
    '{"looks": "like JSON"} <b>and like HTML</b> &amp; [a](link)',
    "007",
    "=1+1 and NaN, null, true: words like any others ",
]
TABLE = {"id": list(range(len(TEXTS))), "text": TEXTS, "score": [0.5, None, 1.5, float("nan"), -1.0, 2.0]}
COMPRESSORS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
}
LINES = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))
PAGE = "<!DOCTYPE html><html><head><title>T</title><script>x = 1</script></head><body><p>Words &amp; more.</p></body></html>"


def texts_of(path: Path, **options) -> list[str]:
    found = list(read_documents(path, ReadOptions(**options)))
    assert not [d for d in found if d.problem]
    return [d.text for d in found]


def problems_of(path: Path, **options) -> list[str]:
    found = list(read_documents(path, ReadOptions(**options)))
    assert not [d.text for d in found if d.text]
    return [d.problem for d in found]


def with_jq(program: str, *options: str) -> bytes:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    return subprocess.run(["jq", *options, program], input=LINES.encode(), capture_output=True, check=True).stdout


def arrow_table() -> pa.Table:
    return pa.table(TABLE)


def arrow_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_table().schema) as writer:
        writer.write_table(arrow_table(), max_chunksize=2)


def arrow_file(path: Path, **options) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, arrow_table().schema, **options) as writer:
        writer.write_table(arrow_table(), max_chunksize=2)


def saved_dataset(path: Path) -> None:
    datasets.Dataset.from_dict(TABLE).save_to_disk(path, num_shards=3)
    # What `map` keeps in such a folder is no part of it.
    arrow_stream(path / "cache-0123456789abcdef.arrow")


def saved_splits(path: Path) -> None:
    parts = {"train": datasets.Dataset.from_dict({"text": TEXTS[:4]}), "a_test": datasets.Dataset.from_dict({"text": TEXTS[4:]})}
    datasets.DatasetDict(parts).save_to_disk(path)


def snapshot(path: Path) -> None:
    """As the Hub's cache keeps a dataset: files are links to what is called by its hash."""
    (path / "blobs").mkdir(parents=True)
    (path / "snapshots" / "abc" / "data").mkdir(parents=True)
    pa.parquet.write_table(arrow_table(), path / "blobs" / "5f2d")
    (path / "snapshots" / "abc" / "data" / "train-00000.parquet").symlink_to("../../../blobs/5f2d")


WRITERS = {
    # pyarrow
    "pyarrow.parquet": lambda p: pa.parquet.write_table(arrow_table(), p),
    "pyarrow-dictionary.parquet": lambda p: pa.parquet.write_table(
        pa.table({"text": pa.array(TEXTS).dictionary_encode()}), p, compression="brotli", row_group_size=2
    ),
    "pyarrow-large.pq": lambda p: pa.parquet.write_table(pa.table({"text": pa.array(TEXTS, pa.large_string())}), p),
    "pyarrow-view.arrow": lambda p: pa.feather.write_feather(pa.table({"text": pa.array(TEXTS, pa.string_view())}), p),
    "pyarrow-no-ending": lambda p: pa.parquet.write_table(arrow_table(), p),
    "pyarrow.arrow": arrow_file,
    "pyarrow-zstd.ipc": lambda p: arrow_file(p, options=pa.ipc.IpcWriteOptions(compression="zstd")),
    "pyarrow-lz4.feather": lambda p: pa.feather.write_feather(arrow_table(), p, compression="lz4"),
    "pyarrow-stream.arrow": arrow_stream,
    "pyarrow.csv": lambda p: pa.csv.write_csv(arrow_table(), p),
    "pyarrow-tab.tsv": lambda p: pa.csv.write_csv(arrow_table(), p, pa.csv.WriteOptions(delimiter="\t")),
    # polars
    "polars.parquet": lambda p: polars.DataFrame(TABLE).write_parquet(p),
    "polars.arrow": lambda p: polars.DataFrame(TABLE).write_ipc(p),
    "polars-lz4.ipc": lambda p: polars.DataFrame(TABLE).write_ipc(p, compression="lz4"),
    "polars-categories.arrow": lambda p: polars.DataFrame(TABLE).cast({"text": polars.Categorical}).write_ipc(p),
    "polars-stream.arrow": lambda p: polars.DataFrame(TABLE).write_ipc_stream(p),
    "polars.csv": lambda p: polars.DataFrame(TABLE).write_csv(p),
    "polars-mark.csv": lambda p: polars.DataFrame(TABLE).write_csv(p, include_bom=True),
    "polars-semicolon.csv": lambda p: polars.DataFrame(TABLE).write_csv(p, separator=";"),
    "polars.tsv": lambda p: polars.DataFrame(TABLE).write_csv(p, separator="\t"),
    "polars-one-column.tsv": lambda p: polars.DataFrame({"text": TEXTS}).write_csv(p, separator="\t"),
    "polars.json": lambda p: polars.DataFrame(TABLE).write_json(p),
    "polars.ndjson": lambda p: polars.DataFrame(TABLE).write_ndjson(p),
    # pandas
    "pandas.parquet": lambda p: pandas.DataFrame(TABLE).to_parquet(p),
    "pandas.feather": lambda p: pandas.DataFrame(TABLE).to_feather(p),
    "pandas.csv": lambda p: pandas.DataFrame(TABLE).to_csv(p),
    "pandas-one-column.csv": lambda p: pandas.DataFrame({"text": TEXTS}).to_csv(p, index=False),
    "pandas-all-quoted.csv": lambda p: pandas.DataFrame(TABLE).to_csv(p, quoting=1, lineterminator="\r\n"),
    "pandas-utf-16.csv": lambda p: pandas.DataFrame(TABLE).to_csv(p, encoding="utf-16"),
    "pandas-utf-8-sig.csv": lambda p: pandas.DataFrame({"text": TEXTS}).to_csv(p, encoding="utf-8-sig", index=False),
    "pandas.tsv": lambda p: pandas.DataFrame(TABLE).to_csv(p, sep="\t"),
    "pandas.csv.gz": lambda p: pandas.DataFrame(TABLE).to_csv(p),
    "pandas.csv.zst": lambda p: pandas.DataFrame(TABLE).to_csv(p),
    "pandas.csv.xz": lambda p: pandas.DataFrame(TABLE).to_csv(p),
    "pandas-columns.json": lambda p: pandas.DataFrame(TABLE).to_json(p),
    "pandas-records.json": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="records"),
    "pandas-records-indented.json": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="records", indent=2),
    "pandas-split.json": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="split"),
    "pandas-table.json": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="table"),
    "pandas-lines.json": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="records", lines=True),
    "pandas-lines.jsonl.bz2": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="records", lines=True),
    "pandas-records.json.gz": lambda p: pandas.DataFrame(TABLE).to_json(p, orient="records"),
    # datasets
    "datasets.json": lambda p: datasets.Dataset.from_dict(TABLE).to_json(p),
    "datasets-array.json": lambda p: datasets.Dataset.from_dict(TABLE).to_json(p, lines=False),
    "datasets.csv": lambda p: datasets.Dataset.from_dict(TABLE).to_csv(p),
    "datasets.parquet": lambda p: datasets.Dataset.from_dict(TABLE).to_parquet(p),
    "datasets-saved": saved_dataset,
    "datasets-saved-splits": saved_splits,
    "datasets-snapshot/": snapshot,
    # jq
    "jq.json": lambda p: p.write_bytes(with_jq(".")),
    "jq-compact.json": lambda p: p.write_bytes(with_jq(".", "-c")),
    "jq-ascii.ndjson": lambda p: p.write_bytes(with_jq(".", "-ca")),
    "jq-array.json": lambda p: p.write_bytes(with_jq(".", "-s")),
    "jq-array-in-a-line.json": lambda p: p.write_bytes(with_jq(".", "-sc")),
    "jq.json.zstd": lambda p: p.write_bytes(zstandard.compress(with_jq("."))),
    "jq-named-text.txt": lambda p: p.write_bytes(with_jq(".", "-c")),
    "jq-no-ending": lambda p: p.write_bytes(with_jq(".", "--tab")),
    # Python
    "python-nan.json": lambda p: p.write_text(json.dumps([{"score": float("nan"), "text": text} for text in TEXTS])),
    "python-utf-16.jsonl": lambda p: p.write_bytes(LINES.encode("utf-16")),
    "python-mark.jsonl": lambda p: p.write_bytes(codecs.BOM_UTF8 + LINES.encode()),
    "python.jsonl.xz": lambda p: p.write_bytes(lzma.compress(LINES.encode())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_those_that_another_tool_wrote(name, tmp_path):
    WRITERS[name](tmp_path / name)
    path = tmp_path / name if not name.endswith("/") else tmp_path / name / "snapshots"
    assert texts_of(path) == TEXTS


@pytest.mark.parametrize("ending", [".txt", ""])
def test_text_comes_out_of_archives_without_its_byte_order_mark(tmp_path, ending):
    text = "Some text, naïve 日本語 😀\r\n" * 3000
    for name, compress in {"": bytes, **COMPRESSORS}.items():
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            path = tmp_path / f"a{ending}{name}"
            path.write_bytes(compress(text.encode(encoding)))
            assert texts_of(path) == [text]
    # A file that is not what its ending says is read as what it is.
    (tmp_path / "a.jsonl.gz").write_text(LINES)
    assert texts_of(tmp_path / "a.jsonl.gz") == TEXTS


def notebook() -> str:
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "and words"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "no part of it"}]},
        {"cell_type": "code", "source": []},
    ]
    return json.dumps({"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4})


def test_markup_is_read_as_text_where_that_is_asked_for(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "page").write_text("\n" + PAGE.lower())
    (tmp_path / "latin.html").write_bytes(PAGE.replace("more", "café").encode("latin-1"))
    (tmp_path / "a.md").write_text("---\ntitle: t\n---\n# Title\n\nSome *words* and a [link](x).\n")
    (tmp_path / "a.ipynb").write_text(notebook())
    (tmp_path / "feed.xml").write_text("<?xml version='1.0'?><a>words</a>")
    named = [d.problem for d in read_documents(tmp_path) if d.problem]
    assert (
        named
        == ["HTML (--html says how it is read)"]
        + ["XML (--html source takes it as it stands)"]
        + ["HTML (--html says how it is read)"] * 2
    )
    for name, text in {
        "a.html": "Words & more.", "page": "words & more.", "latin.html": "Words & café.",
        "a.md": "Title\n\nSome words and a link.", "a.ipynb": "# A title\nand words\n\n```python\nx = 1\n```",
    }.items():  # fmt: skip
        assert texts_of(tmp_path / name, html="text", markdown="text") == [text]
    assert texts_of(tmp_path / "a.html", html="source") == [PAGE]
    assert texts_of(tmp_path / "feed.xml", html="source") == ["<?xml version='1.0'?><a>words</a>"]
    assert texts_of(tmp_path / "a.md")[0].endswith("Some *words* and a [link](x).\n")


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("package.json", b'{"name": "x", "version": "1.0"}', "no text in 'text'"),
        (".babelrc", b'{\n  "presets": ["text"]\n}', "no text in 'text'"),
        ("list.json", b'["text", "more text"]', "no text in 'text'"),
        ("half.json", b'{"columns": ["id", "text"], "data": [[1], 2]}', "no text in 'text'"),
        ("numbers.csv", b"id,value\n1,2\n", "no column 'text'"),
        ("paper.txt", b"%PDF-1.4\n1 0 obj", "PDF"),
        ("letter.doc", rb"{\rtf1\ansi words}", "RTF"),
        ("words.zip", b"PK\x03\x04\x14\0\0\0", "binary"),
        ("words.tar.gz", gzip.compress(b"name" + bytes(508) + b"words", mtime=0), "binary"),
        ("data.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a pointer of Git LFS (git lfs pull fetches the file)"),
        ("data.parquet", b"no table", "damaged or cut Parquet"),
        ("data.arrow", b"ARROW1\0\0no table", "damaged or cut Arrow"),
        ("a.ipynb", b"{}", "no notebook that can be read"),
        ("a.txt", "Text".encode("utf-16") + b"\0", "not UTF-16"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    assert set(problems_of(tmp_path)) == {problem}


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.json", b'[{"text": "first"}, {"text": "sec', "not JSON"),
        ("a.json", b'[{"text": "first"}', "not JSON"),
        ("a.json", b'[{"text": "first"}] more', "not JSON"),
        ("a.json", b'{\n"text": "first"}\n{\n"text"', "not JSON"),
        ("a.json", b'[{"text": "first"}, {"text": "n\xe9"}, {"text": "last"}]', "not UTF-8"),
        (
            "a.json.xz",
            lzma.compress(b'[{"text": "first"}, {"more": "' + random.Random(0).randbytes(2**16).hex().encode())[:-2000],
            "damaged or cut archive",
        ),
        ("a.csv", b'text,id\nfirst,1\n"second,2\nthird,3\n', "damaged or cut CSV"),
        ("a.csv", b"text,id\nfirst,1\nsecond, with a comma,2\nlast,3\n", "a row with more or fewer columns than the header"),
        ("a.csv", b"text,id\nfirst,1\nn\xe9,2\nlast,3\n", "not UTF-8"),
    ],
)
def test_what_stands_before_damage_is_kept(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    found = list(read_documents(tmp_path))
    assert [d.problem for d in found if d.problem] == [problem]
    assert [d.text for d in found if not d.problem] == (["first", "last"] if b"last" in data else ["first"])


def test_links_are_followed_once_and_what_is_missing_is_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("words")
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "inner" / "round").symlink_to(source)
    (source / "none.txt").symlink_to("nowhere")
    os.mkfifo(source / "pipe")  # reading it would never end
    assert [(d.text, d.problem) for d in read_documents(source)] == [("words", ""), ("", "unreadable (No such file or directory)")]
    saved_dataset(source / "saved")
    (source / "saved" / "data-00001-of-00003.arrow").unlink()
    found = list(read_documents(source / "saved"))
    assert [d.problem for d in found if d.problem] == ["unreadable (No such file or directory)"]
    assert [d.text for d in found if d.text] == TEXTS[:2] + TEXTS[4:]


def test_a_long_array_takes_little_memory(tmp_path):
    with (tmp_path / "long.json").open("w") as stream:
        stream.write("[\n")
        for _ in range(60):
            stream.write(json.dumps({"text": "word " * 200_000}) + ",\n")
        stream.write(json.dumps({"text": "last"}) + "]")
    tracemalloc.start()
    lengths = [len(d.text) for d in read_documents(tmp_path / "long.json")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [1_000_000] * 60 + [4] and peak < 32 * 2**20
    (tmp_path / "long.json").write_text(f'[{{"text": "{"word " * 8 * 2**20}"}}]')
    assert problems_of(tmp_path) == ["a value longer than 16 MiB"]


# Filters and copies


CHARACTERS = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"
JAPANESE = "".join(random.Random(1).choices(CHARACTERS + "のはをにがでとたしてれかもいるなす、。", k=4000))


def test_filters_know_scripts_without_spaces_and_are_chosen(tmp_path):
    thai = "ภาษาไทยเป็นภาษาที่ไม่มีช่องว่างระหว่างคำ" * 60
    for i, text in enumerate((JAPANESE, thai, "x" * 4000, "short")):
        (tmp_path / f"{i}.txt").write_text(text)
    for filters, dropped in (
        ("all", {"lines too long (minified or data)": 1, "too short": 1}),
        ("short, broken", {"too short": 1}),
        ("none", {}),
    ):
        corpus = build(tmp_path, tmp_path.parent / filters, vocab_size=258, options=TextOptions(filters=filters), quiet=True)
        assert {why: entry["documents"] for why, entry in corpus.manifest["cleaning"]["dropped"].items()} == dropped
    with pytest.raises(TenfoldError, match="There is no filter 'shirt' .did you mean 'short'"):
        build(tmp_path, tmp_path.parent / "out", options=TextOptions(filters="shirt"), quiet=True)


@pytest.mark.parametrize("script", ["English", "Chinese"])
@pytest.mark.parametrize(("dedup", "kept"), [("near", 20), ("exact", 40), ("none", 60)])
def test_near_copies_are_found_in_every_script(tmp_path, script, dedup, kept):
    """Twenty texts, each three times: twice as it is, once with one word of 400 changed."""
    words, mark = (list(CHARACTERS), "") if script == "Chinese" else ([f"word{i}" for i in range(100)], " ")
    with (tmp_path / "rows.jsonl").open("w") as stream:
        for i in range(20):
            text = random.Random(i).choices(words, k=400)
            changed = [*text[:200], "龍" if script == "Chinese" else "changed", *text[201:]]
            for row in (text, text, changed):
                stream.write(json.dumps({"text": mark.join(row)}) + "\n")
    corpus = build(
        tmp_path / "rows.jsonl", tmp_path / "out", vocab_size=258, options=TextOptions(dedup=dedup, filters="none"), quiet=True
    )
    assert corpus.manifest["cleaning"]["kept_documents"] == kept


@given(st.text(st.sampled_from("aé ,。日本한글ก\u0301_1"), max_size=40))
def test_words_are_those_of_a_regular_expression(text):
    """Runs of letters and marks; each character of a script without spaces is a word."""
    words = re.findall("[日本ก]|[aé한글\u0301_1]+", text)
    other = "|".join(words)  # the same words with other characters between them
    assert len(word_shingles(text.encode(), 1)) == max(1, len(words))
    assert word_shingles(text.encode(), 1).tolist() == word_shingles(other.encode(), 1).tolist()
    assert len(set(word_shingles(text.encode(), 1).tolist())) == max(1, len(set(words)))


def test_the_command_says_how_text_is_read(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    for i in range(3):
        (tmp_path / "source" / f"{i}.html").write_text(PAGE.replace("Words", f"Words {i} " * 20))
    with pytest.raises(TenfoldError, match="has no usable text: 3 HTML \\(--html says how it is read\\)"):
        run(["data", "build", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--vocab-size", "258"])
    run(
        [
            "data",
            "build",
            str(tmp_path / "source"),
            "--out",
            str(tmp_path / "out"),
            "--vocab-size",
            "258",
            "--html",
            "text",
            "--dedup",
            "exact",
        ]
    )
    assert "train: 2 documents" in capsys.readouterr().out
    with pytest.raises(TenfoldError, match="out holds a corpus of HTML that was read otherwise, other rules for copies"):
        run(["data", "build", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--vocab-size", "258"])
