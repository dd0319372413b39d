"""Means of what a loss sees on its way, for the record of a run."""

from torch import Tensor

from tenfold.train.parallel.dims import ALONE, ParallelDims


class Tally:
    """Sums and counts by name. They stay on the device until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, name: str, values: Tensor, counted: Tensor | None = None) -> None:
        """Count `values`, or those that are marked."""
        values = values.detach().float()
        total, count = (values.sum(), values.numel()) if counted is None else ((values * counted).sum(), counted.sum())
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = before[0] + total, before[1] + count

    def take(self, dims: ParallelDims = ALONE) -> dict[str, float]:
        """The means since the last call, over all processes of `dims`."""
        found = {}
        for name, pair in self._sums.items():
            total, count = dims.total(*map(float, pair))
            found[name] = total / count if count else 0.0
        self._sums = {}
        return found
