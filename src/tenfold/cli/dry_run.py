"""`tenfold train --dry-run`: what fake processes hold and send, beside what the planner reckons from its formulas."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tenfold.cli import print_json
from tenfold.cli.auto_layout import choose_layout
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.memory import CONTEXT_GIB, memory
from tenfold.plan.workload.traffic import traffic
from tenfold.plan.workload.workload import GIB
from tenfold.spec.layout import Layout
from tenfold.spec.model import published_model
from tenfold.train.config import RunConfig, resolve_model
from tenfold.train.dry_run import DIMENSIONS, DryRun, dry_run
from tenfold.train.optim.hyperparameters import derive


def show_dry_run(config: RunConfig, world: int, machine_name: str, as_json: bool) -> None:
    """Make the dry run and print it; as JSON, `beside_the_plan` with the fields of `train.dry_run.DryRun`."""
    config = with_layout(config, world, machine_name)
    found = dry_run(config, world)
    plan = beside_the_plan(found, config, machine_name)
    if as_json:
        print_json({**asdict(found), **plan})
        return
    table = Table("GiB of one process", *(f"rank {rank.rank:,}" for rank in found.ranks), "planner")
    for name, planned in plan["plan_parts_gib"].items():
        table.add_row(name, *(f"{rank.parts_gib.get(name, 0.0):.2f}" for rank in found.ranks), f"{planned:.2f}")
    table.add_row("memory", *(f"{r.memory_gib:.2f}" for r in found.ranks), f"{plan['plan_memory_gib']:.2f}", end_section=True)
    for name, planned in plan["plan_sent_gib"].items():
        table.add_row(f"sent, {name}", *(f"{rank.sent_gib.get(name, 0.0):.2f}" for rank in found.ranks), f"{planned:.2f}")
    console = Console()
    console.print(f"{world:,} processes: " + ", ".join(f"{name} {size}" for name, size in found.layout.items()), highlight=False)
    console.print(table)
    console.print(
        f"The planner is {plan['difference_pct']['memory']:+.1f} % off in memory and {plan['difference_pct']['sent']:+.1f} % in "
        f"what is sent in a step. {found.seconds:.0f} s.",
        highlight=False,
    )


def with_layout(config: RunConfig, world: int, machine_name: str) -> RunConfig:
    """`config` with the planner's layout where it asks for one."""
    vocabulary = published_model(config.model).vocab_size if isinstance(config.model, str) else config.vocab_size
    spec, tokens = resolve_model(config, vocabulary)
    batch_size = derive(spec, tokens, config.seq_len, batch_size=config.batch_size).batch_size
    return choose_layout(config, spec, world, batch_size, machine_name)


def beside_the_plan(found: DryRun, config: RunConfig, machine_name: str) -> dict[str, Any]:
    """The planner's figures for the same run, and how far its sums are in per cent: memory from the fullest rank's, what is sent
    from a rank's in the middle of a pipeline.

    The 1.5 GiB that the planner adds for CUDA's context and the allocator are left out.
    """
    layout, on = _as_planned(found, config), machine(machine_name)
    needed, sent = memory(found.spec, layout, on), traffic(found.spec, layout, on)
    names = ("parameters", "gradients", "optimizer", "activations")
    parts = {name: getattr(needed, f"{name}_gib") for name in names} | {"gathered": needed.buffers_gib - CONTEXT_GIB}
    sent_gib = {name: value / GIB for name, value in sent.items()}
    fullest = max(found.ranks, key=lambda rank: rank.memory_gib)
    middle = found.ranks[len(found.ranks) // 2 if found.layout["pipeline"] > 1 else 0]
    return {
        "plan_parts_gib": parts,
        "plan_memory_gib": sum(parts.values()),
        "plan_sent_gib": sent_gib,
        "difference_pct": {
            "memory": _difference(sum(parts.values()), fullest.memory_gib),
            "sent": _difference(sum(sent_gib.values()), sum(middle.sent_gib.values())),
        },
    }


def _difference(planned: float, found: float) -> float:
    return 100 * (planned / found - 1) if found else 0.0


def _as_planned(found: DryRun, config: RunConfig) -> Layout:
    """The run's layout as the planner knows it."""
    pp, replicate, shard, cp, tp, ep = (found.layout[name] for name in DIMENSIONS)
    again: dict[str, Any] = {"none": "none", "feed-forward": "selective", "block": "full"}
    schedule: Any = config.layout.schedule.replace("-", "_")
    return Layout(
        pp=pp, dp_replicate=replicate, dp_shard=shard, cp=cp, tp=tp, ep=ep, schedule=schedule,
        micro_batch=config.micro_batch or 0, global_batch=found.batch_size, seq_len=config.seq_len,
        activation_checkpointing=again[config.recompute],
    )  # fmt: skip
