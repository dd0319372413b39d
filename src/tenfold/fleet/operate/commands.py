"""Show a fleet and give it an operator's wishes: to lend slots, drain them or cap their power."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from tenfold.spec.commands import Home, Json, print_json
from tenfold.spec.ranges import Positive, Text

Slots = Annotated[Text, Meta(description="A slot, an owner (all its slots) or, on a cluster, a pool.")]
Until = Annotated[Text, Meta(description="End: a time such as 18:00 (today or tomorrow), or 2027-03-31T18:00.")]
UntilOrADay = Annotated[Text | None, Meta(description="End, such as 18:00 or 2027-03-31T18:00; by default in 24 hours.")]
Why = Annotated[str, Meta(description="Reason, written to the ledger.")]


def status(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Show who holds which slot, since and until when, what its return to the owner costs in seconds, and the open wishes.

    Example: tenfold fleet status --json
    """
    from tenfold.fleet.operate.operate import status as found
    from tenfold.spec.terminal import Figures, console

    now = found(home)
    if json:
        print_json(now)
        return
    table = Figures("slot", "owner", "role", "since", "until", "price of return", "last decision", box=None, pad_edge=False)
    for x in now["slots"]:
        price = "" if x["price_s"] is None else f"{x['price_s']:.1f} s"
        table.add_row(x["slot"], x["owner"], x["role"], _at(x["since"]), _at(x["until"]), price, x["why"])
    where = console()
    where.print(table)
    for wish in now["wishes"]:
        where.print(
            f"Wish {wish['id']} of {wish['who']}, until {_at(wish['until'])}: {_wanted(wish)}: {wish['state']}. {wish['said']}"
        )
    if not now["controller"]:
        where.print("No controller runs: `tenfold fleet run` continues with these leases and carries out the wishes.")
    if now["wall_jumped_s"]:
        where.print(
            f"The system clock was set by {-now['wall_jumped_s']:+.0f} s since the fleet began; its deadlines did not move."
        )


def lend(
    pool: Slots,
    /,
    *,
    to: Annotated[Text, Meta(description="Role or service that gets the slots.")],
    until: Until,
    why: Why = "",
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Lend slots to a role until a time, whatever the policy decides.

    Example: tenfold fleet lend slot-2 --to chat --until 18:00 --why "a launch"
    """
    _wish(home, json, kind="lend", target=pool, role=to, until=until, why=why)


def drain(
    node: Slots,
    /,
    *,
    until: UntilOrADay = None,
    why: Why = "",
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Stop the work in a slot after it has saved, and keep the slot empty until the end.

    Example: tenfold fleet drain slot-2 --why "a new fan"
    """
    _wish(home, json, kind="drain", target=node, until=until, why=why)


def cap(
    site: Annotated[Text, Meta(description="Site; `tenfold fleet run` without a file has the site `local`.")],
    /,
    *,
    mw: Annotated[Positive, Meta(description="Power that its slots may draw, in megawatts.")],
    until: UntilOrADay = None,
    why: Why = "",
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Keep a site's power below a cap: training stops, the newest first; services do not.

    Example: tenfold fleet cap local --mw 0.0001 --until 20:00
    """
    _wish(home, json, kind="cap", target=site, mw=mw, until=until, why=why)


def withdraw(
    wish: Annotated[int, Meta(ge=1, description="Number of the wish, as `tenfold fleet status` shows it.")],
    /,
    *,
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Withdraw a wish.

    Example: tenfold fleet withdraw 3
    """
    from dataclasses import asdict

    from tenfold.fleet.operate.operate import withdraw as take_back

    made = take_back(home, wish)
    print_json(asdict(made)) if json else print(f"Wish {made.id} is withdrawn.")


def _wish(home: Path, json: bool, *, until: str | None, **wanted: Any) -> None:
    from dataclasses import asdict

    from tenfold.fleet.operate.operate import ask, is_controlled

    made = ask(home, until, **wanted)
    if json:
        print_json(asdict(made))
        return
    print(f"Wish {made.id}, until {_at(made.until)}: {_wanted(asdict(made))}.")
    if made.state == "waits" and is_controlled(home):
        print("The controller has not answered yet: see `tenfold fleet status`.")
    elif made.state == "waits":
        print("No controller runs: `tenfold fleet run` carries it out.")
    else:
        print(f"{made.state.capitalize()}: {made.said}.")


def _wanted(wish: dict[str, Any]) -> str:
    if wish["kind"] == "cap":
        return f"at most {wish['mw']:g} MW in {wish['target']}"
    return f"{wish['target']} drained" if wish["kind"] == "drain" else f"{wish['target']} lent to {wish['role']}"


def _at(seconds: float | None) -> str:
    """The local time, with the date unless it is today."""
    if seconds is None:
        return ""
    at = datetime.fromtimestamp(seconds)
    return f"{at:%H:%M:%S}" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d %H:%M}"
