"""The answer of a plan of sites as plain JSON values: what to begin this quarter, what waits for which news, the values of staging
and of information, and the limits that bind. Money is in USD, discounted to today; power is IT power in MW."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.plan.report import usd
from tenfold.plan.sites.demand import DemandFile, today
from tenfold.plan.sites.portfolio import M, Portfolio, middle
from tenfold.plan.sites.staging import Aim, Begun, SitePlan, Staging, nothing, running_mw, solve, without
from tenfold.plan.sites.tree import Grown, forecast_tree
from tenfold.spec.errors import TenfoldError

VERSION = 2
FULL = 1 - 1e-6  # share of a limit from which on it binds


@dataclass(frozen=True)
class Question:
    """The sites, the demand and the objective of a plan. Raises TenfoldError for a site with more halls than its limits allow."""

    portfolio: Portfolio
    demand: DemandFile
    aim: Aim

    def __post_init__(self) -> None:
        for place in self.portfolio.sites:
            if place.halls_mw > place.limit_mw(0):
                limit = place.limit_mw(0)
                raise TenfoldError(
                    f"Site {place.name} has halls of {place.halls_mw:g} MW, but its grid and water allow {limit:.0f} MW: lower "
                    "halls_mw, or raise grid_mw or water_m3_per_year."
                )

    def grown(self) -> Grown:
        return forecast_tree(self.demand, today(self.demand))


def answer(asked: Question, grown: Grown, found: Staging) -> dict[str, Any]:
    """The answer to a question from its tree and the plans on it."""
    p, plan, tree = asked.portfolio, found.staged, grown.tree
    now = [{**said(plan, one), "waiting_usd": M * _waiting(asked, plan, one)} for one in plan.decisions(0)]
    rung = M * rung_usd_m(asked, grown, plan)
    document = {
        "version": VERSION,
        "begin_now": now,
        "later": news(plan),
        "expected_usd": M * plan.mean_usd_m,
        "cvar95_usd": M * plan.cvar_usd_m,
        "gap": float((plan.objective(asked.aim) - plan.bound) / max(abs(plan.bound), 1e-9)),
        "one_stage_usd": M * found.one_stage.mean_usd_m,
        "value_of_staging_usd": M * found.value_usd_m,
        "value_of_perfect_information_usd": M * found.perfect_usd_m,
        "value_of_one_more_rung_usd": rung,
        "rent_all_usd": M * solve(p, tree, asked.aim, held=nothing).mean_usd_m,
        "paths": _paths(found),
        "binds": binding(plan),
        "nodes": [_node(plan, n) for n in range(len(tree.nodes))],
        "kinds": list(tree.kinds),
        "end_quarter": tree.end,
        "sites": [{"name": s.name, "largest_mw": s.largest_mw, "ready": s.ready} for s in p.sites],
    }
    return {**document, "sentence": sentence(document)}


def sentence(document: dict[str, Any]) -> str:
    """The answer in one sentence."""
    begun = ", ".join(named(one) for one in document["begin_now"]) or "nothing"
    return (
        f"begin {begun} this quarter; expected cost {usd(document['expected_usd'])}, "
        f"staging is worth {usd(document['value_of_staging_usd'])}."
    )


def named(one: dict[str, Any]) -> str:
    """A decision in words, such as `the permit of TX` or `54 MW of halls in OH`."""
    return f"{one['mw']:,.0f} MW of {one['what']} in {one['site']}" if one["mw"] else f"the {one['what']} of {one['site']}"


def news(plan: SitePlan) -> list[dict[str, Any]]:
    """For each phase that may begin later: its first quarter, its probability, and the demand at which it begins."""
    found, tree = [], plan.tree
    for s, place in enumerate(plan.portfolio.sites):
        for f, step in enumerate(place.steps):
            begins = [n for n in range(1, len(tree.nodes)) if plan.begun[n, s, f] > plan.begun[tree.path(n)[1], s, f]]
            if step.name in place.ready or not begins or plan.begun[0, s, f]:
                continue
            first = min(tree.nodes[n].quarter for n in begins)
            open_ = [n for n, node in enumerate(tree.nodes) if node.quarter == first]
            found.append(
                {
                    "site": place.name,
                    "what": step.name,
                    "mw": 0.0,
                    "first_quarter": first,
                    "probability": sum(tree.probability(n) for n in begins),
                    "if": _condition(plan, [n for n in open_ if n in begins], [n for n in open_ if n not in begins]),
                }
            )
    return sorted(found, key=lambda one: one["first_quarter"])


def _condition(plan: SitePlan, begins: list[int], others: list[int]) -> str:
    """The kind of demand, and its threshold, that best separates the nodes at which a phase begins from the others, in words."""
    if not others:
        return "in any case"
    tree, best = plan.tree, (-1.0, "", 0.0)
    for kind, hours in [("demand", lambda n: sum(tree.nodes[n].hours))] + [
        (name, lambda n, d=d: tree.nodes[n].hours[d]) for d, name in enumerate(tree.kinds)
    ]:
        least = min(hours(n) for n in begins)
        right = sum(hours(n) < least for n in others) / len(others)
        if right > best[0]:
            best = (right, kind, least)
    right, kind, least = best
    if right == 0:
        return "in some futures, for reasons that no single kind of demand explains"
    return f"{kind} is at least {least:,.0f} million hours a year" + ("" if right == 1 else ", in most such futures")


def rung_usd_m(asked: Question, grown: Grown, plan: SitePlan) -> float:
    """The value, in millions of dollars, of training one more rung before deciding, less its cost.

    The rung is a test of whether the next generation pays, with the probabilities `rung.sees` and `rung.false_alarms`. 0 where
    no generation comes within the tree.
    """
    rung, pays = asked.demand.training.rung, _next_pays(asked, grown)
    if pays is None:
        return 0.0
    informed = 0.0
    for right, wrong in ((rung.sees, rung.false_alarms), (1 - rung.sees, 1 - rung.false_alarms)):
        weights = np.where(pays, right, wrong)
        if weights.sum():
            tree = grown.given(weights)
            informed += weights.mean() * solve(plan.portfolio, tree, asked.aim).objective(asked.aim)
    return plan.objective(asked.aim) - informed - middle(rung.usd, "cost of a rung") / M


def _next_pays(asked: Question, grown: Grown) -> np.ndarray | None:
    """For each path, whether the next generation pays; None where it comes after the last stage."""
    for stage, quarter in enumerate(grown.paths.quarters):
        if quarter >= asked.demand.training.first_quarter:
            return grown.paths.pays[:, stage]
    return None


def _waiting(asked: Question, plan: SitePlan, one: Begun) -> float:
    """The additional cost of the best plan that does not begin `one` now, in millions of dollars."""
    return solve(plan.portfolio, plan.tree, asked.aim, held=without(plan.portfolio, one)).objective(asked.aim) - plan.objective(
        asked.aim
    )


def said(plan: SitePlan, one: Begun) -> dict[str, Any]:
    """A decision as plain values, with its cost in USD."""
    p = plan.portfolio
    place = next(s for s in p.sites if s.name == one.site)
    prices = {step.name: step.usd_m for step in place.steps} | {"halls": p.hall.usd_m_per_mw * one.mw}
    prices |= {machine.name: machine.usd_m_per_mw * one.mw for machine in p.machines}
    return {"site": one.site, "what": one.what, "mw": one.mw, "usd": M * prices[one.what]}


def _paths(found: Staging) -> list[dict[str, Any]]:
    plan, tree = found.staged, found.staged.tree
    return [
        {
            "leaf": tree.nodes[leaf].name,
            "probability": float(plan.weights[i]),
            "hours_at_end": list(tree.nodes[leaf].hours),
            "usd": M * float(plan.path_usd_m[i]),
            "regret_usd": M * float(found.regret_usd_m[i]),
        }
        for i, leaf in enumerate(tree.leaves)
    ]


def _node(plan: SitePlan, n: int) -> dict[str, Any]:
    tree, p = plan.tree, plan.portfolio
    mw = running_mw(plan, n)
    return {
        **asdict(tree.nodes[n]),
        "hours": list(tree.nodes[n].hours),
        "path_probability": tree.probability(n),
        "running_mw": {place.name: float(mw[s]) for s, place in enumerate(p.sites)},
        "rented_hours": float(plan.rented[n].sum()),
        "short_hours": float(plan.short[n].sum()),
        "mwh_per_year": float(sum(mw[s] * place.mwh for s, place in enumerate(p.sites))),
        "m3_per_year": float(sum(mw[s] * place.m3 for s, place in enumerate(p.sites))),
        "tco2_per_year": float(sum(mw[s] * place.tco2 for s, place in enumerate(p.sites))),
        "begun": [said(plan, one) for one in plan.decisions(n)],
    }


def binding(plan: SitePlan) -> list[dict[str, Any]]:
    """The limits that are reached, each with the first quarter and the largest probability over the stages."""
    p, tree = plan.portfolio, plan.tree
    found: dict[str, dict[float, float]] = {}
    for n, node in enumerate(tree.nodes):
        mw, full = running_mw(plan, n), []
        for s, place in enumerate(p.sites):
            limit = place.limit_mw(node.quarter)
            if mw[s] >= FULL * limit > 0:
                full.append(f"{'water' if limit == place.water_mw else 'grid'}.{place.name}")
        if p.most_rent is not None and plan.rented[n].sum() >= FULL * p.most_rent:
            full.append("clouds")
        if p.most_usd_m is not None and plan.spent_usd_m[n] >= FULL * p.most_usd_m * tree.years(n):
            full.append("money")
        if p.most_tco2 is not None and sum(mw * [s.tco2 for s in p.sites]) >= FULL * p.most_tco2:
            full.append("carbon")
        for name in full:
            at = found.setdefault(name, {})
            at[node.quarter] = at.get(node.quarter, 0.0) + tree.probability(n)
    return [{"limit": name, "first_quarter": min(at), "probability": max(at.values())} for name, at in found.items()]
