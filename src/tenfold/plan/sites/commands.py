"""`tenfold plan sites`."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.spec.commands import File, Home, Json, print_json

SitesPath = Annotated[File, Meta(description="Sites, phases, chips, prices, limits (sites.toml); the package's example without.")]
DemandPath = Annotated[File, Meta(description="Demand as a random process (demand.toml); the package's example without.")]


def sites(
    file: SitesPath | None = None, /, *, demand: DemandPath | None = None, home: Home = Path("generations"), json: Json = False
) -> None:
    """What to begin this quarter before demand is known, what waits for what news, and what deciding in stages is worth.

    Where no demand is given, the next generation of training is that of the newest plan in the home.

    Examples:

      tenfold plan sites

      tenfold plan sites sites.toml --demand demand.toml --json
    """
    from tenfold.plan.sites.answer import Question, answer
    from tenfold.plan.sites.demand import read_demand
    from tenfold.plan.sites.inputs import read_sites
    from tenfold.plan.sites.portfolio import portfolio
    from tenfold.plan.sites.screen import screen
    from tenfold.plan.sites.staging import Aim
    from tenfold.plan.sites.walk import home_demand
    from tenfold.spec.terminal import console

    read, source = read_sites(file), str(demand or "demand of the package's example")
    asked_demand = read_demand(demand)
    if demand is None:
        asked_demand, plan = home_demand(home, asked_demand, read)
        source = str(plan or source)
    document = answer(Question(portfolio(read, asked_demand), asked_demand, Aim(read.cvar_share)))
    document["demand"] = source
    if json:
        print_json(document)
        return
    console().print(screen(document))
