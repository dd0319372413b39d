"""`parallel = "auto"` of a run file: the planner's fastest layout for a number of processes."""

from msgspec.structs import replace

from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.layout import Layout
from tenfold.spec.model import published_model
from tenfold.train.config import RunConfig
from tenfold.train.resolve import resolve_hyperparameters, resolve_model


def with_layout(config: RunConfig, world: int, machine_name: str | None, vocab_size: int | None = None) -> RunConfig:
    """`config` with the planner's layout for `world` processes, where it asks for one; each has the accelerator `machine_name`.

    With the layout comes the batch that it divides. The processes share one copy (FSDP) where the planner does not know their
    accelerator (None, also for a CPU). Raises TenfoldError where no layout fits. `vocab_size` is that of the corpus.
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
    layout = found.best.layout
    data = replace(config.data, batch_size=layout.global_batch)
    return replace(config, data=data, parallel=layout.replace(global_batch=1, seq_len=Layout().seq_len))
