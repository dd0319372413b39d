"""The container file, as hadolint reads it. No image is built here: what its steps make is tested as a wheel (`test_wheel.py`)."""

import re
import subprocess
import sys
from pathlib import Path

from bench.harness import ROOT

FILE = ROOT / "deploy" / "Containerfile"


def test_hadolint_finds_nothing_wrong_with_the_container_file():
    done = subprocess.run([Path(sys.executable).parent / "hadolint", FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_it_copies_is_there_and_not_ignored():
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", FILE.read_text(), re.MULTILINE) for name in line.split()]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(kept) and all((ROOT / name).exists() for name in copied)
