"""Run every command of the README and of the guides as written, in clean clones of this repository.

The code blocks marked `sh` are run. Those of one document run in one shell, from the root of the document's own clone; the shell
stops at the first command that fails. A clone installs what it needs by `make setup`, as the documents say. With `--packages-of` it
uses the packages of another environment, and installs only Tenfold.

    python -m bench.guides                                    # all documents: about 40 minutes on two cores
    python -m bench.guides docs/guides/plugin.md --show       # one document, with the output of its commands
    python -m bench.guides --packages-of .venv/bin/python     # without downloads

Writes the rows of each document that was run to bench/results/guides.json.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from bench.harness import RESULTS, ROOT, Row, options, write_results

DOCUMENTS = ("README.md", *(f"docs/guides/{name}.md" for name in ("this-machine", "one-gpu-machine", "slurm", "plugin")))
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = "\x1e"  # printed before the output of each block


def blocks(text: str) -> list[str]:
    """The code blocks of a document that are marked `sh`."""
    return BLOCK.findall(text)


def cloned(folder: Path, packages_of: str | None) -> Path:
    """A clone of the last commit. With `packages_of`, its environment is ready and `make setup` has nothing to do."""
    clone = folder / "tenfold"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    if packages_of:
        say = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = subprocess.run([packages_of, "-c", say], check=True, capture_output=True, text=True).stdout
        subprocess.run([packages_of, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
        (site,) = (clone / ".venv" / "lib").glob("python*/site-packages")
        (site / "packages.pth").write_text(packages)  # pip and hatchling are among them
        pip = [str(clone / ".venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, str(clone)], check=True)
        (clone / ".venv" / ".ready").touch()
    return clone


def run(text: str, clone: Path) -> list[Row]:
    """Run the blocks of a document; a row for each block that was started: its commands, exit code, seconds and output."""
    found = blocks(text)
    script = "".join(f"printf '{MARK}%s\\n' $EPOCHREALTIME\n{block}" for block in found)
    without = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with tempfile.TemporaryFile("w+") as printed:
        shell = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", script], cwd=clone, env=without, stdin=subprocess.DEVNULL,
            stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code, ended = shell.wait(), time.time()
        finally:
            _end(shell.pid, clone)
        printed.seek(0)
        parts = [part.partition("\n") for part in printed.read().split(MARK)[1:]]
    starts = [float(start) for start, _, _ in parts]
    ends = [*starts[1:], ended]
    codes = [0] * (len(parts) - 1) + [code]
    return [
        {"commands": block, "exit": status, "seconds": end - start, "printed": said}
        for block, (_, _, said), start, end, status in zip(found, parts, starts, ends, codes, strict=False)
    ]


def _end(group: int, clone: Path) -> None:
    """Kill what a document left running: its process group, and daemons, recognised by the clone's path in their command lines."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for process in psutil.process_iter(["cmdline"]):
        if any(str(clone) in word for word in process.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _keep(document: str, ran: Sequence[Row]) -> None:
    """Replace a document's rows in the results."""
    file = RESULTS / "guides.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [row for row in before if row["document"] != document]
    rows += [{"document": document, **{key: row[key] for key in ("commands", "exit", "seconds")}} for row in ran]
    rows.sort(key=lambda row: DOCUMENTS.index(row["document"]))
    ended, minutes = {row["document"] for row in rows}, sum(row["seconds"] for row in rows) / 60
    what = f"every command of {len(ended)} of {len(DOCUMENTS)} documents, README and guides, in clean clones"
    write_results("guides", rows, [(what, f"all {len(rows)} blocks exit 0, {minutes:.0f} minutes")])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("documents", nargs="*", default=DOCUMENTS)
    parser.add_argument("--packages-of", metavar="PYTHON", help="the interpreter whose packages the clones use")
    parser.add_argument("--show", action="store_true", help="print what the commands print")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what a document started is ended
    for document in asked.documents:
        text = (ROOT / document).read_text()
        with tempfile.TemporaryDirectory() as folder:
            ran = run(text, cloned(Path(folder), asked.packages_of))
        for row in ran:
            if asked.show or row["exit"]:
                print(f"{row['commands']}{row['printed']}")
            print(f"{document}: exit {row['exit']} after {row['seconds']:.1f} s")
        if len(ran) < len(blocks(text)) or any(row["exit"] for row in ran):
            raise SystemExit(f"{document}: a command failed.")
        if document in DOCUMENTS:
            _keep(document, ran)


if __name__ == "__main__":
    main()
