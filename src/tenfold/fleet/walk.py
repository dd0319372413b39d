"""The fleet's part of the circle: a run trains, and its slot is lent to chat and then to ranking, while a wave of requests comes to
each of them, and is back in time. Where the home has no ranker, there is chat's wave alone.

generations/fleet/  undisturbed/  trained/  measured.json  answers-SERVICE.jsonl  ledger.db  fleet.json
"""

import json
import os
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import to_builtins

from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.operate import CONTROLLER
from tenfold.fleet.slots.live import Live, Say, live, play, settle, small_run
from tenfold.fleet.slots.slots import DRAINED, Limits
from tenfold.fleet.waves import KINDS, Measured, Waves, bodies_of, figures, forecasts_of, read_measured, traffic
from tenfold.launch.job import open_launcher, run
from tenfold.learn.release import released
from tenfold.model.path import model_path
from tenfold.rank.next import FOLDER as RANKING
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import file_sha256, make_folder, one_at_a_time, write_json
from tenfold.spec.forecasts import Forecast, forecast, outcome
from tenfold.spec.plugins import load
from tenfold.spec.versions import read_document
from tenfold.train.goodput import read_goodput
from tenfold.train.metrics import read_metrics

VERSION = 2  # of fleet.json
RUNS = ("undisturbed", "trained")
OWNERS = {"slot-1": "chat", "slot-2": "train", "slot-3": "rank"}


class Part(NamedTuple):
    """Options of the fleet in a circle.

    A busy slot draws `slot_w` watts (0: unknown). Roles that have left a slot may keep `keep_gib` of memory there, so that they
    return faster. `number` is that of the circle in its home; the demand is drawn with `seed`. If `file` is given, the fleet of
    that fleet file is simulated in addition to the live slots.
    """

    policy: str = "lend"
    slot_w: float = 0.0
    keep_gib: float = 0.0
    number: int = 1
    seed: int = 0
    file: str | None = None


def walk(home: Path, say: Say, part: Part = Part()) -> dict[str, Any]:
    """Run the fleet's part of the circle in `home`; continues where an earlier call was stopped. Returns the content of
    `fleet/fleet.json`. The folders of earlier circles are renamed to `fleet-1`, `fleet-2`, ...

    Raises TenfoldError if the losses of the lent run differ from those of the undisturbed one, an accepted request was lost, or a
    slot was returned late.
    """
    if not (find_spec("uvicorn") and find_spec("fastapi")):
        raise NotInstalled("A fleet serves models: pip install 'tenfold[serve]'.")
    kept, done = len(list(home.glob("fleet-[0-9]*"))), home / "fleet" / "fleet.json"
    if part.number > kept + 1 and done.exists():
        kept += 1
        done.parent.replace(home / f"fleet-{kept}")
    folder, key = make_folder(done.parent), f"fleet-{kept + 1}" if kept else "fleet"
    if not done.exists():
        # The simulation first: a fleet file that cannot work is refused before the minutes of the live slots.
        simulated = {"simulated": _simulated(Path(part.file), folder, part.policy, say)} if part.file else {}
        _live(home, key, say, part)
        write_json(done, {"version": VERSION, **_numbers(folder), **simulated})
    numbers = read_document(done, VERSION, f"delete {folder}, and run the fleet again")
    services = numbers["services"]
    for name, kind in product(services, KINDS):
        if services[name][kind] is not None:
            outcome(home, f"{key}/{name}/{kind}", services[name][kind])
    lost = any(of["accepted_lost"] for of in services.values())
    if lost or not (numbers["same_losses"] and numbers["loans"] and numbers["returned_in_time"]):
        raise TenfoldError(f"The fleet broke a promise: see {done}; delete {folder} to try again.")
    return numbers


def _simulated(file: Path, folder: Path, policy: str, say: Say) -> dict[str, Any]:
    """Means of the fleet of a file under the policy and under `static`; the console shows the document that is left."""
    from tenfold.fleet.fleet_file import read_fleet
    from tenfold.fleet.setup import prepare
    from tenfold.fleet.simulation.compare import compare
    from tenfold.fleet.simulation.document import SUFFIX, document

    fleet, names = read_fleet(file), list(dict.fromkeys([policy, "static"]))
    found = compare(prepare(fleet), names, fleet.simulation.seeds, say)
    means = found.means()
    write_json(folder / f"own{SUFFIX}", document(f"{file.stem}: {policy} beside static", means, found.first))
    return means


