"""Back-test of policies on sampled futures from which no tree was made.

Demand, lead times and costs of a future are drawn. Each policy decides stage after stage with what it can know by then; what it
begins takes the drawn time and costs the drawn price.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog

from tenfold.plan.sites.demand import DemandFile, Paths, sample, today
from tenfold.plan.sites.inputs import Futures, SitesFile
from tenfold.plan.sites.leads import SOON, Leads, of_part, of_phase
from tenfold.plan.sites.policies import Policy, View
from tenfold.plan.sites.portfolio import BuildSite, Portfolio, Standing, drawn, portfolio
from tenfold.plan.sites.program import Rows
from tenfold.plan.sites.staging import HALLS, Begun, cvar


@dataclass
class World:
    """One future, and the decisions of a policy in it.

    `true` has the drawn lead times and costs, `planned` those that policies plan with. `ready` and `begun` have the quarters of
    phases by (site, phase); halls and machines are kept with the quarter at which they are truly ready. `usd_m` is the cost of
    everything begun.
    """

    true: Portfolio
    planned: Portfolio
    leads: Leads
    end: float
    ready: dict[tuple[str, str], float] = field(default_factory=dict)
    begun: dict[tuple[str, str], float] = field(default_factory=dict)
    halls: list[tuple[str, float, float, float]] = field(default_factory=list)  # site, MW, begun, ready
    ordered: list[tuple[Standing, float]] = field(default_factory=list)  # machines, quarter of the order
    usd_m: float = 0.0

    def begin(self, wanted: Iterable[Begun], quarter: float) -> list[Begun]:
        """Begin what can be begun; returns what cannot yet, because a phase before it is not ready."""
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
        """The portfolio as a policy knows it at a quarter: what is ready, its lead times, and when the rest is expected."""
        p = self.planned
        sites = tuple(replace(place, ready=self._expected(place, quarter)) for place in p.sites)
        halls = replace(
            p.hall, lead=self.leads.expected(of_part(HALLS), [(begun, ready) for *_, begun, ready in self.halls], quarter)
        )
        machines = tuple(
            replace(
                m, lead=self.leads.expected(of_part(m.name), [(at, o.ready) for o, at in self.ordered if o.chip == m.name], quarter)
            )
            for m in p.machines
        )
        lead = {machine.name: machine.lead for machine in machines}
        standing = (*p.standing, *(replace(one, ready=at + lead[one.chip]) for one, at in self.ordered))
        begun = (*p.halls_begun, *((site, mw, at + halls.lead) for site, mw, at, _ in self.halls))
        return replace(p, sites=sites, hall=halls, machines=machines, standing=standing, halls_begun=begun)

    def _expected(self, place: BuildSite, quarter: float) -> dict[str, float]:
        """For each phase that has begun, the quarter at which it is ready or expected to be."""
        old = next(true.ready for true in self.true.sites if true.name == place.name)
        found = {name: quarter if at <= quarter else max(place.ready[name], quarter + SOON) for name, at in old.items()}
        for (site, name), begun in self.begun.items():
            if site == place.name:
                wait = (begun, self.ready[site, name])
                found[name] = begun + self.leads.expected(of_phase(name, site), [wait], quarter)
        return found

    def spans(self, start: float, end: float) -> list[tuple[float, float]]:
        """The parts of the time from `start` to `end` in which the capacity is constant."""
        machines = [*self.true.standing, *(one for one, _ in self.ordered)]
        changes = {ready for *_, ready in self.halls} | {at for one in machines for at in (one.ready, one.end)}
        changes |= {quarter for place in self.true.sites for quarter, _ in place.grid_mw}
        return list(pairwise([start, *sorted(at for at in changes if start < at < end), end]))

    def capacity(self, quarter: float) -> np.ndarray:
        """For each chip, the MW that run at a quarter in ready halls, times their work relative to machines of today."""
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
    """The result of a policy: the cost of each future in millions of dollars, and the share of its hours that was not served."""

    usd_m: np.ndarray
    short_share: np.ndarray

    @property
    def mean_usd_m(self) -> float:
        return float(self.usd_m.mean())

    @property
    def cvar_usd_m(self) -> float:
        return cvar(self.usd_m)


def futures(demand: DemandFile, asked: Futures) -> Paths:
    """Sampled futures, from other random draws than those of any tree."""
    found = sample(demand, today(demand), demand.quarters, asked.futures, 10_000 + asked.seed)
    found.hours[:, 1:] *= asked.demand_factor
    return found


def backtest(sites: SitesFile, demand: DemandFile, chosen: dict[str, Policy], asked: Futures) -> dict[str, Result]:
    """Run every policy on the same futures."""
    paths, planned, leads = futures(demand, asked), portfolio(sites, demand), Leads.of(sites)
    random = np.random.default_rng(20_000 + asked.seed)
    true = [
        portfolio(sites, demand, drawn(cost), drawn(lead, asked.lead_factor))
        for cost, lead in random.integers(0, 2048, (asked.futures, 2))
    ]

    def worlds() -> list[World]:
        return [World(p, planned, leads, demand.end_quarter) for p in true]

    return {name: _run(policy, worlds(), paths, demand) for name, policy in chosen.items()}


def _run(policy: Policy, worlds: list[World], paths: Paths, demand: DemandFile) -> Result:
    ends = (*demand.quarters[1:], demand.end_quarter)
    for number, world in enumerate(worlds):
        waiting: list[Begun] = []
        for stage, quarter in enumerate(demand.quarters):
            view = View(world.view(quarter), paths.state(number, stage), demand)
            waiting = world.begin([*waiting, *policy(view)], quarter)
    spans = [
        (number, Span(world, quarter, start, end, paths.hours[number, stage]))
        for number, world in enumerate(worlds)
        for stage, quarter in enumerate(demand.quarters)
        for start, end in world.spans(quarter, ends[stage])
    ]
    usd, short = served([span for _, span in spans])
    of = [number for number, _ in spans]
    hours = np.bincount(of, [span.years * span.hours.sum() for _, span in spans])
    return Result(np.array([w.usd_m for w in worlds]) + np.bincount(of, usd), np.bincount(of, short) / hours)


@dataclass(frozen=True)
class Span:
    """A part of a stage in which a world's capacity is constant. Prices are those at `quarter`, the beginning of the stage."""

    world: World
    quarter: float
    start: float
    end: float
    hours: np.ndarray

    @property
    def years(self) -> float:
        return (self.end - self.start) / 4


