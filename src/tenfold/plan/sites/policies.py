"""Policies that decide at each stage with what is known then: staged (rolling horizon), just in time, all now, published."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tenfold.plan.sites.demand import DemandFile, State
from tenfold.plan.sites.inputs import read_toml
from tenfold.plan.sites.portfolio import Portfolio
from tenfold.plan.sites.staging import HALLS, SMALL_MW, Aim, Begun, solve
from tenfold.plan.sites.tree import ahead, forecast_tree, grow, placed, single
from tenfold.spec.errors import TenfoldError, nearest

ROLLING = Aim(gap=1e-3, later_in_part=True)
SAMPLES = 512
LEAVES = 8  # at most, of the trees after the first decision


@dataclass(frozen=True)
class View:
    """What is known at the beginning of a stage: the sites and machines, the state of demand, and the process of demand."""

    portfolio: Portfolio
    state: State
    demand: DemandFile


Policy = Callable[[View], list[Begun]]


def staged(cvar_share: float) -> Policy:
    """Solve the stochastic program again at every stage, on a tree from the current state of demand."""

    def decide(view: View) -> list[Begun]:
        paths = ahead(view.demand, view.state, SAMPLES)
        branches = view.demand.branches if view.state.quarter == 0 else placed(paths, view.demand.end_quarter, LEAVES)
        return solve(view.portfolio, grow(paths, view.demand, branches).tree, replace(ROLLING, cvar_share=cvar_share)).decisions(0)

    return decide


def remembered(policy: Policy) -> Policy:
    """The policy with a cache of its decisions in the first stage, which is the same in many futures."""
    known: dict[str, list[Begun]] = {}

    def decide(view: View) -> list[Begun]:
        if view.state.quarter:
            return policy(view)
        key = repr(view)
        if key not in known:
            known[key] = policy(view)
        return known[key]

    return decide


def just_in_time(view: View) -> list[Begun]:
    """The best plan for demand that stays as it is now."""
    tree = forecast_tree(view.demand, view.state, (1,), samples=1).tree
    flat = single(tree, [view.state.hours] * len(tree.nodes))
    return solve(view.portfolio, flat, ROLLING).decisions(0)


def all_now(first: View) -> Policy:
    """Decide everything at the first stage, for all demand that may come, and carry it out unchanged."""
    plan = solve(first.portfolio, forecast_tree(first.demand, first.state).tree, Aim(gap=ROLLING.gap), staged=False)
    quarters = [node.quarter for node in plan.tree.nodes]
    return lambda view: plan.decisions(quarters.index(view.state.quarter))


def published(view: View) -> list[Begun]:
    """Develop all sites as fast as possible, and fill them at the pace of an owner's published outlays, whatever the demand.

    The sites are full by the last year; each year gets its share of the owner's outlays.
    """
    p, quarter, begun = view.portfolio, view.state.quarter, []
    chips = [machine for machine in p.machines if all(machine.hours) and machine.from_quarter <= quarter]
    if not chips:
        return []
    machine = min(chips, key=lambda one: one.usd_m_per_mw / min(one.hours))
    mw = sum(place.largest_mw for place in p.sites) * pace(view)
    for place in p.sites:
        ready = {name for name, at in place.ready.items() if at <= quarter}
        begun += [Begun(0, place.name, s.name) for s in place.steps if s.name not in place.ready and ready.issuperset(s.after)]
        room = place.largest_mw - sum(one for site, one, _ in p.halls_begun if site == place.name)
        built = min(mw, room) if ready.issuperset(step.name for step in place.steps) else 0.0
        if built > SMALL_MW:
            begun += [Begun(0, place.name, HALLS, built), Begun(0, place.name, machine.name, built)]
            mw -= built
    return begun


def pace(view: View) -> float:
    """The share of the published outlays in the time of the stage that begins."""
    outlays = read_toml(None, "published.toml")["outlays_usd"]
    ends = [*(q for q in view.demand.quarters if q > view.state.quarter), view.demand.end_quarter]
    summed = np.interp(
        [view.state.quarter, ends[0]], np.linspace(0, view.demand.end_quarter, len(outlays) + 1), np.cumsum([0, *outlays])
    )
    return float(np.diff(summed)[0] / sum(outlays))


NAIVE = ("just-in-time", "all-now")


def policies(names: list[str], first: View, cvar_share: float) -> dict[str, Policy]:
    """The staged policy, and those of `names`. Raises TenfoldError for an unknown name."""
    found: dict[str, Policy] = {"staged": remembered(staged(cvar_share))}
    makes: dict[str, Callable[[], Policy]] = {
        "just-in-time": lambda: remembered(just_in_time),
        "all-now": lambda: all_now(first),
        "published": lambda: published,
    }
    for name in names:
        if name not in makes:
            raise TenfoldError(f"There is no policy {name!r}{nearest(name, makes)}: name {' or '.join(makes)}.")
        found[name] = makes[name]()
    return found
