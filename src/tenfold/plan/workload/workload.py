"""What the rooms' parts pass on: how a model lies on machines, what it fills, how long it takes."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from tenfold.spec.accelerator import Accelerator
from tenfold.spec.model import ModelSpec

GIB = 2.0**30
DAY_S = 86_400.0

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layout:
    """How one training step is spread. `gpus = tp * pp * cp * dp`; experts divide the ranks of `dp * cp`.

    Tensor parallel ranks divide each routed expert too, but where `whole_experts`: then `ep` neighbours of all ranks divide the
    experts, and with `ep` 1 every tensor parallel rank has all of them. Memory and traffic know that, the time of a step does not.

    `zero` is 0 to 3: what is sharded over data parallel ranks (1 optimizer, 2 gradients too, 3 parameters too, as
    FSDP). `shard` is how many ranks share one copy (0: all of them; less is HSDP). `micro_batch` and `global_batch`
    count sequences of `seq_len` tokens. `virtual_stages` > 1 is the interleaved schedule.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    micro_batch: int = 1
    global_batch: int = 1
    seq_len: int = 8192
    virtual_stages: int = 1
    recompute: Recompute = "none"
    zero: int = 1
    shard: int = 0
    dtype: str = "bf16"
    whole_experts: bool = False

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights where nothing is sharded: data and context parallel together."""
        return self.dp * self.cp

    @property
    def expert_ranks(self) -> int:
        """Ranks that a GPU's routed experts are sharded over."""
        ranks = self.shard or self.replicas
        return max(1, ranks * (self.tp if self.whole_experts and self.ep > 1 else 1) // self.ep)

    @property
    def micro_batches(self) -> int:
        """Micro-batches that one pipeline works off in a step."""
        return max(1, math.ceil(self.global_batch / (self.dp * self.micro_batch)))

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.seq_len

    def words(self) -> str:
        """`TP 8, PP 16, CP 1, DP 128, micro-batch 1, selective recompute, ZeRO-1`."""
        parts = [f"TP {self.tp}", f"PP {self.pp}" + (f" x{self.virtual_stages}" if self.virtual_stages > 1 else "")]
        parts += [f"CP {self.cp}"] * (self.cp > 1) + [f"EP {self.ep}"] * (self.ep > 1)
        sharding = f"ZeRO-{self.zero}" + (f" over {self.shard}" if self.shard else "")
        return ", ".join([*parts, f"DP {self.dp}", f"micro-batch {self.micro_batch}", f"recompute {self.recompute}", sharding])


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU, by part, in GiB."""

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
        """What is missing; negative where it fits."""
        return self.total_gib - self.capacity_gib

    @property
    def fits(self) -> bool:
        return self.short_gib <= 0


@dataclass(frozen=True)
class StepTime:
    """Where the seconds of one optimizer step go. Collectives count only what is not hidden behind compute."""

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
        """Seconds by part, in order, without the suffix `_s`."""
        return {f.name.removesuffix("_s"): getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Workload:
    """One training run on machines: what money, power, failures and the report are reckoned from.

    `days` is pure training time: failures come on top. `mfu` counts the model's FLOPs (causal attention halved) against
    the peak of the dtype and never passes 1.
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

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.days * 24
