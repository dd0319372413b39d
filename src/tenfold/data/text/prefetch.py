"""Make batches ahead of time in the background, to hide the latency of an object store."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

T = TypeVar("T")

AHEAD = 32  # batches
THREADS = 16


class Prefetch(Generic[T]):
    """`prefetch(step)` returns `make(step)`, while the `ahead` steps after it are made in the background, up to `last` (excluded).

    `make` must be a pure function of the step, so that any order of calls gives the same batches; after a jump to another step (a
    resume, a rollback) prefetching goes on from there. With `ahead` 0 each batch is made when it is asked for. An error of `make`
    is raised when its step is asked for.
    """

    def __init__(self, make: Callable[[int], T], last: int, ahead: int = AHEAD, threads: int = THREADS) -> None:
        self._make, self._last, self._ahead = make, last, ahead
        self._coming: dict[int, Future[T]] = {}
        self._pool = ThreadPoolExecutor(min(threads, max(1, ahead)), thread_name_prefix="batches")

    def __call__(self, step: int) -> T:
        if not self._ahead:
            return self._make(step)
        for other in [s for s in self._coming if not step <= s <= step + self._ahead]:
            self._coming.pop(other).cancel()
        for wanted in range(step, min(step + self._ahead + 1, max(self._last, step + 1))):
            if wanted not in self._coming:
                self._coming[wanted] = self._pool.submit(self._make, wanted)
        return self._coming.pop(step).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
