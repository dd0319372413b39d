"""The results that the parts of the planner share: memory, step time, and the workload of a run."""

from dataclasses import dataclass, fields

from tenfold.spec.accelerator import Accelerator
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec

GIB = 2.0**30
DAY_S = 86_400.0


@dataclass(frozen=True)
class Memory:
    """Memory of the fullest GPU by part, in GiB (2^30 bytes)."""

    parameters_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    buffers_gib: float
    capacity_gib: float

    @property
    def total_gib(self) -> float:
        return self.parameters_gib + self.gradients_gib + self.optimizer_gib + self.activations_gib + self.buffers_gib

    @property
    def short_gib(self) -> float:
        """GiB that are missing; negative where the model fits."""
        return self.total_gib - self.capacity_gib

    @property
    def fits(self) -> bool:
        return self.short_gib <= 0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part. Of communication, only the time that is not hidden behind compute."""

    matmul_s: float = 0.0
    attention_s: float = 0.0
    pointwise_s: float = 0.0
    recompute_s: float = 0.0
    head_s: float = 0.0
    launch_s: float = 0.0
    tensor_parallel_s: float = 0.0
    context_parallel_s: float = 0.0
    expert_parallel_s: float = 0.0
    pipeline_s: float = 0.0
    bubble_s: float = 0.0
    data_parallel_s: float = 0.0
    optimizer_s: float = 0.0
    straggler_s: float = 0.0

    @property
    def total_s(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))

    def parts(self) -> dict[str, float]:
        """Seconds by part, in the order of the fields, their names without the suffix `_s`."""
        return {f.name.removesuffix("_s"): getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Workload:
    """One training run on a number of GPUs, from which failures, power, cost and the report are computed.

    `days` is the time of the steps alone, without failures. `mfu` is the model's FLOPs (causal attention counted as half) over the
    peak of the dtype, at most 1.
    """

    spec: ModelSpec
    tokens: float
    accelerator: Accelerator
    gpus: int
    layout: Layout
    memory: Memory
    step_time: StepTime
    step_s: float
    days: float
    mfu: float

    @property
    def flops(self) -> float:
        return self.tokens * self.spec.train_flops_per_token(self.layout.seq_len)
