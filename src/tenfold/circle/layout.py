"""`parallel = "auto"` of a run file: the planner's fastest layout that the trainer can build, for a number of processes."""

from msgspec.structs import replace

from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.layout import Layout, check
from tenfold.spec.model import ModelSpec, published_model
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
        return replace(config, parallel=Layout())
    if vocab_size is None:
        vocab_size = published_model(config.model).vocab_size if isinstance(config.model, str) else config.data.vocab_size
    spec, tokens = resolve_model(config, vocab_size)
    batch_size = resolve_hyperparameters(config, tokens).batch_size
    found = search(spec, world, machine(machine_name), seq_len=config.data.seq_len, global_batch=batch_size)
    layout = next((_as_trained(c.layout, spec) for c in (found.best, *found.others) if _is_trained(c.layout, spec)), None)
    if layout is None:
        return replace(config, parallel=Layout())
    data = replace(config.data, batch_size=layout.global_batch)
    return replace(config, data=data, parallel=layout.replace(global_batch=1, seq_len=Layout().seq_len))


def _is_trained(planned: Layout, spec: ModelSpec) -> bool:
    return planned.stages_per_rank <= 2 and not check(_as_trained(planned, spec), spec)


def _as_trained(planned: Layout, spec: ModelSpec) -> Layout:
    """The planned layout with parameters sharded and experts whole, as the trainer has them."""
    ep = planned.ep * planned.etp if spec.n_experts else 1
    return planned.replace(zero=3, etp=1, ep=ep, virtual_stages=0)
