"""`layout = "auto"` of a run file: the planner's fastest layout that the trainer knows, for the processes that there are."""

from typing import Any

import msgspec

from tenfold.plan.layout import search
from tenfold.plan.machine import machine
from tenfold.plan.workload import Layout
from tenfold.spec.model import ModelSpec
from tenfold.train.config import RunConfig
from tenfold.train.layout import LayoutConfig

RECOMPUTE: dict[str, Any] = {"none": "none", "selective": "feed-forward", "full": "block"}


def choose_layout(config: RunConfig, spec: ModelSpec, world: int, batch_size: int, machine_name: str | None) -> RunConfig:
    """`config` with a layout for `world` processes, each with the accelerator `machine_name`; None is a CPU, or one unknown.

    With it come the batch that it divides, its micro-batch and its recomputation. Where the planner knows no such
    machine, the processes share one copy (FSDP). Raises TenfoldError where the planner finds none that fits.
    """
    if not config.layout.auto or world == 1 or machine_name is None:
        return config
    found = search(spec, world, machine(machine_name), seq_len=config.seq_len, global_batch=batch_size)
    for candidate in (found.best, *found.others):
        planned = candidate.layout
        if _is_trained(planned, spec):
            return msgspec.structs.replace(
                config, layout=_as_trained(planned), batch_size=planned.global_batch, micro_batch=planned.micro_batch,
                recompute=RECOMPUTE[planned.recompute],
            )  # fmt: skip
    return config


def _is_trained(planned: Layout, spec: ModelSpec) -> bool:
    pipelined = planned.pp > 1 and (spec.tied or spec.n_experts > 0 or planned.virtual_stages > 2)
    return not pipelined and not (planned.ep > 1 and planned.tp > 1) and (planned.shard or planned.cp) % planned.cp == 0


def _as_trained(planned: Layout) -> LayoutConfig:
    shard = planned.shard // planned.cp if planned.shard else planned.dp
    return LayoutConfig(
        pipeline=planned.pp, schedule="interleaved" if planned.virtual_stages > 1 else "1f1b", replicate=planned.dp // shard,
        shard=shard, context=planned.cp, tensor=planned.tp, expert=planned.ep,
    )  # fmt: skip
