"""A plan: a model, its tokens, machines, the best layout, the days. What follows from it stands in `consequences`."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from tenfold.plan.workload.layout import Search, search
from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.shape import Request, Shape, batch_tokens, resolve
from tenfold.plan.workload.workload import DAY_S, Layout, Memory, StepTime, Workload
from tenfold.spec.errors import TenfoldError, nearest

__all__ = ["Layout", "Memory", "Plan", "StepTime", "Workload", "gpus_for_days", "make_plan"]

DTYPES = ("bf16", "fp8")
GOODPUT = 0.9  # of rented hours, where failures are not reckoned yet
BUDGET_DAYS = 30.0  # how long a budget is spent over where neither --days nor --gpus says
GOOD_MFU = 0.6  # nobody has trained a large model faster than this share of the peak


@dataclass(frozen=True)
class Plan:
    """A workload with the search it came from and the sentences that explain it."""

    workload: Workload
    search: Search
    machine: Machine
    notes: tuple[str, ...]

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """The next nine layouts: words, seconds for as many tokens as the best's step, why each loses."""
        per_step = self.workload.layout.tokens_per_step
        return [
            {
                "layout": c.layout.words(),
                "step_s": per_step / c.tokens_per_s,
                "slower_pct": c.slower_pct,
                "reason": c.loses_by,
            }
            for c in self.search.others
        ]


def make_plan(
    shape: Shape,
    gpus: int,
    machine: Machine,
    *,
    seq_len: int = 8192,
    global_batch: int = 0,
    dtype: str = "bf16",
    days: float | None = None,
) -> Plan:
    """The best plan for a shape on so many GPUs. Raises TenfoldError where it does not fit, or not in `days`."""
    _check(gpus, machine, seq_len, global_batch, dtype)
    batch = global_batch or max(1, round(batch_tokens(shape.flops) / seq_len))
    found = search(shape.spec, gpus, machine, seq_len=seq_len, global_batch=batch, dtype=dtype)
    best = found.best
    step_s = best.step_time.total_s
    model_flops = best.layout.tokens_per_step * shape.spec.train_flops_per_token(seq_len)
    mfu = model_flops / step_s / gpus / machine.accelerator.peak_flops(dtype)
    if mfu > 1:
        raise TenfoldError(f"The constants of {machine.accelerator.name} give {mfu:.0%} of its peak: correct or recalibrate them.")
    took = shape.tokens / best.layout.tokens_per_step * step_s / DAY_S
    if days is not None and took > days:
        least = shape.flops / (machine.accelerator.peak_flops(dtype) * days * DAY_S)
        raise TenfoldError(
            f"{gpus} {machine.accelerator.name} need {took:.0f} days, not {days:g}: take {math.ceil(gpus * took / days):,} GPUs"
            + (f" (fewer than {least:,.0f} could not at any MFU)." if least > gpus else ", or fewer FLOPs.")
        )
    workload = Workload(
        shape.spec, shape.tokens, machine.accelerator, gpus, best.layout, best.memory, best.step_time, step_s, took, mfu
    )
    notes = [*shape.notes, found.second_wins_if]
    notes.append(f"Search: {found.fitted} of {found.tried} layouts fit; constants: {machine.source}.")
    return Plan(workload, found, machine, tuple(notes))


def _check(gpus: int, machine: Machine, seq_len: int, global_batch: int, dtype: str) -> None:
    """Raises TenfoldError where a flag has an impossible value."""
    if gpus < 1:
        raise TenfoldError(f"A plan needs at least one GPU, not {gpus}.")
    if seq_len < 1:
        raise TenfoldError(f"--seq-len must be at least one token, not {seq_len}.")
    if global_batch < 0:
        raise TenfoldError(f"--global-batch must be at least one sequence, or 0 to follow the compute, not {global_batch}.")
    if dtype not in DTYPES:
        raise TenfoldError(f"--dtype must be {' or '.join(DTYPES)}, not {dtype!r}{nearest(dtype, DTYPES)}.")
    if machine.constants.scaleout_gb_per_s <= 0:
        raise TenfoldError(f"--network-gb-per-s must be above zero, not {machine.constants.scaleout_gb_per_s:g}.")
    if machine.buildings < 1:
        raise TenfoldError(f"--buildings must be at least one, not {machine.buildings}.")
    if machine.buildings > 1 and machine.between_gb_per_s <= 0:
        raise TenfoldError("--buildings needs --between-gb-per-s above zero: what a GPU can send to another building.")


