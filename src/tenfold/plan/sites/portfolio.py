"""The figures of `sites.toml` as numbers for the stochastic program: the middle of each range, or one joint draw.

Money is in millions of dollars, discounted to today; power is IT power in MW; work is in million hours of the reference
accelerator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tenfold.plan.costs.cost import HOURS_PER_YEAR, price
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.plan.sites.demand import TRAINING, DemandFile
from tenfold.plan.sites.hours import by_hour
from tenfold.plan.sites.inputs import Figure, Halls, Place, SitesFile, order
from tenfold.plan.sites.leads import of_part, of_phase
from tenfold.plan.sites.site import site
from tenfold.spec.accelerator import Accelerator, accelerator
from tenfold.spec.errors import TenfoldError

M = 1e6
Pick = Callable[[Figure | Range, str], float]  # picks one number of a range; the name identifies the unknown


@dataclass(frozen=True)
class Step:
    """A phase of one site: quarters that it takes (`lead`), its cost, the proceeds of a sale, and the phases before it."""

    name: str
    lead: float
    usd_m: float
    sold_usd_m: float
    after: tuple[str, ...]


@dataclass(frozen=True)
class BuildSite:
    """A site. `ready`: the quarter at which each phase that has begun is ready. `grid_mw`: (quarter, MW) with the overhead.

    `water_mw`: the IT power that its water can cool. A MW of IT power that runs for a year costs `usd_m_per_mw_year` for
    electricity, carbon and water, and takes `mwh`, `m3` and `tco2`.
    """

    name: str
    steps: tuple[Step, ...]
    ready: dict[str, float]
    grid_mw: tuple[tuple[float, float], ...]
    water_mw: float
    pue: float
    usd_m_per_mw_year: float
    mwh: float
    m3: float
    tco2: float
    halls_mw: float = 0.0

    def limit_mw(self, quarter: float) -> float:
        """The most IT power that grid and water allow at a quarter."""
        return min([mw for start, mw in self.grid_mw if start <= quarter][-1] / self.pue, self.water_mw)

    def until_halls(self, step: Step) -> float:
        """Quarters from the beginning of a phase until halls can begin, if no other phase takes longer."""
        return step.lead + max((self.until_halls(other) for other in self.steps if step.name in other.after), default=0.0)

    @property
    def largest_mw(self) -> float:
        return max(self.limit_mw(quarter) for quarter, _ in self.grid_mw)


@dataclass(frozen=True)
class Hall:
    """Halls: quarters to build them, cost, and years of use."""

    lead: float
    usd_m_per_mw: float
    years: float


@dataclass(frozen=True)
class Machine:
    """A chip with its share of server and network.

    `hours`: million hours per year of the reference accelerator that a MW ordered today works for each kind of demand; 0 where it
    does not serve the kind. `gain`: the factor on that per year of later ordering. `operation`: its yearly cost over its price.
    """

    name: str
    lead: float
    usd_m_per_mw: float
    years: float
    gain: float
    operation: float
    hours: tuple[float, ...]
    from_quarter: float = 0.0

    def runs(self, ordered: float, quarter: float) -> bool:
        """Whether a machine ordered at a quarter runs at another."""
        return 0 <= quarter - ordered - self.lead < 4 * self.years

    def left(self, ordered: float, horizon: float) -> float:
        """The share of its years of use that is left at the horizon."""
        return min(1.0, max(0.0, 1 - (horizon - ordered - self.lead) / 4 / self.years))

    def work(self, ordered: float) -> float:
        """The work of a MW ordered at a quarter over that of one ordered today."""
        return self.gain ** (ordered / 4)


@dataclass(frozen=True)
class Standing:
    """Machines that stand or are ordered: MW of a chip in a site that run from `ready` to `end`; `work` is relative to today's."""

    site: str
    chip: str
    mw: float
    ready: float
    end: float
    work: float = 1.0

    def runs(self, quarter: float) -> bool:
        return self.ready <= quarter < self.end