def served(spans: list[Span]) -> tuple[np.ndarray, np.ndarray]:
    """For each span, the least cost of rent and shortage, and the million hours that are not served, by one linear program."""
    chips, kinds = len(spans[0].world.true.machines), len(spans[0].hours)
    per_span = chips * kinds + 2 * kinds
    cost, rows = np.zeros(len(spans) * per_span), Rows()
    for b, span in enumerate(spans):
        p, columns = span.world.true, b * per_span + np.arange(per_span)
        work, rented, short = columns[: chips * kinds].reshape(chips, kinds), columns[-2 * kinds : -kinds], columns[-kinds:]
        cost[rented] = span.years * p.worth(span.quarter) * p.rent(span.quarter)
        cost[short] = cost[rented] * p.shortage_times
        for k, (machine, capacity) in enumerate(zip(p.machines, span.world.capacity(span.start), strict=True)):
            rows.add([(work[k, d], 1 / rate) for d, rate in enumerate(machine.hours) if rate], capacity)
        for d in range(kinds):
            able = [work[k, d] for k, machine in enumerate(p.machines) if machine.hours[d]]
            rows.add([(column, -1.0) for column in (*able, rented[d], short[d])], -span.hours[d])
        if p.most_rent is not None:
            rows.add([(column, 1.0) for column in rented], p.most_rent)
    x = linprog(cost, rows.matrix(len(cost)), rows.upper).x.reshape(len(spans), per_span)
    lasting = np.array([span.years for span in spans])
    return (cost.reshape(x.shape) * x).sum(1), lasting * x[:, -kinds:].sum(1)
