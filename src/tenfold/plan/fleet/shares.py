"""A fleet of GPUs shared by training, chat and ranking: the throughput of each share, and the cost of all."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from tenfold.plan.costs.consequences import Consequences, computing_of, consequences
from tenfold.plan.costs.cost import outlay, run_cost
from tenfold.plan.costs.environment import run_footprint
from tenfold.plan.costs.power import Held, run_power
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.plan import Plan, gpus_for_days, make_plan
from tenfold.plan.ranges import Range, total
from tenfold.plan.request import Confidence, Days, GpuRequest, Gpus, Request, StepRequest
from tenfold.plan.serving.chat import ChatRequest, best_replica
from tenfold.plan.serving.rank import RankCosts, ServeRequest, history_flops, plan_rank, rank_costs
from tenfold.plan.sites.site import site
from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.shape import Shape, resolve
from tenfold.plan.workload.workload import DAY_S
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import published_model
from tenfold.spec.ranges import Count, Share, Text
from tenfold.spec.units import si

CHAT_MODEL = "llama-3.1-70b"  # without --chat-model and --after


@dataclass(frozen=True)
class FleetRequest(ChatRequest):
    """The fleet's GPUs, the share of each role, and the load of each."""

    gpus: Annotated[Gpus | None, Meta(description="Number of GPUs in the fleet (required).")] = None
    training_share: Annotated[Share, Meta(description="Share of the GPUs (0 to 1) for training.")] = 0.6
    chat_share: Annotated[Share, Meta(description="Share of the GPUs (0 to 1) for chat.")] = 0.3
    ranking_share: Annotated[Share, Meta(description="Share of the GPUs (0 to 1) for ranking.")] = 0.1
    run_days: Annotated[
        Days | None,
        Meta(
            description="Wall-clock days of a training run: each run gets the fewest GPUs that keep them; default: the fastest run."
        ),
    ] = None
    confidence: Annotated[Confidence, Meta(description="Probability (0.05 to 0.95) with which --run-days is kept.")] = 0.8
    period_days: Annotated[Days, Meta(description="Days over which energy and cost are counted.")] = 365.0
    chat_model: Annotated[
        Text | None, Meta(description="Published model for chat; default: that of --after, or llama-3.1-70b.")
    ] = None
    chat_dtype: Annotated[
        Text | None, Meta(description="Data type of the chat model: bf16, fp8 or fp4; default: fp8 where the accelerator has it.")
    ] = None
    mean_share: Annotated[Share, Meta(description="Mean load of chat and ranking as a share (0 to 1) of their peak.")] = 0.5
    items: Annotated[Count, Meta(description="Items in the catalogue that are ranked for a list.")] = 1_000_000
    host_cores: Annotated[Count, Meta(description="CPU cores of a host with its GPUs.")] = 192


@dataclass(frozen=True)
class Role:
    """A share of the fleet: its GPUs, the share of the time in which kernels run on them (`busy`), its results, and a sentence."""

    name: str
    gpus: int
    busy: float
    does: dict[str, Any]
    sentence: str


@dataclass(frozen=True)
class RoleCosts:
    """Power, energy, cost and footprint of holding a role's machines for the period."""

    peak_mw: Range
    energy_mwh: Range
    rent_usd: Range
    own_usd: Range
    bought_usd: Range
    location_tco2e: Range
    water_on_site_m3: Range


@dataclass(frozen=True)
class FleetPlan:
    """The roles, the costs of each and of all, and the GPUs that chat and ranking do not need at their mean load (`idle_gpus`)."""

    roles: list[Role]
    costs: dict[str, RoleCosts]
    idle_gpus: float
    sentence: str


