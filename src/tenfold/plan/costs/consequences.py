"""The consequences of a workload: failures, wall-clock time, power, cost, carbon and water."""

import math
from dataclasses import dataclass

from tenfold.plan.costs import cost as money
from tenfold.plan.costs.environment import Footprint, run_footprint
from tenfold.plan.costs.failures import Failures, effective_time, monte_carlo
from tenfold.plan.costs.power import Held, RunPower, run_power
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Z90, Range
from tenfold.plan.sites.site import Site, site
from tenfold.plan.workload.workload import DAY_S, StepTime, Workload

# Parts of a step in which the board waits; in all others kernels of the model run on it.
WAITING = (
    "tensor_parallel_s",
    "context_parallel_s",
    "expert_parallel_s",
    "pipeline_s",
    "bubble_s",
    "data_parallel_s",
    "straggler_s",
)

SIMULATED_RUNS = 20


@dataclass(frozen=True)
class Consequences:
    """What a workload takes.

    `wall_days` are the days of the planned steps, times the error of the planned step (`step_error`), times all that runs take
    beside their steps (`beside_steps`), over the share of time that failures leave. `gpu_hours` are those of all GPUs, without
    spares. `simulated_share` is the effective share of simulated runs: 5th percentile, mean, 95th percentile.
    """

    site: Site
    failures: Failures
    simulated_share: Range
    step_error: Range
    beside_steps: Range
    wall_days: Range
    gpu_hours: Range
    power: RunPower
    cost: money.RunCost
    outlay: money.Outlay
    footprint: Footprint


def computing_of(step: StepTime) -> float:
    """The share of a step in which kernels run; the rest is exposed communication, bubble and stragglers."""
    return 1 - sum(getattr(step, name) for name in WAITING) / step.total_s


def checkpoint_bytes(parameters: float) -> float:
    """Bytes of a checkpoint of `parameters` with the optimizer's state."""
    return parameters * facts("reliability")["checkpoint"]["bytes_per_parameter"]


def step_error() -> Range:
    """The factor from the planned to the measured step, as wide as the planner's errors on sources that it was not fitted to."""
    return _log_normal(facts("beside")["step_error"], "step time")


def beside_steps(around: SiteOptions) -> Range:
    """The factor from the time of steps and failures to all that a run takes: evaluation, slow starts, repeated stages."""
    if around.beside_steps is not None:
        return Range.of(around.beside_steps)
    return _log_normal(facts("beside")["beside_steps"], "beside the steps")


def stretch(gpus: int, parameters: float, around: SiteOptions) -> Range:
    """Wall-clock time of a run on `gpus` over that of its planned steps: step error, failures, and all beside the steps."""
    share = effective_time(gpus, DAY_S, checkpoint_bytes(parameters), around).effective_share
    return step_error() * beside_steps(around) / share


def _log_normal(row: dict[str, float], name: str) -> Range:
    reach = math.exp(Z90 * row["log_sd"])
    return Range(row["median"] / reach, row["median"], row["median"] * reach, name)


def consequences(workload: Workload, around: SiteOptions | None = None) -> Consequences:
    """Compute failures, power, cost and footprint of a workload.

    Raises TenfoldError for an unknown region, an accelerator without a published board power, and more failures than a run bears.
    """
    around = around or SiteOptions()
    place = site(around.region, around.pue, around.wue_l_per_kwh)
    failures = effective_time(workload.gpus, workload.days * DAY_S, checkpoint_bytes(workload.spec.parameters().total), around)
    error, beside = step_error(), beside_steps(around)
    wall_days = workload.days * error * beside / failures.effective_share
    hours = 24 * wall_days
    held = Held(workload.accelerator, workload.gpus, hours, failures.spare_gpus, around.gpus_per_node)
    power = run_power(held, place.pue, computing_of(workload.step_time), failures.effective_share.mid)
    cost = money.run_cost(held, power, place, around)
    return Consequences(
        site=place,
        failures=failures,
        simulated_share=monte_carlo(failures, workload.days * DAY_S, SIMULATED_RUNS),
        step_error=error,
        beside_steps=beside,
        wall_days=wall_days,
        gpu_hours=workload.gpus * 24 * wall_days,
        power=power,
        cost=cost,
        outlay=money.outlay(held, power, cost),
        footprint=run_footprint(held, power, place, around),
    )
