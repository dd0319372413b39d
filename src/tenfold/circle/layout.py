"""`parallel = "auto"` of a run file: the planner's fastest layout for a number of processes."""

from msgspec.structs import replace

from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.layout import Layout
from tenfold.spec.model import published_model
from tenfold.train.config import RunConfig
from tenfold.train.resolve import resolve_hyperparameters, resolve_model


def with_layout(config: RunConfig, world: int, machine_name: str | None, vocab_size: int | None = None) -> RunConfig:
    """`config` with the planner's fastest layout for `world` processes if it has `parallel = "auto"`; else `config` unchanged.

    Each process has the accelerator `machine_name`. The batch size is set to one that the layout divides. If the accelerator is
    None (a CPU, or one that the planner does not know), all processes share one copy of the weights (FSDP). `vocab_size` is that
    of the corpus; None takes that of the published model or of [data]. Raises TenfoldError if no layout fits.
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
