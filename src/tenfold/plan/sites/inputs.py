"""`sites.toml`: what a site is, phase by phase, chips, prices and limits, each with its range and source."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace as with_fields

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.ranges import Count, NotNegative, Positive, Seed, Share, Text, convert

Figure = NotNegative | tuple[NotNegative, ...]  # a number, or its 10 %, middle and 90 %
Quarters = Annotated[float, Meta(ge=0, le=80)]
Lead = Quarters | tuple[Quarters, ...]
Megawatts = Annotated[float, Meta(ge=0, le=20_000)]  # nobody's grid gives one site more: watts and kilowatts are refused
Discount = Annotated[float, Meta(ge=0, le=1)]
Cooling = Literal["closed", "outside-air", "tower"]
Level = Annotated[float, Meta(gt=0, lt=1)]

PROFILES = ("price_csv", "carbon_csv", "weather_epw")


class Phase(Struct, frozen=True, forbid_unknown_fields=True):
    """A step of a site's development, begun as a whole. `lost`: the share of its cost that a sale does not bring back.

    `after` names the phases that must be ready before it is begun; `usd_per_mw` is for each MW of the site's largest grid limit.
    """

    quarters: Lead
    lost: Share
    usd: Figure = 0.0
    usd_per_mw: Figure = 0.0
    after: tuple[str, ...] = ()
    source: str = ""


class Halls(Struct, frozen=True, forbid_unknown_fields=True):
    """Halls with power and cooling, built by the MW of IT power once all phases of their site are ready; `years` of use."""

    quarters: Lead
    usd_per_mw: Figure
    years: Figure
    source: str = ""


class Place(Struct, frozen=True, forbid_unknown_fields=True):
    """A site. `grid_mw`: from which quarter on the grid gives how many MW, the building's overhead included.

    `begun`: how many quarters ago a phase was begun; `halls_mw` and `machines_mw` by chip stand today. `price_csv`, `carbon_csv`
    and `weather_epw` with its `cooling` are profiles by hour (see `plan.workload.profiles`), from the folder of the file.
    """

    name: Text
    region: Text
    grid_mw: tuple[tuple[Quarters, Megawatts], ...]
    water_m3_per_year: NotNegative
    begun: dict[str, Quarters] = {}
    halls_mw: Megawatts = 0.0
    machines_mw: dict[str, Megawatts] = {}
    pue: Positive | None = None
    wue_l_per_kwh: NotNegative | None = None
    price_csv: Text | None = None
    carbon_csv: Text | None = None
    weather_epw: Text | None = None
    cooling: Cooling = "tower"
    source: str = ""


class Chip(Struct, frozen=True, forbid_unknown_fields=True):
    """An accelerator that can be ordered from `from_quarter` on. `gain_per_year`: how much more work the same money and power
    buy when ordered a year later. `kinds`: the kinds of demand that it serves."""

    quarters: Lead
    gain_per_year: Figure
    kinds: tuple[Text, ...]
    from_quarter: Quarters = 0.0
    usd: Figure | None = None
    source: str = ""


class Rent(Struct, frozen=True, forbid_unknown_fields=True):
    """Rent of the reference accelerator. What neither owned nor rented hours serve costs
    `shortage_times` the rent."""

    usd_per_hour: Figure
    fall_per_year: Share
    shortage_times: Positive
    most_hours_per_year: NotNegative | None = None
    source: str = ""


class Sold(Struct, frozen=True, forbid_unknown_fields=True):
    """What an hour of the reference accelerator earns that serves a kind of demand, how that falls each year, and how many million
    tokens it serves where the kind is sold by the token."""

    usd_per_hour: Figure
    fall_per_year: Share = 0.0
    m_tokens_per_hour: Figure | None = None
    source: str = ""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the whole; with `all_served` nothing may be left unserved, so that a plan may be impossible."""

    usd_per_year: NotNegative | None = None
    tco2_per_year: NotNegative | None = None
    all_served: bool = False


class SitesFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `lead_level`: the quantile of lead times that the plan counts on; `cvar_share`: the weight of the mean of
    the worst 5 % of costs in what is made least, the rest being that of the mean."""

    phases: dict[str, Phase]
    halls: Halls
    sites: tuple[Place, ...]
    chips: dict[str, Chip]
    rent: Rent
    version: Count = 1
    reference: Text = "h100"
    discount_per_year: Discount = 0.08
    usd_per_tco2: NotNegative = 0.0
    usd_per_m3: NotNegative = 0.0
    lead_level: Level = 0.8
    cvar_share: Share = 0.0
    limits: Limits = Limits()
    revenue: dict[Text, Sold] = {}
    cash_usd: NotNegative | None = None


class Futures(Struct, frozen=True):
    """The futures of a back-test."""

    futures: Annotated[Count, Meta(description="How many futures the back-test has.")] = 200
    seed: Annotated[Seed, Meta(description="Which futures are drawn.")] = 1
    lead_factor: Annotated[Positive, Meta(description="Times the lead times of the futures, which no policy knows.")] = 1.0
    demand_factor: Annotated[Positive, Meta(description="Times their demand after today, which no policy knows.")] = 1.0


def example_text(name: str) -> str:
    """The package's own `sites.toml` or `demand.toml`."""
    return resources.files("tenfold.plan").joinpath(f"data/sites/{name}").read_text()


def read_toml(path: Path | None, example: str) -> dict[str, Any]:
    """A TOML file, or the package's own example of that name."""
    try:
        return tomllib.loads(path.read_text() if path else example_text(example))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(f"{path} cannot be read as TOML: {error}.") from None


def read_sites(path: Path | None = None) -> SitesFile:
    """A `sites.toml`, or the example. Raises TenfoldError for unknown names, values out of range, phases in a circle."""
    where = str(path or "sites.toml")
    made = convert(read_toml(path, "sites.toml"), SitesFile, where)
    if not made.sites or len({place.name for place in made.sites}) < len(made.sites):
        raise TenfoldError(f"{where}: give at least one of [[sites]], each with a name of its own.")
    for name, phase in made.phases.items():
        _known(phase.after, made.phases, f"{where}: phase {name!r} comes after")
    for place in made.sites:
        _known(place.begun, made.phases, f"{where}: site {place.name!r} has begun")
        _known(place.machines_mw, made.chips, f"{where}: site {place.name!r} has machines")
        rising = [quarter for quarter, _ in place.grid_mw]
        if not rising or rising != sorted(set(rising)) or rising[0] > 0:
            raise TenfoldError(f"{where}: grid_mw of site {place.name!r} must begin at quarter 0 and rise in its quarters.")
    order(made.phases)
    _require_predecessors(made, where)
    return with_fields(made, sites=tuple(_beside(place, path) for place in made.sites))


def _beside(place: Place, path: Path | None) -> Place:
    """The place with its profiles found from the folder of the file."""
    folder = path.parent if path else Path()
    given = {name: getattr(place, name) for name in PROFILES if getattr(place, name)}
    return with_fields(place, **{name: str(folder / file) for name, file in given.items()})


def order(phases: dict[str, Phase]) -> list[str]:
    """The names of the phases, each after those that it waits for. Raises TenfoldError where they wait for one another."""
    found: list[str] = []
    while len(found) < len(phases):
        free = [name for name, phase in phases.items() if name not in found and set(phase.after) <= set(found)]
        if not free:
            stuck = ", ".join(name for name in phases if name not in found)
            raise TenfoldError(f"The phases {stuck} wait for one another: take a name out of an `after`.")
        found += free
    return found


def _known(names: object, known: object, what: str) -> None:
    for name in names:  # type: ignore[attr-defined]
        if name not in known:  # type: ignore[operator]
            raise TenfoldError(f"{what} {name!r}, which the file does not describe{nearest(name, known)}.")  # type: ignore[arg-type]


def _require_predecessors(made: SitesFile, where: str) -> None:
    for place in made.sites:
        for name, ago in place.begun.items():
            for before in made.phases[name].after:
                if place.begun.get(before, -1.0) < ago:
                    raise TenfoldError(f"{where}: site {place.name!r} has begun {name!r} before {before!r}, which it waits for.")
        missing = [name for name in made.phases if name not in place.begun]
        if place.halls_mw and missing:
            raise TenfoldError(f"{where}: site {place.name!r} has halls but has not begun {missing[0]!r}.")
        if sum(place.machines_mw.values()) > place.halls_mw:
            raise TenfoldError(f"{where}: site {place.name!r} has machines of more MW than its halls.")