@dataclass(frozen=True)
class Portfolio:
    """Sites, chips, prices and limits as numbers, and what stands or is ordered already. Limits are per year; None is no limit."""

    sites: tuple[BuildSite, ...]
    hall: Hall
    machines: tuple[Machine, ...]
    standing: tuple[Standing, ...]
    halls_begun: tuple[tuple[str, float, float], ...]  # site, MW, ready
    rent_usd: float  # USD per hour of the reference today, which is also millions of dollars per million hours
    rent_fall: float
    shortage_times: float
    discount: float
    most_rent: float | None = None
    most_usd_m: float | None = None
    most_tco2: float | None = None
    all_served: bool = False

    def worth(self, quarter: float) -> float:
        """The present value of a dollar at a quarter."""
        return (1 + self.discount) ** (-quarter / 4)

    def rent(self, quarter: float) -> float:
        return self.rent_usd * (1 - self.rent_fall) ** (quarter / 4)

    def running_worth(self, start: float, end: float) -> float:
        """The present value of a dollar per year from one quarter to another."""
        rate = math.log1p(self.discount)
        return (self.worth(start) - self.worth(end)) / rate if rate else (end - start) / 4

    def machine_usd(self, machine: Machine, place: BuildSite, ordered: float, horizon: float) -> float:
        """The cost of a MW of machines until the horizon: price, operation, electricity, less the value of the years left then."""
        ready = ordered + machine.lead
        gone = min(horizon, ready + 4 * machine.years)
        yearly = machine.usd_m_per_mw * machine.operation + place.usd_m_per_mw_year
        running = self.running_worth(ready, gone) * yearly if ready < horizon else 0.0
        return machine.usd_m_per_mw * (self.worth(ordered) - machine.left(ordered, horizon) * self.worth(horizon)) + running

    def hall_usd(self, begun: float, horizon: float) -> float:
        """The cost of a MW of halls until the horizon, less the value of the years of use left then."""
        return self.hall.usd_m_per_mw * (self.worth(begun) - self.hall_left(begun, horizon) * self.worth(horizon))

    def hall_left(self, begun: float, horizon: float) -> float:
        """The share of the halls' years of use that is left at the horizon."""
        return min(1.0, max(0.0, 1 - (horizon - begun - self.hall.lead) / 4 / self.hall.years))

    def step_usd(self, step: Step, begun: float, horizon: float) -> float:
        """The cost of a phase until the horizon, less the proceeds of its sale then."""
        return step.usd_m * self.worth(begun) - step.sold_usd_m * self.worth(horizon)


def middle(figure: Figure | Range, name: str) -> float:
    """The middle of a figure."""
    return Range.of(figure, name).mid


def drawn(index: int, factor: float = 1.0) -> Pick:
    """Picks the numbers of one joint draw, times a factor; an unknown has the same value wherever its name is used."""

    def pick(figure: Figure | Range, name: str) -> float:
        draws = Range.of(figure, name).draws
        return float(draws[index % len(draws)]) * factor

    return pick


def portfolio(file: SitesFile, demand: DemandFile, pick: Pick = middle, lead: Pick | None = None) -> Portfolio:
    """The file as numbers: lead times by `lead` (default: the quantile `lead_level` of the file), everything else by `pick`.

    Raises TenfoldError for unknown chips, regions and kinds of demand, and for a chip without a published power.
    """
    lead = lead or (lambda figure, name: Range.of(figure, name).quantile(file.lead_level))
    places = tuple(_place(place, file, pick, lead) for place in file.sites)
    machines = tuple(_machine(key, file, demand, pick, lead) for key in file.chips)
    if not any(any(machine.hours) for machine in machines):
        raise TenfoldError("No chip of sites.toml serves a kind of demand.toml: add one of its kinds to a chip's `kinds`.")
    years = {machine.name: machine.years for machine in machines}
    rent = pick(file.rent.usd_per_hour, "rent_usd_per_h")
    limits, most = file.limits, file.rent.most_hours_per_year
    return Portfolio(
        sites=places,
        hall=_hall(file.halls, pick, lead),
        machines=machines,
        standing=tuple(
            Standing(place.name, chip, mw, 0.0, 4 * years[chip]) for place in file.sites for chip, mw in place.machines_mw.items()
        ),
        halls_begun=tuple((place.name, place.halls_mw, 0.0) for place in file.sites if place.halls_mw),
        rent_usd=rent,
        rent_fall=file.rent.fall_per_year,
        shortage_times=file.rent.shortage_times,
        discount=file.discount_per_year,
        most_rent=None if most is None else most / M,
        most_usd_m=None if limits.usd_per_year is None else limits.usd_per_year / M,
        most_tco2=limits.tco2_per_year,
        all_served=limits.all_served,
    )


