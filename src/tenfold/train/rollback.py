"""Going back: a run whose loss has left its course begins again from a checkpoint from before, without the batches since."""

import json
from pathlib import Path

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_text
from tenfold.train import checkpoint

MOST_ROLLBACKS = 5


class LossSpike(Exception):
    """The loss has left its course with `step` steps done; `before` so many it was well."""

    def __init__(self, step: int, before: int):
        super().__init__(step)
        self.step, self.before = step, before


def roll_back(directory: Path, uploaded_to: str | None, spike: LossSpike) -> None:
    """Let the run begin again before its loss left its course, behind the batches that it had since.

    Raises TenfoldError where there is no checkpoint from before, or after too many returns.
    """
    if len(skipped_batches(directory)) >= MOST_ROLLBACKS:
        raise TenfoldError(
            f"The loss left its course again (step {spike.step}), after {MOST_ROLLBACKS} returns: lower learning_rate."
        )
    step = checkpoint.go_back(directory / "checkpoint", spike.before, uploaded_to)
    if step is None:
        raise TenfoldError(
            f"The loss left its course before step {spike.step}, and there is no checkpoint of step {spike.before} or earlier to "
            "go back to: lower learning_rate in [optimizer], look at the data there, or raise loss_spike in [health]."
        )
    rows = [*skipped_batches(directory), (step, spike.step - step)]
    write_text(directory / "skipped.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def skipped_batches(directory: Path) -> list[tuple[int, int]]:
    """(step, batches): from which step on how many more batches are left out, from `skipped.jsonl`."""
    path = directory / "skipped.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
