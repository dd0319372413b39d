"""GPU-hours of published runs: planned hours of steps and failures, and the factor from them to the reported hours."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from scipy.stats import t as student

from tenfold.plan.costs.consequences import checkpoint_bytes
from tenfold.plan.costs.failures import effective_time
from tenfold.plan.validation.tables import ASSUMED_STACK, Refused, Unread, number, read_table, whole
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.plan.workload.workload import DAY_S
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import shape_for_params

BATCH_TOKENS = 4e6  # tokens per step, for every model of the table
VOCABULARY = 32_000
GPUS = 1024  # where the table does not give the number
PARTS = (("h800", "h800"), ("h100", "h100"), ("a100", "a100"), ("v100", "v100"), ("tpuv4", "tpu-v4"))
LEVEL = 0.8  # of the intervals
PRIOR_SD, PRIOR_SOURCES = 0.25, 2  # prior standard deviation of a source's log factor, and how many sources the prior counts for


@dataclass(frozen=True)
class Hours:
    """One run: reported GPU-hours (`told`), and planned ones of its steps and failures.

    `hold` says what the reported hours include: only the "steps" (tokens over a steady rate), or "all" that the run took.
    """

    model: str
    source: str
    hold: str
    told: float
    planned: float

    @property
    def log_factor(self) -> float:
        return math.log(self.told / self.planned)


@dataclass(frozen=True)
class Factor:
    """The factor from planned to reported hours for a run of a new source: its logarithm is Student's t with `freedom` degrees."""

    log_mean: float
    log_sd: float
    freedom: float

    def interval(self, planned: float, level: float = LEVEL) -> tuple[float, float]:
        """The interval of the reported hours of a run with `planned` hours."""
        reach = float(student.ppf(0.5 + level / 2, self.freedom)) * self.log_sd
        return planned * math.exp(self.log_mean - reach), planned * math.exp(self.log_mean + reach)


def published_hours(path: Path | None = None) -> tuple[list[Hours], list[Unread]]:
    """The runs of a table with the columns of training_runs.csv, and its rows with hours that could not be planned.

    The planned run has the Llama shape nearest to the (active) parameters, the tokens that give the same FLOPs, a batch of 4M
    tokens, the table's software, the best layout, and the time lost to failures.
    """
    found, unread = [], []
    for line, row in enumerate(read_table("training_runs.csv", path), 2):
        if not row["gpu_hours"] or not row["tokens"] or row["family"].startswith("Llama 3.2"):
            continue  # Llama 3.2's models are pruned and distilled, so that their hours are not those of 6 N D FLOPs
        try:
            told = number(row, "gpu_hours") or 0.0
            source = " ".join(row["family"].split(".")[0].split())
            found.append(Hours(row["model"], source, row.get("hours_hold") or "all", told, _planned(row)))
        except Refused as fault:
            unread.append(Unread(line, fault.column, fault.value, fault.why))
        except TenfoldError as error:
            unread.append(Unread(line, "", "", str(error)))
    return found, unread


def _planned(row: dict[str, str]) -> float:
    """Planned GPU-hours of one row. Raises TenfoldError where its model does not fit, Refused for a cell that cannot be read."""
    name = row["gpu_model"].lower().replace(" ", "")
    part = next((key for pattern, key in PARTS if pattern in name), None)
    if part is None:
        raise Refused("gpu_model", row["gpu_model"], f"is none of {', '.join(pattern for pattern, _ in PARTS)}")
    params = number(row, "params_active") or number(row, "params_total")
    tokens, seq_len = number(row, "tokens"), whole(row, "sequence_length", 4096)
    if not params or not tokens:
        raise Refused("params_total", row["params_total"], "is empty")
    digits = row["n_gpus"].split("-")[-1]
    gpus = int(digits) if digits.isdigit() else GPUS
    spec = shape_for_params(params, VOCABULARY)
    batch = max(gpus if params > 1e11 else 1, round(BATCH_TOKENS / seq_len))
    while gpus > 8 and batch / gpus < 0.1:
        gpus //= 2
    gpus = max(8, gpus // 8 * 8)
    best = search(spec, gpus, machine(part, row.get("stack") or ASSUMED_STACK), seq_len=seq_len, global_batch=batch).best
    seconds = tokens * params / spec.parameters().total / best.tokens_per_s
    share = effective_time(gpus, DAY_S, checkpoint_bytes(params)).effective_share.mid
    return gpus * seconds / 3600 / share


def factor(known: Sequence[Hours], hold: str) -> Factor:
    """The factor for a run of a new source, whose reported hours hold `hold`, from the `known` runs of other sources.

    The runs of one source are more alike than those of different sources. Each source therefore counts once, whatever its number
    of runs. The variance between sources is pooled over "steps" and "all", each about its own mean, with a weak prior; the
    variance of runs within a source is added.
    """
    sources = defaultdict(list)
    for run in known:
        sources[run.source, run.hold].append(run.log_factor)
    means = {key: mean(logs) for key, logs in sources.items()}
    of_kind = [m for (_, kind), m in means.items() if kind == hold] or list(means.values())
    centres = {kind: mean(m for (_, k), m in means.items() if k == kind) for _, kind in means}
    squares = sum((m - centres[kind]) ** 2 for (_, kind), m in means.items())
    freedom = PRIOR_SOURCES + len(means) - len(centres)
    between = (squares + PRIOR_SOURCES * PRIOR_SD**2) / freedom
    within = mean([stdev(logs) ** 2 for logs in sources.values() if len(logs) > 1] or [0.0])
    return Factor(mean(of_kind), math.sqrt(between * (1 + 1 / len(of_kind)) + within), freedom)


def one_factor(known: Sequence[Hours], hold: str) -> Factor:
    """A single log-normal factor for all runs, whatever their source and `hold`: the baseline of `factor`."""
    logs = [run.log_factor for run in known]
    return Factor(mean(logs), stdev(logs), 1e6)


@dataclass(frozen=True)
class Coverage:
    """How well 80 % intervals for runs of held-out sources do: runs, those inside, the median ratio of the ends, the mean interval
    score of log hours, and the misses in words."""

    runs: int
    inside: int
    median_ratio: float
    score: float
    misses: tuple[str, ...]


def coverage(
    runs: Sequence[Hours],
    make: Callable[[Sequence[Hours], str], Factor] = factor,
    known: Sequence[Hours] | None = None,
) -> Coverage:
    """Compare each run with the interval that `make` gives from the other sources (of `known`, or of `runs`).

    The interval score is that of Gneiting and Raftery (2007): the width, plus a penalty for values outside.
    """
    widths, scores, misses = [], [], []
    for run in runs:
        low, high = make([other for other in known or runs if other.source != run.source], run.hold).interval(run.planned)
        outside = max(math.log(low / run.told), math.log(run.told / high), 0.0)
        widths.append(high / low)
        scores.append(math.log(high / low) + 2 / (1 - LEVEL) * outside)
        if outside:
            misses.append(f"{run.model} reported {run.told:,.0f}, the range was {low:,.0f} to {high:,.0f}")
    return Coverage(len(runs), len(runs) - len(misses), median(widths), mean(scores), tuple(misses))


def held_out(runs: Sequence[Hours], known: Sequence[Hours] | None = None) -> list[tuple[str, float]]:
    """(model, error in percent) of planned hours times the factor of the other sources (of `known`, or of `runs`)."""
    found = []
    for run in runs:
        others = [other for other in known or runs if other.source != run.source]
        found.append((run.model, 100 * (run.planned * math.exp(factor(others, run.hold).log_mean) / run.told - 1)))
    return found
