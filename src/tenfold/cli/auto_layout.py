"""`layout = "auto"` of a run file: the planner's fastest layout for the processes that there are."""

from typing import Any

import msgspec

from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec
from tenfold.train.config import RunConfig
from tenfold.train.parallel.parallelize import LayoutConfig

RECOMPUTE: dict[str, Any] = {"none": "none", "selective": "feed-forward", "full": "block"}


def choose_layout(config: RunConfig, spec: ModelSpec, world: int, batch_size: int, machine_name: str | None) -> RunConfig:
    """`config` with a layout for `world` processes, each with the accelerator `machine_name`; None is a CPU, or one unknown.

    With it come the batch that it divides, its micro-batch and its recomputation. Where the planner knows no such
    machine, the processes share one copy (FSDP). Raises TenfoldError where the planner finds none that fits.
    """
    if not config.layout.auto or world == 1 or machine_name is None:
        return config
    found = search(spec, world, machine(machine_name), seq_len=config.seq_len, global_batch=batch_size)
    planned = next((c.layout for c in (found.best, *found.others) if c.layout.stages_per_rank <= 2), None)
    if planned is None:
        return config
    return msgspec.structs.replace(
        config, layout=_as_trained(planned), batch_size=planned.global_batch, micro_batch=planned.micro_batch,
        recompute=RECOMPUTE[planned.activation_checkpointing],
    )  # fmt: skip


def _as_trained(planned: Layout) -> LayoutConfig:
    return LayoutConfig(
        pipeline=planned.pp, schedule="interleaved" if planned.schedule == "interleaved" else "1f1b",
        replicate=planned.dp_replicate, shard=planned.dp_shard, context=planned.cp, tensor=planned.tp, expert=planned.ep,
    )  # fmt: skip
