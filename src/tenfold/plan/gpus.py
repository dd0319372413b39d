"""The number of GPUs: the fastest number up to a limit, or the fewest that meet a deadline.

Candidates are the fixed sequence `numbers`. All of them up to the limit are compared, so that a higher limit never makes a plan
slower: GPUs that would not help are left out.
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
PER_DOUBLING = 32  # candidates between one power of two and the next: at most 3 % of the GPUs are left out
MOST_GPUS = 2**30
NO_GAIN = 64  # candidates in a row that are not faster, after which the search ends


@dataclass(frozen=True)
class Job:
    """A model to train on a machine. `lasts` gives, for a number of GPUs, the wall-clock time over that of the planned steps
    alone; it is never below `least`."""

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
        """Tokens per second of wall-clock time; 0 where no layout can be built or fits, or failures leave no time."""
        steps = _of_steps(self.spec, gpus, self.machine, self.seq_len, self.global_batch, self.dtype)
        try:
            return steps / self.lasts(gpus) if steps else 0.0
        except TenfoldError:
            return 0.0

    def most_per_gpu(self) -> float:
        """An upper bound of the tokens per second of wall-clock time and GPU, over all numbers of GPUs."""
        return fastest_pass(self.spec, self.machine, self.seq_len, self.global_batch, self.dtype) / self.least


@lru_cache(maxsize=65_536)
def _of_steps(spec: ModelSpec, gpus: int, machine: Machine, seq_len: int, global_batch: int, dtype: str) -> float:
    """Tokens per second of the fastest layout's steps, or 0 where there is none."""
    try:
        return search(spec, gpus, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype).best.tokens_per_s
    except TenfoldError:
        return 0.0


def numbers() -> Iterator[int]:
    """The candidate numbers of GPUs, ascending: parts of a server, then whole servers, PER_DOUBLING of them per doubling."""
    yield from (1, 2, 4)
    yield from (SERVER * n for n in range(1, PER_DOUBLING))
    for doubling in count():
        yield from (SERVER * n * 2**doubling for n in range(PER_DOUBLING, 2 * PER_DOUBLING))


def fastest(job: Job, gpus: int) -> Search:
    """The search of the fastest number of at most `gpus` GPUs. Raises TenfoldError, with what is short, where nothing fits."""
    most, best = job.most_per_gpu(), (0.0, 0)
    tried = list(takewhile(lambda n: n <= gpus, numbers()))
    for number in reversed(tried):
        if number * most <= best[0]:
            break
        best = max(best, (job.rate(number), number))
    return job.search(best[1] or tried[-1])  # raises the error of the largest number where there is no best


def fewest(job: Job, tokens_per_s: float) -> int | None:
    """The fewest GPUs that train `tokens_per_s` of wall-clock time; None where no number does."""
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
    """The fewest GPUs above `above` on which the model fits; None where none up to 64 times as many does."""
    for number in takewhile(lambda n: n <= min(MOST_GPUS, max(2**16, 64 * above)), numbers()):
        if number > above and job.rate(number):
            return number
    return None


def quickest(job: Job) -> tuple[float, int]:
    """(tokens per second of wall-clock time, GPUs) of the fastest power of two; (0, the largest) where the model fits on none."""
    powers = (number for number in takewhile(lambda n: n <= MOST_GPUS, numbers()) if number.bit_count() == 1)
    return max((job.rate(number), number) for number in powers)
