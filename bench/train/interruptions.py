"""Interrupt commands at random moments and start them again: is anything lost, blocked or left behind?

    python -m bench.train.interruptions
    python -m bench.train.interruptions --moments 8 --commands build upcycle      # a quick trial

Each interruption has its own folder, a file system in memory. A command starts there. At a random moment, up to the time that it
takes undisturbed, one of `STRIKES` happens: SIGKILL; SIGTERM; SIGHUP, one or two Ctrl-C to its process group; a full disk; a
read-only folder; the same command started a second time. When the command has ended, the disk is repaired and the command is
started once more, as a user would. The command `export` is `train` interrupted while its model is written. After each
interruption:

- there must be no stack trace, and after a signal or a disk error one sentence;
- the next start must end well (or have nothing left to do) within `LIMIT_S`: nothing is blocked;
- models, points and tokens must be bit-identical to those of the undisturbed command: nothing is lost;
- no temporary file and no lock may be left in the folder.

A command is `tenfold`'s own `main`, in a fork of a process that has imported it, so that the time to load PyTorch does not count.
The disk strikes need the right to mount; without it they are left out.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.harness import Headline, Row, options, write_results
from tenfold.cli import main as tenfold
from tenfold.model import upcycle  # noqa: F401 (and with it PyTorch, before any fork)
from tenfold.train import trainer  # noqa: F401

STRIKES = ("kill", "term", "hangup", "Ctrl-C", "two Ctrl-C", "full disk", "read-only", "second process")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hangup": signal.SIGHUP, "Ctrl-C": signal.SIGINT}
DISK = "size=48m"
LIMIT_S = 900
DONE = ("is there already", "is not empty", "has finished")  # messages of a command that had finished before the strike
OURS = (".metadata",)  # a hidden file that belongs to a checkpoint
RUN = """
tokens = {tokens}
device = "cpu"
dtype = "float32"
compile = "off"
model = {{ width = {width} }}
data = {{ corpus = "{corpus}", vocab_size = 300, seq_len = 32, batch_size = 8, max_epochs = 1000.0 }}
task = {{ evaluate_tokens = 512 }}
checkpoint = {{ every_s = 0.05 }}
"""


class Command(NamedTuple):
    """The command line, patterns of the results that must be bit-identical, and a `sign`: the file that starts the clock."""

    words: str
    results: tuple[str, ...]
    sign: str = ""
    share: int = 5  # relative probability of being drawn


COMMANDS = {
    "train": Command("train {inputs}/run.toml", ("run/model/*.safetensors",)),
    "export": Command("train {inputs}/wide.toml", ("wide/model/*.safetensors", "wide/model/*.json"), "generations/wide/.model.new"),
    "build": Command("data build {inputs}/texts --out generations/c --vocab-size 400", ("c/*.bin", "c/tokenizer.json")),
    "upcycle": Command("upcycle {inputs}/model --out generations/wide --experts 8", ("wide/*.safetensors", "wide/*.json")),
    "climb": Command(
        "climb --corpus {inputs}/texts --top 6e10 --vocab-size 300 --seq-len 64",
        ("g1/points.csv", "g1/model/*.safetensors"),
        share=1,
    ),
}


class Ended(NamedTuple):
    """`status` is None where the command did not end in time."""

    status: int | None
    said: str

    @property
    def well(self) -> bool:
        return self.status == 0 or any(words in self.said for words in DONE)


class Started:
    """A command in a process group of its own."""

    def __init__(self, words: str, folder: Path):
        self._said = folder.parent / f"said-{time.monotonic_ns()}"
        self._process = multiprocessing.get_context("fork").Process(target=_enter, args=(words, folder, self._said))
        self._process.start()
        self.id = self._process.pid or 0

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    def end(self) -> Ended:
        self._process.join(LIMIT_S)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            self._process.join()
        return Ended(status, self._said.read_text(errors="replace") if self._said.exists() else "")


def _enter(words: str, folder: Path, said: Path) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the benchmark runs in the background
    stream = said.open("w", buffering=1)
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream
    sys.argv = ["tenfold", *shlex.split(words)]
    tenfold()


@contextlib.contextmanager
def disk(folder: Path, mounted: bool) -> Iterator[Path]:
    """A small file system in memory, or a plain folder if mounting is not allowed."""
    folder.mkdir()
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def strike(how: str, struck: Started, words: str, folder: Path) -> Started | None:
    """Interrupt a command by `how`; returns the second process for "second process", else None."""
    if how == "second process":
        return Started(words, folder)
    if how == "full disk":
        with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(2**20)):
                pass
    elif how == "read-only":
        while struck.runs and not _remount(folder, "ro"):  # refused while a file is open for writing
            time.sleep(0.002)
    else:
        with contextlib.suppress(ProcessLookupError):
            send = os.kill if how in ("kill", "term") else os.killpg
            send(struck.id, SIGNALS[how.removeprefix("two ")])
            if how == "two Ctrl-C":
                time.sleep(random.random() * 0.2)
                os.killpg(struck.id, signal.SIGINT)
    return None


def _remount(folder: Path, mode: str) -> bool:
    return not subprocess.run(["mount", "-o", f"remount,{mode}", folder], capture_output=True).returncode


def moment(command: Command, how: str, after_s: float, folder: Path, inputs: Path) -> list[str]:
    """Interrupt a command `after_s` seconds after its start or its sign and start it again; a list of what went wrong."""
    words = command.words.format(inputs=inputs)
    first = Started(words, folder)
    while command.sign and first.runs and not (folder / command.sign).exists():
        time.sleep(0.001)
    time.sleep(after_s)
    second = strike(how, first, words, folder)
    ends = [started.end() for started in (first, second) if started is not None]
    (folder / "ballast").unlink(missing_ok=True) if how != "read-only" else _remount(folder, "rw")
    wrong = [f"a stack trace: {end.said[-2000:]}" for end in ends if "Traceback" in end.said]
    wrong += ["did not end" for end in ends if end.status is None]
    wrong += [f"no sentence: {end.said[-500:]!r}" for end in ends if end.status and end.status > 0 and not _sentence(end.said)]
    if second is not None and not any(end.well for end in ends):
        wrong.append(f"neither of two ended well: {[end.said[-500:] for end in ends]}")
    if not any(end.status == 0 for end in ends):
        again = Started(words, folder).end()
        if not again.well:
            wrong.append(f"blocked: the next start ended with {again.status}: {again.said[-2000:]}")
    return wrong


def _sentence(said: str) -> bool:
    return bool(said.strip()) and said.strip().splitlines()[-1].startswith("tenfold: ")


def results(command: Command, folder: Path) -> dict[str, str]:
    """A checksum of each result file."""
    home = folder / "generations"
    files = sorted(file for pattern in command.results for file in home.glob(pattern))
    return {str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def scratch(folder: Path) -> list[str]:
    """Hidden files (temporary files and locks) in a folder that belong to nothing."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name not in OURS)