def plan_fleet(
    asked: Request, fleet: FleetRequest, machine: Machine, step: StepRequest, around: SiteOptions, home: Path
) -> FleetPlan:
    """The roles of a fleet and their costs; the law and the costs of ranking are those of `home`, where it has some.

    Raises TenfoldError where shares exceed one, or a role cannot work on its share.
    """
    shares = {"training": fleet.training_share, "chat": fleet.chat_share, "ranking": fleet.ranking_share}
    if fleet.gpus is None:
        raise TenfoldError("The fleet's number of GPUs is missing: give --gpus.")
    if sum(shares.values()) > 1 + 1e-9:
        raise TenfoldError(f"The shares of training, chat and ranking add up to {sum(shares.values()):.0%}: lower one of them.")
    node = around.gpus_per_node
    gpus = {name: round(share * fleet.gpus) // node * node for name, share in shares.items()}
    roles = []
    if gpus["training"]:
        shape = resolve(asked, step.seq_len, home=home)
        roles.append(training(shape, fleet, gpus["training"], machine, step, around))
    if gpus["chat"]:
        roles.append(chat(asked, fleet, gpus["chat"], machine))
    if gpus["ranking"]:
        roles.append(ranking(fleet, gpus["ranking"], machine, node, rank_costs(home)))
    costs = {role.name: role_costs(role, fleet.period_days, machine, around) for role in roles}
    costs["all"] = RoleCosts(*(total(getattr(c, name) for c in costs.values()) for name in RoleCosts.__dataclass_fields__))
    idle = (1 - fleet.mean_share) * (gpus["chat"] + gpus["ranking"])
    return FleetPlan(roles, costs, idle, _idle_words(idle, roles))


def training(shape: Shape, fleet: FleetRequest, gpus: int, machine: Machine, step: StepRequest, around: SiteOptions) -> Role:
    """As many runs of the model at a time as fit on the share, each on the fastest number of GPUs, or the fewest that keep the
    days."""
    if fleet.run_days:
        needed = gpus_for_days(shape, GpuRequest(days=fleet.run_days, confidence=fleet.confidence), machine, step, around)
        if needed > gpus:
            raise TenfoldError(
                f"{shape.spec.name} needs {needed:,} GPUs to be trained in {fleet.run_days:g} days, but the share for training has "
                f"{gpus:,}: raise --training-share or --run-days."
            )
        gpus_each = needed
    else:
        gpus_each = gpus
    plan = make_plan(shape, gpus_each, machine, step, around)
    after = consequences(plan.workload, around)
    runs = max(1, gpus // (plan.workload.gpus + after.failures.spare_gpus))
    busy = computing_of(plan.workload.step_time) * after.failures.effective_share.mid
    used = min(1.0, runs * plan.workload.gpus / gpus)
    return Role("training", gpus, used * busy, _trained(plan, after, runs, used), _training_words(plan, after, runs, gpus))


def _trained(plan: Plan, after: Consequences, runs: int, used: float) -> dict[str, Any]:
    w = plan.workload
    return {
        "model": w.spec.name,
        "parameters_total": w.spec.parameters().total,
        "tokens": w.tokens,
        "flops": w.flops,
        "runs_at_a_time": runs,
        "gpus_per_run": w.gpus,
        "used_share": used,
        "layout": w.layout.words(),
        "mfu": w.mfu,
        "wall_days": after.wall_days.ends(),
        "effective_share": after.failures.effective_share.ends(),
    }


def _training_words(plan: Plan, after: Consequences, runs: int, gpus: int) -> str:
    w, days = plan.workload, after.wall_days
    each = f"a run of {w.flops:.3g} FLOPs on {w.gpus:,} GPUs takes {days.mid:,.0f} days ({days.low:,.0f} to {days.high:,.0f})"
    left = gpus - runs * (w.gpus + after.failures.spare_gpus)
    rest = f"; {left:,} GPUs are left for other jobs, as they would not make a run faster" if left > 0.1 * gpus else ""
    return f"{runs} at a time: {each}{rest}" if runs > 1 else f"{each}{rest}"


def chat(asked: Request, fleet: FleetRequest, gpus: int, machine: Machine) -> Role:
    """The replicas of the share and the requests per second that they answer at the peak."""
    spec = published_model(fleet.chat_model or asked.after or CHAT_MODEL)
    dtype = fleet.chat_dtype or ("fp8" if machine.accelerator.fp8_tflops else "bf16")
    if dtype not in ("bf16", "fp8", "fp4"):
        raise TenfoldError(f"--chat-dtype must be bf16, fp8 or fp4, not {dtype!r}.")
    each = best_replica(spec, machine, dtype, fleet)
    replicas = gpus // each.gpus
    if not replicas:
        raise TenfoldError(
            f"A replica of {spec.name} in {dtype} needs {each.gpus:,} GPUs, but the share for chat has {gpus:,}: raise"
            " --chat-share."
        )
    requests = replicas * each.requests_per_s
    per_day = requests * fleet.mean_share * DAY_S
    does: dict[str, Any] = {
        "model": spec.name,
        "replicas": replicas,
        "replica": asdict(each),
        "requests_per_s": requests,
        "answer_tokens_per_s": requests * fleet.answer_tokens,
        "answers_under_way": replicas * each.batch,
        "requests_per_day": per_day,
    }
    words = (
        f"{replicas:,} replicas of {spec.name} in {dtype} on {each.gpus} GPUs: {requests:,.0f} requests/s at the peak, "
        f"{si(per_day)} a day, {1e3 * each.token_s:.0f} ms between tokens"
    )
    return Role("chat", gpus, fleet.mean_share, does, words)


def ranking(fleet: FleetRequest, gpus: int, machine: Machine, gpus_per_node: int, costs: RankCosts) -> Role:
    """The lists per second that the share ranks at the peak, bound by its hosts' cores or by its GPUs."""
    load = ServeRequest(items=fleet.items, host_cores=fleet.host_cores)
    by_cores = gpus // gpus_per_node * fleet.host_cores / (plan_rank(load, costs).cores_per_1000_queries / 1000)
    flops = history_flops(load.item_width, load.rank_layers, load.history) + 2.0 * load.items * load.item_width
    by_gpus = load.utilization * gpus * machine.matmul_flops("bf16") / flops
    lists, bound = min((by_cores, "the cores of its hosts"), (by_gpus, "its GPUs"))
    does = {"lists_per_s": lists, "bound": bound, "lists_per_s_of_cores": by_cores, "lists_per_s_of_gpus": by_gpus,
            "lists_per_day": lists * fleet.mean_share * DAY_S}  # fmt: skip
    words = f"{lists:,.0f} lists/s of {fleet.items:,} items at the peak, bound by {bound}"
    if by_gpus > 10 * by_cores:
        words += f"; its GPUs could rank {by_gpus / by_cores:,.0f} times as many, so hosts without GPUs would be enough"
    return Role("ranking", gpus, fleet.mean_share * min(1.0, lists / by_gpus), does, words)


def role_costs(role: Role, days: float, machine: Machine, around: SiteOptions) -> RoleCosts:
    """The costs of holding the role's machines for `days`, whether busy or idle."""
    place = site(around.region, around.pue, around.wue_l_per_kwh)
    held = Held(machine.accelerator, role.gpus, 24 * days, 0, around.gpus_per_node)
    power = run_power(held, place.pue, role.busy)
    cost, foot = run_cost(held, power, place, around), run_footprint(held, power, place, around)
    return RoleCosts(
        peak_mw=power.peak_mw,
        energy_mwh=power.energy_mwh,
        rent_usd=cost.rent_usd,
        own_usd=cost.own_usd,
        bought_usd=outlay(held, power, cost).total_usd,
        location_tco2e=foot.location_tco2e,
        water_on_site_m3=foot.water_on_site_m3,
    )


def _idle_words(idle: float, roles: list[Role]) -> str:
    trains = next((role for role in roles if role.name == "training"), None)
    words = f"Chat and ranking leave {idle:,.0f} GPUs idle on average"
    if trains is None:
        return f"{words}."
    more = f"{idle / trains.gpus:.0%}"
    return f"{words}: lent to training outside of the peaks, they would add at most {more} to it (see `tenfold fleet simulate`)."
