"""Means of quantities that a loss computes on its way, for the record of a run."""

import torch
from torch import Tensor

from tenfold.train.parallel.dims import ALONE, ParallelDims


class Tally:
    """Sums and counts by name. They stay on the device until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        self._bounds: dict[str, list[Tensor]] = {}

    def add(self, name: str, values: Tensor, counted: Tensor | None = None) -> None:
        """Add `values`, or those that the mask `counted` marks."""
        values = values.detach().float()
        total, count = (values.sum(), values.numel()) if counted is None else ((values * counted).sum(), counted.sum())
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = before[0] + total, before[1] + count

    def bound(self, name: str, values: Tensor) -> None:
        """Keep the smallest and the largest of `values`."""
        self._bounds.setdefault(name, []).extend(values.detach().aminmax())

    def take(self, dims: ParallelDims = ALONE) -> dict[str, float]:
        """The means since the last call over all processes of `dims`, and the bounds on this process; then begin anew."""
        found = {}
        for name, pair in self._sums.items():
            total, count = dims.total(*map(float, pair))
            found[name] = total / count if count else 0.0
        bounds = {name: torch.stack(values) for name, values in self._bounds.items()}
        found |= {f"{name}_{end}": float(getattr(values, end)()) for name, values in bounds.items() for end in ("min", "max")}
        self._sums, self._bounds = {}, {}
        return found
