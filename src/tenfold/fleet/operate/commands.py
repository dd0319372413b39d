"""Show a fleet, and say what an operator wishes of it."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from tenfold.spec.commands import Home, Json, print_json
from tenfold.spec.ranges import Positive, Text

Slots = Annotated[Text, Meta(description="A slot, or an owner: all its slots.")]
Until = Annotated[Text, Meta(description="When it ends: 18:00, the next that comes, or 2027-03-31T18:00.")]
UntilOrADay = Annotated[Text | None, Meta(description="When it ends, as 18:00 or 2027-03-31T18:00; a day from now if not said.")]
Why = Annotated[str, Meta(description="The reason, for the ledger.")]


def status(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Show who holds which slot, since and until when, what its return costs, and the wishes that are open.

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
        where.print("No controller runs: `tenfold fleet run` goes on with these leases and takes the wishes up.")
    if now["wall_jumped_s"]:
        where.print(f"The clock on the wall jumped by {-now['wall_jumped_s']:.0f} s since the fleet began; its deadlines did not.")


def lend(
    pool: Slots,
    /,
    *,
    to: Annotated[Text, Meta(description="The role that shall have them.")],
    until: Until,
    why: Why = "",
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Lend slots to a role until a time, whatever the policy says.

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
    """Let what works in a slot save and leave, and keep the slot empty.

    Example: tenfold fleet drain slot-2 --why "a new fan"
    """
    _wish(home, json, kind="drain", target=node, until=until, why=why)


def cap(
    site: Annotated[Text, Meta(description="The site; that of `fleet run` is `local`.")],
    /,
    *,
    mw: Annotated[Positive, Meta(description="Megawatts that its slots may take.")],
    until: UntilOrADay = None,
    why: Why = "",
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Keep a site's power below a cap: slots of training stop, services do not.

    Example: tenfold fleet cap local --mw 0.0001 --until 20:00
    """
    _wish(home, json, kind="cap", target=site, mw=mw, until=until, why=why)


def withdraw(
    wish: Annotated[int, Meta(ge=1, description="Its number, as `tenfold fleet status` shows it.")],
    /,
    *,
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Take a wish back.

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
        print("No controller runs: `tenfold fleet run` takes it up.")
    else:
        print(f"{made.state.capitalize()}: {made.said}.")


def _wanted(wish: dict[str, Any]) -> str:
    if wish["kind"] == "cap":
        return f"at most {wish['mw']:g} MW in {wish['target']}"
    return f"{wish['target']} drained" if wish["kind"] == "drain" else f"{wish['target']} lent to {wish['role']}"


def _at(seconds: float | None) -> str:
    """A time of today by the hour, another with its date."""
    if seconds is None:
        return ""
    at = datetime.fromtimestamp(seconds)
    return f"{at:%H:%M:%S}" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d %H:%M}"
