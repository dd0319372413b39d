"""`layout = "auto"` of a run file: the planner's fastest layout that the trainer can build, for a number of processes."""

from typing import Any

import msgspec

from tenfold.plan.workload.layout import search
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.workload import Layout
from tenfold.spec.model import ModelSpec, published_model
from tenfold.train.config import LayoutConfig, RunConfig, resolve_model
from tenfold.train.optim.hyperparameters import derive

RECOMPUTE: dict[str, Any] = {"none": "none", "selective": "feed-forward", "full": "block"}


def with_layout(config: RunConfig, world: int, machine_name: str, vocab_size: int | None = None) -> RunConfig:
    """`config` with the planner's layout for `world` processes, where it asks for one; each has the accelerator `machine_name`.

    With the layout come the batch that it divides, its micro-batch and its recomputation. Where the trainer can build none of
    those that fit, the processes share one copy (FSDP). Raises TenfoldError where none fits. `vocab_size` is the corpus's.
    """
    if not config.layout.auto or world == 1:
        return config
    if vocab_size is None:
        vocab_size = published_model(config.model).vocab_size if isinstance(config.model, str) else config.vocab_size
    spec, tokens = resolve_model(config, vocab_size)
    batch_size = derive(spec, tokens, config.seq_len, batch_size=config.batch_size).batch_size
    found = search(spec, world, machine(machine_name), seq_len=config.seq_len, global_batch=batch_size)
    for candidate in (found.best, *found.others):
        planned = candidate.layout
        if _is_trained(planned, spec):
            return msgspec.structs.replace(
                config, layout=_as_trained(planned, spec), batch_size=planned.global_batch, micro_batch=planned.micro_batch,
                recompute=RECOMPUTE[planned.recompute],
            )  # fmt: skip
    return config


def _is_trained(planned: Layout, spec: ModelSpec) -> bool:
    if planned.virtual_stages > 2 or (planned.shard or planned.cp) % planned.cp:
        return False
    # Experts are divided over tensor groups too, and a pipeline of them takes no row that counts for nothing.
    whole = planned.pp == 1 or planned.micro_batches % planned.pp == 0
    return not spec.n_experts or (spec.n_experts % (planned.ep * planned.tp) == 0 and whole)


def _as_trained(planned: Layout, spec: ModelSpec) -> LayoutConfig:
    shard = planned.shard // planned.cp if planned.shard else planned.dp
    return LayoutConfig(
        pipeline=planned.pp, schedule="interleaved" if planned.virtual_stages > 1 else "1f1b", replicate=planned.dp // shard,
        shard=shard, context=planned.cp, tensor=planned.tp, expert=planned.ep * planned.tp if spec.n_experts else 1,
    )  # fmt: skip