def prepare(inputs: Path) -> None:
    """Make the commands' inputs: texts, a corpus, run files and a model."""
    texts = inputs / "texts"
    texts.mkdir(parents=True)
    for file in sorted((Path(sysconfig.get_path("stdlib")) / "email").glob("*.py")):
        shutil.copyfile(file, texts / file.with_suffix(".txt").name)
    made = Started(f"data build {texts} --out {inputs}/corpus --vocab-size 300", inputs).end()
    assert made.status == 0, made.said
    for name, tokens, width in (("run", 256 * 40, 32), ("wide", 256 * 4, 128)):
        (inputs / f"{name}.toml").write_text(RUN.format(tokens=tokens, width=width, corpus=inputs / "corpus"))
    made = Started(f"train {inputs}/wide.toml --out {inputs}/trained", inputs).end()
    assert made.status == 0, made.said
    (inputs / "trained" / "model").rename(inputs / "model")


def undisturbed(command: Command, folder: Path, inputs: Path) -> tuple[float, dict[str, str]]:
    """Run a command undisturbed: (seconds from its start or its sign to its end, its results)."""
    began = time.monotonic()
    started = Started(command.words.format(inputs=inputs), folder)
    while command.sign and not (folder / command.sign).exists():
        assert started.runs
        time.sleep(0.001)
    began = time.monotonic() if command.sign else began
    ended = started.end()
    seconds, found = time.monotonic() - began, results(command, folder)
    assert ended.status == 0 and found and not scratch(folder), (ended.said, found, scratch(folder))
    return seconds, found


def headline(rows: list[Row]) -> Headline:
    moments, wrong = sum(row["moments"] for row in rows), sum(len(row["wrong"]) for row in rows)
    what = "Killed, stopped, on a full or read-only disk, or beside a second process, at random moments"
    names = ", ".join(dict.fromkeys(row["command"] for row in rows))
    said = "nothing lost, nothing blocked, nothing left behind" if not wrong else f"{wrong} not as they should be"
    yield f"{what}: {names}", f"{moments} moments, {said}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--strikes", nargs="+", choices=STRIKES, default=STRIKES)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    work = Path(tempfile.mkdtemp())
    inputs, mounted = work / "inputs", os.geteuid() == 0 and shutil.which("mount") is not None
    strikes = [how for how in given.strikes if mounted or how not in ("full disk", "read-only")]
    prepare(inputs)
    known = {}
    for name in given.commands:
        with disk(work / "disk", mounted) as folder:
            known[name] = undisturbed(COMMANDS[name], folder, inputs)
            print(f"{name}: {known[name][0]:.2f} s undisturbed", flush=True)
    rows: dict[tuple[str, str], Row] = {}
    for i in range(given.moments):
        name = draw.choices(given.commands, [COMMANDS[name].share for name in given.commands])[0]
        how, after_s = strikes[i % len(strikes)], draw.random() * known[name][0]
        with disk(work / "disk", mounted) as folder:
            wrong = moment(COMMANDS[name], how, after_s, folder, inputs)
            wrong += ["lost: the results are others"] if results(COMMANDS[name], folder) != known[name][1] else []
            wrong += [f"left behind: {left}" for left in scratch(folder)]
        row = rows.setdefault((name, how), {"command": name, "strike": how, "moments": 0, "wrong": []})
        row["moments"] += 1
        row["wrong"] += [f"after {after_s:.3f} s: {one}" for one in wrong]
        print(f"{i + 1}/{given.moments}: {name}, {how} after {after_s:.3f} s: {wrong or 'well'}", flush=True)
    path = write_results("interruptions", list(rows.values()), headline(list(rows.values())))
    print(json.dumps([row for row in rows.values() if row["wrong"]], indent=1))
    print(path)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
