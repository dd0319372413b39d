"""The fleet: who holds which slot and why, operators' wishes, and simulated days with the reason for every move."""

import time
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, FastAPI, Response
from msgspec import Meta, Struct

from tenfold.console.document import Computed, Figure, View, figure, read_json, stamp, undamaged
from tenfold.console.events import changes
from tenfold.console.views.demand import DAY_S, pools
from tenfold.fleet.clock import Clock
from tenfold.fleet.ledger import Lease
from tenfold.fleet.operate.operate import ask, is_controlled, open_ledger, price_s, withdraw
from tenfold.fleet.operate.wishes import Wishes
from tenfold.fleet.seen import FILE as SEEN
from tenfold.fleet.simulation.document import SUFFIX, read_simulation
from tenfold.fleet.simulation.results import WORDS
from tenfold.fleet.slots.slots import Wish
from tenfold.fleet.spans import spans_of
from tenfold.serve.api.callers import CurrentCaller, operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Positive

LEDGER = "fleet/ledger.db"
WRITTEN = (LEDGER, f"{LEDGER}-wal", f"fleet/{SEEN}")  # files that change while a controller runs
PRICE = "the ledger's median times of leaving and of the owner's start"
UNDER = ("", "fleet/", "fleet-[0-9]*/")  # where simulations are, relative to the home
MINUTE_S = 60.0
MOVES = 200  # the newest moves of the ledger that are shown
UNITS = {"_s": "s", "_h": "node-hours", "_mwh": "MWh", "_usd": "USD", "_t": "t CO2", "_m3": "m3", "_mw": "MW"}
Text = Annotated[str, Meta(min_length=1, max_length=200)]


def names(home: Path) -> list[str]:
    """The live fleet "", and every simulation by its name."""
    return ["", *_simulations(home)]


def document(home: Path, name: str) -> dict[str, Any]:
    """The fleet that runs or ran in this home, or one simulation."""
    return _simulation(home, _simulations(home)[name]) if name else _overview(home, home)


def _overview(home: Path, fleet: Path) -> dict[str, Any]:
    """The fleet of the home `fleet`, and the simulations of `home`."""
    simulations, ran = _simulations(home), (fleet / LEDGER).exists()
    return {
        "empty": "" if ran or simulations else f"tenfold fleet run --home {fleet.name}",
        "fleet": _now(fleet) if ran else None,
        "simulations": list(simulations),
        "simulate": f"tenfold fleet simulate fleet.toml --out {home.name}/fleet/day.html",
    }


def _simulations(home: Path) -> dict[str, str]:
    """The files of the simulations in the home, its fleet and the fleets of earlier circles (`fleet-1`), by their names."""
    found = sorted(path.relative_to(home) for under in UNDER for path in home.glob(f"{under}*{SUFFIX}"))
    return {_name(file): str(file) for file in found}


def _name(file: Path) -> str:
    """A simulation's name: `day` in the folder `fleet`, `fleet-1/day` in another one, `day.simulation.json` in the home itself.

    It depends on the file's own path only, so that a link stays valid when other files come.
    """
    stem = file.name.removesuffix(SUFFIX)
    return {"": file.name, "fleet": stem}.get(file.parent.name, f"{file.parent.name}/{stem}")


