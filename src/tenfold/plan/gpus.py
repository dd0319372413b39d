"""How many GPUs: of all numbers that divide well the fastest up to a number, or the fewest that hold a deadline.

The numbers are the same whatever is asked, and all of them up to the number asked for compete, so that more GPUs never train
more slowly: those that would are left to stand by.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, takewhile

from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.search import Search, fastest_pass, search
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

SERVER = 8  # GPUs
PER_DOUBLING = 32  # numbers of servers between one power of two and the next: at most 3 % stand by
MOST_GPUS = 2**30
NO_GAIN = 64  # numbers without a faster one among them, after which no larger one is tried


@dataclass(frozen=True)
class Job:
    """What is to be trained, on which machine; `lasts`: the time that a number of GPUs takes over that of its steps, which is
    never below `least`."""

    spec: ModelSpec
    machine: Machine
    seq_len: int
    global_batch: int
    dtype: str
    lasts: Callable[[int], float]
    least: float

    def search(self, gpus: int) -> Search:
        return search(
            self.spec, gpus, self.machine, seq_len=self.seq_len, global_batch=self.global_batch, dtype=self.dtype
        )  # fmt: skip

    def rate(self, gpus: int) -> float:
        """Tokens per second by the clock; 0 where nothing can be built, nothing fits, or failures leave no time."""
        steps = _of_steps(self.spec, gpus, self.machine, self.seq_len, self.global_batch, self.dtype)
        try:
            return steps / self.lasts(gpus) if steps else 0.0
        except TenfoldError:
            return 0.0

    def most_per_gpu(self) -> float:
        """Tokens per second by the clock and GPU that no number of GPUs passes."""
        return fastest_pass(self.spec, self.machine, self.seq_len, self.global_batch, self.dtype) / self.least


@lru_cache(maxsize=65_536)
def _of_steps(spec: ModelSpec, gpus: int, machine: Machine, seq_len: int, global_batch: int, dtype: str) -> float:
    """Tokens per second of the fastest layout's steps, or 0."""
    try:
        return search(spec, gpus, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype).best.tokens_per_s
    except TenfoldError:
        return 0.0


def numbers() -> Iterator[int]:
    """The numbers of GPUs that are tried, ascending: parts of a server, then whole servers, PER_DOUBLING to a doubling."""
    yield from (1, 2, 4)
    yield from (SERVER * n for n in range(1, PER_DOUBLING))
    for doubling in count():
        yield from (SERVER * n * 2**doubling for n in range(PER_DOUBLING, 2 * PER_DOUBLING))


def fastest(job: Job, gpus: int) -> Search:
    """The fastest search on at most so many GPUs. Raises TenfoldError that says what binds where none fits."""
    most, best = job.most_per_gpu(), (0.0, 0)
    tried = list(takewhile(lambda n: n <= gpus, numbers()))
    for number in reversed(tried):
        if number * most <= best[0]:
            break
        best = max(best, (job.rate(number), number))
    return job.search(best[1] or tried[-1])  # raises the error of the largest number where there is no best


def fewest(job: Job, tokens_per_s: float) -> int | None:
    """The least number that trains so many tokens a second by the clock; None where there is none."""
    least, best, since = tokens_per_s / job.most_per_gpu(), 0.0, 0
    for number in takewhile(lambda n: n <= MOST_GPUS, numbers()):
        if number < least:
            continue
        rate = job.rate(number)
        if rate >= tokens_per_s:
            return number
        since = 0 if rate > best else since + 1
        best = max(best, rate)
        if best and since > NO_GAIN:
            return None
    return None


def first_that_fits(job: Job, above: int) -> int | None:
    """The least number above `above` on which the model can be trained; None where none of the next is one."""
    for number in takewhile(lambda n: n <= min(MOST_GPUS, max(2**16, 64 * above)), numbers()):
        if number > above and job.rate(number):
            return number
    return None


def quickest(job: Job) -> tuple[float, int]:
    """(the most tokens a second by the clock that any power of two trains, that number); (0, the largest) where none trains any."""
    powers = (number for number in takewhile(lambda n: n <= MOST_GPUS, numbers()) if number.bit_count() == 1)
    return max((job.rate(number), number) for number in powers)
