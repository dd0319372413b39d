"""`tenfold train --dry-run`: the memory and traffic of simulated processes, beside the planner's figures."""

from typing import Any

from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.memory import CONTEXT_GIB, memory
from tenfold.plan.workload.traffic import traffic
from tenfold.plan.workload.workload import GIB
from tenfold.spec.terminal import Figures, console
from tenfold.train.dry_run import DryRun


def print_dry_run(found: DryRun, plan: dict[str, Any]) -> None:
    """Print a dry run as a table: a column for each simulated rank, and one for the planner's figures (`beside_the_plan`)."""
    table = Figures("GiB of one process", *(f"rank {rank.rank:,}" for rank in found.ranks), "planner")
    for name, planned in plan["plan_parts_gib"].items():
        table.add_row(name, *(f"{rank.parts_gib.get(name, 0.0):.2f}" for rank in found.ranks), f"{planned:.2f}")
    table.add_row("memory", *(f"{r.memory_gib:.2f}" for r in found.ranks), f"{plan['plan_memory_gib']:.2f}", end_section=True)
    for name, planned in plan["plan_sent_gib"].items():
        table.add_row(f"sent, {name}", *(f"{rank.sent_gib.get(name, 0.0):.2f}" for rank in found.ranks), f"{planned:.2f}")
    out = console()
    out.print(f"{found.world:,} processes: {found.layout.words()}")
    out.print(table)
    out.print(
        f"The planner is {plan['difference_pct']['memory']:+.1f} % off in memory and {plan['difference_pct']['sent']:+.1f} % in "
        f"what is sent in a step. {found.seconds:.0f} s."
    )


def beside_the_plan(found: DryRun, machine_name: str) -> dict[str, Any]:
    """The planner's memory and traffic for the same run in GiB, and by how many per cent its sums differ from the dry run's.

    The planner's memory is compared with that of the fullest rank, without the `CONTEXT_GIB` that it adds for CUDA's context and
    the allocator; its traffic with that of a rank in the middle of the pipeline.
    """
    layout, on = found.layout, machine(machine_name)
    needed, sent = memory(found.spec, layout, on), traffic(found.spec, layout, on)
    names = ("parameters", "gradients", "optimizer", "activations")
    parts = {name: getattr(needed, f"{name}_gib") for name in names} | {"gathered": needed.buffers_gib - CONTEXT_GIB}
    sent_gib = {name: value / GIB for name, value in sent.items()}
    fullest = max(found.ranks, key=lambda rank: rank.memory_gib)
    middle = found.ranks[len(found.ranks) // 2 if found.layout.pp > 1 else 0]
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
