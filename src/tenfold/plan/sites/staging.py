"""Plans of sites on a scenario tree: the decisions, their mean cost and CVaR, and the values of staging and of information."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tenfold.plan.sites.portfolio import Portfolio
from tenfold.plan.sites.program import TAIL, Aim, Program, least, program
from tenfold.plan.sites.tree import Tree
from tenfold.spec.errors import TenfoldError

SMALL_MW = 1e-3  # smaller halls and orders are rounding errors of the solver
HALLS = "halls"


class Impossible(TenfoldError):
    """No plan keeps all limits."""


@dataclass(frozen=True)
class Begun:
    """A decision of a plan: the node, the site, the phase, `halls` or chip that is begun or ordered, and its MW (0 for a phase)."""

    node: int
    site: str
    what: str
    mw: float = 0.0


@dataclass(frozen=True)
class SitePlan:
    """A plan on a tree.

    `begun` [nodes, sites, phases] is 0 or 1; `halls` [nodes, sites] and `ordered` [nodes, sites, chips] are in MW; `work` [nodes,
    chips, kinds], `rented` and `short` [nodes, kinds] in million hours per year. By node, `node_usd_m` is the discounted cost, and
    `spent_usd_m` the payments for sites, halls and machines. `bound` is a lower bound of the best objective.
    """

    portfolio: Portfolio
    tree: Tree
    begun: np.ndarray
    halls: np.ndarray
    ordered: np.ndarray
    work: np.ndarray
    rented: np.ndarray
    short: np.ndarray
    node_usd_m: np.ndarray
    spent_usd_m: np.ndarray
    bound: float

    @cached_property
    def path_usd_m(self) -> np.ndarray:
        """The cost of each path from the root to a leaf."""
        return np.array([self.node_usd_m[self.tree.path(leaf)].sum() for leaf in self.tree.leaves])

    @property
    def mean_usd_m(self) -> float:
        return float(self.weights @ self.path_usd_m)

    def objective(self, aim: Aim) -> float:
        """The value that was minimised."""
        return (1 - aim.cvar_share) * self.mean_usd_m + aim.cvar_share * self.cvar_usd_m

    @property
    def weights(self) -> np.ndarray:
        """The probability of each path."""
        return np.array([self.tree.probability(leaf) for leaf in self.tree.leaves])

    @property
    def cvar_usd_m(self) -> float:
        return cvar(self.path_usd_m, self.weights)

    def decisions(self, node: int) -> list[Begun]:
        """The phases, halls and orders that are begun at a node."""
        p, parent, found = self.portfolio, self.tree.nodes[node].parent, []
        before = np.zeros_like(self.begun[node]) if parent is None else self.begun[parent]
        for s, place in enumerate(p.sites):
            found += [
                Begun(node, place.name, step.name)
                for f, step in enumerate(place.steps)
                if step.name not in place.ready and self.begun[node, s, f] > before[s, f]
            ]
            if self.halls[node, s] > SMALL_MW:
                found.append(Begun(node, place.name, HALLS, float(self.halls[node, s])))
            mw = self.ordered[node, s]
            found += [Begun(node, place.name, m.name, float(mw[k])) for k, m in enumerate(p.machines) if mw[k] > SMALL_MW]
        return found


def cvar(costs: np.ndarray, weights: np.ndarray | None = None, share: float = TAIL) -> float:
    """The mean of the worst `share` of outcomes; the outcome at the edge counts in part. `weights` are probabilities."""
    weights = np.full(len(costs), 1 / len(costs)) if weights is None else weights
    worst = np.argsort(costs)[::-1]
    taken = np.diff(np.minimum(np.cumsum(weights[worst]), share), prepend=0.0)
    return float(taken @ costs[worst] / taken.sum())


def solve(
    p: Portfolio, tree: Tree, aim: Aim = Aim(), *, staged: bool = True, held: Callable[[Program], None] | None = None
) -> SitePlan:
    """The best plan on a tree. Unless `staged`, everything is decided at the root: all nodes of a stage have the same decisions.

    `held` narrows the bounds of the program, as `at_root`, `without` and `nothing` do. Raises Impossible where no plan keeps
    the limits.
    """
    made = program(p, tree, staged)
    if held is not None:
        held(made)
    found = least(made, tree, aim)
    if found.x is None:
        raise Impossible(f"No plan of the sites keeps all limits ({found.message.rstrip('.')}): widen one of them.")
    x, c = found.x, made.columns
    bound = float(found.fun if found.mip_dual_bound is None else found.mip_dual_bound)
    decided, used = (x[c.begun], x[c.halls], x[c.ordered]), (x[c.work], x[c.rented], x[c.short])
    return SitePlan(p, tree, *decided, *used, made.cost @ x, made.spent @ x, bound)


def at_root(begun: np.ndarray) -> Callable[[Program], None]:
    """Bounds with which exactly these phases [sites, phases], 0 or 1, begin at the root."""

    def held(made: Program) -> None:
        made.low[made.columns.begun[0]] = made.high[made.columns.begun[0]] = begun

    return held


def without(p: Portfolio, one: Begun) -> Callable[[Program], None]:
    """Bounds with which this is not begun at the root."""
    s = [place.name for place in p.sites].index(one.site)
    phases, chips = [step.name for step in p.sites[s].steps], [machine.name for machine in p.machines]

    def held(made: Program) -> None:
        c = made.columns
        if one.what == HALLS:
            column = c.halls[0, s]
        else:
            column = c.begun[0, s, phases.index(one.what)] if one.what in phases else c.ordered[0, s, chips.index(one.what)]
        made.high[column] = 0

    return held


def nothing(made: Program) -> None:
    """Bounds with which nothing is begun or ordered at any node."""
    for columns in (made.columns.begun, made.columns.halls, made.columns.ordered):
        made.high[columns] = 0


def running_mw(plan: SitePlan, n: int) -> np.ndarray:
    """The MW of running machines in each site at a node."""
    p, tree = plan.portfolio, plan.tree
    quarter = tree.nodes[n].quarter
    found = np.array([sum(one.mw for one in p.standing if one.site == s.name and one.runs(quarter)) for s in p.sites])
    for m in tree.path(n):
        runs = [machine.runs(tree.nodes[m].quarter, quarter) for machine in p.machines]
        found = found + plan.ordered[m] @ np.array(runs, float)
    return found


def knowing(p: Portfolio, tree: Tree, aim: Aim = Aim()) -> np.ndarray:
    """The least cost of each path if it were known before the first decision, in millions of dollars."""
    alone = replace(aim, cvar_share=0.0)
    return np.array([solve(p, tree.only(leaf), alone).mean_usd_m for leaf in tree.leaves])


@dataclass(frozen=True)
class Staging:
    """The staged plan, the best plan that decides everything at the root, and the cost of each path if it were known."""

    staged: SitePlan
    one_stage: SitePlan
    known_usd_m: np.ndarray

    @property
    def value_usd_m(self) -> float:
        """The value of staging: the additional mean cost of deciding everything now."""
        return self.one_stage.mean_usd_m - self.staged.mean_usd_m

    @property
    def perfect_usd_m(self) -> float:
        """The expected value of perfect information."""
        return self.staged.mean_usd_m - float(self.staged.weights @ self.known_usd_m)

    @property
    def regret_usd_m(self) -> np.ndarray:
        """For each path, the additional cost of the staged plan over the best plan for that path."""
        return self.staged.path_usd_m - self.known_usd_m


def staging(p: Portfolio, tree: Tree, aim: Aim = Aim()) -> Staging:
    """Solve all three. Raises Impossible where no plan keeps the limits."""
    return Staging(solve(p, tree, aim), solve(p, tree, aim, staged=False), knowing(p, tree, aim))
