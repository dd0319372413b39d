"""Objectives beside the next item: a like, a purchase, how long an item is watched. Each is read from a column of the table.

A test of a column (`rating>=4`, `action=like`) is yes or no, and trained with binary cross-entropy. A column alone (`value`) is an
amount of at least 0, trained with the squared error of log(1 + amount). Both are calibrated on the validation events by isotonic
regression.
"""

import operator
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor

from tenfold.data.interactions.events import Interactions
from tenfold.spec.errors import TenfoldError

TESTS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}
BINS = 10  # of the calibration error


class Objective(NamedTuple):
    """A column, and the test of its values: an operator and the `value` on its right; both are empty for an amount."""

    name: str
    column: str
    test: str = ""
    value: str = ""

    def of(self, interactions: Interactions) -> np.ndarray:
        """The target of each event, float32 [events]: 0 or 1, or log(1 + amount); NaN where the column is empty.

        Raises TenfoldError for texts where numbers are needed, and for negative amounts.
        """
        column = interactions.signal(self.column)
        try:
            if self.test == "=" and not _is_number(self.value):
                given = np.array([np.nan if x is None else float(x == self.value) for x in column.cast(pa.string()).to_pylist()])
            else:
                given = column.cast(pa.float64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise TenfoldError(
                f"The objective {self.name!r} needs numbers, and the column {self.column!r} has other values."
            ) from None
        if self.test and _is_number(self.value):
            given = np.where(np.isnan(given), np.nan, TESTS[self.test](given, float(self.value)))
        elif not self.test:
            if np.nanmin(given) < 0:
                raise TenfoldError(
                    f"The objective {self.name!r} is an amount: the column has values below 0, so write a test of it."
                )
            given = np.log1p(given)
        return given.astype(np.float32)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d+)?", text))


def parse(text: str) -> Objective:
    """The objective written as `column`, `column>=4` or `column=like`. Raises TenfoldError for anything else."""
    found = re.fullmatch(r"\s*(\w+)\s*(?:(>=|<=|>|<|=)\s*(\S+)\s*)?", text)
    if not found or (found[2] not in (None, "=") and not _is_number(found[3])):
        raise TenfoldError(f"{text!r} is no objective: write a column, or a test of one as in rating>=4 or action=like.")
    return Objective(text.replace(" ", ""), found[1], found[2] or "", found[3] or "")


def objective_loss(outputs: Tensor, values: Tensor, objectives: list[Objective]) -> Tensor:
    """The sum of the losses of outputs [..., objectives] over all known targets: values [..., objectives] that are not NaN."""
    total = outputs.new_zeros(())
    for i, objective in enumerate(objectives):
        there = ~values[..., i].isnan()
        output, value = outputs[..., i][there].float(), values[..., i][there]
        if objective.test:
            total = total + F.binary_cross_entropy_with_logits(output, value, reduction="sum")
        else:
            total = total + (output - value).square().sum() / 2
    return total


class Calibration(NamedTuple):
    """A monotone, piecewise linear function from a head's output to a probability, or an amount in the column's unit."""

    outputs: list[float]
    values: list[float]

    def __call__(self, outputs: np.ndarray) -> np.ndarray:
        return np.interp(outputs, self.outputs, self.values)


def calibrate(outputs: np.ndarray, values: np.ndarray, objective: Objective) -> Calibration:
    """Isotonic regression of the targets `values` on the `outputs` of a head, both float [events]."""
    came = values if objective.test else np.expm1(values)
    x, place, count = np.unique(outputs, return_inverse=True, return_counts=True)  # equal outputs get one value: their mean
    y = isotonic_regression(np.bincount(place, came) / count, weights=count).x
    edges = np.flatnonzero(np.diff(y, prepend=np.nan, append=np.nan))
    ends = np.unique(np.clip(np.concatenate((edges, edges - 1)), 0, len(x) - 1))
    return Calibration(x[ends].tolist(), y[ends].tolist())


def calibration_error(predicted: np.ndarray, came: np.ndarray) -> float:
    """The mean absolute difference between predicted and actual means, over `BINS` bins of equally many predictions."""
    order = np.argsort(predicted, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(len(part) * abs(predicted[part].mean() - came[part].mean()) for part in bins) / max(1, len(order)))
