"""Whether a plan of sites pays: revenue in three scenarios, payback, cash, and the cost of an hour and of a million tokens on own
and on rented machines.

Money is in millions of dollars of its quarter where it is not said to be discounted; hours are those of the reference accelerator.
"""

import math
from typing import Any

import numpy as np

from tenfold.plan.costs.cost import HOURS_PER_YEAR
from tenfold.plan.ranges import Range
from tenfold.plan.sites.inputs import Sold, read_toml
from tenfold.plan.sites.portfolio import BuildSite, M, Machine, Portfolio
from tenfold.plan.sites.staging import SitePlan, cvar
from tenfold.spec.errors import TenfoldError

SCENARIOS = ("low", "mid", "high")


def pay(plan: SitePlan, sold: dict[str, Sold], cash_usd: float | None) -> dict[str, Any]:
    """The answer as plain JSON values in USD. `sold` is by kind of demand; kinds that are not sold earn nothing.

    Raises TenfoldError where no chip serves all kinds of demand, so that own machines have no price per hour.
    """
    p, paid = plan.portfolio, outlays(plan)
    if not any(all(m.hours) for m in p.machines):
        raise TenfoldError(
            f"[revenue] needs a chip that serves all kinds of demand ({', '.join(plan.tree.kinds)}), for the price of an hour on "
            "own machines: add one to sites.toml, or leave out [revenue]."
        )
    scenarios = [_scenario(plan, earned(plan, sold, name) - paid, name, cash_usd) for name in SCENARIOS]
    place, machine, own = min(
        ((s, m, own_usd_per_hour(p, m, s)) for s in p.sites for m in p.machines if all(m.hours)), key=lambda found: found[2]
    )
    tokens = {kind: Range.of(one.m_tokens_per_hour).mid for kind, one in sold.items() if one.m_tokens_per_hour is not None}
    return {
        "scenarios": scenarios,
        "own": {"site": place.name, "chip": machine.name, "usd_per_hour": own},
        "rent_usd_per_hour": p.rent(0),
        "usd_per_m_tokens": {kind: {"own": own / rate, "rent": p.rent(0) / rate} for kind, rate in tokens.items()},
        "published_case": published_case(p, machine, place),
    }


def outlays(plan: SitePlan) -> np.ndarray:
    """The payments at each node: for sites, halls and machines, for running all machines (also those of today), and for rent."""
    p, tree = plan.portfolio, plan.tree
    yearly = np.array([[s.usd_m_per_mw_year + m.usd_m_per_mw * m.operation for m in p.machines] for s in p.sites])
    names, chips = [s.name for s in p.sites], [m.name for m in p.machines]
    found = []
    for n, node in enumerate(tree.nodes):
        mw = np.zeros(yearly.shape)
        for one in p.standing:
            mw[names.index(one.site), chips.index(one.chip)] += one.mw * one.runs(node.quarter)
        for m in tree.path(n):
            mw += plan.ordered[m] * [machine.runs(tree.nodes[m].quarter, node.quarter) for machine in p.machines]
        rent = p.rent(node.quarter) * plan.rented[n].sum()
        found.append(plan.spent_usd_m[n] + tree.years(n) * ((mw * yearly).sum() + rent))
    return np.array(found)


def earned(plan: SitePlan, sold: dict[str, Sold], scenario: str) -> np.ndarray:
    """The revenue of each node: the hours served, at the low, mid or high end of an hour's price."""
    tree = plan.tree
    served = np.array([node.hours for node in tree.nodes]) - plan.short
    found = np.zeros(len(tree.nodes))
    for d, kind in enumerate(tree.kinds):
        if kind in sold:
            usd, keeps = getattr(Range.of(sold[kind].usd_per_hour), scenario), 1 - sold[kind].fall_per_year
            found += [usd * keeps ** (node.quarter / 4) * tree.years(n) * served[n, d] for n, node in enumerate(tree.nodes)]
    return found


def _scenario(plan: SitePlan, flow: np.ndarray, name: str, cash_usd: float | None) -> dict[str, Any]:
    p, tree = plan.portfolio, plan.tree
    paths = [list(reversed(tree.path(leaf))) for leaf in tree.leaves]
    summed = np.array([np.cumsum(flow[path]) for path in paths])
    worth = [p.worth(tree.nodes[n].quarter) for n in range(len(tree.nodes))]
    value = np.array([sum(flow[n] * worth[n] for n in path) for path in paths]) + left_usd_m(plan)
    expected = plan.weights @ summed
    ends = [*sorted({node.quarter for node in tree.nodes})[1:], tree.end]
    cash = None if cash_usd is None else cash_usd / M
    return {
        "revenue": name,
        "value_usd": M * float(plan.weights @ value),
        "pays_probability": float(plan.weights[value > 0].sum()),
        "payback_quarter": payback(expected, ends),
        "cash_needed_usd": M * float(plan.weights @ np.maximum(0.0, -summed.min(1))),
        "cash_needed_worst_5_usd": M * cvar(np.maximum(0.0, -summed.min(1)), plan.weights),
        "runway_months": None if cash is None else runway_months(cash, expected, ends),
    }


