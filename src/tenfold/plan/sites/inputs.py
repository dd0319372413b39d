"""`sites.toml`: sites and the phases of their development, chips, prices and limits, each with its range and source."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace as with_fields

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.ranges import Count, NotNegative, Positive, Seed, Share, Text, convert

Figure = NotNegative | tuple[NotNegative, ...]  # a number, or [10 %, middle, 90 %]
Quarters = Annotated[float, Meta(ge=0, le=80)]
Lead = Quarters | tuple[Quarters, ...]
Megawatts = Annotated[float, Meta(ge=0, le=20_000)]  # above any site's grid connection, so that values in kW or W are refused
Discount = Annotated[float, Meta(ge=0, le=1)]
Cooling = Literal["closed", "outside-air", "tower"]
Level = Annotated[float, Meta(gt=0, lt=1)]

PROFILES = ("price_csv", "carbon_csv", "weather_epw")


class Phase(Struct, frozen=True, forbid_unknown_fields=True):
    """A phase of a site's development, which is begun as a whole and takes `quarters`.

    `lost`: the share of its cost that is lost when it is sold. `after`: the phases that must be ready before it begins.
    `usd_per_mw` is per MW of the site's largest grid limit.
    """

    quarters: Lead
    lost: Share
    usd: Figure = 0.0
    usd_per_mw: Figure = 0.0
    after: tuple[str, ...] = ()
    source: str = ""


class Halls(Struct, frozen=True, forbid_unknown_fields=True):
    """Halls with power and cooling, built in any number of MW of IT power once all phases of the site are ready; `years` of use."""

    quarters: Lead
    usd_per_mw: Figure
    years: Figure
    source: str = ""


class Place(Struct, frozen=True, forbid_unknown_fields=True):
    """A site. `grid_mw`: pairs of a quarter and the MW that the grid gives from then on, the building's overhead included.

    `begun`: how many quarters ago a phase began. `halls_mw` and `machines_mw` (by chip) are those of today, in IT power.
    `price_csv`, `carbon_csv` and `weather_epw` with its `cooling` are hourly profiles (see `plan.workload.profiles`), relative to
    the folder of the file.
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
    """An accelerator that can be ordered from `from_quarter` on and takes `quarters` to arrive.

    `gain_per_year`: factor on the work per money and power of an order one year later. `kinds`: the kinds of demand that it
    serves.
    """

    quarters: Lead
    gain_per_year: Figure
    kinds: tuple[Text, ...]
    from_quarter: Quarters = 0.0
    usd: Figure | None = None
    source: str = ""


class Rent(Struct, frozen=True, forbid_unknown_fields=True):
    """Rent of the reference accelerator, which falls by the share `fall_per_year`. An hour of demand that is not served costs
    `shortage_times` the rent."""

    usd_per_hour: Figure
    fall_per_year: Share
    shortage_times: Positive
    most_hours_per_year: NotNegative | None = None
    source: str = ""


class Sold(Struct, frozen=True, forbid_unknown_fields=True):
    """The revenue of an hour of the reference accelerator for a kind of demand, the share by which it falls per year, and for a
    kind that is sold by the token the million tokens per hour."""

    usd_per_hour: Figure
    fall_per_year: Share = 0.0
    m_tokens_per_hour: Figure | None = None
    source: str = ""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits over all sites. With `all_served` all demand must be served, so that there may be no plan."""

    usd_per_year: NotNegative | None = None
    tco2_per_year: NotNegative | None = None
    all_served: bool = False


class SitesFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    `lead_level`: the quantile of lead times with which is planned. `cvar_share`: the weight in the objective of the mean of the
    worst 5 % of costs (CVaR); the rest is that of the mean.
    """

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
    """The sampled futures of a back-test."""

    futures: Annotated[Count, Meta(description="Number of futures in the back-test.")] = 200
    seed: Annotated[Seed, Meta(description="Seed of the back-test's futures.")] = 1
    lead_factor: Annotated[
        Positive, Meta(description="Factor on the lead times of the back-test's futures, unknown to the policies.")
    ] = 1.0
    demand_factor: Annotated[
        Positive, Meta(description="Factor on the demand after today of the back-test's futures, unknown to the policies.")
    ] = 1.0