def _now(home: Path) -> dict[str, Any]:
    """The fleet's state, read again when its files change, and every minute."""
    files = tuple(stamp(home / file) for file in WRITTEN if (home / file).exists())
    return _said(home, files, is_controlled(home), time.time() // MINUTE_S)


@lru_cache(4)
def _said(home: Path, _: tuple[tuple[int, int], ...], controlled: bool, minute: float) -> dict[str, Any]:
    """Slots with their leases, slots by role over the last day, demand by pool, the newest moves, and open wishes.

    Times are by the fleet's clock, which is `ahead_s` seconds ahead of the system clock.
    """
    ledger, clock = open_ledger(home), Clock(home / "fleet" / "clock.json", keep=False)
    try:
        leases, owners = ledger.leases(), ledger.owners
        wishes = Wishes(ledger).open(MINUTE_S * minute)
    finally:
        ledger.close()
    current = [one for one in leases if one.ended is None]
    prices = {pair: price_s(leases, *pair) for pair in {(one.role, owners[one.slot]) for one in current}}
    return {
        "controller": controlled,
        "ahead_s": round(clock.ahead_s()),
        "slots": [_slot(one, owners[one.slot], prices[one.role, owners[one.slot]]) for one in current],
        "roles": _roles(leases, MINUTE_S * (clock() // MINUTE_S) if controlled else 0.0),
        "pools": pools(home / "fleet"),
        "moves": [_move(one) for one in reversed(leases[-MOVES:])],
        "wishes": [_wish(one) for one in wishes],
        "targets": {"slots": sorted({*owners, *owners.values()}), "roles": sorted({one.role for one in leases})},
    }


def _cell(table: str, row: int, column: str, value: float | None, unit: str = "") -> Figure | None:
    return None if value is None else Figure(value, LEDGER, f"{table}.{row}.{column}", unit)


def _slot(lease: Lease, owner: str, price: float | None) -> dict[str, Any]:
    return {
        "slot": lease.slot, "owner": owner, "role": lease.role, "work": lease.work, "why": lease.why,
        "since": _cell("leases", lease.id, "since", lease.since), "until": _cell("leases", lease.id, "until", lease.until),
        "price": None if price is None else Computed(price, PRICE, "s"),
    }  # fmt: skip


def _move(lease: Lease) -> dict[str, Any]:
    """A lease with its reason, whether its loan was returned in time, and the work lost by it."""
    in_time = None if lease.until is None or lease.ended is None else lease.ended <= lease.until
    lost = None if lease.lost_s is None else Computed(lease.lost_s, "the ledger's last note on the lease", "s")
    return {
        "lease": lease.id, "slot": lease.slot, "role": lease.role, "why": lease.why, "in_time": in_time, "lost": lost,
        "since": _cell("leases", lease.id, "since", lease.since), "until": _cell("leases", lease.id, "until", lease.until),
    }  # fmt: skip


def _wish(wish: Wish) -> dict[str, Any]:
    told = {name: getattr(wish, name) for name in ("id", "kind", "target", "role", "who", "why", "state", "said")}
    return told | {"mw": _cell("wishes", wish.id, "mw", wish.mw, "MW"), "until": _cell("wishes", wish.id, "until", wish.until)}


def _roles(leases: list[Lease], now: float) -> dict[str, Any]:
    """The number of slots by role at every change of the last day: times, and a column for each role.

    The last time is `now`, or one second after the ledger's last entry where that is later.
    """
    said = [at for one in leases for at in (one.since, one.ready, one.asked) if at is not None]
    last = max(now, 1.0 + max(said))
    first = max(leases[0].since, last - DAY_S)
    spans = spans_of([one for one in leases if one.ended is None or one.ended > first], first, last - first)
    times = sorted({0.0, last - first, *(edge for span in spans for edge in (span.start, span.end))})
    place = {at: i for i, at in enumerate(times)}
    steps = {span.what: [0] * len(times) for span in spans}
    for span in spans:
        steps[span.what][place[span.start]] += 1
        if span.end < times[-1]:
            steps[span.what][place[span.end]] -= 1
    return {"at": [first + at for at in times], "roles": {role: list(accumulate(column)) for role, column in steps.items()}}


def _simulation(home: Path, file: str) -> dict[str, Any]:
    """The figures of every policy over its seeds, and its busiest day."""
    found = read_simulation(home / file)
    with undamaged(home / file, "write it again by `tenfold fleet simulate --out`"):
        return _policies(home, file, found)


def _policies(home: Path, file: str, found: dict[str, Any]) -> dict[str, Any]:
    page = file.removesuffix(SUFFIX) + ".html"
    rows = [
        {"name": words, "figures": [_mean(home, file, policy, key) for policy in found["means"]]} for key, words in WORDS.items()
    ]
    return {
        "title": found["title"],
        "policies": list(found["means"]),
        "rows": rows,
        "day_begins_s": found["day_begins_s"],
        "days": found["days"],
        "files": [file, *([page] if (home / page).is_file() else [])],
    }


def _mean(home: Path, file: str, policy: str, key: str) -> Figure:
    ends = read_json(home / file)["means"][policy][key]
    unit = next((unit for ending, unit in UNITS.items() if key.endswith(ending)), "")
    interval = (ends["low"], ends["high"]) if ends["low"] < ends["high"] else None
    return figure(home, file, f"means.{policy}.{key}.mean", unit, interval)


class Wanted(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a wish, with the arguments of `tenfold fleet lend|drain|cap`."""

    kind: Literal["lend", "drain", "cap"]
    target: Text
    role: Text | None = None
    mw: Positive | None = None
    until: Text | None = None
    why: Annotated[str, Meta(max_length=1000)] = ""

    def __post_init__(self) -> None:
        if self.kind == "lend" and not (self.role and self.until):
            raise ValueError("a loan needs a role and a time at which it ends")
        if self.kind == "cap" and self.mw is None:
            raise ValueError("a cap needs its megawatts")


def _routes(app: FastAPI) -> None:
    """Endpoints for operators' wishes, and the fleet of another home where the options name one."""
    home: Path = app.state.options.fleet or app.state.options.home
    if home != app.state.options.home:
        _show_other(app, home)

    @app.post("/act/fleet/wish", dependencies=[Depends(operator_only)])
    def wish(body: dict[str, Any], caller: CurrentCaller) -> dict[str, Any]:
        try:
            wanted = msgspec.structs.asdict(msgspec.convert(body, Wanted))
            return _told(ask(home, wanted.pop("until"), who=_named(caller.name), **wanted))
        except (TenfoldError, msgspec.ValidationError) as error:
            raise ApiError(400, str(error)) from None

    @app.post("/act/fleet/withdraw/{number}", dependencies=[Depends(operator_only)])
    def take_back(number: int, caller: CurrentCaller) -> dict[str, Any]:
        try:
            return _told(withdraw(home, number, _named(caller.name)))
        except TenfoldError as error:
            raise ApiError(400, str(error)) from None


def _show_other(app: FastAPI, fleet: Path) -> None:
    """Serve the fleet of another home in place of the home's own. The other home's files are not served."""

    def overview() -> Response:
        return Response(msgspec.json.encode(_overview(app.state.options.home, fleet)), media_type="application/json")

    async def follow() -> Response:
        return app.state.feeds.stream("fleet/", changes(lambda: overview().body))

    app.get("/data/fleet.json")(overview)
    app.get("/events/fleet")(follow)


def _named(caller: str) -> str:
    """The name of the caller's key; empty without keys, so that the name of the account is taken."""
    return "" if caller == "anonymous" else caller


def _told(made: Wish) -> dict[str, Any]:
    return {"id": made.id, "state": made.state, "said": made.said}


VIEW = View("fleet", "Fleet", names, document, routes=_routes)
