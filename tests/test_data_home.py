"""Corpora, images and interactions in a home are those of the text that is there at the moment, whatever it is called."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tenfold.data.fingerprint import fingerprint
from tenfold.data.images.corpus import images_in
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.splits import Split
from tenfold.data.text.big import clean_big
from tenfold.data.text.corpus import build, open_corpus
from tenfold.data.text.home import corpus_of_text
from tenfold.data.text.options import TextOptions
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vision import VisionSpec
from tenfold.train.text import open_source

VOCABULARY = 300


@pytest.fixture
def texts(text_folder, tmp_path):
    """A few files of text in a folder that a test may change."""
    folder = tmp_path / "a" / "texts"
    shutil.copytree(text_folder / "json", folder)
    return folder


def start(*arguments):
    command = [sys.executable, "-m", "tenfold", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, child):
    while not path.exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)


def same_size(folder):
    """Changes a text, but neither its size nor when it was written."""
    file = folder / "decoder.py"
    stat, data = file.stat(), file.read_bytes()
    file.write_bytes(data.replace(b"JSON", b"NOSJ"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES = {
    "added": lambda folder: shutil.copyfile(folder.parents[1] / "more.txt", folder / "more.txt"),
    "removed": lambda folder: (folder / "more.txt").unlink(),
    "same size and time": same_size,
}


def test_a_corpus_is_always_that_of_the_text_that_is_there(texts, text_folder, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setattr(sys, "argv", ["tenfold"])
    (tmp_path / "more.txt").write_bytes((text_folder / "asyncio" / "tasks.py").read_bytes())
    other = tmp_path / "b" / "texts"
    shutil.copytree(text_folder / "logging", other)
    first = open_source(str(texts), home, VOCABULARY, 1.0, quiet=True)
    assert first.directory == home / f"corpus-texts-{VOCABULARY}"
    seen = {first.fingerprint: first.directory}
    shutil.copytree(texts, tmp_path / "c" / "texts")
    for name, source in (*((name, texts) for name in CHANGES), ("another of that name", other)):
        if name in CHANGES:
            CHANGES[name](source)
        fresh = build(source, tmp_path / "fresh" / name, vocab_size=VOCABULARY, quiet=True)
        monkeypatch.chdir(source.parent)  # the same name from another folder
        found = open_source("texts", home, VOCABULARY, 1.0, quiet=True)
        assert found.manifest["files"] == fresh.manifest["files"], name
        assert seen.setdefault(found.fingerprint, found.directory) == found.directory
        assert open_source("texts", home, VOCABULARY, 1.0, quiet=True).directory == found.directory
    assert len(seen) == len(set(seen.values())) == 4  # what was removed was there before
    # Each stays, and a folder with the same text has the same one.
    assert open_source(str(tmp_path / "c" / "texts"), home, VOCABULARY, 1.0, quiet=True).directory == first.directory
    assert all(open_corpus(folder, verify=True).fingerprint == mark for mark, folder in seen.items())


def test_another_tokenizer_has_another_corpus(texts, corpus, tmp_path):
    home = tmp_path / "home"
    trained = corpus_of_text(str(texts), home, VOCABULARY, quiet=True)
    larger = corpus_of_text(str(texts), home, VOCABULARY + 1, quiet=True)
    given = corpus_of_text(str(texts), home, VOCABULARY, corpus.directory, quiet=True)
    assert [c.vocab_size for c in (trained, larger, given)] == [VOCABULARY, VOCABULARY + 1, corpus.vocab_size]
    assert given.tokenizer.to_str() == corpus.tokenizer.to_str()
    assert corpus_of_text(str(texts), home, 0, trained.directory, quiet=True).directory == trained.directory
    (texts / "decoder.py").unlink()
    changed = corpus_of_text(str(texts), home, VOCABULARY, corpus.directory, quiet=True)
    fresh = build(texts, tmp_path / "fresh", tokenizer_from=corpus.directory, quiet=True)
    assert changed.manifest["files"] == fresh.manifest["files"] and changed.directory != given.directory


def test_files_are_read_again_only_where_their_listing_changed(texts):
    def files():
        return sorted(texts.iterdir())

    found = fingerprint(files, {}, quiet=True)
    assert fingerprint(files, {found.listing: "known"}, quiet=True).content == "known"
    (texts / "decoder.py").touch()
    touched = fingerprint(files, {found.listing: "known"}, quiet=True)
    assert touched.content == found.content and touched.listing != found.listing


def test_what_is_at_out_is_of_this_text_column_and_tokenizer_or_refused(tmp_path, texts, corpus):
    rows = "".join(f'{{"text": "{i} {"a text of words. " * 9}", "body": "{i} {"some other text. " * 9}"}}\n' for i in range(9))
    (tmp_path / "rows.jsonl").write_text(rows)
    made = build(tmp_path / "rows.jsonl", tmp_path / "out", vocab_size=270, quiet=True)
    assert build(tmp_path / "rows.jsonl", tmp_path / "out", vocab_size=270, quiet=True).fingerprint == made.fingerprint
    for changed, sentence in (
        ({"options": TextOptions(text_column="body")}, "of another column"),
        ({"source": texts}, "of other text"),
        ({"vocab_size": 271}, "another tokenizer or vocabulary size"),
        ({"tokenizer_from": corpus.directory}, "another tokenizer"),
    ):
        wanted = {"source": tmp_path / "rows.jsonl", "vocab_size": 270, **changed}
        with pytest.raises(TenfoldError, match=f"out holds a corpus .*{sentence}"):
            build(wanted.pop("source"), tmp_path / "out", **wanted, quiet=True)
    with pytest.raises(TenfoldError, match="is a corpus and no text"):
        build(made.directory, tmp_path / "again", vocab_size=270, quiet=True)


def test_a_folder_that_is_taken_is_refused_before_any_text_is_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    (tmp_path / "texts").mkdir()  # an empty one, which is refused when it has been read
    with pytest.raises(TenfoldError, match="out is there already"):
        build(tmp_path / "texts", tmp_path / "out", quiet=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_nothing_after_the_next_and_a_second_is_refused(number, text_folder, tmp_path):
    command = ("data", "build", text_folder, "--out", tmp_path / "c", "--vocab-size", "400", "--json")
    child = start(*command)
    wait_for(tmp_path / ".c.new" / "spool" / "texts", child)
    with pytest.raises(TenfoldError, match=rf"Another process is making .*c \(process {child.pid} on "):
        build(text_folder, tmp_path / "c", vocab_size=400, quiet=True)
    assert child.poll() is None, "the build was over before it could be stopped"
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode != 0 and not (tmp_path / "c").exists()
    build(text_folder, tmp_path / "c", vocab_size=400, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_builds_whose_names_begin_alike_leave_one_another_alone(texts, tmp_path):
    (tmp_path / ".c-2.new").mkdir()
    build(texts, tmp_path / "c", vocab_size=VOCABULARY, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", ".c-2.new"}


def test_images_are_prepared_again_where_they_or_their_words_changed(drawings, corpus, tmp_path):
    vision = VisionSpec(image_size=16, patch_size=4, dim=32, n_layers=1, n_heads=2, patch_token=1)
    folder = tmp_path / "drawn"
    folder.mkdir()
    for path in sorted(drawings.glob("*.png"))[:3]:
        shutil.copyfile(path, folder / path.name)
        (folder / path.name).with_suffix(".txt").write_text("a square")
    first = images_in(tmp_path, folder, corpus, vision)
    assert images_in(tmp_path, folder, corpus, vision).directory == first.directory
    next(folder.glob("*.txt")).write_text("a circle")
    second = images_in(tmp_path, folder, corpus, vision)
    assert second.directory != first.directory and second.tokens.tolist() != first.tokens.tolist()


def test_interactions_are_those_of_the_file_and_how_it_is_read(tmp_path):
    rows = "user,item,time\n" + "".join(f"a,{item},{item}\n" for item in range(4))
    (tmp_path / "t.csv").write_text(rows)
    split = Split("leave-one-out")
    first = open_interactions(str(tmp_path / "t.csv"), tmp_path, split)
    (tmp_path / "t.csv").write_text(rows + "a,9,9\n")
    second = open_interactions(str(tmp_path / "t.csv"), tmp_path, split)
    assert [len(x.items) for x in (first, second)] == [4, 5]
    (tmp_path / "t.tsv").write_text(rows + "a,9,9\n")  # commas in a file whose columns are parted by tabs
    with pytest.raises(TenfoldError, match="no column"):
        open_interactions(str(tmp_path / "t.tsv"), tmp_path, split)


def test_cleaning_in_stages_is_not_continued_with_other_text(texts, tmp_path):
    pytest.importorskip("datatrove")
    (tmp_path / "out" / "logs").mkdir(parents=True)
    with pytest.raises(TenfoldError, match="stages of other text"):
        clean_big(texts, tmp_path / "out")
