"""Policies on sampled futures that no tree was made from: demand, lead times and costs are drawn, and each policy decides stage
after stage with what it can know. What it begins takes the drawn time, and costs the drawn price."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linprog

from tenfold.plan.sites.demand import DemandFile, Paths, sample, today
from tenfold.plan.sites.inputs import Futures, SitesFile
from tenfold.plan.sites.policies import Policy, View
from tenfold.plan.sites.portfolio import BuildSite, Portfolio, Standing, drawn, portfolio
from tenfold.plan.sites.program import Rows
from tenfold.plan.sites.staging import HALLS, Begun, cvar

SOON = 1.0  # quarters: when what is late is expected


@dataclass
class World:
    """One future, and what a policy has done in it. `true` has its drawn lead times and costs, `planned` those that are planned
    with; `ready` by site and phase, halls and machines with the quarter at which they truly are ready."""

    true: Portfolio
    planned: Portfolio
    end: float
    ready: dict[tuple[str, str], float] = field(default_factory=dict)
    begun: dict[tuple[str, str], float] = field(default_factory=dict)
    halls: list[tuple[str, float, float, float]] = field(default_factory=list)  # site, MW, begun, ready
    ordered: list[tuple[Standing, float]] = field(default_factory=list)  # and when
    usd_m: float = 0.0

    def begin(self, wanted: Iterable[Begun], quarter: float) -> list[Begun]:
        """Begin what can be begun; what is refused, for it waits for something."""
        return [one for one in wanted if not self._begin(one, quarter)]

    def _begin(self, one: Begun, quarter: float) -> bool:
        s = [place.name for place in self.true.sites].index(one.site)
        place, p = self.true.sites[s], self.true
        steps = {step.name: step for step in place.steps}
        waits = steps[one.what].after if one.what in steps else (steps if one.what == HALLS else ())
        if any(self._ready(place, name) > quarter for name in waits):
            return False
        if one.what in steps:
            self.ready[one.site, one.what] = quarter + steps[one.what].lead
            self.begun[one.site, one.what] = quarter
            self.usd_m += p.step_usd(steps[one.what], quarter, self.end)
        elif one.what == HALLS:
            self.halls.append((one.site, one.mw, quarter, quarter + p.hall.lead))
            self.usd_m += one.mw * p.hall_usd(quarter, self.end)
        else:
            machine = next(m for m in p.machines if m.name == one.what)
            ready = quarter + machine.lead
            standing = Standing(one.site, one.what, one.mw, ready, ready + 4 * machine.years, machine.work(quarter))
            self.ordered.append((standing, quarter))
            self.usd_m += one.mw * p.machine_usd(machine, place, quarter, self.end)
        return True

    def _ready(self, place: BuildSite, phase: str) -> float:
        return place.ready.get(phase, self.ready.get((place.name, phase), np.inf))

    def view(self, quarter: float) -> Portfolio:
        """What a policy can know: what is ready, and of the rest when it was planned to be, or soon where that has passed."""

        def expected(ready: float, planned: float) -> float:
            return ready if ready <= quarter else max(planned, quarter + SOON)

        p, sites = self.planned, []
        for place, true in zip(p.sites, self.true.sites, strict=True):
            leads = {step.name: step.lead for step in place.steps}
            ready = {name: expected(true.ready[name], place.ready[name]) for name in place.ready}
            for (site, name), at in self.ready.items():
                if site == place.name:
                    ready[name] = expected(at, self.begun[site, name] + leads[name])
            sites.append(replace(place, ready=ready))
        halls = [(site, mw, expected(ready, begun + p.hall.lead)) for site, mw, begun, ready in self.halls]
        leads = {machine.name: machine.lead for machine in p.machines}
        ordered = [replace(one, ready=expected(one.ready, at + leads[one.chip])) for one, at in self.ordered]
        return replace(
            p, sites=tuple(sites), standing=(*p.standing, *ordered), halls_begun=(*p.halls_begun, *halls)
        )  # fmt: skip

    def capacity(self, quarter: float) -> np.ndarray:
        """By chip, the MW that run at a quarter in halls that are ready, times their work over that of today's."""
        p, found = self.true, np.zeros(len(self.true.machines))
        chips = [machine.name for machine in p.machines]
        for place in p.sites:
            halls = sum(mw for site, mw, _, ready in self.halls if site == place.name and ready <= quarter) + place.halls_mw
            there = [
                one for one in (*p.standing, *(one for one, _ in self.ordered)) if one.site == place.name and one.runs(quarter)
            ]
            mw = sum(one.mw for one in there)
            share = min(1.0, min(halls, place.limit_mw(quarter)) / mw) if mw else 0.0
            for one in there:
                found[chips.index(one.chip)] += share * one.mw * one.work
        return found


