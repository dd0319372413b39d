"""Where a process stands among those of a run: which rows, positions and layers are its own."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.train.parallel.pipeline import Pipeline
from tenfold.train.task import Batch, LossSums, Task


@dataclass(frozen=True)
class ParallelDims:
    """Which part of the rows and of the positions is this process's own. The default is one process alone.

    `data` processes share the rows of a step, `sequence` the positions of each row. `stage_group` are the processes that have
    the same layers; None is all.
    """

    rank: int = 0
    data: int = 1
    data_rank: int = 0
    sequence: int = 1
    sequence_rank: int = 0
    shard_group: Any = None
    tensor_group: Any = None
    stage_group: Any = None
    pipeline: Pipeline | None = None

    @property
    def alone(self) -> bool:
        return self.data * self.sequence == 1 and self.pipeline is None

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a step; the shares of processes differ by one row at most."""
        return slice(*(batch_size * r // self.data for r in (self.data_rank, self.data_rank + 1)))

    def most_rows(self, batch_size: int) -> int:
        """The most rows that any process has."""
        return -(-batch_size // self.data)

    def positions(self, rows: Tensor) -> Tensor:
        """The part of rows [B, T, ...] that is this process's own."""
        return rows.chunk(self.sequence, 1)[self.sequence_rank].contiguous()

    def own_positions(self, batch: Batch) -> Batch:
        """The batch with the targets of this process's positions; every process takes in all tokens."""
        return batch if self.sequence == 1 else replace(batch, targets=self.positions(batch.targets))

    def loss_of(self, model: Any, task: Task, batch: Batch) -> LossSums:
        """The task's loss, within what gathers the weights of a model that is sharded."""
        return task.loss(model, batch) if self.alone else model.apply_loss(task.loss, batch)

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.alone:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def total_of_rows(self, *values: float) -> list[float]:
        """Each value, a count over this process's rows, summed over all rows: those of several processes count once."""
        if self.alone:
            return list(values)
        copies = dist.get_world_size() // self.data
        return [value / copies for value in self.total(*values)]

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag as all processes then have it: up where it is up in any."""
        return [value > 0 for value in self.total(*map(float, flags))]


ALONE = ParallelDims()
