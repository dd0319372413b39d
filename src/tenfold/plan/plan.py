"""A plan: a model, its tokens, machines, the best layout, the days. What follows from it stands in `consequences`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenfold.plan.costs.cost import price
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.search import Search, search
from tenfold.plan.workload.shape import batch_tokens, resolve
from tenfold.plan.workload.workload import DAY_S, Workload
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import Shape

DTYPES = ("bf16", "fp8")
GOODPUT = 0.9  # of rented hours, where failures are not counted yet
BUDGET_DAYS = 30.0  # how long a budget is spent over where neither --days nor --gpus says
MOST_GPUS = 1e9  # beyond them no layout is looked for
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


def make_plan(shape: Shape, gpus: int, machine: Machine, step: StepRequest = StepRequest(), days: float | None = None) -> Plan:
    """The best plan for a shape on so many GPUs. Raises TenfoldError where it does not fit, or not in `days`."""
    _check(gpus, machine, step)
    if shape.tokens < 1:
        raise TenfoldError(f"{shape.flops:.3g} FLOPs train {shape.spec.name} on less than one token: ask for more compute.")
    spec, peak = shape.spec, machine.accelerator.peak_flops(step.dtype)
    batch = step.global_batch or max(1, round(batch_tokens(shape.flops) / step.seq_len))
    found = _search(spec, gpus, machine, step, batch)
    best = found.best
    used = best.layout.world
    step_s = best.step_time.total_s
    mfu = best.layout.tokens_per_step * spec.train_flops_per_token(step.seq_len) / step_s / used / peak
    if mfu > 1:
        raise TenfoldError(f"The constants of {machine.accelerator.name} give {mfu:.0%} of its peak: correct or recalibrate them.")
    took = shape.tokens / best.layout.tokens_per_step * step_s / DAY_S
    if days is not None and took > days:
        least = shape.flops / (peak * days * DAY_S)
        raise TenfoldError(
            f"{gpus} {machine.accelerator.name} need {took:.0f} days, not {days:g}: take {math.ceil(gpus * took / days):,} GPUs"
            + (f" (fewer than {least:,.0f} could not at any MFU)." if least > gpus else ", or fewer FLOPs.")
        )
    workload = Workload(spec, shape.tokens, machine.accelerator, used, best.layout, best.memory, best.step_time, step_s, took, mfu)
    notes = [*shape.reasons, found.second_wins_if]
    if used < gpus:
        notes.insert(0, f"GPUs: {used:,} of {gpus:,} train, for they divide better; the others can stand by as spares.")
    notes.append(f"Search: {found.fitted} of {found.tried} layouts fit; constants: {machine.source}.")
    return Plan(workload, found, machine, tuple(notes))


def _search(spec: ModelSpec, gpus: int, machine: Machine, step: StepRequest, batch: int) -> Search:
    """The search on all GPUs, or on the next lower number that divides well where that trains faster."""
    domain, found, missed = machine.constants.domain_gpus, [], None
    for count in [gpus] if gpus % domain else sorted({gpus, _tidy(gpus, domain, math.floor)}, reverse=True):
        try:
            found.append(search(spec, count, machine, seq_len=step.seq_len, global_batch=batch, dtype=step.dtype))
        except TenfoldError as error:
            missed = missed or error
    if missed and not found:
        raise missed
    return max(found, key=lambda search: search.best.tokens_per_s)


def _check(gpus: int, machine: Machine, step: StepRequest) -> None:
    """Raises TenfoldError where a flag has an impossible value."""
    if gpus < 1:
        raise TenfoldError(f"A plan needs at least one GPU, not {gpus}.")
    if step.seq_len < 1:
        raise TenfoldError(f"--seq-len must be at least one token, not {step.seq_len}.")
    if step.global_batch < 0:
        raise TenfoldError(f"--global-batch must be at least one sequence, or 0 to follow the compute, not {step.global_batch}.")
    if step.dtype not in DTYPES:
        raise TenfoldError(f"--dtype must be {' or '.join(DTYPES)}, not {step.dtype!r}{nearest(step.dtype, DTYPES)}.")
    if machine.constants.scaleout_gb_per_s <= 0:
        raise TenfoldError(f"--network-gb-per-s must be above zero, not {machine.constants.scaleout_gb_per_s:g}.")
    if machine.buildings < 1:
        raise TenfoldError(f"--buildings must be at least one, not {machine.buildings}.")
    if machine.buildings > 1 and machine.between_gb_per_s <= 0:
        raise TenfoldError("--buildings needs --between-gb-per-s above zero: what a GPU can send to another building.")


def gpus_for_days(shape: Shape, days: float, machine: Machine, step: StepRequest = StepRequest()) -> int:
    """The least number of GPUs (whole domains, or tidy multiples of them) that trains the shape within `days`."""
    if days <= 0:
        raise TenfoldError(f"--days must be above zero, not {days:g}.")
    _check(1, machine, step)
    peak, domain = machine.accelerator.peak_flops(step.dtype), machine.constants.domain_gpus
    needed, reason = shape.flops / (peak * GOOD_MFU * days * DAY_S), ""
    if needed > MOST_GPUS:
        raise TenfoldError(
            f"{needed:.3g} {machine.accelerator.name} would be needed in {days:g} days: take more days or fewer FLOPs."
        )
    fastest: tuple[float, int] | None = None
    for _ in range(16):
        gpus = _tidy(needed, domain)
        try:
            took = make_plan(shape, gpus, machine, step).workload.days
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


def _tidy(gpus: float, domain: int, rounded: Callable[[float], int] = math.ceil) -> int:
    """The next number of GPUs that divides well: a multiple of the domain times a power of two near a 32nd of it."""
    step = domain
    while step * 32 <= gpus:
        step *= 2
    return rounded(gpus / step) * step


def solve(asked: Request, fixed: GpuRequest, machine: Machine, step: StepRequest = StepRequest(), home: Path | None = None) -> Plan:
    """The plan for a request: compute from a parent, FLOPs or a budget; GPUs as given, or as the days need.

    A law that was fitted in `home` is used as far as it reaches. Raises TenfoldError where flags contradict each other or
    nothing fixes the plan.
    """
    if fixed.budget_usd and (asked.flops or asked.after):
        named = "--flops" if asked.flops else "--after"
        raise TenfoldError(f"--budget-usd and {named} both fix the compute: say one of them.")
    if not (fixed.gpus or fixed.days or fixed.budget_usd):
        raise TenfoldError("Nothing fixes the machines: say --gpus, --days or --budget-usd.")
    _check(1, machine, step)
    if fixed.budget_usd:
        return _within_budget(asked, fixed, machine, step, home)
    shape = resolve(asked, step.seq_len, home=home)
    gpus = fixed.gpus or gpus_for_days(shape, fixed.days or 90.0, machine, step)
    return make_plan(shape, gpus, machine, step, fixed.days)


def _within_budget(asked: Request, fixed: GpuRequest, machine: Machine, step: StepRequest, home: Path | None) -> Plan:
    """The most compute that the money rents: the MFU that the plan finds sets the FLOPs, which set the plan."""
    budget = fixed.budget_usd or 0.0
    if budget <= 0:
        raise TenfoldError(f"--budget-usd must be above zero, not {budget:g}.")
    rent = price(machine.accelerator).rent_usd_per_h.mid
    peak, mfu = machine.accelerator.peak_flops(step.dtype), 0.4
    for _ in range(4):
        hours = budget * GOODPUT / rent
        shape = resolve(asked, step.seq_len, flops=hours * 3600 * peak * mfu, home=home)
        gpus = fixed.gpus or _tidy(hours / 24 / (fixed.days or BUDGET_DAYS), machine.constants.domain_gpus)
        plan = make_plan(shape, gpus, machine, step)
        spent = plan.workload.gpu_hours / hours
        if abs(spent - 1) < 0.01:
            break
        mfu /= spent
    note = f"Budget: ${budget:,.0f} rents {budget / rent:,.0f} GPU-hours at ${rent:.2f}; {GOODPUT:.0%} of them are taken to train."
    return replace(plan, notes=(note, *plan.notes))