@dataclass(frozen=True)
class Result:
    """What a policy came to: cost of each future in millions of dollars, and the share of its hours that nothing served."""

    usd_m: np.ndarray
    short_share: np.ndarray

    @property
    def mean_usd_m(self) -> float:
        return float(self.usd_m.mean())

    @property
    def cvar_usd_m(self) -> float:
        return cvar(self.usd_m)


def futures(demand: DemandFile, asked: Futures) -> Paths:
    """Futures from another stream of draws than any tree's."""
    found = sample(demand, today(demand), demand.quarters, asked.futures, 10_000 + asked.seed)
    found.hours[:, 1:] *= asked.demand_factor
    return found


def backtest(sites: SitesFile, demand: DemandFile, chosen: dict[str, Policy], asked: Futures) -> dict[str, Result]:
    """Every policy on the same futures."""
    paths, planned = futures(demand, asked), portfolio(sites, demand)
    random = np.random.default_rng(20_000 + asked.seed)
    true = [
        portfolio(sites, demand, drawn(cost), drawn(lead, asked.lead_factor))
        for cost, lead in random.integers(0, 2048, (asked.futures, 2))
    ]
    return {name: _run(policy, true, planned, paths, demand) for name, policy in chosen.items()}


def _run(policy: Policy, true: list[Portfolio], planned: Portfolio, paths: Paths, demand: DemandFile) -> Result:
    worlds, blocks = [World(p, planned, demand.end_quarter) for p in true], []
    ends = (*demand.quarters[1:], demand.end_quarter)
    for number, world in enumerate(worlds):
        waiting: list[Begun] = []
        for stage, quarter in enumerate(demand.quarters):
            view = View(world.view(quarter), paths.state(number, stage), demand)
            waiting = world.begin([*waiting, *policy(view)], quarter)
            years = (ends[stage] - quarter) / 4
            blocks.append((world, quarter, years, paths.hours[number, stage]))
    usd, short = served(blocks)
    shape = (len(worlds), len(demand.quarters))
    hours = np.array([years * hours.sum() for _, _, years, hours in blocks]).reshape(shape).sum(1)
    return Result(np.array([w.usd_m for w in worlds]) + usd.reshape(shape).sum(1), short.reshape(shape).sum(1) / hours)


def served(blocks: list[tuple[World, float, float, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """By block (a world, a quarter, years, demand), the least cost of rent and shortage, and the million hours that are short."""
    chips, kinds = len(blocks[0][0].true.machines), len(blocks[0][3])
    per_block = chips * kinds + 2 * kinds
    cost, rows = np.zeros(len(blocks) * per_block), Rows()
    for b, (world, quarter, years, hours) in enumerate(blocks):
        p, columns = world.true, b * per_block + np.arange(per_block)
        work, rented, short = columns[: chips * kinds].reshape(chips, kinds), columns[-2 * kinds : -kinds], columns[-kinds:]
        cost[rented] = years * p.worth(quarter) * p.rent(quarter)
        cost[short] = cost[rented] * p.shortage_times
        for k, (machine, capacity) in enumerate(zip(p.machines, world.capacity(quarter), strict=True)):
            rows.add([(work[k, d], 1 / rate) for d, rate in enumerate(machine.hours) if rate], capacity)
        for d in range(kinds):
            able = [work[k, d] for k, machine in enumerate(p.machines) if machine.hours[d]]
            rows.add([(column, -1.0) for column in (*able, rented[d], short[d])], -hours[d])
        if p.most_rent is not None:
            rows.add([(column, 1.0) for column in rented], p.most_rent)
    x = linprog(cost, rows.matrix(len(cost)), rows.upper).x.reshape(len(blocks), per_block)
    lasting = np.array([block[2] for block in blocks])
    return (cost.reshape(x.shape) * x).sum(1), lasting * x[:, -kinds:].sum(1)
