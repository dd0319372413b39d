"""A controller of toy roles in a process of its own: `python toy_controller.py HOME`, until HOME/stop is there."""

import os
import sys
import time
from pathlib import Path

import toy_roles

from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.operate import CONTROLLER
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.slots import Demand, Limits
from tenfold.fleet.slots.tick import tick
from tenfold.launch.job import open_launcher
from tenfold.spec.files import make_folder, one_at_a_time

OWNERS = {"a": "chat", "b": "train"}


def control(home):
    folder = make_folder(home / "fleet")
    with one_at_a_time(folder / CONTROLLER, "running the fleet"):
        ledger, front = Ledger(folder / "ledger.db", OWNERS, time.time()), Front(folder)
        roles = {"chat": toy_roles.ToyChat(), "train": toy_roles.Counting(home / "steps", steps=10**6)}
        world = LocalWorld(folder, ledger, roles, open_launcher("local"), {"chat": front})
        world.limits = Limits(leave_s=2, tick_s=0.1, switch_s=0.5, hung_s=4)
        world.slot_w, world.demands = 50.0, {"chat": lambda now: Demand(1.0, (1.0,), 1, 0, 10)}
        for slot in ledger.owners:
            world.open(slot)
        while not (home / "stop").exists() and os.getppid() != 1:
            tick(world.clock(), world, Lending())
            time.sleep(world.limits.tick_s)
        world.close()
        front.end()
        ledger.close()


if __name__ == "__main__":
    control(Path(sys.argv[1]))
