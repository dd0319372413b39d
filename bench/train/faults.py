"""A run of a tiny model on several processes with many faults, compared with the same run undisturbed.

    python -m bench.train.faults --faults 30
    python -m bench.train.faults --faults 5 --kinds kill --name recovery      # how long a run is down after a kill

Each fault happens once, at a random step in a random process. The kinds:

- `kill`: SIGKILL.
- `hang`: the process sleeps until the watchdog ends it.
- `freeze`: SIGSTOP, continued 2 s later, like a slow link.
- `slow`: a straggler of half a second.
- `damage`: one bit of the newest checkpoint's shards is flipped, then a kill. It waits until there is another checkpoint.
- `disk`: the next save finds the disk full.
- `term`: SIGTERM, after which the run saves and exits.

A run that has exited is started again, as a job queue would.
"""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter

from bench.harness import Headline, Row, options, write_results
from tenfold.launch.job import Resources
from tenfold.launch.local import LocalLauncher
from tenfold.spec.errors import TenfoldError
from tenfold.train import checkpoint
from tenfold.train.config import RunConfig
from tenfold.train.goodput import read_goodput
from tenfold.train.hook import Hook
from tenfold.train.jobs import train_on
from tenfold.train.metrics import read_metrics
from tenfold.train.parallel.processes import start_processes
from tenfold.train.result import RunResult
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

KINDS = ("kill", "hang", "freeze", "slow", "damage", "disk", "term")
RUN = {
    "dtype": "float32", "device": "cpu", "compile": "off",
    "model": {"name": "tiny", "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 64, "vocab_size": 512},
    "task": {"evaluate_tokens": 2048}, "checkpoint": {"every_s": 1.0, "keep_last": 3}, "log": {"every": 1},
    "health": {"hang_after_s": 10.0},
}  # fmt: skip


class Faults(Hook):
    """Injects the faults (step, rank, kind) of `faults.json` in the home, each once."""

    def __init__(self, home: Path, directory: Path):
        self._home, self._directory, self._rank = home, directory, int(os.environ["RANK"])
        self._faults = json.loads((home / "faults.json").read_text())

    def after_step(self, run, done) -> None:
        for i, (step, where, kind) in enumerate(self._faults):
            struck = self._home / f"fault-{i}"
            # a run whose only checkpoint is damaged cannot continue, so wait for a second one
            alone = kind == "damage" and len(list((self._directory / "checkpoint").glob("step-*"))) < 2
            if run.state.step >= step and where == self._rank and not struck.exists() and not alone:
                struck.write_text(json.dumps([kind, run.state.step, time.time()]))
                strike(kind, self._directory)


def worker(config: RunConfig, directory: Path, home: Path, quiet: bool) -> RunResult:
    """The function of each process of the run, with the faults."""
    torch.set_num_threads(1)
    start_processes(config.health.hang_after_s)
    hooks = [*standard_hooks(config, quiet=quiet), Faults(home, directory)]
    return fit(open_task(config, home, quiet=True), config, directory, hooks)


def strike(kind: str, directory: Path) -> None:
    """Inject the fault `kind` into this process."""
    if kind == "damage":
        newest = checkpoint.latest(directory / "checkpoint")
        for file in sorted(newest.glob("*.distcp"))[:1] if newest else ():
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    if kind in ("kill", "damage"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        while True:
            time.sleep(1)
    elif kind == "freeze":
        subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "slow":
        time.sleep(0.5)
    elif kind == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "disk":
        write = FileSystemWriter.write_data

        def full(*_):
            FileSystemWriter.write_data = write
            raise OSError(errno.ENOSPC, "no room")

        FileSystemWriter.write_data = full


def run(config: RunConfig, home: Path, name: str, processes: int) -> int:
    """Start the run again until it has finished; the number of starts."""
    for start in range(1, 100):
        try:
            needs = Resources(processes=processes)
            if train_on(LocalLauncher(), needs, config, home / name, home, quiet=True, grace_s=5, work=worker).finished:
                return start
        except TenfoldError as error:
            print(f"{name}: {error}", flush=True)
    raise SystemExit("The run did not finish in 99 starts.")


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        if set(r["faults"]) == {"kill"}:
            low, high = min(r["recovery_s"]), max(r["recovery_s"])
            yield f"{r['case']}: from each kill to the next step", f"{low:.1f} to {high:.1f} s"
        else:
            equal = "equal to the bit" if r["losses_equal"] and r["weights_equal"] else "not equal"
            shares = f"goodput {r['disturbed']['goodput']:.0%}, undisturbed {r['undisturbed']['goodput']:.0%}"
            yield f"{r['case']}: losses and weights beside an undisturbed run", f"{equal}; {shares}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--name", default="faults", help="name of the file in bench/results")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    home = Path(tempfile.mkdtemp())
    data = {"corpus": given.corpus, "vocab_size": 512, "seq_len": 64, "batch_size": 8, "max_epochs": 1e9}
    config = config_from_fields({**RUN, "tokens": given.steps * 8 * 64, "data": data}, "faults")
    (home / "faults.json").write_text("[]")
    run(config, home, "undisturbed", given.processes)
    draw = random.Random(given.seed)
    faults = []
    for i in range(given.faults):
        faults.append((draw.randrange(5, given.steps - 5), draw.randrange(given.processes), given.kinds[i % len(given.kinds)]))
    (home / "faults.json").write_text(json.dumps(faults))
    starts = run(config, home, "disturbed", given.processes)

    struck = [json.loads(file.read_text()) for file in home.glob("fault-*")]
    losses = [
        {row["step"]: row["loss"] for row in read_metrics(home / name / "run.jsonl") if row["event"] == "step"}
        for name in ("undisturbed", "disturbed")
    ]
    a, b = (load_file(home / name / "model" / "model.safetensors") for name in ("undisturbed", "disturbed"))
    what = "faults" if len(given.kinds) == len(KINDS) else f"faults ({', '.join(given.kinds)})"
    row = {
        "case": f"{given.faults} {what}, {given.processes} processes",
        "steps": given.steps,
        "faults": {kind: sum(k == kind for k, _, _ in struck) for kind in given.kinds},
        "job_starts": starts,
        "final_loss": losses[1][given.steps],
        "final_loss_undisturbed": losses[0][given.steps],
        "losses_equal": losses[0] == losses[1],
        "weights_equal": a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a),
        "recovery_s": recoveries(home / "disturbed" / "time.jsonl", [when for kind, _, when in struck if kind == "kill"]),
        "disturbed": read_goodput(home / "disturbed" / "time.jsonl"),
        "undisturbed": read_goodput(home / "undisturbed" / "time.jsonl"),
    }
    path = write_results(given.name, [row], headline([row]))
    print(json.dumps(row, indent=1))
    print(path)
    shutil.rmtree(home)


def recoveries(path: Path, kills: list[float]) -> list[float]:
    """Seconds from each kill to the first step of the next start; kills without one are left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    firsts = [(b["began"], a["time"]) for b, a in itertools.pairwise(rows) if "began" in b and "began" not in a]
    back = [min((done for began, done in firsts if began > kill), default=None) for kill in sorted(kills)]
    return [round(done - kill, 2) for kill, done in zip(sorted(kills), back, strict=True) if done is not None]


if __name__ == "__main__":
    main()
