"""Commands on a read-only or full disk, and those that a signal stops: one sentence, and nothing is left in the way."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from tenfold.cli import main
from tenfold.model.io.huggingface import write_model
from tenfold.model.llama import Llama
from tenfold.spec.model import ModelSpec

CLIMB = "climb --top 6e10 --vocab-size 300 --seq-len 16 --corpus"
RUN = """
tokens = 2048
model = {{ width = 32 }}
[data]
corpus = "{corpus}"
seq_len = 32
max_epochs = 50.0
"""
# Every command that writes at once, as a person types it in the folder that cannot be written.
WRITING = (
    "climb --corpus {text} --top 6e10 --vocab-size 300 --seq-len 16", "train {run}", "train {run} --out r", "circle", "fleet run",
    "data build {text} --out c --vocab-size 300", "law fit {points} --out l.json", "upcycle {model} --out up --experts 2",
    "plan --flops 1e22 --gpus 64 --out p", "launch {run} --on slurm --nodes 2 --out jobs", "serve-key alice", "console --home . --export page",
)  # fmt: skip


def tenfold(command):
    """Its exit status and what it said on standard error, in this process."""
    before, sys.argv = sys.argv, ["tenfold", *command.split()]
    status = 0
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        finally:
            sys.argv = before
    return status, said.getvalue()


@contextmanager
def inside(disk, options):
    """Work in a file system of its own."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    here = Path.cwd()
    os.chdir(disk)
    try:
        yield
    finally:
        os.chdir(here)
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def inputs(tmp_path, text_folder, corpus, monkeypatch):
    """The files that the commands read."""
    (tmp_path / "run.toml").write_text(RUN.format(corpus=corpus.directory))
    rows = [(n, d, 1.5 + 400 / n**0.34 + 400 / d**0.28 + n % 7 / 1000) for n in (1e5, 2e5, 4e5, 8e5) for d in (1e6, 3e6, 1e7)]
    (tmp_path / "points.csv").write_text("params,tokens,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    torch.manual_seed(0)
    spec = ModelSpec("tiny", dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=64, vocab_size=300)
    write_model(Llama(spec), tmp_path / "model")
    monkeypatch.setenv("TENFOLD_CIRCLE", "small")
    return {
        "text": text_folder,
        **{name: tmp_path / name for name in ("model",)},
        "run": tmp_path / "run.toml",
        "points": tmp_path / "points.csv",
    }


def test_a_read_only_folder_is_one_sentence_of_every_command(inputs, tmp_path):
    with inside(tmp_path / "disk", "ro"):
        for command in WRITING:
            status, said = tenfold(command.format(**inputs))
            assert status == 1 and said.count("\n") == 1 and said.startswith("tenfold: "), (command, said)
            assert "could not be written: read-only file system." in said, (command, said)


def test_a_full_disk_is_one_sentence_of_every_command_and_blocks_nothing(inputs, tmp_path):
    def files():
        """What was written, but for files of lines, which may be empty."""
        found = (path for path in (tmp_path / "disk").rglob("*") if path.is_file() and path.name != "ballast")
        return [path for path in found if path.suffix != ".jsonl" or path.stat().st_size]

    with inside(tmp_path / "disk", "size=8m"):
        (tmp_path / "disk" / "ballast").write_bytes(bytes(2**23))
        for command in WRITING:
            if command == "fleet run":  # writes nothing of its own before its processes do
                continue
            status, said = tenfold(command.format(**inputs))
            assert status == 1 and said.count("\n") == 1 and said.startswith("tenfold: "), (command, said)
            assert "could not be written: the disk is full; free some room." in said, (command, said)
            assert not files(), command
        (tmp_path / "disk" / "ballast").unlink()
        for command in ("train {run}", "data build {text} --out c --vocab-size 300", "upcycle {model} --out up --experts 2"):
            assert tenfold(command.format(**inputs))[0] == 0


@pytest.mark.parametrize(
    ("numbers", "by"),
    [
        ([signal.SIGTERM], "SIGTERM"),
        ([signal.SIGHUP], "SIGHUP"),
        ([signal.SIGINT], "Ctrl-C"),
        ([signal.SIGINT, signal.SIGINT], "Ctrl-C"),
    ],
)
def test_a_stopped_build_says_so_and_leaves_nothing(text_folder, tmp_path, numbers, by):
    command = [sys.executable, "-m", "tenfold", "data", "build", text_folder, "--out", str(tmp_path / "c"), "--vocab-size", "2048"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hears_signals)
    while not (tmp_path / ".c.new" / "spool").exists():
        assert child.poll() is None
        time.sleep(0.01)
    for number in numbers:
        child.send_signal(number)
        time.sleep(0.05)
    said = child.communicate()[1]
    assert child.returncode in (128 + numbers[0], -numbers[0]) and "Traceback" not in said, said
    assert said == f"tenfold: Stopped by {by}: {tmp_path / 'c'} was not made; the same command makes it anew.\n"
    if len(numbers) == 1:
        assert not list(tmp_path.iterdir())


def hears_signals():
    """Whatever started the tests in the background, or under nohup, is not to be inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def commanded(code):
    """The command line with `code` as its command, in a process that hears Ctrl-C."""
    script = f"import tenfold.cli.commands as c; c.run = lambda _: exec({code!r}, {{}}); from tenfold.cli import main; main()"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=hears_signals, timeout=250)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_destructor_is_not_lost(number):
    run = (
        f"import os, time\nclass Held:\n  def __del__(self):\n    os.kill(os.getpid(), {number:d})\n    time.sleep(0)\n"
        "held = Held()\ndel held\ntime.sleep(60)"
    )
    done = commanded(run)
    assert done.returncode == 128 + number and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_codec_is_told_as_any_other(number):
    run = (
        "import encodings.utf_32_le as codec, signal\nfrom tenfold.spec.errors import when_stopped\n"
        f"codec.decode = lambda *_: signal.raise_signal({number:d})\n"
        "with when_stopped('c was not made'):\n  bytes(4).decode('utf-32-le')"
    )
    done, name = commanded(run), "Ctrl-C" if number == signal.SIGINT else number.name
    assert done.stderr == f"tenfold: Stopped by {name}: c was not made.\n" and done.returncode == 128 + number


def test_a_second_ctrl_c_while_clearing_up_says_what_the_first_would_have():
    run = (
        "import signal\nfrom tenfold.spec.errors import when_stopped\ntry:\n  with when_stopped('c was not made'):\n"
        "    signal.raise_signal(2)\nfinally:\n  signal.raise_signal(2)"
    )
    done = commanded(run)
    assert done.stderr == "tenfold: Stopped by Ctrl-C: c was not made.\n" and done.returncode == 130


def test_a_hangup_that_nohup_ignores_stops_nothing(tmp_path):
    run = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('on')"
    script = f"import tenfold.cli.commands as c, sys; c.run = lambda _: exec({run!r}); from tenfold.cli import main; main()"
    said = subprocess.run(["nohup", sys.executable, "-c", script], capture_output=True, text=True).stdout
    assert said.strip().endswith("on")


@pytest.mark.parametrize(("output", "status"), [("| head -c 1", 1), ("> /dev/full", 1)])
def test_an_output_that_takes_nothing_is_no_stack_trace(output, status):
    command = f"set -o pipefail; {sys.executable} -m tenfold --help {output}"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in said.stderr and "Exception" not in said.stderr and said.stderr.count("\n") <= 1
    assert said.returncode in (0, status)


def test_names_that_are_no_text_are_printed(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    for encoding in ("utf-8", "ascii"):
        said = subprocess.run(
            [sys.executable.encode(), b"-m", b"tenfold", b"score", name],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )
        assert said.returncode == 1 and said.stderr.count(b"\n") == 1 and b"is no generation" in said.stderr
