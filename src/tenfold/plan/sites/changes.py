"""What-if questions, and the limits that together leave no plan."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from msgspec.structs import replace as with_fields

from tenfold.plan.sites.answer import Question
from tenfold.plan.sites.demand import TRAINING, DemandFile
from tenfold.plan.sites.portfolio import BuildSite, Portfolio
from tenfold.plan.sites.staging import Aim, Impossible, SitePlan, at_root, solve
from tenfold.plan.sites.tree import Tree
from tenfold.spec.errors import TenfoldError, nearest

CHANGE = re.compile(
    r"(?P<what>[\w-]+)(?:\.(?P<of>[\w-]+))?\s+"
    r"(?:x\s*(?P<factor>\d+\.?\d*|\.\d+)|delayed\s+(?P<quarters>\d+\.?\d*|\.\d+)\s+quarters?)"
)
SCALED = ("demand", "grid", "water", "money", "carbon", "clouds", "rent", "price", "lead")
FREE = 20.0  # a limit multiplied by this counts as no limit
ENOUGH = 1.01  # relative precision of the least factor of a limit
ANY = Aim(gap=1.0)  # any plan, however expensive: to test whether there is one


def changed(asked: Question, text: str) -> Question:
    """The question with a change.

    Changes are `grid.TX delayed 4 quarters` (a phase of a site), `grid.TX x0.5`, `water.TX x2`, `price.h100 x1.1`, `demand x2`,
    `demand.chat x1.5`, `money x0.8`, `carbon x0.5`, `clouds x2` (hours that can be rented), `rent x1.3`, `lead x1.5`. Raises
    TenfoldError for another form, and for names that the question does not have.
    """
    found = CHANGE.fullmatch(text.strip())
    if found is None:
        raise TenfoldError(f"The change {text!r} is not understood: write `grid.TX delayed 4 quarters`, or `demand x2`.")
    what, of = found["what"], found["of"]
    if found["quarters"]:
        return replace(asked, portfolio=_delayed(asked.portfolio, what, of, float(found["quarters"])))
    factor = float(found["factor"])
    if what not in SCALED:
        raise TenfoldError(f"There is no {what!r} to be changed{nearest(what, SCALED)}: change one of {', '.join(SCALED)}.")
    if what == "demand":
        return replace(asked, demand=_demand(asked.demand, of, factor))
    return replace(asked, portfolio=scaled(asked.portfolio, f"{what}.{of}" if of else what, factor))


def scaled(p: Portfolio, name: str, factor: float) -> Portfolio:
    """The portfolio with one figure multiplied by a factor. Raises TenfoldError where it has none of that name."""
    what, _, of = name.partition(".")
    limits = {"money": "most_usd_m", "carbon": "most_tco2", "clouds": "most_rent", "rent": "rent_usd"}
    if what in limits:
        value = getattr(p, limits[what])
        if value is None:
            raise TenfoldError(f"There is no limit of {what} to be changed: give one in sites.toml.")
        return replace(p, **{limits[what]: value * factor})
    if what == "price":
        _known(of, [machine.name for machine in p.machines])
        machines = [replace(m, usd_m_per_mw=m.usd_m_per_mw * factor) if m.name == of else m for m in p.machines]
        return replace(p, machines=tuple(machines))
    if what == "lead":
        slower = tuple(replace(s, steps=tuple(replace(t, lead=t.lead * factor) for t in s.steps)) for s in p.sites)
        machines = [replace(m, lead=m.lead * factor) for m in p.machines]
        return replace(p, sites=slower, machines=tuple(machines), hall=replace(p.hall, lead=p.hall.lead * factor))
    _known(of, [place.name for place in p.sites])
    return _at_site(p, of, lambda place: _limit(place, what, factor))


def _limit(place: BuildSite, what: str, factor: float) -> BuildSite:
    if what == "water":
        return replace(place, water_mw=place.water_mw * factor)
    return replace(place, grid_mw=tuple((quarter, mw * factor) for quarter, mw in place.grid_mw))


def _at_site(p: Portfolio, name: str, change: Callable[[BuildSite], BuildSite]) -> Portfolio:
    return replace(p, sites=tuple(change(place) if place.name == name else place for place in p.sites))


def _delayed(p: Portfolio, phase: str, name: str | None, quarters: float) -> Portfolio:
    _known(name, [place.name for place in p.sites])
    _known(phase, [step.name for step in p.sites[0].steps])

    def later(place: BuildSite) -> BuildSite:
        if phase in place.ready:
            return replace(place, ready={**place.ready, phase: max(place.ready[phase], 0.0) + quarters})
        steps = tuple(replace(step, lead=step.lead + quarters * (step.name == phase)) for step in place.steps)
        return replace(place, steps=steps)

    return _at_site(p, str(name), later)


def _demand(demand: DemandFile, kind: str | None, factor: float) -> DemandFile:
    if kind is not None:
        _known(kind, list(demand.kinds))
    growth = {
        name: with_fields(one, hours_per_year=one.hours_per_year * factor) if kind in (None, name) else one
        for name, one in demand.growth.items()
    }
    training = demand.training
    if kind in (None, TRAINING):
        training = with_fields(training, hours_per_year=training.hours_per_year * factor)
    return with_fields(demand, growth=growth, training=training)


def _known(name: str | None, names: list[str]) -> None:
    if not name:
        raise TenfoldError(f"The change lacks a name: add a dot and one of {', '.join(names)}, as in `grid.TX delayed 4 quarters`.")
    if name not in names:
        raise TenfoldError(f"There is no {name!r}{nearest(name, names)}: name one of {', '.join(names)}.")


@dataclass(frozen=True)
class Compared:
    """The best plan of a changed question, and its objective `usd_m`.

    `unchanged`: whether it begins the same phases this quarter as before. `keeping_usd_m`: the additional cost of beginning the
    phases of before nevertheless; None where that is impossible.
    """

    plan: SitePlan
    unchanged: bool
    usd_m: float
    keeping_usd_m: float | None


def compared(asked: Question, text: str, before: SitePlan) -> Compared:
    """The best plan of the changed question, compared with the plan before. Raises Impossible where there is none."""
    new = changed(asked, text)
    tree = new.grown().tree
    plan = solve(new.portfolio, tree, asked.aim)
    cost, same = plan.objective(asked.aim), bool((plan.begun[0] == before.begun[0]).all())
    if same:
        return Compared(plan, True, cost, 0.0)
    try:
        kept = solve(new.portfolio, tree, asked.aim, held=at_root(before.begun[0]))
    except Impossible:
        return Compared(plan, False, cost, None)
    return Compared(plan, False, cost, max(0.0, kept.objective(asked.aim) - cost))


def limits_of(p: Portfolio) -> list[str]:
    """The names of all limits of a portfolio, in the form that `scaled` takes."""
    whole = [
        name for name, value in (("money", p.most_usd_m), ("carbon", p.most_tco2), ("clouds", p.most_rent)) if value is not None
    ]
    return [*whole, *(f"grid.{s.name}" for s in p.sites), *(f"water.{s.name}" for s in p.sites if s.water_mw < inf)]


def irreducible(p: Portfolio, tree: Tree) -> dict[str, float | None]:
    """An irreducible set of limits that together leave no plan: without any one of them there is one.

    Each has the least factor on it that alone makes a plan possible, or None where none up to 20 does. Empty where lead times
    leave no plan even without limits.
    """
    free = p
    for name in limits_of(p):
        free = scaled(free, name, FREE)
    if not possible(free, tree):
        return {}
    kept, loose = [], p
    for name in limits_of(p):
        without = scaled(loose, name, FREE)
        if possible(without, tree):
            kept.append(name)
        else:
            loose = without
    return {name: _least(p, tree, name) for name in kept}


def possible(p: Portfolio, tree: Tree) -> bool:
    """Whether there is a plan that keeps all limits."""
    try:
        solve(p, tree, ANY)
    except Impossible:
        return False
    return True


def _least(p: Portfolio, tree: Tree, name: str) -> float | None:
    """The least factor on a limit that makes a plan possible, by bisection; None above `FREE`."""
    low, high = 1.0, FREE
    if not possible(scaled(p, name, high), tree):
        return None
    while high / low > ENOUGH:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if possible(scaled(p, name, middle), tree) else (middle, high)
    return high


def blame(p: Portfolio, tree: Tree) -> str:
    """Why there is no plan, in one sentence."""
    found = irreducible(p, tree)
    if not found:
        return "No plan serves all demand, which comes before anything can be built: allow shortage (all_served = false)."
    alone = [f"{name} x{factor:.3g}" for name, factor in found.items() if factor is not None]
    way = f": {' or '.join(alone)} would do" if alone else ""
    return f"No plan keeps all limits, because {' and '.join(found)} bind together{way}."
