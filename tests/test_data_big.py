"""The datatrove pipeline beside `build` on the same files."""

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet
import pytest

from tenfold.data.text.big import clean_big
from tenfold.data.text.corpus import build
from tenfold.data.text.sources import read_documents
from tenfold.spec.errors import TenfoldError

RUN = """
import sys
from pathlib import Path
from tenfold.data.text.big import clean_big

if __name__ == "__main__":
    clean_big(Path(sys.argv[1]), Path(sys.argv[2]), on=sys.argv[3], tasks=3)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory, text_folder):
    """Real text, with copies, near copies and what is not worth training on among it."""
    folder = tmp_path_factory.mktemp("big") / "source"
    for name in ("json", "logging", "email"):
        shutil.copytree(text_folder / name, folder / name)
    draw = random.Random(0)
    for i, file in enumerate(sorted((folder / "email").rglob("*.py"))[:6]):
        text = file.read_text()
        (folder / f"copy{i}.py").write_text(text)
        words = text.split(" ")
        words[draw.randrange(len(words))] += " changed"
        (folder / f"near{i}.py").write_text(" ".join(words))
    (folder / "short.txt").write_text("short")
    (folder / "lines.txt").write_text("again\n" * 300)
    (folder / "digits.txt").write_text("0123456789 " * 100)
    (folder / "binary").write_bytes(b"\0\1" * 300)
    (folder / "rows.jsonl").write_text('{"text": "' + "a good text of several words. " * 8 + '"}\nno json\n')
    return folder


def cleaned(source, out, on):
    script = out.with_name(f"{out.name}.py")
    script.write_text(RUN)
    subprocess.run([sys.executable, script, source, out, on], check=True, capture_output=True, timeout=280)
    return pyarrow.parquet.read_table(out / "clean").to_pydict()


def compare(found, source, out, home):
    corpus = build(source, home / "corpus", vocab_size=300, quiet=True)
    sizes = {split: corpus.manifest["splits"][split]["documents"] for split in ("train", "validation")}
    kept = {corpus.text(split, i) for split, count in sizes.items() for i in range(count)}
    # The filters drop the same documents for the same reasons.
    reasons = Counter()
    for path in (out / "dropped").iterdir():
        reasons.update(json.loads(path.read_text()))
    copies = {"exact copy", "near copy"}
    dropped = {why: entry["documents"] for why, entry in corpus.manifest["cleaning"]["dropped"].items()}
    assert reasons == {why: count for why, count in dropped.items() if why not in copies}
    # No copy is left, and every text that `build` keeps is left, or one of its own cluster for it.
    texts = found["text"]
    assert len(texts) == len(set(texts))
    sources = {d.name: d.text for d in read_documents(source) if not d.problem}
    assert set(texts) <= set(sources.values())
    assert abs(len(texts) - len(kept)) <= 0.02 * len(kept) + 1
    for i in range(6):
        group = {(source / f"{kind}{i}.py").read_text() for kind in ("copy", "near")}
        assert len(group) == 2 and len(group & set(texts)) == 1
    return len(set(texts) & kept), len(kept)


def test_the_local_pipeline_keeps_what_build_keeps(source, tmp_path):
    found = cleaned(source, tmp_path / "out", "local")
    same, kept = compare(found, source, tmp_path / "out", tmp_path)
    assert same >= kept - 7  # of the six pairs that were made alike either may stay
    again = build(tmp_path / "out" / "clean", tmp_path / "again", vocab_size=300, quiet=True)
    assert again.manifest["cleaning"]["kept_documents"] == len(found["text"])


@pytest.mark.slow
def test_the_same_pipeline_runs_on_ray(source, tmp_path):
    here, there = (cleaned(source, tmp_path / on, on) for on in ("local", "ray"))
    assert sorted(here["id"]) == sorted(there["id"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"on": "moon"}, "no launcher 'moon'"),
        ({"on": "kubernetes"}, "datatrove does not run on 'kubernetes'"),
        ({"on": "slurm"}, "give --partition"),
        ({"tasks": 0}, "at least one task"),
    ],
)
def test_what_cannot_run_is_one_sentence(tmp_path, changed, sentence):
    with pytest.raises(TenfoldError, match=sentence):
        clean_big(tmp_path, tmp_path / "out", **changed)
    with pytest.raises(TenfoldError, match="is not a folder"):
        clean_big(tmp_path / "none", tmp_path / "out")


def test_slurm_gets_the_same_stages(source, tmp_path, monkeypatch):
    """Each stage is a job that waits for the one before it."""
    stub = tmp_path / "sbatch"
    stub.write_text(
        f'#!/bin/bash\nfor last; do :; done\nbash -n "$last" || exit 1\ngrep -h \'^#SBATCH\' "$last" >> {tmp_path}/jobs\necho "$@" >> {tmp_path}/said\necho Submitted batch job $(wc -l < {tmp_path}/said)\n'
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    clean_big(source, tmp_path / "out", on="slurm", tasks=3, partition="cpu")
    # Between the stages stand jobs that gather a stage's figures.
    stages = [(i + 1, line) for i, line in enumerate((tmp_path / "said").read_text().splitlines()) if "RUN_OFFSET" in line]
    assert len(stages) == 5 and "--dependency" not in stages[0][1]
    for (number, _), (_, line) in pairwise(stages):
        assert f"--dependency=afterok:{number} " in line
    assert (tmp_path / "jobs").read_text().count("--partition=cpu") >= 5
