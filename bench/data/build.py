"""Speed and peak memory of building a corpus from text, at two sizes.

    python -m bench.data.build --megabytes 100 1000

The text is taken from this machine: Python, C and C++ sources, and documentation of the standard library and the installed
packages. It is repeated up to the size, each time with half of the longer words replaced, so that the repeats are not near
copies. Each size is built in its own process, whose peak memory is the operating system's figure. Rates are per second of
wall-clock time and, since other work may share the machine, per second of processor time over all threads.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.harness import ROOT, Headline, Row, options, write_results

ENDINGS = (".py", ".pyi", ".h", ".hpp", ".cuh", ".md", ".rst")
BASE_BYTES = 100 * 10**6


def real_texts() -> Iterator[str]:
    """Source files and documentation, up to `BASE_BYTES`."""
    size = 0
    for folder in (sysconfig.get_path("stdlib"), *site.getsitepackages()):
        for file in sorted(Path(folder).rglob("*")):
            if file.suffix in ENDINGS and file.is_file():
                text = file.read_text(errors="ignore")
                size += len(text.encode())
                yield text
                if size > BASE_BYTES:
                    return


def write_text(folder: Path, sizes_mb: list[int]) -> None:
    """Write `SIZE.jsonl` for each size in MB (1e6 bytes); all files begin with the same text."""
    texts = list(real_texts())
    words = sorted(set(re.findall(r"[a-z]{4,12}", " ".join(texts[:2000]))))
    files = {size: (folder / f"{size}.jsonl").open("w") for size in sizes_mb}
    written = round_number = 0
    while written < max(sizes_mb) * 10**6:
        draw = random.Random(round_number)
        shuffled = draw.sample(words, len(words))
        other = {a: b for a, b in zip(words, shuffled, strict=True) if draw.random() < 0.5} if round_number else {}
        for text in texts:
            line = json.dumps({"text": exchanged(text, other)}, ensure_ascii=False) + "\n"
            for size, file in files.items():
                if written < size * 10**6:
                    file.write(line)
            written += len(text.encode())
            if written >= max(sizes_mb) * 10**6:
                break
        round_number += 1
    for file in files.values():
        file.close()


def exchanged(text: str, other: dict[str, str]) -> str:
    return re.sub(r"[a-z]{4,12}", lambda found: other.get(found[0], found[0]), text) if other else text


def measure(source: Path, out: Path, vocab_size: int) -> Row:
    """Build one corpus in this process; a row with sizes of text in MB (1e6 bytes) and memory in MiB."""
    from tenfold.data.text.corpus import build

    began, busy = time.perf_counter(), time.process_time()
    manifest = build(source, out, vocab_size=vocab_size).manifest
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    cleaning = manifest["cleaning"]
    return {
        "text_mb": cleaning["bytes"] / 1e6,
        "documents": cleaning["documents"],
        "kept_mb": cleaning["kept_bytes"] / 1e6,
        "kept_documents": cleaning["kept_documents"],
        "dropped": {reason: entry["documents"] for reason, entry in cleaning["dropped"].items()},
        "tokens": sum(split["tokens"] for split in manifest["splits"].values()),
        "tokenize_and_pack_mb_per_s": manifest["tokenize_mb_per_s"],
        "whole_build_mb_per_s": cleaning["bytes"] / 1e6 / seconds,
        "whole_build_mb_per_cpu_s": cleaning["bytes"] / 1e6 / busy,
        "whole_build_s": seconds,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def headline(rows: list[Row]) -> Headline:
    sizes = " and ".join(f"{r['text_mb']:.0f}" for r in rows)
    speed = ", ".join(f"{r['tokenize_and_pack_mb_per_s']:.1f}" for r in rows)
    memory = ", ".join(f"{r['peak_memory_mib']:.0f}" for r in rows)
    yield f"{sizes} MB of text: tokenize and pack; peak memory of the whole build", f"{speed} MB/s; {memory} MiB"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--megabytes", nargs="+", type=int, default=[100, 1000], help="sizes of text, in units of 1e6 bytes")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=None, help="keep the text here for another run")
    parser.add_argument("--only-text", action="store_true", help="write the text and stop")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        out = Path(tempfile.mkdtemp(dir=given.measure.parent))
        print(json.dumps(measure(given.measure, out / "corpus", given.vocab_size)))
        shutil.rmtree(out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not all((folder / f"{size}.jsonl").exists() for size in given.megabytes):
            write_text(folder, given.megabytes)
        if given.only_text:
            return
        rows = []
        for size in given.megabytes:
            asked = ["--measure", folder.resolve() / f"{size}.jsonl", "--vocab-size", str(given.vocab_size)]
            load = os.getloadavg()[0]
            command = [sys.executable, "-m", "bench.data.build", *asked]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            rows.append({"load_of_the_machine_before": load, **json.loads(done.stdout)})
            print(json.dumps(rows[-1]), flush=True)
        write_results("data", rows, headline(rows))


if __name__ == "__main__":
    main()
