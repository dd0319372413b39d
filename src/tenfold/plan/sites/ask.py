"""The whole answer of `tenfold plan sites` as one document: the plan, what-if questions, revenue, and the back-test."""

from pathlib import Path
from typing import Any

from tenfold.plan.report import usd
from tenfold.plan.sites.answer import Question, answer, named, said
from tenfold.plan.sites.backtest import backtest
from tenfold.plan.sites.changes import blame, compared
from tenfold.plan.sites.demand import DemandFile, read_demand, today
from tenfold.plan.sites.inputs import Futures, SitesFile, read_sites
from tenfold.plan.sites.ladder import read_ladder
from tenfold.plan.sites.pay import pay
from tenfold.plan.sites.policies import View, policies
from tenfold.plan.sites.portfolio import M, portfolio
from tenfold.plan.sites.staging import Aim, Impossible, SitePlan, staging
from tenfold.plan.sites.walk import home_demand
from tenfold.spec.errors import TenfoldError, nearest


def ask(
    file: Path | None,
    of_demand: tuple[Path | None, Path | None],
    home: Path,
    changes: list[str],
    against: tuple[list[str], Futures],
) -> dict[str, Any]:
    """The whole document.

    `of_demand` has the demand file, and the ladder that gives the chances of the next generations; `against` the policies of the
    back-test and its futures. Raises TenfoldError where no plan keeps all limits, with the limits that bind.
    """
    demand_file, ladder_path = of_demand
    sites, demand = read_sites(file), read_demand(demand_file)
    source = str(demand_file or "demand of the package's example")
    if demand_file is None:
        demand, plan_file = home_demand(home, demand, sites)
        source = str(plan_file or source)
    known_kinds(sites, demand)
    ladder = None
    if ladder_path is not None:
        demand, ladder = read_ladder(ladder_path, demand)
    question = Question(portfolio(sites, demand), demand, Aim(sites.cvar_share))
    grown = question.grown()
    try:
        found = staging(question.portfolio, grown.tree, question.aim)
    except Impossible:
        raise TenfoldError(blame(question.portfolio, grown.tree)) from None
    document = {"demand": source, "ladder": ladder and ladder.sentence, "history": None, **answer(question, grown, found)}
    document["what_if"] = [what_if(question, change, found.staged) for change in changes]
    document["pay"] = pay(found.staged, sites.revenue, sites.cash_usd) if sites.revenue else None
    names, futures = against
    document["backtest"] = tested(sites, demand, names, futures) if names else None
    return document


def known_kinds(sites: SitesFile, demand: DemandFile) -> None:
    """Raises TenfoldError for revenue of something that is no kind of demand."""
    for kind in sites.revenue:
        if kind not in demand.kinds:
            raise TenfoldError(
                f"[revenue.{kind}] names no kind of demand{nearest(kind, demand.kinds)}: use {', '.join(demand.kinds)}."
            )


def what_if(question: Question, change: str, before: SitePlan) -> dict[str, Any]:
    """The effect of a change on this quarter's decisions and on the cost, with a sentence."""
    found = compared(question, change, before)
    plan, more = found.plan, M * (found.usd_m - before.objective(question.aim))
    begins = ", ".join(named(said(plan, one)) for one in plan.decisions(0)) or "nothing"
    cost = f"expected cost {usd(M * plan.mean_usd_m)} ({'+' if more >= 0 else '-'}{usd(abs(more))})"
    if found.unchanged:
        sentence = f"{change}: the same phases are begun this quarter; {cost}."
    elif found.keeping_usd_m is None:
        sentence = f"{change}: begin {begins}; the phases of the plan without the change are not possible; {cost}."
    else:
        sentence = (
            f"{change}: begin {begins}; to begin the phases of the plan without the change would cost "
            f"{usd(M * found.keeping_usd_m)} more; {cost}."
        )
    keeping = None if found.keeping_usd_m is None else M * found.keeping_usd_m
    return {"change": change, "unchanged": found.unchanged, "keeping_usd": keeping, "more_usd": more, "sentence": sentence}


def tested(sites: SitesFile, demand: DemandFile, names: list[str], asked: Futures) -> dict[str, Any]:
    """The back-test: the staged policy and others on sampled futures from which no tree was made."""
    first = View(portfolio(sites, demand), today(demand), demand)
    found = backtest(sites, demand, policies(names, first, sites.cvar_share), asked)
    staged = found["staged"].usd_m
    return {
        "futures": asked.futures,
        "policies": [
            {
                "policy": name,
                "mean_usd": M * result.mean_usd_m,
                "cvar95_usd": M * result.cvar_usd_m,
                "short_share": float(result.short_share.mean()),
                "over_staged_usd": M * float((result.usd_m - staged).mean()),
                "standard_error_usd": M * float((result.usd_m - staged).std() / len(staged) ** 0.5),
            }
            for name, result in found.items()
        ],
    }
