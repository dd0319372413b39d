"""Warm and cold role switches of one slot: time from the decision to the first token of an answer, and to the run's first step.

    python -m bench.fleet.switch                         # SmolLM2-135M beside a run of 5 M parameters, 50 switches of each kind
    python -m bench.fleet.switch --switches 3 --width 64
    python -m bench.fleet.switch --device cuda --model MODEL --width 1024

The slot trains, is lent to chat, answers one request, and trains again. In a warm loan the run and the server sleep; in a cold loan
their processes end. The two alternate, after one warm-up of each. At the end the loss of every step is compared with that of the
same run undisturbed, unless `--no-check` is given.
"""

import json
import sysconfig
import tempfile
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from bench.harness import alternate, options, write_results
from bench.serve.speed import smollm2
from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.roles import Serving, Training
from tenfold.fleet.slots.slots import Lend, Limits, Move, Return
from tenfold.launch.job import open_launcher
from tenfold.train.config import RunConfig
from tenfold.train.metrics import read_metrics
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import Hook, fit, standard_hooks

SLOT, KEEP_GIB = "slot-1", 1000.0
BAR_S = {"warm": 5.0, "cold": 30.0}
KINDS = ("to chat", "to training")


def run_config(width: int, device: str) -> RunConfig:
    """A reproducible run that is longer than the measurement."""
    corpus = str(Path(sysconfig.get_path("stdlib")) / "email")
    fields = {
        "tokens": 100_000 * 4 * 128, "device": device, "dtype": "float32", "threads": 1, "compile": "off",
        "model": {"width": width, "context": 128},
        "data": {"corpus": corpus, "vocab_size": 1024, "max_epochs": 10**6, "seq_len": 128, "batch_size": 4},
        "checkpoint": {"every_s": 30}, "log": {"every": 1},
    }  # fmt: skip
    return config_from_fields(fields, "The run of bench.fleet.switch")


class Opened(Front):
    """A front without a process: it only records which server was opened."""

    def __init__(self) -> None:
        self.opened: SimpleQueue[str] = SimpleQueue()

    def open(self, url: str) -> None:
        self.opened.put(url)

    def close(self, url: str) -> None:
        pass

    def runs(self) -> bool:
        return True


class Slot:
    """A slot that switches between a run and chat."""

    def __init__(self, folder: Path, training: Training, chat: Serving):
        self.training, self.front = training, Opened()
        self.ledger = Ledger(folder / "ledger.db", {SLOT: "train"}, time.time())
        self.world = LocalWorld(
            folder, self.ledger, {"train": training, "chat": chat}, open_launcher("local"), {"chat": self.front}
        )
        self.world.limits = Limits(leave_s=120, start_s=600)
        self.world.sleepers.keep_bytes = KEEP_GIB * 2**30
        self.world.open(SLOT)
        self._first_step(0)

    def warm(self) -> dict[str, float]:
        return self._loan(KEEP_GIB)

    def cold(self) -> dict[str, float]:
        return self._loan(0.0)

    def _loan(self, keep_gib: float) -> dict[str, float]:
        """Seconds of both switches of one loan. The owner always returns in a form that can sleep again."""
        self.world.sleepers.keep_bytes = keep_gib * 2**30
        began = self._apply(Lend(SLOT, "chat", self.world.clock() + 3600, "a loan of the measurement"))
        _first_token(self.front.opened.get(timeout=600))
        found = {"to chat": time.monotonic() - began}
        self._settle()
        step = last_step(self.training.directory)
        self.world.sleepers.keep_bytes = KEEP_GIB * 2**30
        began = self._apply(Return(SLOT, "it is over"))
        self._first_step(step)
        found["to training"] = time.monotonic() - began
        self._settle()
        print({kind: round(seconds, 2) for kind, seconds in found.items()}, "warm" if keep_gib else "cold", flush=True)
        return found

    def _apply(self, move: Move) -> float:
        began = time.monotonic()
        self.world.apply(move)
        return began

    def _first_step(self, step: int) -> None:
        """Wait for the step after `step`."""
        end = time.monotonic() + 600
        while last_step(self.training.directory) <= step:
            if time.monotonic() > end:
                raise SystemExit(f"The run did not go on from step {step}.")
            self.world.observe(self.world.clock())
            time.sleep(0.01)

    def _settle(self) -> None:
        while any(slot.turning for slot in self.world.observe(self.world.clock()).slots):
            time.sleep(0.05)

    def close(self) -> None:
        self.world.close()
        self.ledger.close()


def _first_token(url: str) -> None:
    """Wait for the first token of an answer."""
    body = {"prompt": "The capital of France is", "max_tokens": 8, "ignore_eos": True, "stream": True}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=600) as answer:
        answer.readline()
        answer.read()


def last_step(directory: Path) -> int:
    """The last step in a run's run.jsonl; 0 if there is none."""
    file = directory / "run.jsonl"
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        lines = stream.read().split(b"\n")[1:-1]
    steps = [row["step"] for row in map(json.loads, lines) if row["event"] == "step"]
    return max(steps, default=0)


def same_losses(training: Training) -> bool:
    """Whether the run's losses equal those of the same run undisturbed."""

    class Until(Hook):
        def after_step(self, run: Any, done: Any) -> None:
            run.stopped = run.state.step >= last

    last, alone = last_step(training.directory), training.directory.with_name("undisturbed")
    hooks = [*standard_hooks(training.config, quiet=True), Until()]
    fit(open_task(training.config, training.home, quiet=True), training.config, alone, hooks)
    losses = [
        {r["step"]: r["loss"] for r in read_metrics(d / "run.jsonl") if r["event"] == "step"} for d in (training.directory, alone)
    ]
    return losses[0] == losses[1]


def rows_of_times(times: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each kind of switch: its quantiles and all its times, in seconds."""
    rows = []
    for way, found in times.items():
        for kind in KINDS:
            seconds = [one[kind] for one in found]
            p50, p99 = np.quantile(seconds, (0.5, 0.99))
            rows.append(
                {"switch": f"{way}, {kind}", "n": len(seconds), "p50_s": p50, "p99_s": p99, "bar_s": BAR_S[way], "seconds": seconds}
            )
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-check", action="store_true", help="do not train the same run undisturbed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        training = Training(run_config(given.width, given.device), folder / "run", folder)
        slot = Slot(folder, training, Serving("chat", given.model or smollm2(), given.device))
        try:
            times = alternate({"warm": slot.warm, "cold": slot.cold}, given.switches)
        finally:
            slot.close()
        rows = rows_of_times(times)
        rows.append({"steps": last_step(training.directory), "same_losses": None if given.no_check else same_losses(training)})
    worst = {way: max(r["p99_s"] for r in rows if r.get("bar_s") == BAR_S[way]) for way in BAR_S}
    words = ", ".join(f"{way} {seconds:.1f} s (bar {BAR_S[way]:.0f})" for way, seconds in worst.items())
    print(words, rows[-1], flush=True)
    write_results("fleet_switch" + ("" if given.device == "cpu" else f"_{given.device}"), rows, [("a role switch, p99", words)])


if __name__ == "__main__":
    main()
