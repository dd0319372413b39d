"""The unit for systemd, as systemd itself reads it."""

import shutil
import subprocess
import sys

import pytest

from bench.harness import ROOT


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    unit = tmp_path / "tenfold-serve.service"
    text = (ROOT / "deploy" / unit.name).read_text()
    unit.write_text(text.replace("/opt/tenfold/bin/tenfold ", f"{sys.executable} -m tenfold "))  # a command that is there
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