def kw_per_chip(part: Accelerator, pick: Pick = middle) -> float:
    """Peak IT power in kW of an accelerator with its share of host and network."""
    table = facts("power")
    if part.tdp_w is None:
        raise TenfoldError(f"The power of {part.name} is not published: choose another chip.")
    boards = pick(table["board"]["peak"], "board peak") + pick(table["host"]["peak"], "host peak")
    return part.tdp_w / 1e3 * boards / (1 - pick(table["network"]["share"], "network share"))


def _place(place: Place, file: SitesFile, pick: Pick, lead: Pick) -> BuildSite:
    region = by_hour(site(place.region, place.pue, place.wue_l_per_kwh), place)
    pue, wue = pick(region.pue, "PUE"), pick(region.wue_l_per_kwh, "WUE")
    table = facts("power")
    load = (pick(table["board"]["computing"], "board") + pick(table["host"]["mean"], "host")) / (
        pick(table["board"]["peak"], "board peak") + pick(table["host"]["peak"], "host peak")
    )
    it_mwh = HOURS_PER_YEAR * min(load, 1.0)
    mwh, m3, tco2 = it_mwh * pue, it_mwh * wue, it_mwh * pue * pick(region.kgco2_per_kwh, "carbon of the grid")
    cost = mwh * 1e3 * pick(region.usd_per_kwh, f"price of electricity {place.region}")
    largest = max(mw for _, mw in place.grid_mw)
    steps: list[Step] = []
    ready: dict[str, float] = {}
    for name in order(file.phases):
        phase = file.phases[name]
        takes = lead(phase.quarters, of_phase(name, place.name))
        usd = (pick(phase.usd, f"cost {name}") + pick(phase.usd_per_mw, f"cost {name} per MW") * largest) / M
        steps.append(Step(name, takes, usd, usd * (1 - phase.lost), phase.after))
        if name in place.begun:
            waits = max((ready[before] for before in phase.after), default=-math.inf)
            ready[name] = 0.0 if place.halls_mw else max(waits, takes - place.begun[name])
    return BuildSite(
        name=place.name,
        steps=tuple(steps),
        ready=ready,
        grid_mw=place.grid_mw,
        water_mw=place.water_m3_per_year / m3 if m3 else math.inf,
        pue=pue,
        usd_m_per_mw_year=(cost + file.usd_per_tco2 * tco2 + file.usd_per_m3 * m3) / M,
        mwh=mwh,
        m3=m3,
        tco2=tco2,
        halls_mw=place.halls_mw,
    )


def _hall(halls: Halls, pick: Pick, lead: Pick) -> Hall:
    return Hall(
        lead(halls.quarters, of_part("halls")), pick(halls.usd_per_mw, "cost halls") / M, pick(halls.years, "years of halls")
    )


def _machine(key: str, file: SitesFile, demand: DemandFile, pick: Pick, lead: Pick) -> Machine:
    """A chip as numbers. Work of training is relative to the reference's peak bf16 rate, that of use to its memory bandwidth, which
    bounds the generation of tokens."""
    chip, part, reference, own = file.chips[key], accelerator(key), accelerator(file.reference), facts("prices")["own"]
    if unknown := set(chip.kinds) - set(demand.kinds):
        raise TenfoldError(
            f"Chip {key} serves {', '.join(sorted(unknown))}, which is no kind of demand: name {', '.join(demand.kinds)}."
        )
    per_mw = 1e3 / kw_per_chip(part, pick)
    cost = pick(price(part).purchase_usd if chip.usd is None else chip.usd, f"purchase {key}")
    cost *= (1 + pick(own["server"], "server")) * (1 + pick(own["network"], "network"))
    busy = per_mw * HOURS_PER_YEAR * pick(own["in_use"], "in use") / M
    rates = {TRAINING: part.bf16_tflops / reference.bf16_tflops}
    use = part.memory_gb_per_s / reference.memory_gb_per_s
    return Machine(
        name=key,
        lead=lead(chip.quarters, of_part(key)),
        usd_m_per_mw=per_mw * cost / M,
        years=pick(own["years"], "years of machines"),
        gain=pick(chip.gain_per_year, "gain of chips"),
        operation=pick(own["operation_per_year"], "operation"),
        hours=tuple(busy * rates.get(kind, use) if kind in chip.kinds else 0.0 for kind in demand.kinds),
        from_quarter=chip.from_quarter,
    )
