"""A plan: a model, its tokens, machines, the best layout, the days. What follows from it stands in `consequences`."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tenfold.plan.costs.consequences import beside_steps, consequences, step_error, stretch
from tenfold.plan.costs.cost import price
from tenfold.plan.costs.surroundings import Surroundings
from tenfold.plan.gpus import Job, fastest, fewest, first_that_fits, quickest
from tenfold.plan.ranges import Range
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.search import Search
from tenfold.plan.workload.shape import batch_tokens, resolve
from tenfold.plan.workload.workload import DAY_S, Workload
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.shapes import Shape

DTYPES = ("bf16", "fp8", "fp4")
BUDGET_DAYS = 30.0  # how long a budget is spent over where neither --days nor --gpus says
GUESSED_MFU = 0.4  # where a budget's compute is looked for


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
    shape: Shape, gpus: int, machine: Machine, step: StepRequest = StepRequest(), around: Surroundings = Surroundings()
) -> Plan:
    """The fastest plan for a shape on at most so many GPUs. Raises TenfoldError where it does not fit."""
    _check(gpus, machine, step)
    spec, peak, job = shape.spec, machine.accelerator.peak_flops(step.dtype), _job(shape, machine, step, around)
    try:
        found = fastest(job, gpus)
    except TenfoldError as error:
        more = first_that_fits(job, gpus)
        raise TenfoldError(f"{error} {f'It fits on {more:,}.' if more else ''}".rstrip()) from error
    best = found.best
    used, step_s = best.layout.world, best.step_time.total_s
    mfu = best.layout.tokens_per_step * spec.train_flops_per_token(step.seq_len) / step_s / used / peak
    if mfu > 1:
        raise TenfoldError(f"The constants of {machine.accelerator.name} give {mfu:.0%} of its peak: correct or recalibrate them.")
    took = shape.tokens / best.layout.tokens_per_step * step_s / DAY_S
    workload = Workload(spec, shape.tokens, machine.accelerator, used, best.layout, best.memory, best.step_time, step_s, took, mfu)
    notes = [*shape.reasons, found.second_wins_if]
    if used < gpus:
        notes.insert(0, f"GPUs: {used:,} of {gpus:,} train, {_why_fewer(job, used, gpus)}; the others can stand by as spares.")
    notes.append(f"Search: {found.fitted} of {found.tried} layouts fit; constants: {machine.source}.")
    return Plan(workload, found, machine, tuple(notes))


def _why_fewer(job: Job, used: int, gpus: int) -> str:
    """Why all GPUs together would not train sooner."""
    if not job.rate(gpus):
        return "for all of them together cannot"
    if job.rate(gpus) * job.lasts(gpus) > job.rate(used) * job.lasts(used):
        return "for with more, failures would take more than the others bring"
    return "for they divide the model and its batch better"


def _job(shape: Shape, machine: Machine, step: StepRequest, around: Surroundings, confidence: float | None = None) -> Job:
    """The job of a shape; with a confidence, numbers of GPUs compete by the time that they keep with that probability."""
    parameters = shape.spec.parameters().total
    batch = step.global_batch or max(1, round(batch_tokens(shape.flops) / step.seq_len))

    def judged(longer: Range) -> float:
        return longer.mid if confidence is None else longer.quantile(confidence)

    @cache
    def lasts(gpus: int) -> float:
        return judged(stretch(gpus, parameters, around))

    return Job(shape.spec, machine, step.seq_len, batch, step.dtype, lasts, judged(step_error() * beside_steps(around)))


def _check(gpus: int, machine: Machine, step: StepRequest) -> None:
    """Raises TenfoldError where a flag has an impossible value."""
    if gpus < 1:
        raise TenfoldError(f"A plan needs at least one GPU, not {gpus}.")
    if step.seq_len < 1:
        raise TenfoldError(f"--seq-len must be at least one token, not {step.seq_len}.")
    if step.global_batch < 0:
        raise TenfoldError(f"--global-batch must be at least one sequence, or 0 to follow the compute, not {step.global_batch}.")
    if step.dtype not in DTYPES:
        raise TenfoldError(f"--dtype must be one of {', '.join(DTYPES)}, not {step.dtype!r}{nearest(step.dtype, DTYPES)}.")
    if step.dtype == "fp4" and machine.stack.own_trainer:
        raise TenfoldError("Tenfold's trainer has no products in 4 bits: name software that has, as --stack megatron-bridge-26.04.")
    if machine.constants.scaleout_gb_per_s <= 0:
        raise TenfoldError(f"--network-gb-per-s must be above zero, not {machine.constants.scaleout_gb_per_s:g}.")
    if machine.buildings < 1:
        raise TenfoldError(f"--buildings must be at least one, not {machine.buildings}.")
    if machine.buildings > 1 and machine.between_gb_per_s <= 0:
        raise TenfoldError("--buildings needs --between-gb-per-s above zero: what a GPU can send to another building.")


def gpus_for_days(shape: Shape, fixed: GpuRequest, machine: Machine, step: StepRequest, around: Surroundings) -> int:
    """The least number of GPUs that trains the shape within `fixed.days` by the clock, with the probability asked for."""
    days = fixed.days or 0.0
    if days <= 0:
        raise TenfoldError(f"--days must be above zero, not {days:g}.")
    _check(1, machine, step)
    job = _job(shape, machine, step, around, fixed.confidence)
    found = fewest(job, shape.tokens / (days * DAY_S))
    if found is not None:
        return found
    rate, gpus = quickest(job)
    need = f"{shape.tokens / rate / DAY_S:.3g} days" if rate else "more days than can be counted"
    raise TenfoldError(
        f"No number of {machine.accelerator.name} trains {shape.spec.name} in {days:g} days with a probability of "
        f"{fixed.confidence:.0%}: the quickest power of two, {gpus:,}, needs {need}; take as many days, fewer "
        "FLOPs, a larger --global-batch or another accelerator."
    )


def solve(
    asked: Request,
    fixed: GpuRequest,
    machine: Machine,
    step: StepRequest = StepRequest(),
    home: Path | None = None,
    around: Surroundings = Surroundings(),
) -> Plan:
    """The plan for a request: compute from a parent, FLOPs or a budget; GPUs as given, or as the days need.

    A law that was fitted in `home` is used as far as it reaches. Raises TenfoldError where flags contradict each other or
    nothing fixes the plan.
    """
    known = asked.flops or asked.after or (asked.tokens and asked.model)
    if not (fixed.gpus or fixed.days or fixed.budget_usd):
        raise TenfoldError("Nothing fixes the machines: say --gpus, --days or --budget-usd.")
    if known and not (fixed.gpus or fixed.days):
        raise TenfoldError("--budget-usd judges a plan whose compute is known: say --gpus or --days too, or leave the compute out.")
    _check(1, machine, step)
    if not known and fixed.budget_usd:
        return _within_budget(asked, fixed, machine, step, home, around)
    shape = resolve(asked, step.seq_len, home=home)
    gpus = fixed.gpus or gpus_for_days(shape, fixed, machine, step, around)
    plan = make_plan(shape, gpus, machine, step, around)
    return _with_advice(plan, shape, fixed, step, around) if fixed.gpus and fixed.days else plan


def _with_advice(plan: Plan, shape: Shape, fixed: GpuRequest, step: StepRequest, around: Surroundings) -> Plan:
    """Where the GPUs given will hardly hold the days, the number that does."""
    assert fixed.days
    chance = consequences(plan.workload, around).wall_days.chance_within(fixed.days)
    if chance >= fixed.confidence:
        return plan
    words = f"Days: {fixed.days:g} hold with a probability of {chance:.0%}"
    try:
        enough = gpus_for_days(shape, fixed, plan.machine, step, around)
        words += f"; {enough:,} GPUs hold them with {fixed.confidence:.0%}."
    except TenfoldError as error:
        words += f". {error}"
    return replace(plan, notes=(words, *plan.notes))


def _within_budget(
    asked: Request, fixed: GpuRequest, machine: Machine, step: StepRequest, home: Path | None, around: Surroundings
) -> Plan:
    """The most compute whose rent keeps within the money with the probability asked for."""
    budget = fixed.budget_usd or 0.0
    if budget <= 0:
        raise TenfoldError(f"--budget-usd must be above zero, not {budget:g}.")
    peak, rent = machine.accelerator.peak_flops(step.dtype), _rent(machine, around)
    hours = budget / rent.mid
    flops = hours * 3600 * peak * GUESSED_MFU
    for _ in range(6):
        shape = resolve(asked, step.seq_len, flops=flops, home=home)
        gpus = fixed.gpus or max(1, round(hours / 24 / (fixed.days or BUDGET_DAYS)))
        plan = make_plan(shape, gpus, machine, step, around)
        spent = consequences(plan.workload, around).cost.rent_usd.quantile(fixed.confidence) / budget
        if abs(spent - 1) < 0.01:
            break
        flops /= spent
    note = (
        f"Budget: ${budget:,.0f} pays for {plan.workload.flops:.3g} FLOPs with a probability of {fixed.confidence:.0%}, at "
        f"${rent.mid:.2f} ({rent.low:.2f} to {rent.high:.2f}) a GPU-hour."
    )
    return replace(plan, notes=(note, *plan.notes))


def _rent(machine: Machine, around: Surroundings) -> Range:
    return price(machine.accelerator).rent_usd_per_h if around.rent_usd_per_h is None else Range.of(around.rent_usd_per_h)
