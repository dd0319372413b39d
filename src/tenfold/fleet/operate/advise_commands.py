"""Print what a policy would do on a fleet that is run by hand."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from tenfold.spec.commands import Json, print_json
from tenfold.spec.ranges import CountOrNone, Text


class Look(Struct, frozen=True):
    """The question to the policy."""

    service: Annotated[str, Meta(description="Service whose demand it is; needed where the file has several.")] = ""
    holds: Annotated[CountOrNone | None, Meta(description="Nodes that the service has now; by default those that it owns.")] = None
    hours: Annotated[float, Meta(description="How far to look ahead, in hours.", gt=0, le=12)] = 6.0
    policy: Annotated[Text, Meta(description="Policy that decides: lend, static, borrow, lyra or a plugin's.")] = "lend"


def advise(
    file: Annotated[Path, Meta(description="The fleet file (fleet.toml).")],
    /,
    *,
    demand: Annotated[
        Path, Meta(description="CSV of the demand so far: a header, then seconds and requests/s; the last row is now.")
    ],
    look: Look = Look(),
    json: Json = False,
) -> None:
    """Print the next moves that a policy would make, with their times and reasons, and the forecast of demand behind them.

    Example: tenfold fleet advise fleet.toml --demand trace.csv --holds 24
    """
    from tenfold.fleet.fleet_file import read_fleet
    from tenfold.fleet.operate.advise import advise as ask
    from tenfold.spec.plugins import load

    policy = load("policies", look.policy)()
    found = ask(read_fleet(file), demand, policy, service=look.service, holds=look.holds, hours=look.hours)
    if json:
        print_json(found)
        return
    print(f"{found['service']}: {found['rate']:.4g} requests/s now, {found['holds']} nodes.")
    for move in found["moves"]:
        loan = f", lent for {_span(move['lent_for_s'])}" if move["lent_for_s"] else ""
        print(f"  in {_span(move['in_s'])}: {move['from']} -> {move['to']} nodes{loan}: {move['why']}.")
    if not found["moves"]:
        print(f"  No move in the next {look.hours:g} h.")
    print("Forecast, requests/s:")
    for row in found["forecast"]:
        print(f"  in {_span(row['in_s'])}: " + ", ".join(f"{rate:.4g} ({key})" for key, rate in row.items() if key != "in_s"))


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