def gpus_for_days(
    shape: Shape, days: float, machine: Machine, *, seq_len: int = 8192, global_batch: int = 0, dtype: str = "bf16"
) -> int:
    """The least number of GPUs (whole domains, or tidy multiples of them) that trains the shape within `days`."""
    if days <= 0:
        raise TenfoldError(f"--days must be above zero, not {days:g}.")
    _check(1, machine, seq_len, global_batch, dtype)
    peak, domain = machine.accelerator.peak_flops(dtype), machine.constants.domain_gpus
    needed, reason = shape.flops / (peak * GOOD_MFU * days * DAY_S), ""
    fastest: tuple[float, int] | None = None
    for _ in range(16):
        gpus = _tidy(needed, domain)
        try:
            took = make_plan(shape, gpus, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype).workload.days
        except TenfoldError as error:
            needed, reason = 1.3 * gpus, str(error)
            continue
        if took <= days:
            return gpus
        fastest = min(fastest or (took, gpus), (took, gpus))
        needed = max(gpus + 1, gpus * min(2.0, 1.01 * took / days))
    least = shape.flops / (peak * days * DAY_S)
    tried = f"the fastest tried, {fastest[1]:,}, need {fastest[0]:.3g} days" if fastest else f"none tried works: {reason}"
    raise TenfoldError(
        f"No number of {machine.accelerator.name} trains {shape.spec.name} in {days:g} days: {least:,.0f} would at 100 % of their "
        f"peak, but {tried.rstrip('.')}; take more days or another accelerator."
    )


def _tidy(gpus: float, domain: int) -> int:
    """The next number of GPUs that divides well: a multiple of the domain times a power of two near a 32nd of it."""
    step = domain
    while step * 32 <= gpus:
        step *= 2
    return math.ceil(gpus / step) * step


@dataclass(frozen=True)
class GpuRequest:
    """What is fixed: the number of GPUs, the days, or the money for rent; what is None is solved for."""

    gpus: Annotated[int | None, Meta(description="How many; solved for where --days or --budget-usd is given.")] = None
    days: Annotated[float | None, Meta(description="Days of training, failures apart.")] = None
    budget_usd: Annotated[float | None, Meta(description="Money for rent: the compute follows from it.")] = None


def solve(
    asked: Request, fixed: GpuRequest, machine: Machine, *, seq_len: int = 8192, global_batch: int = 0, dtype: str = "bf16"
) -> Plan:
    """The plan for a request: compute from a parent, FLOPs or a budget; GPUs as given, or as the days need.

    Raises TenfoldError where flags contradict each other or nothing fixes the plan.
    """
    if fixed.budget_usd and (asked.flops or asked.after):
        named = "--flops" if asked.flops else "--after"
        raise TenfoldError(f"--budget-usd and {named} both fix the compute: say one of them.")
    if not (fixed.gpus or fixed.days or fixed.budget_usd):
        raise TenfoldError("Nothing fixes the machines: say --gpus, --days or --budget-usd.")
    if not fixed.budget_usd:
        shape = resolve(asked)
        gpus = fixed.gpus or gpus_for_days(
            shape, fixed.days or 90.0, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype
        )
        return make_plan(shape, gpus, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype, days=fixed.days)
    return _within_budget(asked, fixed, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype)


def _within_budget(asked: Request, fixed: GpuRequest, machine: Machine, *, seq_len: int, global_batch: int, dtype: str) -> Plan:
    """The most compute that the money rents: the MFU that the plan finds sets the FLOPs, which set the plan."""
    from tenfold.plan.costs.cost import price

    budget = fixed.budget_usd or 0.0
    if budget <= 0:
        raise TenfoldError(f"--budget-usd must be above zero, not {budget:g}.")
    rent = price(machine.accelerator).rent_usd_per_h.mid
    peak, mfu = machine.accelerator.peak_flops(dtype), 0.4
    for _ in range(4):
        hours = budget * GOODPUT / rent
        shape = resolve(asked, flops=hours * 3600 * peak * mfu)
        gpus = fixed.gpus or _tidy(hours / 24 / (fixed.days or BUDGET_DAYS), machine.constants.domain_gpus)
        plan = make_plan(shape, gpus, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype)
        spent = plan.workload.gpu_hours / hours
        if abs(spent - 1) < 0.01:
            break
        mfu /= spent
    note = f"Budget: ${budget:,.0f} rents {budget / rent:,.0f} GPU-hours at ${rent:.2f}; {GOODPUT:.0%} of them are taken to train."
    return Plan(plan.workload, plan.search, machine, (note, *plan.notes))