def left_usd_m(plan: SitePlan) -> np.ndarray:
    """For each path, the value of phases, halls and machines at the horizon, discounted to today, as in the stochastic program."""
    p, tree = plan.portfolio, plan.tree
    found = []
    for leaf in tree.leaves:
        path, value = tree.path(leaf), 0.0
        for s, place in enumerate(p.sites):
            value += sum(
                step.sold_usd_m for f, step in enumerate(place.steps) if plan.begun[leaf, s, f] and step.name not in place.ready
            )
            for n in path:
                q = tree.nodes[n].quarter
                value += plan.halls[n, s] * p.hall.usd_m_per_mw * p.hall_left(q, tree.end)
                value += sum(plan.ordered[n, s, k] * m.usd_m_per_mw * m.left(q, tree.end) for k, m in enumerate(p.machines))
        found.append(value * p.worth(tree.end))
    return np.array(found)


def payback(summed: np.ndarray, ends: list[float]) -> float | None:
    """The quarter from which on the cumulative cash flow stays at or above zero; None where it ends below.

    `summed` is the cumulative cash flow at the quarters `ends`.
    """
    below = np.flatnonzero(summed < 0)
    if not len(below):
        return 0.0
    last = int(below[-1])
    if last == len(summed) - 1:
        return None
    return _crossing(summed[last], summed[last + 1], ends[last], ends[last + 1])


def runway_months(cash: float, summed: np.ndarray, ends: list[float]) -> float | None:
    """Months until the cash and the cumulative cash flow are spent; None where they last until the end."""
    have, before, start = cash + np.asarray(summed, float), cash, 0.0
    for value, end in zip(have, ends, strict=True):
        if value < 0:
            return 3 * _crossing(before, value, start, end)
        before, start = float(value), end
    return None


def _crossing(before: float, after: float, start: float, end: float) -> float:
    """The quarter at which a straight line crosses zero."""
    return float(start + (end - start) * before / (before - after))


def own_usd_per_hour(p: Portfolio, machine: Machine, place: BuildSite) -> float:
    """The cost of an hour of a machine ordered today, with a new hall and site: yearly payments over its life, and running it.

    Its hours per year are those of the kind of demand for which it has the fewest.
    """
    phases = sum(step.usd_m for step in place.steps) / place.largest_mw
    built = annuity(machine.usd_m_per_mw, machine.years, p.discount) + annuity(
        p.hall.usd_m_per_mw + phases, p.hall.years, p.discount
    )
    return (built + machine.usd_m_per_mw * machine.operation + place.usd_m_per_mw_year) / min(machine.hours)


def annuity(price: float, years: float, rate: float) -> float:
    """The yearly payment over `years` at an interest `rate` whose present value is `price`."""
    return price * rate / -math.expm1(-years * math.log1p(rate)) if rate else price / years


def published_case(p: Portfolio, machine: Machine, place: BuildSite) -> dict[str, float]:
    """A company that rents its machines, by published figures: the cost of the same hours on own machines, the capital for these,
    and how long its cash lasts either way, without revenue. The cash is computed from the published time that it lasts.
    """
    known = read_toml(None, "published.toml")["case"]
    yearly = known["training_usd"] + known["rented_usd"]
    cash = yearly * known["cash_months"] / 12
    hours = known["rented_usd"] / p.rent(0)
    capital = hours / min(machine.hours) * (machine.usd_m_per_mw + p.hall.usd_m_per_mw)
    own = hours * own_usd_per_hour(p, machine, place)
    running = hours / min(machine.hours) * (machine.usd_m_per_mw * machine.operation + place.usd_m_per_mw_year)
    after = known["training_usd"] + running
    return {
        "rented_usd_per_year": known["rented_usd"],
        "own_usd_per_year": own,
        "accelerators": hours / HOURS_PER_YEAR,
        "capital_usd": capital,
        "runway_months_renting": 12 * cash / yearly,
        "runway_months_owning": 12 * max(0.0, cash - capital) / after,
    }
