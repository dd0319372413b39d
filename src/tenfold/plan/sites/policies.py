"""Ways to decide, stage after stage, with what is known then: staged over a rolling horizon, just in time, and all now."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tenfold.plan.sites.demand import DemandFile, State
from tenfold.plan.sites.portfolio import Portfolio
from tenfold.plan.sites.staging import Aim, Begun, solve
from tenfold.plan.sites.tree import ahead, forecast_tree, grow, placed, single
from tenfold.spec.errors import TenfoldError, nearest

ROLLING = Aim(gap=1e-3, later_in_part=True)
SAMPLES = 512
LEAVES = 8  # of the trees after the first decision


@dataclass(frozen=True)
class View:
    """What is known when a stage begins: sites and machines as they stand, where demand stands, and how it may go on."""

    portfolio: Portfolio
    state: State
    demand: DemandFile


Policy = Callable[[View], list[Begun]]


def staged(cvar_share: float) -> Policy:
    """The programme again at every stage, over a tree from where demand stands."""

    def decide(view: View) -> list[Begun]:
        paths = ahead(view.demand, view.state, SAMPLES)
        branches = view.demand.branches if view.state.quarter == 0 else placed(paths, view.demand.end_quarter, LEAVES)
        return solve(view.portfolio, grow(paths, view.demand, branches).tree, replace(ROLLING, cvar_share=cvar_share)).decisions(0)

    return decide


def remembered(policy: Policy) -> Policy:
    """The policy, which decides once in a first stage that is the same in many futures."""
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
    """The best plan for demand that stays as it stands."""
    tree = forecast_tree(view.demand, view.state, (1,), samples=1).tree
    flat = single(tree, [view.state.hours] * len(tree.nodes))
    return solve(view.portfolio, flat, ROLLING).decisions(0)


def all_now(first: View) -> Policy:
    """Everything decided at the first stage, for all demand that may come, and done as it was decided."""
    plan = solve(first.portfolio, forecast_tree(first.demand, first.state).tree, Aim(gap=ROLLING.gap), staged=False)
    quarters = [node.quarter for node in plan.tree.nodes]
    return lambda view: plan.decisions(quarters.index(view.state.quarter))


NAIVE = ("just-in-time", "all-now")


def policies(names: list[str], first: View, cvar_share: float) -> dict[str, Policy]:
    """The staged policy and those of `names`. Raises TenfoldError for an unknown name."""
    found: dict[str, Policy] = {"staged": remembered(staged(cvar_share))}
    for name in names:
        if name not in NAIVE:
            raise TenfoldError(f"There is no policy {name!r}{nearest(name, NAIVE)}: {' or '.join(NAIVE)}.")
        found[name] = remembered(just_in_time) if name == "just-in-time" else all_now(first)
    return found
