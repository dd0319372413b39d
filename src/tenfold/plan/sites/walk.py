"""The sites' part of the circle: what to begin this quarter, for the demand of the newest plan in the home."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tenfold.plan.costs.cost import HOURS_PER_YEAR
from tenfold.plan.document import SCHEMA
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.plan.sites.answer import VERSION, Question, answer
from tenfold.plan.sites.demand import DemandFile, read_demand
from tenfold.plan.sites.inputs import SitesFile, read_sites
from tenfold.plan.sites.portfolio import kw_per_chip, portfolio
from tenfold.plan.sites.staging import Aim, staging
from tenfold.plan.sites.tree import Tree
from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256, write_json
from tenfold.spec.forecasts import LEVELS, Forecast, forecast
from tenfold.spec.versions import read_document, require_version

FILE = "sites.json"
LEAST_MW = 1.0  # IT power of a plan below which no site is built for it
BRANCHES = (2, 2, 1)  # of the circle's tree, small so that it is solved in a second


def walk(home: Path, say: Callable[[str], None], sites_file: str | None = None, demand_file: str | None = None) -> dict[str, Any]:
    """Solve the sites, write `sites.json`, and record a forecast of the next stage's demand. A repetition changes nothing.

    Without files the sites and the demand are the examples, the demand on a tree of few branches.
    """
    sites = read_sites(Path(sites_file) if sites_file else None)
    demand, plan = home_demand(home, read_demand(Path(demand_file) if demand_file else None), sites)
    demand = demand if demand_file else replace(demand, branches=BRANCHES)
    asked = Question(portfolio(sites, demand), demand, Aim(sites.cvar_share))
    grown = asked.grown()
    planned = str(plan.relative_to(home)) if plan else None
    data = {planned: file_sha256(home / planned)} if planned else {}
    data |= {given: file_sha256(Path(given)) for given in (sites_file, demand_file) if given}
    key = f"sites/hours/{'-'.join(one[:12] for one in data.values()) or 'example'}"
    quantiles = next_quantiles(grown.tree)
    forecast(home, Forecast(key=key, who="sites", kind="demand", unit="million hours/year", quantiles=quantiles, data=data))
    document = answer(asked, grown, staging(asked.portfolio, grown.tree, asked.aim))
    write_json(home / FILE, {**document, "plan": planned, "forecast": key})
    say(f"sites: {document['sentence']}")
    numbers = ("expected_usd", "cvar95_usd", "value_of_staging_usd", "value_of_one_more_rung_usd", "begin_now")
    return {**{name: document[name] for name in numbers}, "files": [FILE]}


def read_answer(path: Path) -> dict[str, Any]:
    """Read a `sites.json`. Raises TenfoldError where it is missing, damaged, or of another version."""
    return read_document(path, VERSION, "write it again by `tenfold circle`")


def home_demand(home: Path, demand: DemandFile, sites: SitesFile) -> tuple[DemandFile, Path | None]:
    """Demand whose next generation keeps the machines of the newest plan in `home` busy all year, and that plan's file.

    Plans of serving, and of less than `LEAST_MW`, are passed over; without any other plan the demand is returned as it is, and
    None. Raises TenfoldError for a plan that is damaged or of another version.
    """
    for path in sorted([*home.glob("plan.json"), *home.glob("*/plan.json")], key=lambda p: p.stat().st_mtime, reverse=True):
        plan = _read_plan(path)
        if "schema" not in plan:  # a plan of serving
            continue
        require_version(plan["schema"], (SCHEMA,), path, "make it again by `tenfold plan`")
        it_mw = plan["power"]["peak_mw"]["mid"] / plan["power"]["pue"]["mid"]
        if it_mw >= LEAST_MW:
            busy = HOURS_PER_YEAR * Range.of(facts("prices")["own"]["in_use"]).mid
            next_hours = it_mw * 1e3 / kw_per_chip(accelerator(sites.reference)) * busy
            hours = next_hours / Range.of(demand.training.times).mid
            return replace(demand, training=replace(demand.training, hours_per_year=hours)), path
    return demand, None


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise TenfoldError(f"{path} is damaged: make it again by `tenfold plan`, or delete it.") from None


def next_quantiles(tree: Tree) -> tuple[float, ...]:
    """Quantiles of the demand at the next stage: at each level, the least demand that is not exceeded with that probability."""
    ahead = sorted((sum(node.hours), node.probability) for node in tree.nodes if node.parent == 0)
    reached = [sum(p for _, p in ahead[: i + 1]) for i in range(len(ahead))]
    return tuple(next(hours for (hours, _), r in zip(ahead, reached, strict=True) if r >= level - 1e-9) for level in LEVELS)
