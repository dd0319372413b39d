"""Functions that the policies share: start jobs, take nodes back from jobs, and size services by the present rate."""

from collections.abc import Callable, Iterable

from tenfold.fleet.pools import Job, Pool, Size


def start(waiting: Iterable[Job], room: int, fits: Callable[[Job], bool] | None = None) -> list[Size]:
    """Start waiting jobs in their order at their least size, skipping those that do not fit, as Kueue's BestEffortFIFO does."""
    sizes: list[Size] = []
    for job in waiting:
        if room <= 0:
            break
        if job.least <= room and (fits is None or fits(job)):
            sizes.append(Size(job.name, job.least, None, "its turn to start"))
            room -= job.least
    return sizes


def stop(jobs: Iterable[Job], need: int, price: Callable[[Job], float], save: bool, why: str) -> list[Size]:
    """Stop jobs until `need` nodes are free, counting each at its least size: in the order of their price per node, and of equal
    prices the last in `jobs` first. With `save` they write a checkpoint."""
    chosen: list[Job] = []
    freed = 0
    for job in sorted(reversed(list(jobs)), key=lambda job: price(job) / job.least):
        if freed >= need:
            break
        chosen.append(job)
        freed += job.least
    for job in list(chosen):  # a job that was chosen early may be unnecessary once a larger one is chosen
        if freed - job.least >= need:
            chosen.remove(job)
            freed -= job.least
    return [Size(job.name, 0, None, why, save) for job in chosen]


def shrink(jobs: Iterable[Job], need: int, why: str) -> tuple[list[Size], int]:
    """Shrink elastic jobs towards their least size until `need` nodes are free; returns the sizes and the number of nodes freed.

    The jobs are taken in the order of their restart's cost for each node that is needed of them.
    """
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
    """Free `need` nodes: first shrink elastic jobs to their least size, then stop whole jobs in the order of their price."""
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
    """The sizes of services for the present rate or, with `foreseen`, the larger of it and the forecast medians of this and the
    next bin. They grow at once; they shrink only at periodic calls, and only by more than one node."""
    sizes = []
    for service in pool.services:
        rate = max(service.rate, *service.middle[:2]) if foreseen and len(service.middle) else service.rate
        needs = service.needs(rate, load)
        if needs > service.nodes or (pool.periodic and needs < service.nodes - 1):
            sizes.append(Size(service.name, needs, None, f"{rate:.4g} requests/s"))
    return sizes


def grown(pool: Pool, sizes: list[Size]) -> int:
    """How many more nodes the services have after `sizes`."""
    held = {service.name: service.nodes for service in pool.services}
    return sum(size.nodes - held[size.holder] for size in sizes)
