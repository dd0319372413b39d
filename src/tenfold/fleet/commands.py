"""Run a fleet, and show who holds which slot."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct

from tenfold.spec.commands import File, Home, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import NotNegative, Text
from tenfold.spec.strict_json import strict_json

if TYPE_CHECKING:
    from tenfold.fleet.pools import Policy, Size


OUT = "HTML page to write, with pictures of the busiest day. The console reads the .simulation.json file written beside it."


class SlotOptions(Struct, frozen=True):
    """Options of the slots on this machine."""

    slot_watts: Annotated[
        NotNegative, Meta(description="Power of a busy slot in watts, needed by `tenfold fleet cap`; 0 is unknown.")
    ] = 0.0
    keep_gib: Annotated[
        NotNegative,
        Meta(description="Memory in GiB for sleeping processes, so that a role returns without reloading; 0 keeps none."),
    ] = 0.0


def run(
    file: Annotated[
        File | None, Meta(description="The fleet to run on a cluster (fleet.toml); without it, a demonstration runs here.")
    ] = None,
    /,
    *,
    on: Annotated[
        Literal["local", "slurm", "ray"], Meta(description="Where it runs: local (a demonstration, without a file), slurm or ray.")
    ] = "local",
    home: Home = Path("generations"),
    policy: Annotated[
        Text, Meta(description="Policy that assigns slots or nodes: lend, static, borrow, lyra or a plugin's.")
    ] = "lend",
    slots: SlotOptions = SlotOptions(),
    json: Json = False,
) -> None:
    """Run the services and training runs of a fleet file on a cluster. Without a file, show loans on this machine: slots
    train, serve chat and serve the home's ranker, and the training slot is lent to each service during its peak of requests.

    Examples:

      tenfold fleet run --home generations

      tenfold fleet run fleet.toml --on slurm
    """
    from tenfold.spec.plugins import load

    chosen = load("policies", policy)  # before anything is started
    if (file is None) != (on == "local"):
        raise TenfoldError(
            "A fleet file needs --on slurm or --on ray, and these need a file: run `tenfold fleet run fleet.toml --on slurm`."
        )
    if file is not None:
        _on_cluster(file, on, home, chosen(), json)
        return
    from tenfold.fleet.walk import Part, walk

    found = walk(home, (lambda text: None) if json else print, Part(policy, slots.slot_watts, slots.keep_gib))
    if json:
        print_json(found)
        return
    for name, of in found["services"].items():
        print(f"{name}: {of['requests']} requests, {of['accepted_lost']} accepted ones lost.")
    lost_s = sum(of["lost_work_s"] or 0.0 for of in found["services"].values())
    print(f"{found['loans']} loans, all returned in time; {lost_s:.1f} s of lost work.")
    print(f"The losses of {found['steps']} steps equal those of an undisturbed run.")


def _on_cluster(file: Path, on: str, home: Path, policy: "Policy", json: bool) -> None:
    """Run the controller and print a line for each decision."""
    from tenfold.fleet.cluster.controller import control

    def say(now: float, size: "Size") -> None:
        print(strict_json({"at": now, **size._asdict()}) if json else f"{size.holder}: {size.nodes} nodes, {size.why}.", flush=True)

    control(file, on, home, policy, say)


def simulate(
    file: Annotated[Path, Meta(description="The fleet file (fleet.toml): sites, pools, services and jobs.")],
    /,
    *,
    policy: Annotated[str, Meta(description="Policy to simulate.")] = "lend",
    against: Annotated[str, Meta(description="Policies to compare it with, separated by commas.")] = "static,borrow,lyra",
    seeds: Annotated[
        int | None, Meta(description="Simulations of each policy, one for each seed; the file's number by default.", ge=1)
    ] = None,
    out: Annotated[Path | None, Meta(description=OUT)] = None,
    json: Json = False,
) -> None:
    """Simulate a fleet under a policy and compare it with other policies on the same jobs, demand and failures.

    Example: tenfold fleet simulate fleet.toml --policy lend --against static,borrow,lyra --out report.html
    """
    from tenfold.fleet.fleet_file import read_fleet
    from tenfold.fleet.setup import prepare
    from tenfold.fleet.simulation.compare import compare
    from tenfold.fleet.simulation.document import SUFFIX, document
    from tenfold.fleet.simulation.report import html, said
    from tenfold.fleet.simulation.results import WORDS
    from tenfold.spec.files import write_json, write_text

    fleet = read_fleet(file)
    names = list(dict.fromkeys([policy, *(name.strip() for name in against.split(",") if name.strip())]))
    found = compare(prepare(fleet), names, seeds or fleet.simulation.seeds, (lambda text: None) if json else print)
    means = found.means()
    if out:
        title = f"{file.stem}: {policy} compared with {', '.join(names[1:])}"
        write_text(out, html(title, means, found.first))
        write_json(out.with_suffix(SUFFIX), document(title, means, found.first))
    if json:
        print_json({"means": means, "runs": found.runs})
        return
    print(f"{'':34}" + "".join(f"{name:>22}" for name in names))
    for key, words in WORDS.items():
        print(f"{words:34}" + "".join(f"{said(means[name][key]):>22}" for name in names))


def show(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Show all leases of the fleet's ledger, past and current: slot, role, duration and reason.

    Example: tenfold fleet show --json
    """
    from tenfold.fleet.operate.operate import open_ledger

    leases = open_ledger(home).leases()
    if json:
        print_json({"roles": {x.slot: x.role for x in leases if x.ended is None}, "leases": [asdict(x) for x in leases]})
        return
    for x in leases:
        span = "" if x.ended is None else f" for {x.ended - x.since:.1f} s" + (f" of {x.until - x.since:.1f}" if x.until else "")
        print(f"{x.id:4} {x.slot:8} {x.role:6}{span}: {x.why}")