def example_text(name: str) -> str:
    """The text of the package's own `sites.toml`, `demand.toml` or the like."""
    return resources.files("tenfold.plan").joinpath(f"data/sites/{name}").read_text()


def read_toml(path: Path | None, example: str) -> dict[str, Any]:
    """A TOML file, or the package's own file `example`. Raises TenfoldError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text() if path else example_text(example))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TenfoldError(f"{path or example} cannot be read as TOML ({error}): correct the file, or name another.") from None


def read_sites(path: Path | None = None) -> SitesFile:
    """Read a `sites.toml`, by default the package's example.

    Raises TenfoldError for unknown names, values out of range, phases that wait for one another, and sites in contradiction.
    """
    where = str(path or "sites.toml")
    made = convert(read_toml(path, "sites.toml"), SitesFile, where)
    if not made.sites or len({place.name for place in made.sites}) < len(made.sites):
        raise TenfoldError(f"{where}: give at least one table [[sites]], and each site a name of its own.")
    for name, phase in made.phases.items():
        _known(phase.after, made.phases, f"{where}: phase {name!r} comes after")
    for place in made.sites:
        _known(place.begun, made.phases, f"{where}: site {place.name!r} has begun")
        _known(place.machines_mw, made.chips, f"{where}: site {place.name!r} has machines")
        rising = [quarter for quarter, _ in place.grid_mw]
        if not rising or rising != sorted(set(rising)) or rising[0] > 0:
            raise TenfoldError(f"{where}: the quarters in grid_mw of site {place.name!r} must begin at quarter 0 and rise.")
    order(made.phases)
    _require_predecessors(made, where)
    return with_fields(made, sites=tuple(_beside(place, path) for place in made.sites))


def _beside(place: Place, path: Path | None) -> Place:
    """The place with the paths of its profiles made relative to the folder of the file."""
    folder = path.parent if path else Path()
    given = {name: getattr(place, name) for name in PROFILES if getattr(place, name)}
    return with_fields(place, **{name: str(folder / file) for name, file in given.items()})


def order(phases: dict[str, Phase]) -> list[str]:
    """The names of the phases in an order in which each follows those that it waits for.

    Raises TenfoldError where phases wait for one another.
    """
    found: list[str] = []
    while len(found) < len(phases):
        free = [name for name, phase in phases.items() if name not in found and set(phase.after) <= set(found)]
        if not free:
            stuck = ", ".join(name for name in phases if name not in found)
            raise TenfoldError(f"The phases {stuck} wait for one another: remove a name from one of their `after`.")
        found += free
    return found


def _known(names: object, known: object, what: str) -> None:
    for name in names:  # type: ignore[attr-defined]
        if name not in known:  # type: ignore[operator]
            described = nearest(name, known)  # type: ignore[arg-type]
            raise TenfoldError(f"{what} {name!r}, which the file does not describe{described}: add its table, or correct the name.")


def _require_predecessors(made: SitesFile, where: str) -> None:
    for place in made.sites:
        for name, ago in place.begun.items():
            for before in made.phases[name].after:
                if place.begun.get(before, -1.0) < ago:
                    raise TenfoldError(
                        f"{where}: site {place.name!r} has begun {name!r} before {before!r}, which must be first: correct `begun`."
                    )
        missing = [name for name in made.phases if name not in place.begun]
        if place.halls_mw and missing:
            raise TenfoldError(f"{where}: site {place.name!r} has halls, but {missing[0]!r} is missing in its `begun`.")
        if sum(place.machines_mw.values()) > place.halls_mw:
            raise TenfoldError(f"{where}: site {place.name!r} has machines of more MW than its halls: raise halls_mw.")
