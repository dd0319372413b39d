"""`tenfold plan sites`."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from tenfold.plan.sites.inputs import Futures
from tenfold.spec.commands import File, Home, Json, print_json
from tenfold.spec.ranges import Text

SitesPath = Annotated[File, Meta(description="Sites, phases, chips, prices, limits (sites.toml); the package's example without.")]
OUT = "Page to write; beside it the answer as .json, and as .xlsx where openpyxl is installed."
LADDER = "Home or CSV file with a ladder's points: its limit test weighs the next generations."
CHANGES = "`grid.TX delayed 4 quarters`, `demand x2`, `price.h100 x1.1`; several with commas."


class Asked(Struct, frozen=True):
    """What is asked beside the plan."""

    demand: Annotated[File | None, Meta(description="Demand as a random process (demand.toml); the package's example without.")] = (
        None
    )
    ladder: Annotated[Path | None, Meta(description=LADDER)] = None
    history: Annotated[bool, Meta(description="Decide at the ends of 2021 to 2023 too, beside what one owner built.")] = False
    what_if: Annotated[Text | None, Meta(description=CHANGES)] = None
    against: Annotated[Text | None, Meta(description="Back-test beside just-in-time,all-now,published on sampled futures.")] = None


class SitesOutput(Struct, frozen=True):
    """Where the newest plan is found, and how the answer is shown."""

    home: Home = Path("generations")
    out: Annotated[File | None, Meta(description=OUT)] = None
    json: Json = False


def sites(
    file: SitesPath | None = None, /, *, asked: Asked = Asked(), futures: Futures = Futures(), output: SitesOutput = SitesOutput()
) -> None:
    """What to begin this quarter before demand is known, what waits for what news, and what deciding in stages is worth.

    Where no demand is given, the next generation of training is that of the newest plan in the home.

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
    """The parts between commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
