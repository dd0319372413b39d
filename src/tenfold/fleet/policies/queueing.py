"""What policies share: which jobs start, which give nodes back, and what services need at this moment."""

from collections.abc import Callable, Iterable

from tenfold.fleet.pools import Job, Pool, Size


def start(waiting: Iterable[Job], room: int, fits: Callable[[Job], bool] | None = None) -> list[Size]:
    """Start the jobs in their order, leaving out those that do not fit, as Kueue's BestEffortFIFO does."""
    sizes: list[Size] = []
    for job in waiting:
        if room <= 0:
            break
        if job.least <= room and (fits is None or fits(job)):
            sizes.append(Size(job.name, job.least, None, "its turn"))
            room -= job.least
    return sizes


def stop(jobs: Iterable[Job], need: int, price: Callable[[Job], float], save: bool, why: str) -> list[Size]:
    """Stop jobs, all at their least size, until `need` nodes are free: those first whose price for each node is the least, and of
    equal ones the last in `jobs`."""
    chosen: list[Job] = []
    freed = 0
    for job in sorted(reversed(list(jobs)), key=lambda job: price(job) / job.least):
        if freed >= need:
            break
        chosen.append(job)
        freed += job.least
    for job in list(chosen):  # one may be needless since a larger one was chosen
        if freed - job.least >= need:
            chosen.remove(job)
            freed -= job.least
    return [Size(job.name, 0, None, why, save) for job in chosen]


def shrink(jobs: Iterable[Job], need: int, why: str) -> tuple[list[Size], int]:
    """Take the nodes beyond their least from elastic jobs, and how many that frees. Those come first whose restart costs the least
    for each node that is needed of them."""
    sizes: list[Size] = []
    freed = 0
    elastic = [job for job in jobs if job.nodes > job.least]
    for job in sorted(elastic, key=lambda job: (job.nodes * job.restart_s / min(need, job.nodes - job.least), job.name)):
        if freed >= need:
            break
        less = min(job.nodes - job.least, need - freed)
        sizes.append(Size(job.name, job.nodes - less, job.until, why))
        freed += less
    return sizes, freed


def reclaim(jobs: Iterable[Job], need: int, price: Callable[[Job], float], save: bool, why: str) -> list[Size]:
    """Free `need` nodes: first those that elastic jobs have beyond their least, then those of whole jobs by their price."""
    if need <= 0:
        return []
    jobs = list(jobs)
    shrunk, freed = shrink(jobs, need, why)
    if freed >= need:
        return shrunk
    stopped = stop(jobs, need - freed, price, save, why)
    gone = {size.holder for size in stopped}
    return [size for size in shrunk if size.holder not in gone] + stopped


def now_needed(pool: Pool, load: float, foreseen: bool = False) -> list[Size]:
    """Each service by the rate that comes at this moment, or is foreseen in the next bin: up at once, down by more than a
    node and at periodic looks."""
    sizes = []
    for service in pool.services:
        rate = max(service.rate, *service.middle[:2]) if foreseen and len(service.middle) else service.rate
        needs = service.needs(rate, load)
        if needs > service.nodes or (pool.periodic and needs < service.nodes - 1):
            sizes.append(Size(service.name, needs, None, f"{rate:.4g} requests/s"))
    return sizes


def grown(pool: Pool, sizes: list[Size]) -> int:
    """How many more nodes the services hold after `sizes`."""
    held = {service.name: service.nodes for service in pool.services}
    return sum(size.nodes - held[size.holder] for size in sizes)
