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


OUT = "A page to write, with the busiest day as a picture; beside it the same as .simulation.json, for the console."


class SlotOptions(Struct, frozen=True):
    """Of the slots of this machine."""

    slot_watts: Annotated[NotNegative, Meta(description="What a slot takes at work, for `tenfold fleet cap`; 0 is unknown.")] = 0.0
    keep_gib: Annotated[
        NotNegative, Meta(description="Memory that roles may keep in slots they left, so that they come back warm; 0 keeps none.")
    ] = 0.0


def run(
    file: Annotated[File | None, Meta(description="The fleet that a cluster runs, as fleet.toml.")] = None,
    /,
    *,
    on: Annotated[Literal["local", "slurm", "ray"], Meta(description="Where; local shows a loan, without a file.")] = "local",
    home: Home = Path("generations"),
    policy: Annotated[Text, Meta(description="What decides who has which slot: lend, or the policy of a plugin.")] = "lend",
    slots: SlotOptions = SlotOptions(),
    json: Json = False,
) -> None:
    """Run the services and training runs of a fleet file on a cluster, or show a loan on this machine: train in one slot, serve
    chat in the other, and lend the first to chat while a wave of requests comes.

    Examples:

      tenfold fleet run --home generations

      tenfold fleet run fleet.toml --on slurm
    """
    from tenfold.spec.plugins import load

    chosen = load("policies", policy)  # before anything is started
    if (file is None) != (on == "local"):
        raise TenfoldError("A fleet file runs on a cluster: say `tenfold fleet run fleet.toml --on slurm`, or neither.")
    if file is not None:
        _on_cluster(file, on, home, chosen(), json)
        return
    from tenfold.fleet.walk import Part, walk

    found = walk(home, (lambda text: None) if json else print, Part(policy, slots.slot_watts, slots.keep_gib))
    if json:
        print_json(found)
        return
    print(f"{found['requests']} requests, {found['accepted_lost']} accepted ones lost; {found['loans']} loans, back in time.")
    print(f"{found['lost_work_s'] or 0:.1f} s of lost work; the losses of {found['steps']} steps are those of an undisturbed run.")


def _on_cluster(file: Path, on: str, home: Path, policy: "Policy", json: bool) -> None:
    """Print a line for each size that is chosen."""
    from tenfold.fleet.cluster.controller import control

    def say(now: float, size: "Size") -> None:
        print(strict_json({"at": now, **size._asdict()}) if json else f"{size.holder}: {size.nodes} nodes, {size.why}.", flush=True)

    control(file, on, home, policy, say)


def simulate(
    file: Annotated[Path, Meta(description="The fleet: sites, pools, services and jobs, as fleet.toml.")],
    /,
    *,
    policy: Annotated[str, Meta(description="The policy to look at.")] = "lend",
    against: Annotated[str, Meta(description="Policies to compare with, with commas between them.")] = "static,borrow,lyra",
    seeds: Annotated[int | None, Meta(description="How many simulations of each, in place of the file's.", ge=1)] = None,
    out: Annotated[Path | None, Meta(description=OUT)] = None,
    json: Json = False,
) -> None:
    """Simulate a fleet under a policy and beside others: the same jobs, demand and failures for each.

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
    names = list(dict.fromkeys([policy, *(name for name in against.split(",") if name)]))
    found = compare(prepare(fleet), names, seeds or fleet.simulation.seeds, (lambda text: None) if json else print)
    means = found.means()
    if out:
        title = f"{file.stem}: {policy} beside {', '.join(names[1:])}"
        write_text(out, html(title, means, found.first))
        write_json(out.with_suffix(SUFFIX), document(title, means, found.first))
    if json:
        print_json({"means": means, "runs": found.runs})
        return
    print(f"{'':34}" + "".join(f"{name:>22}" for name in names))
    for key, words in WORDS.items():
        print(f"{words:34}" + "".join(f"{said(means[name][key]):>22}" for name in names))


def show(*, home: Home = Path("generations"), json: Json = False) -> None:
    """Who holds which slot, since when and until when, and every lease before.

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
