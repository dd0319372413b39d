"""Roll back: a run whose loss has spiked restarts from an earlier checkpoint and skips the batches since then."""

import json
from pathlib import Path

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_text
from tenfold.train import checkpoint

MOST_ROLLBACKS = 5


class LossSpike(Exception):
    """Raised when the loss has spiked: it was seen after `step` steps, and the run should go back to `before` steps or fewer."""

    def __init__(self, step: int, before: int):
        super().__init__(step)
        self.step, self.before = step, before


def roll_back(directory: Path, uploaded_to: str | None, spike: LossSpike) -> None:
    """Prepare the run to restart before its loss spiked: delete the later checkpoints, and record the batches to skip.

    Raises TenfoldError if there is no earlier checkpoint, or after `MOST_ROLLBACKS` rollbacks.
    """
    if len(skipped_batches(directory)) >= MOST_ROLLBACKS:
        raise TenfoldError(
            f"The loss spiked again at step {spike.step}, after {MOST_ROLLBACKS} rollbacks: lower learning_rate in [optimizer]."
        )
    step = checkpoint.delete_after(directory / "checkpoint", spike.before, uploaded_to)
    if step is None:
        raise TenfoldError(
            f"The loss spiked before step {spike.step}, and there is no checkpoint of step {spike.before} or earlier to go back "
            "to: lower learning_rate in [optimizer], check the data of these steps, or raise loss_spike in [health]."
        )
    rows = [*skipped_batches(directory), (step, spike.step - step)]
    write_text(directory / "skipped.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))


def skipped_batches(directory: Path) -> list[tuple[int, int]]:
    """The rollbacks recorded in `skipped.jsonl`, as (step, batches): from `step` on, so many more batches are skipped."""
    path = directory / "skipped.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
