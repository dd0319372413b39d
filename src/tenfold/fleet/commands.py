"""Run a fleet, and show who holds which slot."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.spec.commands import Home, Json, print_json
from tenfold.spec.errors import TenfoldError


def run(
    *,
    home: Home = Path("generations"),
    policy: Annotated[str, Meta(description="What decides who has which slot: lend, or the policy of a plugin.")] = "lend",
    json: Json = False,
) -> None:
    """Train in one slot and serve chat in the other, and lend the first to chat while a wave of requests comes.

    Example: tenfold fleet run --home generations
    """
    from rich.console import Console

    from tenfold.fleet.walk import walk

    console = Console(stderr=json)
    numbers = walk(home, lambda text: console.print(text, highlight=False, soft_wrap=True), policy)
    if json:
        print_json(numbers)
        return
    console.print(
        f"{numbers['requests']} requests, {numbers['accepted_lost']} accepted ones lost; {numbers['loans']} loans of "
        f"{numbers['lent_s']:.0f} s in all, back in time, for {numbers['lost_work_s']:.1f} s of lost work; the loss of each of "
        f"{numbers['steps']} steps is that of a run that was left alone.",
        highlight=False,
    )


def show(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Who holds which slot, since when and until when, and every lease before.

    Example: tenfold fleet show --json
    """
    from datetime import datetime

    from tenfold.fleet.ledger import Ledger

    if not (home / "fleet" / "ledger.db").exists():
        raise TenfoldError(f"There is no ledger of a fleet in {home}: `tenfold fleet run` begins one.")
    leases = Ledger(home / "fleet" / "ledger.db").leases()
    if json:
        print_json({"roles": {x.slot: x.role for x in leases if x.ended is None}, "leases": [asdict(x) for x in leases]})
        return
    for x in leases:
        since, until, ended = (datetime.fromtimestamp(t).strftime("%H:%M:%S") if t else "-" for t in (x.since, x.until, x.ended))
        print(f"{x.id:4} {x.slot:8} {x.role:6} since {since}, due {until}, ended {ended}: {x.why}")
