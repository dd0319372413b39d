"""kill -9 at random moments, then resume: are the final weights those of the run that was left alone, to the bit?

    python bench/resume.py --kills 10

Moments are drawn over the whole life of the process: imports, steps, evaluation and the writing of checkpoints.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from results_file import write_results
from safetensors.torch import load_file

RUN = """
flops = 2e11
corpus = "{corpus}"
vocab_size = 512
seq_len = 128
evaluate_tokens = 8192
checkpoint_every_s = 0.2
model = {{ width = 32 }}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    draw = random.Random(0)
    home = Path(tempfile.mkdtemp())
    (home / "run.toml").write_text(RUN.format(corpus="stdlib"))
    tenfold = [str(Path(sys.executable).with_name("tenfold"))]

    def start(name: str) -> subprocess.Popen:
        arguments = [*tenfold, "train", str(home / "run.toml"), "--out", str(home / name), "--home", str(home), "--json"]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start("whole").wait() == 0
    whole_s = time.monotonic() - began
    moments = []
    while len(moments) < given.kills:
        child = start("killed")
        moment = draw.uniform(0.2, 1.2) * max(8.0, whole_s / 6)
        try:
            child.wait(moment)
            break
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            moments.append(round(moment, 2))
    assert start("killed").wait() == 0
    a, b = (load_file(home / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    equal = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    row = {"case": "kill -9", "kills": len(moments), "after_s": moments, "whole_run_s": whole_s, "equal": equal}
    write_results("resume", [row])
    print(f"{len(moments)} kills, equal to the bit: {equal}")
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
