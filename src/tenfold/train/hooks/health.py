"""Whether a run is well: a loss that leaves its course, processes that are slower than the others, arithmetic that does not repeat.

A run whose loss leaves its course goes back to a checkpoint from before, and leaves out the batches since (as PaLM's did, arXiv
2204.02311, section 5.1).

All wait for the slowest, so a step takes equally long on each; what tells them apart is how long each waits for its batches, and
how long a product takes that none of the others has a part in.
"""

import json
import math
import socket
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.spec.errors import TenfoldError

WARM_UP = 50  # losses that make the usual one
PATIENCE = 10  # losses in a row that are too high
MOST_RETURNS = 5
LOOK_EVERY = 50  # steps
LATE = 0.1  # of a step: so much longer than the others a straggler waits for its batches
SLOW = 1.5  # times as long as the others' takes a straggler's product


class LossSpike(Exception):
    """The loss has left its course with `step` steps done; `before` so many it was well."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step, self.before = step, step - 2 * PATIENCE  # what brought it off course came earlier than the first high loss


class LossSpikeDetector:
    """The `usual` loss of a run, from `seen` losses, and for how long it has been more than `above` nats higher."""

    def __init__(self, above: float, usual: float = 0.0, seen: int = 0):
        self._above, self.usual, self.seen, self._high = above, usual, seen, 0

    def left(self, loss: float) -> bool:
        """Whether, with this loss too, it has left its course for good."""
        high = self.seen >= WARM_UP and loss > self.usual + self._above
        self._high = self._high + 1 if high else 0
        if not high and math.isfinite(loss):
            self.seen += 1
            self.usual += (loss - self.usual) / min(self.seen, WARM_UP)
        return self._high >= PATIENCE


def skips(directory: Path) -> list[tuple[int, int]]:
    """(step, batches): from which step on how many more batches are left out, from `skipped.jsonl`."""
    path = directory / "skipped.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def skip(directory: Path, step: int, batches: int) -> None:
    """Leave out so many batches from `step` on."""
    with (directory / "skipped.jsonl").open("a") as file:
        file.write(json.dumps([step, batches]) + "\n")


def stragglers(waited_s: float, step_s: float, device: torch.device) -> list[dict[str, Any]]:
    """The processes that hold up the others, each with `rank`, `host` and `why`, where a step takes `step_s`.

    `waited_s` is how long this one waits for the batch of a step. Every process calls it, and has the same answer.
    """
    reports: list[tuple[str, float, float]] = [("", 0.0, 0.0)] * dist.get_world_size()
    dist.all_gather_object(reports, (socket.gethostname(), waited_s, product_s(device)))
    usual_wait, usual_product = median(r[1] for r in reports), median(r[2] for r in reports)
    found = []
    for rank, (host, wait, product) in enumerate(reports):
        if wait > usual_wait + LATE * step_s:
            why = f"its batches take {wait:.3g} s a step, the others' {usual_wait:.3g} s"
            found.append({"rank": rank, "host": host, "why": why})
        if product > SLOW * usual_product:
            found.append({"rank": rank, "host": host, "why": f"its products take {product / usual_product:.1f} times as long"})
    return found


def product_s(device: torch.device) -> float:
    """Seconds of one matrix product, the best of five."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (384, torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def check_arithmetic(loss: Callable[[], Tensor | float], step: int) -> None:
    """Work out a loss twice. Raises TenfoldError, on every process, that names those on which it was not the same to the bit."""
    with torch.no_grad():
        first, second = (torch.as_tensor(loss()) for _ in range(2))
    own = None if torch.equal(first, second) else socket.gethostname()
    found: list[str | None] = [own]
    if dist.is_initialized():
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, own)
    wrong = ", ".join(f"process {rank} ({host})" for rank, host in enumerate(found) if host is not None)
    if wrong:
        raise TenfoldError(
            f"The loss after step {step} came out differently when it was worked out again on {wrong}: take that machine out, and "
            "go on from the last checkpoint."
        )
