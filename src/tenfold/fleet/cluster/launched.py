"""Live pools whose nodes are held by jobs of a cluster, for any launcher that lists its jobs and its nodes that are up: Slurm, Ray.

A run is one job on all its nodes; a service has a job of one node in each of its places. The size that each should have is written
to the ledger first. Each iteration of the control loop then starts, resizes or ends jobs until the cluster has these sizes, so that
a restarted controller can continue.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tenfold.fleet.cluster.places import DOWN, TRAIN, Places
from tenfold.fleet.cluster.sizes import Given, Sizes, of_job
from tenfold.fleet.cluster.started import Started, bring, is_alive, told_of
from tenfold.fleet.ledger import Ledger, Turn
from tenfold.fleet.operate.on_pools import apply_to_pools, caps_of
from tenfold.fleet.operate.wishes import Wishes
from tenfold.fleet.pools import Job, Pool, Service, Size
from tenfold.fleet.setup import Setup
from tenfold.fleet.site_pools import open_pool, show_power
from tenfold.fleet.slots.slots import Limits
from tenfold.launch import job as launch
from tenfold.spec.errors import TenfoldError

AT_ONCE = 8  # jobs that are started, resized or ended at the same time


class LaunchedWorld:
    """A `PoolWorld` of jobs on a cluster. It continues with the state in the ledger.

    `folder` has the jobs' files and logs, `launchers` maps pools to launchers, and `demand` sets a service's rate and forecasts.
    """

    def __init__(
        self, folder: Path, ledger: Ledger, setup: Setup, launchers: Mapping[str, launch.Launcher],
        demand: Callable[[Service, float], None],
    ):  # fmt: skip
        self._folder, self._ledger, self._setup, self._launchers, self._demand = folder, ledger, setup, launchers, demand
        self._started = Started(setup, folder)
        self.pools = {name: open_pool(setup, facts) for name, facts in setup.pools.items()}
        self._places, self._sizes, self._workers = Places(ledger), Sizes(ledger), ThreadPoolExecutor(AT_ONCE)
        self._starts: Counter[str] = Counter()  # the number of the present job of each run
        self._leaving: Counter[str] = Counter()
        self._turns: dict[str, Future[int]] = {}
        self._failed: dict[str, list[float]] = {}
        self._seen: dict[str, launch.Seen] = {}
        self._came: set[str] = set()
        self._wishes = Wishes(ledger)
        self._shown = False
        self._go_on()

    def arrive(self, now: float, name: str) -> None:
        """Add a run of the fleet file to its pool's queue, unless it is known already or has finished."""
        table = self._setup.file.runs[name]
        pool = self.pools[table.pool]
        known = name in pool.running or any(job.name == name for job in pool.waiting)
        if not known and name not in self._ledger.finished():
            job = self._started.seen_of(name)
            job.came = now
            pool.waiting.append(job)
            self._sizes.give(of_job(job, 0))
            self._came.add(pool.name)

    def observe(self, now: float, periodic: bool) -> set[str]:
        """See `PoolWorld`. Raises TenfoldError for a cluster that does not answer, and for work that fails again and again."""
        self._end_turns(now)
        self._seen = next(iter(self._launchers.values())).seen()
        changed, self._came = self._came, set()
        for name, pool in self.pools.items():
            nodes, runs = self._count_nodes(now, pool), [self._look_at(now, pool, job) for job in list(pool.running.values())]
            if self._release(now, pool) or nodes or any(runs):
                changed.add(name)
        if periodic or not self._shown:
            self._show(now)
        self._shown = True
        return changed

    def apply(self, now: float, pool: Pool, size: Size) -> None:
        for service in pool.services:
            if service.name == size.holder:
                before = service.nodes, service.until
                pool.size_service(service, size)
                if before != (service.nodes, service.until):
                    self._sizes.give(Given(service.name, service.nodes, service.until))
                return
        job = pool.running.get(size.holder) or next((job for job in pool.waiting if job.name == size.holder), None)
        if job is not None and (resized := pool.size_job(now, job, size)):
            self._leaving[job.name] += resized.leaving
            self._sizes.give(of_job(job, self._starts[job.name]))

    def turn(self, now: float) -> None:
        for pool in self.pools.values():
            for service in pool.services:
                self._turn_service(now, pool, service)
            for job in (*pool.running.values(), *pool.waiting):
                self._turn_run(now, pool, job)

    def close(self) -> None:
        """Wait for calls to the cluster to end. Jobs on the cluster continue."""
        self._workers.shutdown()

    def _show(self, now: float) -> None:
        """Update the pools' demand, power and wishes, as of the last multiple of `tick_s`. Wishes have times of the system
        clock."""
        at, wall = now - now % self._setup.file.simulation.tick_s, time.time()
        wishes = [replace(wish, until=wish.until + now - wall) for wish in self._wishes.open(wall)]
        caps = caps_of(wishes)
        for pool in self.pools.values():
            facts = self._setup.pools[pool.name]
            show_power(pool, self._setup, facts.nodes - pool.nodes, _of_year(at), caps.get(facts.site, math.inf))
            for service in pool.services:
                self._demand(service, at)
        self._wishes.answer(apply_to_pools(now, wishes, self.pools, self._setup, self._ledger.owners), wall)

    def _go_on(self) -> None:
        given, ended = self._sizes.last(), self._ledger.finished()
        for pool in self.pools.values():
            pool.nodes -= len(self._places.of(pool.name, DOWN))
            for service in pool.services:
                if known := given.pop(service.name, None):
                    pool.serving += known.nodes - service.nodes
                    service.nodes, service.until = known.nodes, known.until
        for name, known in given.items():
            if name in ended:
                continue
            if name not in self._setup.file.runs:
                raise TenfoldError(
                    f"The ledger has unfinished work of {name}, which the fleet file does not have: add it to the file again."
                )
            job, pool = known.told(self._started.seen_of(name)), self.pools[self._setup.file.runs[name].pool]
            self._starts[name] = known.start
            left = len(self._places.of_run(pool.name, name)) - job.nodes
            self._leaving[name] = max(0, left)
            pool.leaving += max(0, left)
            pool.training += job.nodes
            if job.nodes:
                pool.running[name] = job
            else:
                pool.waiting.append(job)
        for pool in self.pools.values():
            pool.waiting.sort(key=lambda job: job.came)

    def _entry(self, name: str) -> tuple[int, launch.Seen] | None:
        """A run's job that is alive, or else its last one, with its number; None where the cluster knows neither.

        The number of the next job is written before a job is told to leave, so that a job that left is not taken for a finished
        run.
        """
        found = None
        for start in (self._starts[name] - 1, self._starts[name]):
            seen = told_of(self._started.run(name, start, 1), self._seen)
            if seen and (is_alive(seen) or start == self._starts[name]):
                found = start, seen
        return found

    def _nodes(self, name: str) -> int:
        """The number of nodes that the run's job has on the cluster."""
        entry = self._entry(name)
        return entry[1].nodes if entry and is_alive(entry[1]) else 0

    def _end_turns(self, now: float) -> None:
        for unit, turn in list(self._turns.items()):
            if not turn.done():
                continue
            del self._turns[unit]
            if isinstance(error := turn.exception(), TenfoldError):
                self._count_failure(now, unit, str(error))
                continue
            start = turn.result()
            for pool in self.pools.values():
                job = pool.running.get(unit) or next((job for job in pool.waiting if job.name == unit), None)
                if job is not None and start != self._starts[unit]:
                    self._starts[unit] = start
                    self._sizes.give(of_job(job, start))

    def _count_nodes(self, now: float, pool: Pool) -> bool:
        """Remove nodes that are down from their holders, and add nodes that are up again; returns whether to call the policy."""
        up, changed = min(self._launchers[pool.name].up(), self._setup.pools[pool.name].nodes), False
        while pool.nodes > up and (place := self._lost(pool)) is not None:
            had = self._places[place]
            pool.nodes -= 1
            self._places.give(now, [Turn(place, DOWN, None, "its node is not up")])
            if had.role == TRAIN and had.work in pool.running:
                self._hit(now, pool, pool.running[had.work])
                changed = True
        for place in self._places.of(pool.name, DOWN)[: max(0, up - pool.nodes)]:
            pool.nodes += 1
            self._places.give(now, [Turn(place, TRAIN, None, "its node is up")])
            changed = True
        return changed

    def _lost(self, pool: Pool) -> str | None:
        """A place whose node is down: that of a run or service whose job failed or lost a node, else a free one; None if there is
        none."""
        for name in pool.running:
            held, entry = self._places.of_run(pool.name, name), self._entry(name)
            if held and entry and name not in self._turns and (entry[1].status == "failed" or entry[1].nodes < len(held)):
                return held[-1]
        for service in pool.services:
            for place in self._places.of(pool.name, service.name):
                seen = self._serving(service.name, place)
                if place not in self._turns and seen and seen.status == "failed":
                    return place
        return next(iter(self._places.of(pool.name, TRAIN)), None)

    def _look_at(self, now: float, pool: Pool, job: Job) -> bool:
        """Handle a run that has finished or failed; returns whether one of these happened."""
        entry, held = self._entry(job.name), self._places.of_run(pool.name, job.name)
        if entry is None or job.name in self._turns or not held:
            return False
        seen = entry[1]
        if seen.status == "finished":
            self._ledger.finish(job.name, now)
            pool.finish(job)
            pool.leaving -= self._leaving.pop(job.name, 0)
            self._places.give(now, [Turn(place, TRAIN, None, f"{job.name} is finished") for place in held])
            return True
        if not is_alive(seen):
            self._count_failure(now, job.name, f"it {seen.status}")
        if not is_alive(seen) or seen.nodes < len(held) <= job.nodes:
            self._hit(now, pool, job)
            return True
        return False

    def _hit(self, now: float, pool: Pool, job: Job) -> None:
        pool.hit(now, job, 0.0)
        self._starts[job.name] += not self._nodes(job.name)  # so that a job that has ended is handled only once
        self._sizes.give(of_job(job, self._starts[job.name]))

    def _release(self, now: float, pool: Pool) -> bool:
        """Free the places that runs and services have left; returns whether a run left some."""
        freed = False
        for job in (*pool.running.values(), *pool.waiting):
            over = self._places.of_run(pool.name, job.name)[job.nodes :]
            if over and job.name not in self._turns and self._nodes(job.name) == job.nodes:
                self._places.give(now, [Turn(place, TRAIN, None, f"{job.name} left it") for place in over])
                pool.leaving -= self._leaving.pop(job.name, 0)
                freed = True
        for service in pool.services:
            over = self._places.of(pool.name, service.name)[service.nodes :]
            gone = [place for place in over if place not in self._turns and not is_alive(self._serving(service.name, place))]
            self._places.give(now, [Turn(place, TRAIN, None, f"{service.name} left it") for place in gone])
        return freed

    def _serving(self, service: str, place: str) -> launch.Seen | None:
        return told_of(self._service_job(service, place), self._seen)

    def _service_job(self, service: str, place: str) -> launch.Job:
        return self._started.service(service, self._places[place].work or f"{service}-{place}")

    def _turn_service(self, now: float, pool: Pool, service: Service) -> None:
        """Give a service free places up to its size, and start or end its job in each place."""
        held = self._places.of(pool.name, service.name)
        for place in self._places.of(pool.name, TRAIN)[: max(0, service.nodes - len(held))]:
            name = f"{service.name}-{place}-{self._places[place].id}"  # unique, since a lease's id is never reused
            until = service.until if len(held) >= service.own else None
            self._places.give(now, [Turn(place, service.name, until, "the service needs a node", name)])
            held.append(place)
        launcher = self._launchers[pool.name]
        for i, place in enumerate(held):
            job, seen = self._service_job(service.name, place), self._serving(service.name, place)
            if place in self._turns or (i < service.nodes) == is_alive(seen):
                continue
            if seen is not None and not is_alive(seen):
                self._count_failure(now, f"{service.name} in {place}", f"it {seen.status}")
            handle = launch.Handle(job, seen.id) if seen and i >= service.nodes else None
            self._turns[place] = self._workers.submit(bring, launcher, job if i < service.nodes else None, 0, handle, 0)

    def _turn_run(self, now: float, pool: Pool, job: Job) -> None:
        """Give a run all the places that it needs or none, and start, resize or end its job accordingly."""
        name, held = job.name, self._places.of_run(pool.name, job.name)
        if name in self._turns:
            return
        free, need = self._places.of(pool.name, TRAIN), job.nodes - len(held)
        if need > len(free):
            return
        self._places.give(now, [Turn(place, TRAIN, None, "its turn", name) for place in free[: max(0, need)]])
        if self._nodes(name) == job.nodes:
            return
        entry = self._entry(name)
        alive = entry if entry and is_alive(entry[1]) else None
        last, handle = self._starts[name], None
        if alive:
            last, seen = alive
            handle = launch.Handle(self._started.run(name, last, seen.nodes), seen.id)
        self._starts[name] = last + 1
        self._sizes.give(of_job(job, last + 1))
        wanted = self._started.run(name, last + 1, job.nodes) if job.nodes else None
        self._turns[name] = self._workers.submit(bring, self._launchers[pool.name], wanted, last + 1, handle, last)

    def _count_failure(self, now: float, who: str, said: str) -> None:
        limits = Limits()
        failed = [then for then in self._failed.get(who, []) if then > now - limits.restarts_s]
        if len(failed) >= limits.restarts:
            raise TenfoldError(f"{who} failed {len(failed) + 1} times ({said}): see the logs in {self._folder} for the cause.")
        self._failed[who] = [*failed, now]


def _of_year(now: float) -> float:
    """Seconds since the beginning of the year, in this machine's time zone."""
    return now - datetime(datetime.fromtimestamp(now).year, 1, 1).timestamp()
