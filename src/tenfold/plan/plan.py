"""Makes a plan: model, tokens, machines, best layout, days. `consequences` computes failures, power, cost and footprint of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tenfold.plan.costs.consequences import beside_steps, consequences, step_error, stretch
from tenfold.plan.costs.cost import price
from tenfold.plan.costs.site_options import SiteOptions
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
BUDGET_DAYS = 30.0  # days over which a budget is spent, without --days and --gpus
GUESSED_MFU = 0.4  # start of the search for a budget's compute
ENOUGH, AIM = 0.99, 0.995  # the share of a budget that a plan must spend at least, and the share that the search aims at
PROPORTIONAL = 6  # attempts of that search which take the cost to be proportional to the compute; then it bisects
MOST_ATTEMPTS = 40


@dataclass(frozen=True)
class Plan:
    """A workload, the search that found its layout, and sentences that explain it (`notes`)."""

    workload: Workload
    search: Search
    machine: Machine
    notes: tuple[str, ...]

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """Up to nine next layouts: in words, seconds for the tokens of the best layout's step, and why each is slower."""
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
    shape: Shape, gpus: int, machine: Machine, step: StepRequest = StepRequest(), around: SiteOptions = SiteOptions()
) -> Plan:
    """The fastest plan for a shape on at most `gpus` GPUs.

    Raises TenfoldError for impossible options, where the model does not fit (with a number of GPUs on which it does, if one is
    found), and where the machine's constants give more than its peak.
    """
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
        raise TenfoldError(
            f"The constants of {machine.accelerator.name} give {mfu:.0%} of its peak: correct them, or calibrate again with "
            "`tenfold plan calibrate`."
        )
    took = shape.tokens / best.layout.tokens_per_step * step_s / DAY_S
    workload = Workload(spec, shape.tokens, machine.accelerator, used, best.layout, best.memory, best.step_time, step_s, took, mfu)
    notes = [*shape.reasons, found.second_wins_if]
    if used < gpus:
        notes.insert(0, f"GPUs: {used:,} of {gpus:,} train, because {_why_fewer(job, used, gpus)}; the others can be spares.")
    notes.append(f"Search: {found.fitted} of {found.tried} layouts fit; constants: {machine.source}.")
    return Plan(workload, found, machine, tuple(notes))


def _why_fewer(job: Job, used: int, gpus: int) -> str:
    """Why all GPUs together would not train sooner, as the end of a sentence."""
    if not job.rate(gpus):
        return "no layout fits on all of them"
    if job.rate(gpus) * job.lasts(gpus) > job.rate(used) * job.lasts(used):
        return "with more, failures would cost more time than the additional GPUs save"
    return "this number divides the model and its batch better"


def _job(shape: Shape, machine: Machine, step: StepRequest, around: SiteOptions, confidence: float | None = None) -> Job:
    """The job of a shape. With a confidence, numbers of GPUs are compared by that quantile of the time, otherwise by its middle."""
    parameters = shape.spec.parameters().total
    batch = step.global_batch or max(1, round(batch_tokens(shape.flops) / step.seq_len))

    def judged(longer: Range) -> float:
        return longer.mid if confidence is None else longer.quantile(confidence)

    @cache
    def lasts(gpus: int) -> float:
        return judged(stretch(gpus, parameters, around))

    return Job(shape.spec, machine, step.seq_len, batch, step.dtype, lasts, judged(step_error() * beside_steps(around)))


def _check(gpus: int, machine: Machine, step: StepRequest) -> None:
    """Raises TenfoldError for an option with an impossible value."""
    if gpus < 1:
        raise TenfoldError(f"--gpus must be at least 1, not {gpus}.")
    if step.seq_len < 1:
        raise TenfoldError(f"--seq-len must be at least 1 token, not {step.seq_len}.")
    if step.global_batch < 0:
        raise TenfoldError(
            f"--global-batch must be at least 1 sequence, or 0 to derive it from the compute, not {step.global_batch}."
        )
    if step.dtype not in DTYPES:
        raise TenfoldError(f"--dtype must be one of {', '.join(DTYPES)}, not {step.dtype!r}{nearest(step.dtype, DTYPES)}.")
    if step.dtype == "fp4" and machine.stack.own_trainer:
        raise TenfoldError(
            "Tenfold's trainer has no matrix products in 4 bits: name software that has, such as --stack megatron-bridge-26.04."
        )
    if machine.constants.scaleout_gb_per_s <= 0:
        raise TenfoldError(f"--network-gb-per-s must be above zero, not {machine.constants.scaleout_gb_per_s:g}.")
    if machine.buildings < 1:
        raise TenfoldError(f"--buildings must be at least 1, not {machine.buildings}.")
    if machine.buildings > 1 and machine.between_gb_per_s <= 0:
        raise TenfoldError("--buildings needs --between-gb-per-s, the bandwidth per GPU to another building, above zero.")


def gpus_for_days(shape: Shape, fixed: GpuRequest, machine: Machine, step: StepRequest, around: SiteOptions) -> int:
    """The fewest GPUs that train the shape within `fixed.days` of wall-clock time with probability `fixed.confidence`.

    Raises TenfoldError where no number of GPUs does.
    """
    days = fixed.days or 0.0
    if days <= 0:
        raise TenfoldError(f"--days must be above zero, not {days:g}.")
    _check(1, machine, step)
    job = _job(shape, machine, step, around, fixed.confidence)
    found = fewest(job, shape.tokens / (days * DAY_S))
    if found is not None:
        return found
    rate, gpus = quickest(job)
    quickest_of = (
        f"the fastest power of two, {gpus:,}, needs {shape.tokens / rate / DAY_S:.3g} days"
        if rate
        else "no power of two can train it"
    )
    raise TenfoldError(
        f"No number of {machine.accelerator.name} trains {shape.spec.name} in {days:g} days with a probability of "
        f"{fixed.confidence:.0%} ({quickest_of}): allow more days, or take fewer FLOPs, a larger --global-batch or another "
        "accelerator."
    )


