"""The fleet of this machine: open it, wait for it and run it."""

import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tenfold.fleet.clock import Clock
from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.pools import Policy
from tenfold.fleet.seen import Recorded
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.slots import Lend
from tenfold.fleet.slots.tick import tick
from tenfold.launch.job import open_launcher
from tenfold.train.config import RunConfig
from tenfold.train.run_file import config_from_fields

if TYPE_CHECKING:  # PyTorch
    from tenfold.fleet.slots.roles import Role

ROUTES = {"chat": "/v1/completions", "rank": "/v1/recommend"}  # of the services
CONTEXT = 2048  # longer than the training sequences, so that the longest answer fits
Say = Callable[[str], None]


class Live(NamedTuple):
    """An open fleet."""

    world: LocalWorld
    ledger: Ledger
    fronts: dict[str, Front]  # of the services, by role


@contextmanager
def live(folder: Path, owners: dict[str, str], roles: "dict[str, Role]") -> Iterator[Live]:
    """Open the fleet of the ledger in `folder`. `owners` are the roles that own its slots, which are to be opened by the caller. On
    exit every role saves and leaves."""
    fronts: dict[str, Front] = {}
    with ExitStack() as opened:
        ledger = opened.enter_context(closing(Ledger(folder / "ledger.db", owners, Clock(folder / "clock.json")())))
        for role in roles.keys() & ROUTES.keys():
            fronts[role] = Front(folder, f"front-{role}", ROUTES[role])
            opened.callback(fronts[role].end)
        world = opened.enter_context(closing(LocalWorld(folder, ledger, roles, open_launcher("local"), fronts)))
        yield Live(world, ledger, fronts)


def settle(world: LocalWorld) -> None:
    """Wait until no slot is switching. Raises what a switch raised."""
    while any(slot.turning for slot in world.observe(world.clock()).slots):
        time.sleep(0.1)


def play(world: LocalWorld, policy: Policy, going: Callable[[], bool], say: Say) -> None:
    """Run the control loop while `going()` is true, and record what the policy sees."""
    recorded = Recorded(policy, world.folder)
    while going():
        for move in tick(world.clock(), world, recorded):
            to = f" to {move.role}" if isinstance(move, Lend) else ""
            say(f"  {type(move).__name__} {move.slot}{to}: {move.why}.")
        time.sleep(world.limits.tick_s)


def small_run(steps: int, *, width: int = 64, seq_len: int = 64, corpus: str = "email") -> RunConfig:
    """A small run whose losses are reproducible to the bit: one thread, float32, nothing compiled."""
    text = {"corpus": str(Path(sysconfig.get_path("stdlib")) / corpus), "vocab_size": 512, "max_epochs": 1000}
    fields = {
        "tokens": steps * 8 * seq_len, "device": "cpu", "dtype": "float32", "threads": 1, "compile": "off",
        "model": {"width": width, "context": CONTEXT},
        "data": {**text, "seq_len": seq_len, "batch_size": 8}, "task": {"evaluate_tokens": 4096}, "checkpoint": {"every_s": 5},
        "log": {"every": 1},
    }  # fmt: skip
    return config_from_fields(fields, "The fleet's run")
