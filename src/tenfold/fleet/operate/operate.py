"""What the operators' commands do: write wishes into a fleet's ledger, and read who holds which slot.

They work without a controller. A running controller reads new wishes in the next iteration of its loop.
"""

import getpass
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tenfold.fleet.clock import Clock
from tenfold.fleet.ledger import Lease, Ledger
from tenfold.fleet.operate.wishes import WITHDRAWN, Wishes
from tenfold.fleet.slots.slots import DRAINED, Wish
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import holder

CONTROLLER = "controller.lock"  # in the fleet's folder; a running controller holds it
ANSWER_S = 5.0  # how long a command waits for the controller's answer
DAY_S = 86_400.0


def open_ledger(home: Path) -> Ledger:
    """The ledger of the fleet in `home`. Raises TenfoldError where the home has no ledger."""
    if not (home / "fleet" / "ledger.db").exists():
        raise TenfoldError(f"There is no ledger of a fleet in {home}: `tenfold fleet run` creates one.")
    return Ledger(home / "fleet" / "ledger.db")


def is_controlled(home: Path) -> bool:
    """Whether a controller runs."""
    return holder(home / "fleet" / CONTROLLER) is not None


def read_until(text: str, now: datetime) -> float:
    """The seconds since the epoch of a local time: `18:00`, today or tomorrow, or a date with a time such as `2027-03-31T18:00`.

    Raises TenfoldError for other text and for times in the past.
    """
    try:
        if len(text) <= 5:
            at = datetime.combine(now.date(), datetime.strptime(text, "%H:%M").time()).astimezone()
            at += timedelta(days=1) if at <= now else timedelta()
        else:
            at = datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise TenfoldError(f"{text!r} is not a time: write 18:00, or a date with a time such as 2027-03-31T18:00.") from None
    if at <= now:
        raise TenfoldError(f"{text} is in the past: write a later time.")
    return at.timestamp()


def ask(home: Path, until: str | None, **wanted: Any) -> Wish:
    """Write a wish with the fields `wanted` to the ledger. `until` is a text for `read_until`; None is a day from now.

    Raises TenfoldError as `read_until` and `wish` do.
    """
    now = datetime.now().astimezone()
    end = now.timestamp() + DAY_S if until is None else read_until(until, now)
    return wish(home, Wish(0, until=end, **wanted))


def wish(home: Path, wanted: Wish) -> Wish:
    """Write a wish to the ledger and wait up to `ANSWER_S` for the controller's answer, if one runs. Returns the wish with its
    state.

    Raises TenfoldError for a slot, owner or pool that the ledger does not have.
    """
    with closing(open_ledger(home)) as ledger:
        pools = {slot.rpartition("/")[0] for slot in ledger.owners} - {""}
        known = {*ledger.owners, *ledger.owners.values(), *pools}
        if wanted.kind != "cap" and wanted.target not in known:
            near = nearest(wanted.target, known)
            raise TenfoldError(f"There is no slot, owner or pool {wanted.target!r}{near}: see `tenfold fleet status`.")
        wishes = Wishes(ledger)
        made = wishes.add(replace(wanted, who=wanted.who or getpass.getuser()))
        end = time.monotonic() + ANSWER_S
        while made.state == "waits" and is_controlled(home) and time.monotonic() < end:
            time.sleep(0.1)
            made = wishes.of(made.id)
        return made


def withdraw(home: Path, number: int, who: str = "") -> Wish:
    """Withdraw a wish. Raises TenfoldError where there is no wish of this number."""
    with closing(open_ledger(home)) as ledger:
        wishes = Wishes(ledger)
        wishes.of(number)
        wishes.answer({number: (WITHDRAWN, f"by {who or getpass.getuser()}")}, time.time())
        return wishes.of(number)


def status(home: Path) -> dict[str, Any]:
    """Who holds which slot, what its return costs, and the open wishes. Times are in seconds since the epoch by the system clock.

    Raises TenfoldError where the home has no ledger.
    """
    ledger, ahead_s = open_ledger(home), Clock(home / "fleet" / "clock.json", keep=False).ahead_s()
    leases = ledger.leases()
    slots = [
        {"slot": x.slot, "owner": ledger.owners[x.slot], "role": x.role, "since": x.since - ahead_s,
         "until": None if x.until is None else x.until - ahead_s,
         "price_s": price_s(leases, x.role, ledger.owners[x.slot]), "why": x.why}
        for x in leases if x.ended is None
    ]  # fmt: skip
    wishes = [asdict(one) for one in Wishes(ledger).open(time.time())]
    ledger.close()
    return {"controller": is_controlled(home), "wall_jumped_s": ahead_s, "slots": slots, "wishes": wishes}


def price_s(leases: Sequence[Lease], role: str, owner: str) -> float | None:
    """Slot-seconds that it costs to return a slot to its owner or, where the owner holds it, to lend it and get it back.

    The sum of two medians over the ledger: the time in which the role saves and leaves, and the time in which the owner starts.
    None until the ledger has both.
    """
    leaving = [0.0] if role == DRAINED else [x.ended - x.asked for x in leases if x.role == role and x.asked and x.ended]
    starting = [x.ready - x.since for x in leases if x.role == owner and x.ready]
    return statistics.median(leaving) + statistics.median(starting) if leaving and starting else None