def _live(home: Path, key: str, say: Say, part: Part) -> None:
    """Run both trainings and the waves of requests on slots of this machine, one for each role."""
    from tenfold.fleet.slots.roles import Role, Serving, Training  # these need 'tenfold[serve]'

    folder = home / "fleet"
    with ExitStack() as opened:
        opened.enter_context(one_at_a_time(folder / CONTROLLER, f"running the fleet of {folder}"))
        small = os.environ.get("TENFOLD_CIRCLE") == "small"
        undisturbed, trained = (Training(small_run(200 if small else 1200), folder / name, folder) for name in RUNS)
        if not undisturbed.finished:
            say("A run trains undisturbed, to compare with.")
            run(open_launcher("local"), undisturbed.job(folder / "slot-2.lock", "", None, 30))
        models = {"chat": (None if small else _released(home)) or undisturbed.directory, "rank": _ranker(home, part.number)}
        servers = {name: Serving(name, model_path(path)) for name, path in models.items() if path}
        roles: dict[str, Role] = {"train": trained, **servers}
        owners = {slot: role for slot, role in OWNERS.items() if role in roles}
        fleet = opened.enter_context(live(folder, owners, roles))
        fleet.world.slot_w, fleet.world.sleepers.keep_bytes = part.slot_w, part.keep_gib * 2**30
        found = _measured(folder, fleet, part.seed, hours_s=(0.4, 1.5) if small else (1.25, 4.0))
        start_s = max(of.start_s for of in found.services.values())
        fleet.world.limits = Limits(leave_s=max(20.0, 4 * start_s), switch_s=start_s + 1)
        _forecast(home, key, found, 0.0 if part.keep_gib else found.train_start_s)
        fleet.world.open("slot-2")
        bodies = bodies_of(found, servers["rank"].model if "rank" in servers else None)
        waves = opened.enter_context(closing(Waves(folder, found, fleet, bodies, part.seed)))
        for name, arrivals in waves.arrivals.items():
            say(f"A wave of {len(arrivals)} requests comes to {name}; a slot answers {found.services[name].per_slot:.1f} a second.")

        def going() -> bool:
            lent = any(lease.until and lease.role != DRAINED for lease in fleet.ledger.leases(current=True))
            return not waves.over or not trained.finished or lent

        play(fleet.world, load("policies", part.policy)(), going, say)


def _released(home: Path) -> Path | None:
    served = released(home)
    return Path(served["path"]) if served else None


def _ranker(home: Path, number: int) -> Path | None:
    """The ranker that the ranking part of the `number`th circle left in service; None where there is no such part."""
    served = home / RANKING / f"served-{number}.json"
    return Path(json.loads(served.read_text())["in_service"]) if served.exists() else None


def _measured(folder: Path, fleet: Live, seed: int, hours_s: tuple[float, float]) -> Measured:
    """Start the services, and measure once how long that takes and what a slot answers; an hour is made long enough for a switch to
    take only some of them."""
    file, starts = folder / "measured.json", dict[str, float]()
    for slot, role in fleet.ledger.owners.items():
        if role in fleet.fronts:
            began = time.monotonic()
            fleet.world.open(slot)
            settle(fleet.world)
            starts[role] = time.monotonic() - began
    if not file.exists():
        services = {name: traffic(name, fleet.fronts[name], start_s, seed) for name, start_s in starts.items()}
        train_s = read_goodput(folder / RUNS[0] / "time.jsonl")["starting_s"]
        hour_s = min(hours_s[1], max(hours_s[0], max(starts.values()) / 6))
        write_json(file, to_builtins(Measured(hour_s, train_s, services)))
    return read_measured(file)


def _forecast(home: Path, key: str, found: Measured, back_s: float) -> None:
    """Record what is forecast of each service before its wave. A training that was lent needs `back_s` seconds to start again."""
    data = {"fleet/measured.json": file_sha256(home / "fleet" / "measured.json")}
    for name in found.services:
        for kind, (unit, quantiles) in forecasts_of(name, found, back_s).items():
            made = Forecast(key=f"{key}/{name}/{kind}", who="fleet", kind=kind, unit=unit, quantiles=quantiles, data=data)
            forecast(home, made)


def _numbers(folder: Path) -> dict[str, Any]:
    """The results of the waves, from the files in `folder`."""
    found = read_measured(folder / "measured.json")
    leases, rows = Ledger(folder / "ledger.db").leases(), [read_metrics(folder / name / "run.jsonl") for name in RUNS]
    loans = [lease for lease in leases if lease.until is not None]
    losses = [{row["step"]: row["loss"] for row in of_run if row["event"] == "step"} for of_run in rows]
    return {
        "steps": len(losses[0]), "same_losses": losses[0] == losses[1], "loss": losses[1][max(losses[1])],
        "loans": len(loans), "returned_in_time": all(x.ended <= x.until for x in loans if x.ended and x.until),
        "leases": [asdict(lease) for lease in leases],
        "services": {name: figures(folder, name, found.hour_s, leases) for name in found.services},
    }  # fmt: skip
