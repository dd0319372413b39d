"""Warnings about a table of points: suspicious units, duplicate rows, rows far off every fitted form."""

from collections.abc import Sequence

import numpy as np

from tenfold.scale.forms import FORMS
from tenfold.scale.points import Point, arrays, once
from tenfold.scale.posterior import Data, first_fits
from tenfold.spec.laws import REACH

PF_DAY = 8.64e19  # FLOPs
HIGHEST_NATS = 15.0  # log of a vocabulary of three million tokens: the cross-entropy of a trained model is lower
FEWEST_PARAMS, FEWEST_TOKENS, FEWEST_FLOPS = 1e3, 1e4, 1e8  # medians below these are taken for another unit
FAR_OFF = 8.0  # standard deviations of the rows' residuals
FEW = 0.1  # share of the rows: where more are far off, the form is wrong and not the rows


def questions(points: Sequence[Point], unusable: Sequence[int]) -> list[str]:
    """Sentences that warn about the points of a file; `unusable` are the numbers of the rows that were left out."""
    n, d, c, loss = arrays(points)
    found = []
    if unusable:
        found.append(f"{_rows(unusable)} could not be used: each needs positive numbers.")
    if again := len(points) - len(set(points)):
        found.append(f"{again} {'row is a duplicate' if again == 1 else 'rows are duplicates'} of another and not counted.")
    for name, values, fewest in (("parameters", n, FEWEST_PARAMS), ("tokens", d, FEWEST_TOKENS), ("FLOPs", c, FEWEST_FLOPS)):
        if np.median(values) < fewest:
            found.append(f"The {name} are {values.min():.3g} to {values.max():.3g}: {_unit(name)}")
    ratio = float(np.median(c / (6 * n * d)))
    if not 0.3 <= ratio <= 3:
        days = f": {_unit('FLOPs')}" if 0.5 < ratio * PF_DAY < 2 else ", where 6 N D is usual: are all three in plain numbers?"
        found.append(f"The median of the FLOPs is {ratio:.2g} times 6 N D{days}")
    if loss.max() > HIGHEST_NATS:
        found.append(f"Losses reach {loss.max():.3g}, more than any cross-entropy: are they perplexities? Give their logarithm.")
    return found


def _unit(name: str) -> str:
    if name == "FLOPs":
        return f"are they PF-days? One is {PF_DAY:.3g} FLOPs."
    return "are they in millions or billions? Write 7B or 7e9."


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{'Row' if len(numbers) == 1 else 'Rows'} {shown}{f' and {len(numbers) - 10} more' if len(numbers) > 10 else ''}"


def outliers(points: Sequence[Point], asymptote: tuple[float, float] | None = None) -> list[Point]:
    """Points whose residual from the best form exceeds `FAR_OFF` standard deviations (by the median), the furthest first.

    Empty where more than `FEW` of the points do.
    """
    points = once(points)
    data = Data.of(points)
    fits = first_fits(data, asymptote).items()
    off = min((np.abs(FORMS[name].value(theta, data.u, data.v)[0] - data.y) for name, theta in fits), key=np.median)
    far = off > FAR_OFF * max(1.4826 * float(np.median(off)), 1e-3)
    if far.sum() > FEW * len(points):
        return []
    return [points[i] for i in np.argsort(-off) if far[i]]


def outlier_sentence(found: Sequence[Point]) -> str:
    """A sentence that names the outliers' rows."""
    shown = ", ".join(f"{p.row} (loss {p.loss:.3f} at {p.params:.3g} parameters, {p.tokens:.3g} tokens)" for p in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"Far off any law: {'row' if len(found) == 1 else 'rows'} {shown}{more}."


def beyond_sentence(points: Sequence[Point], params: float, tokens: float, flops: float) -> str:
    """A sentence on how far a forecast lies beyond the points."""
    n, d, c, _ = arrays(points)
    far = [(flops / c.max(), "compute"), (params / n.max(), "parameters"), (tokens / d.max(), "tokens")]
    beyond = [f"{times:.3g} times the largest {what}" for times, what in far if times > 1.01]
    if not beyond:
        return "This lies within the points."
    warning = "; nothing supports a law so far out" if flops / c.max() > REACH else ""
    return f"This lies beyond the points, at {', '.join(beyond)}{warning}."