def solve(
    asked: Request,
    fixed: GpuRequest,
    machine: Machine,
    step: StepRequest = StepRequest(),
    home: Path | None = None,
    around: SiteOptions = SiteOptions(),
) -> Plan:
    """The plan for a request: compute from a parent, FLOPs or a budget; GPUs as given, or as many as the days need.

    The law of the newest climb in `home` is used where it reaches the compute. Raises TenfoldError where options contradict each
    other, where too few are given, and where no plan exists.
    """
    known = asked.flops or asked.after or (asked.tokens and asked.model)
    if not (fixed.gpus or fixed.days or fixed.budget_usd):
        raise TenfoldError("Nothing determines the number of GPUs: give --gpus, --days or --budget-usd.")
    if known and not (fixed.gpus or fixed.days):
        raise TenfoldError(
            "--budget-usd does not determine the number of GPUs where the compute is known: say --gpus or --days too, or leave the "
            "compute out."
        )
    _check(1, machine, step)
    if not known and fixed.budget_usd:
        return _within_budget(asked, fixed, machine, step, home, around)
    shape = resolve(asked, step.seq_len, home=home)
    gpus = fixed.gpus or gpus_for_days(shape, fixed, machine, step, around)
    plan = make_plan(shape, gpus, machine, step, around)
    return _with_advice(plan, shape, fixed, step, around) if fixed.gpus and fixed.days else plan


def _with_advice(plan: Plan, shape: Shape, fixed: GpuRequest, step: StepRequest, around: SiteOptions) -> Plan:
    """The plan, with a note where its GPUs keep the days with less than the confidence, and on the number that keeps them."""
    assert fixed.days
    chance = consequences(plan.workload, around).wall_days.chance_within(fixed.days)
    if chance >= fixed.confidence:
        return plan
    words = f"Days: the run ends within {fixed.days:g} days with a probability of {chance:.0%}"
    try:
        enough = gpus_for_days(shape, fixed, plan.machine, step, around)
        words += f"; with {enough:,} GPUs it does with {fixed.confidence:.0%}."
    except TenfoldError as error:
        words += f". {error}"
    return replace(plan, notes=(words, *plan.notes))


def _within_budget(
    asked: Request, fixed: GpuRequest, machine: Machine, step: StepRequest, home: Path | None, around: SiteOptions
) -> Plan:
    """The plan with the most compute whose rent stays within the budget with probability `fixed.confidence`."""
    budget = fixed.budget_usd or 0.0
    if budget <= 0:
        raise TenfoldError(f"--budget-usd must be above zero, not {budget:g}.")
    peak, rent = machine.accelerator.peak_flops(step.dtype), _rent(machine, around)
    if rent.mid <= 0:
        raise TenfoldError("--budget-usd needs a rent above zero: raise --rent-usd-per-h, or give the compute.")
    hours = budget / rent.mid
    gpus = fixed.gpus or max(1, round(hours / 24 / (fixed.days or BUDGET_DAYS)))

    def spending(flops: float) -> tuple[Plan, float]:
        plan = make_plan(resolve(asked, step.seq_len, flops=flops, home=home), gpus, machine, step, around)
        return plan, consequences(plan.workload, around).cost.rent_usd.quantile(fixed.confidence) / budget

    found = _most_compute(spending, hours * 3600 * peak * GUESSED_MFU)
    if found is None:
        raise TenfoldError(
            f"No compute was found whose rent comes close to ${budget:,.0f} and stays within it with a probability of "
            f"{fixed.confidence:.0%}: give --flops and --gpus, whose plan says the probability for a budget."
        )
    plan, spent = found
    note = (
        f"Budget: ${budget:,.0f} pays for {plan.workload.flops:.3g} FLOPs with a probability of {fixed.confidence:.0%}, at "
        f"${rent.mid:.2f} ({rent.low:.2f} to {rent.high:.2f}) per GPU-hour."
    )
    if spent < ENOUGH:
        note += f" {1 - spent:.0%} of it is left with that probability: {1 / ENOUGH - 1:.0%} more compute would exceed it."
    return replace(plan, notes=(note, *plan.notes))


def _most_compute(spending: Callable[[float], tuple[Plan, float]], flops: float) -> tuple[Plan, float] | None:
    """The plan of the most compute that spends at most its budget, and the share that it spends.

    `spending` gives both for a compute; the search begins at `flops`. The plan spends at least `ENOUGH` of the budget. Where the
    cost jumps it spends less, but 1 / `ENOUGH` times its compute exceeds the budget. None if `MOST_ATTEMPTS` find no such plan.
    """
    low, high = 0.0, math.inf  # the largest compute found within the budget, and the smallest found above it
    found: tuple[Plan, float] | None = None
    for attempt in range(MOST_ATTEMPTS):
        plan, spent = spending(flops)
        if spent > 1:
            high = flops
        else:
            low, found = flops, (plan, spent)
        if found is not None and (found[1] >= ENOUGH or low >= ENOUGH * high):
            return found
        aimed = flops * AIM / spent
        bracketed = low > 0 and high < math.inf
        bisect = bracketed and not (attempt < PROPORTIONAL and low < aimed < high)
        flops = math.sqrt(low * high) if bisect else aimed
    return None


def _rent(machine: Machine, around: SiteOptions) -> Range:
    return price(machine.accelerator).rent_usd_per_h if around.rent_usd_per_h is None else Range.of(around.rent_usd_per_h)
