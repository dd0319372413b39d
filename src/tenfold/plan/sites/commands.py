"""`tenfold plan sites`."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from tenfold.plan.sites.inputs import Futures
from tenfold.spec.commands import File, Home, Json, print_json
from tenfold.spec.ranges import Text

SITES = "TOML file of sites, phases, chips, prices and limits (sites.toml); default: the package's example."
DEMAND = "TOML file of demand as a random process (demand.toml); default: the package's example."
OUT = "HTML page to write; the answer is also written next to it as .json, and as .xlsx where openpyxl is installed."
LADDER = "Home of a climb, or CSV file of a ladder's points: its limit test gives the chances of the next generations."
CHANGES = "Changes to compare with, separated by commas, such as 'grid.TX delayed 4 quarters, demand x2, price.h100 x1.1'."
AGAINST = "Policies to back-test the plan against on sampled futures, separated by commas: just-in-time, all-now, published."
HISTORY = "Also let the policies decide with what was known at the ends of 2021, 2022 and 2023, beside what Meta built."

SitesPath = Annotated[File, Meta(description=SITES)]


class Asked(Struct, frozen=True):
    """The demand, and the questions in addition to the plan."""

    demand: Annotated[File | None, Meta(description=DEMAND)] = None
    ladder: Annotated[Path | None, Meta(description=LADDER)] = None
    history: Annotated[bool, Meta(description=HISTORY)] = False
    what_if: Annotated[Text | None, Meta(description=CHANGES)] = None
    against: Annotated[Text | None, Meta(description=AGAINST)] = None


class SitesOutput(Struct, frozen=True):
    """The home whose newest plan gives the demand of training, and how the answer is shown."""

    home: Home = Path("generations")
    out: Annotated[File | None, Meta(description=OUT)] = None
    json: Json = False


def sites(
    file: SitesPath | None = None, /, *, asked: Asked = Asked(), futures: Futures = Futures(), output: SitesOutput = SitesOutput()
) -> None:
    """Plan data centre sites in stages: what to begin this quarter, what waits for which news, and the value of staging.

    Without --demand, the next generation of training is that of the newest plan in the home.

    Examples:

      tenfold plan sites --out sites.html

      tenfold plan sites sites.toml --demand demand.toml --what-if "grid.TX delayed 4 quarters" --against just-in-time,all-now
    """
    from tenfold.plan.sites.ask import ask
    from tenfold.plan.sites.history import history
    from tenfold.plan.sites.inputs import read_sites
    from tenfold.plan.sites.screen import screen
    from tenfold.spec.terminal import console

    document = ask(file, (asked.demand, asked.ladder), output.home, split(asked.what_if), (split(asked.against), futures))
    if asked.history:
        document["history"] = history(read_sites(file))
    if output.out:
        from tenfold.plan.sites.page import write

        write(document, output.out)
    if output.json:
        print_json(document)
    else:
        console().print(screen(document))


def split(text: str | None) -> list[str]:
    """The parts of a text between commas, stripped."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
