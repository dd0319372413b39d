"""Stated probabilities that the next generation brings a step, from ladders of known laws, and how often the step came.

    python -m bench.scale.worth --ladders 40

A law is fitted to each ladder of `bench.scale.ladders`, and the probabilities of five steps in the logarithm of the loss are
stated: steps at fixed quantiles of the law's own distribution. Whether a step comes is drawn from the true law, with the noise of
two runs.
"""

from collections.abc import Iterable

import numpy as np

from bench.harness import Headline, Row, options, write_results
from bench.scale.ladders import NOISE, TRUTHS, known_ladder
from tenfold.learn.statistics import share_interval
from tenfold.scale.law import fit_law
from tenfold.scale.worth import Worth, next_generations

LOSSES = np.geomspace(0.01, 100, 2000)
WORTH = Worth(LOSSES, -100 * np.log(LOSSES))  # one percent of loss is worth 1
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def outcomes(name: str, seeds: Iterable[int]) -> list[tuple[float, bool]]:
    """(stated probability, whether the step came) of five steps of each ladder."""
    truth, found = TRUTHS[name], []
    for seed in seeds:
        told = next_generations(fit_law(known_ladder(truth, seed)[0]), WORTH, generations=1)
        losses = np.array([truth(n, d) for n, d in zip(told.params, told.tokens, strict=True)])
        measured = WORTH(losses * np.exp(NOISE * np.random.default_rng([seed, 1]).standard_normal(2)))
        for step in np.quantile(np.diff(told.value, axis=1), SHARES):
            found.append((told.chances(float(step))[0], bool(measured[1] - measured[0] >= step)))
    return found


def by_step(name: str, found: list[tuple[float, bool]]) -> list[Row]:
    """A row for each step."""
    made = []
    for i, _ in enumerate(SHARES):
        stated, came = zip(*found[i :: len(SHARES)], strict=True)
        made.append({
            "case": "step", "truth": name, "ladders": len(came), "stated": float(np.mean(stated)), "came": float(np.mean(came)),
            "came_95": share_interval(sum(came), len(came)),
        })  # fmt: skip
        print(made[-1], flush=True)
    return made


def headline(rows: list[Row]) -> Headline:
    of_all = [r for r in rows if r["truth"] == "all"]
    said = ", ".join(f"{r['stated']:.0%}: {r['came']:.0%}" for r in of_all)
    yield f"{of_all[0]['ladders']} ladders of known laws, chance of a step at ten times the compute stated: came", said


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--ladders", type=int, default=40, help="ladders of each law")
    count = parser.parse_args().ladders
    every = {name: outcomes(name, range(i * count, (i + 1) * count)) for i, name in enumerate(TRUTHS)}
    rows = [row for name, found in every.items() for row in by_step(name, found)]
    rows += by_step("all", [one for found in every.values() for one in found])
    write_results("worth", rows, headline(rows))


if __name__ == "__main__":
    main()
