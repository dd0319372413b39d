"""`parallel = "auto"` of a run file: the planner's fastest layout that the trainer can build, for a number of processes."""

import msgspec

from tenfold.plan.workload import workload
from tenfold.plan.workload.layout import search
from tenfold.plan.workload.machine import machine
from tenfold.spec.layout import Layout, check
from tenfold.spec.model import published_model
from tenfold.train.config import RunConfig
from tenfold.train.resolve import resolve_hyperparameters, resolve_model


def with_layout(config: RunConfig, world: int, machine_name: str | None, vocab_size: int | None = None) -> RunConfig:
    """`config` with the planner's layout for `world` processes, where it asks for one; each has the accelerator `machine_name`.

    With the layout comes the batch that it divides. The processes share one copy (FSDP) where the planner does not know their
    accelerator (None, also for a CPU), or where the trainer can build none of the layouts that fit. Raises TenfoldError where
    none fits. `vocab_size` is that of the corpus.
    """
    if config.parallel != "auto":
        return config
    if world == 1 or machine_name is None:
        return msgspec.structs.replace(config, parallel=Layout())
    if vocab_size is None:
        vocab_size = published_model(config.model).vocab_size if isinstance(config.model, str) else config.data.vocab_size
    spec, tokens = resolve_model(config, vocab_size)
    batch_size = resolve_hyperparameters(config, spec, tokens).batch_size
    found = search(spec, world, machine(machine_name), seq_len=config.data.seq_len, global_batch=batch_size)
    layouts = (_as_trained(candidate.layout, bool(spec.n_experts)) for candidate in (found.best, *found.others))
    layout = next((one for one in layouts if one.virtual_stages <= 2 and not check(one, spec)), None)
    if layout is None:
        return msgspec.structs.replace(config, parallel=Layout())
    data = msgspec.structs.replace(config.data, batch_size=layout.global_batch)
    defaults = Layout()
    chosen = layout.replace(global_batch=defaults.global_batch, seq_len=defaults.seq_len, virtual_stages=0)
    return msgspec.structs.replace(config, data=data, parallel=chosen)


def _as_trained(planned: workload.Layout, experts: bool) -> Layout:
    shard = planned.shard // planned.cp if planned.shard else planned.dp
    return Layout(
        pp=planned.pp, schedule="interleaved" if planned.virtual_stages > 1 else "1f1b", virtual_stages=planned.virtual_stages,
        dp_replicate=planned.dp // shard, dp_shard=shard, cp=planned.cp, tp=planned.tp,
        ep=planned.ep * planned.tp if experts else 1, micro_batch=planned.micro_batch,
        activation_checkpointing=planned.recompute, global_batch=planned.global_batch, seq_len=planned.seq_len,
    )  # fmt: skip
