"""Which sites to begin before demand is known: a multi-stage stochastic program over a scenario tree, solved by HiGHS.

Demand is in MW of IT power. A site that is begun gives power `lead_stages` stages later, and what was begun stays paid. Demand
without own power is met at the penalty, such as rent. Decisions belong to nodes of the tree, so that all scenarios that share a
node share its decisions (non-anticipativity).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from tenfold.plan.sites.tree import Tree
from tenfold.spec.errors import TenfoldError

USD = 1e6  # the solver counts in millions of dollars, so that its tolerances fit


@dataclass(frozen=True)
class BuildSite:
    """A place where power can be built in blocks. Powers are in MW; `power_mw` is the grid's, the building's overhead included.

    `begin_usd` is paid for each block that is begun, `usd_per_mw` for each MW of IT power in it, and `usd_per_mw_stage` for
    each MW of IT power and stage that runs. `water_m3` is the limit for a stage at full load, at `m3_per_mw` of IT power.
    """

    name: str
    power_mw: float
    pue: float
    water_m3: float
    m3_per_mw: float
    begin_usd: float
    usd_per_mw: float
    usd_per_mw_stage: float
    lead_stages: int = 1

    def __post_init__(self) -> None:
        figures = (self.power_mw, self.water_m3, self.m3_per_mw, self.begin_usd, self.usd_per_mw, self.usd_per_mw_stage)
        if not all(math.isfinite(f) and f >= 0 for f in figures) or not 1 <= self.pue < math.inf or self.lead_stages < 1:
            raise TenfoldError(f"Site {self.name!r} needs limits and costs of 0 or more, a PUE and a lead of 1 or more.")

    @property
    def limit_mw(self) -> float:
        """The most IT power, in MW, that grid and water allow."""
        return min(self.power_mw / self.pue, self.water_m3 / self.m3_per_mw if self.m3_per_mw else math.inf)


@dataclass(frozen=True)
class Begun:
    """A block that the plan begins: where, at which node, with how many MW of IT power."""

    node: str
    site: str
    mw: float


@dataclass(frozen=True)
class SitePlan:
    """The cheapest plan: its expected cost, what it begins (at the root: now), and by node what runs and what stays unmet, MW."""

    expected_usd: float
    begun: tuple[Begun, ...]
    running_mw: tuple[dict[str, float], ...]
    unmet_mw: tuple[float, ...]
    decisions: np.ndarray  # begun (0 or 1) and MW by node and site

    def now(self, tree: Tree) -> tuple[Begun, ...]:
        return tuple(b for b in self.begun if b.node == tree.nodes[0].name)


def solve(
    tree: Tree, sites: Sequence[BuildSite], unmet_usd: float, *, staged: bool = True, fixed: SitePlan | None = None
) -> SitePlan:
    """The plan of least expected cost, USD, where a MW without own power costs `unmet_usd` a stage.

    Unless `staged`, all is decided at the root: every node of a stage begins the same. `fixed` is a plan whose decisions are
    taken as they are, so that this is what it costs on this tree. Raises TenfoldError where HiGHS finds no plan.
    """
    if not sites or len({site.name for site in sites}) < len(sites) or not 0 <= unmet_usd < math.inf:
        raise TenfoldError("A plan of sites needs at least one site, names that differ, and a finite penalty of 0 or more.")
    nodes = range(len(tree.nodes))
    owner = [n if staged else next(m for m in nodes if tree.stage(m) == tree.stage(n)) for n in nodes]  # whose decisions
    begin, built, running = np.arange(3 * len(nodes) * len(sites)).reshape(3, len(nodes), len(sites))  # columns
    unmet = running.max() + 1 + np.arange(len(nodes))
    cost, rows = np.zeros(unmet[-1] + 1), []  # rows: coefficients by column, and their upper limit
    for n in nodes:
        path, weight = [owner[m] for m in tree.path(n)], tree.probability(n) / USD
        cost[unmet[n]] = weight * unmet_usd
        rows.append(({unmet[n]: -1.0, **dict.fromkeys(running[n], -1.0)}, -tree.nodes[n].demand_mw))
        for i, site in enumerate(sites):
            cost[begin[owner[n], i]] += weight * site.begin_usd
            cost[built[owner[n], i]] += weight * site.usd_per_mw
            cost[running[n, i]] = weight * site.usd_per_mw_stage
            rows.append(({built[n, i]: 1.0, begin[n, i]: -site.limit_mw}, 0.0))
            rows.append((dict.fromkeys(built[path, i], 1.0), site.limit_mw))
            rows.append(({running[n, i]: 1.0, **dict.fromkeys(built[path[site.lead_stages :], i], -1.0)}, 0.0))
    low, high = np.zeros(len(cost)), np.full(len(cost), np.inf)
    high[begin] = 1
    if fixed is not None:
        low[[begin, built]] = high[[begin, built]] = fixed.decisions
    x, expected = _minimum(cost, rows, (low, high), begin.ravel())
    decisions = x[np.stack([begin, built])][:, owner]
    return SitePlan(
        expected_usd=expected * USD,
        begun=tuple(
            Begun(tree.nodes[n].name, site.name, float(decisions[1, n, i]))
            for n in nodes
            for i, site in enumerate(sites)
            if decisions[1, n, i] > 1e-6
        ),
        running_mw=tuple({site.name: float(x[running[n, i]]) for i, site in enumerate(sites)} for n in nodes),
        unmet_mw=tuple(float(x[unmet[n]]) for n in nodes),
        decisions=decisions,
    )


def _minimum(cost: Any, rows: list[tuple[dict[int, float], float]], bounds: tuple[Any, Any], binary: Any) -> tuple[Any, float]:
    """The best point of a mixed-integer program, binaries rounded, and its cost."""
    entries = [(i, column, value) for i, (row, _) in enumerate(rows) for column, value in row.items()]
    row, column, value = zip(*entries, strict=True)
    limits = LinearConstraint(coo_array((value, (row, column)), shape=(len(rows), len(cost))).tocsr(), ub=[b for _, b in rows])
    integrality = np.zeros(len(cost))
    integrality[binary] = 1
    found = milp(cost, integrality=integrality, bounds=Bounds(*bounds), constraints=limits, options={"mip_rel_gap": 0.0})
    if found.x is None:
        raise TenfoldError(f"HiGHS finds no plan of the sites: {found.message}")
    found.x[binary] = np.round(found.x[binary])
    return found.x, float(found.fun)


@dataclass(frozen=True)
class Staging:
    """The staged plan beside the best that decides all at the root, and beside one made for the expected demand alone."""

    staged: SitePlan
    one_stage: SitePlan
    for_mean: SitePlan

    @property
    def value_usd(self) -> float:
        """The value of staging: what deciding all at the root costs more than waiting for news, in expectation."""
        return self.one_stage.expected_usd - self.staged.expected_usd

    @property
    def stochastic_usd(self) -> float:
        """The value of the stochastic solution: what a one-stage plan for the expected demand costs more than one for the tree."""
        return self.for_mean.expected_usd - self.one_stage.expected_usd


def staging(tree: Tree, sites: Sequence[BuildSite], unmet_usd: float) -> Staging:
    """Solve the three plans of a tree."""
    for_mean = solve(tree.mean_demand(), sites, unmet_usd, staged=False)
    return Staging(
        staged=solve(tree, sites, unmet_usd),
        one_stage=solve(tree, sites, unmet_usd, staged=False),
        for_mean=solve(tree, sites, unmet_usd, fixed=for_mean),
    )
