"""The place of a process in the layout of a run: its share of the rows, positions and layers."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.train.parallel.pipeline import Pipeline
from tenfold.train.task import Batch, LossSums, Task


@dataclass(frozen=True)
class ParallelDims:
    """Which part of the rows and positions this process computes. The default is a single process.

    The rows of a step are divided over `data` groups of processes, of which this process is in number `data_rank`. The positions of
    each row are divided over `sequence` processes, of which this one is number `sequence_rank`. `shard_group` shards the
    parameters; `tensor_group` is that of tensor parallelism, None without it. `stage_group` are the processes with the same layers;
    None means all.
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
        """Whether the run has a single process."""
        return self.data * self.sequence == 1 and self.pipeline is None

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a step with `batch_size` rows; the numbers of rows differ by at most one."""
        return slice(*(batch_size * r // self.data for r in (self.data_rank, self.data_rank + 1)))

    def most_rows(self, batch_size: int) -> int:
        """The largest number of rows that any process has."""
        return -(-batch_size // self.data)

    def positions(self, rows: Tensor) -> Tensor:
        """This process's positions of rows [B, T, ...]."""
        return rows.chunk(self.sequence, 1)[self.sequence_rank].contiguous()

    def own_positions(self, batch: Batch) -> Batch:
        """The batch with only the targets of this process's positions; it keeps all tokens."""
        return batch if self.sequence == 1 else replace(batch, targets=self.positions(batch.targets))

    def loss_of(self, model: Any, task: Task, batch: Batch) -> LossSums:
        """The task's loss; for a sharded model, through `apply_loss`, which gathers the weights (see `parallelize`)."""
        return task.loss(model, batch) if self.alone else model.apply_loss(task.loss, batch)

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.alone:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def total_of_rows(self, *values: float) -> list[float]:
        """Each value, a sum over this process's rows, summed over all rows; rows that several processes share count once."""
        if self.alone:
            return list(values)
        copies = dist.get_world_size() // self.data
        return [value / copies for value in self.total(*values)]

    def agree(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is True on any process; all processes get the same result."""
        return [value > 0 for value in self.total(*map(float, flags))]


ALONE = ParallelDims()
