"""What this plan gets wrong on published runs: step time, ranking, memory, GPU-hours."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from tenfold.plan.costs.environment import card_tco2e
from tenfold.plan.costs.failures import effective_time
from tenfold.plan.facts import facts
from tenfold.plan.plan import make_plan
from tenfold.plan.request import StepRequest
from tenfold.plan.validation.published import Row, read_layouts, read_vtrain
from tenfold.plan.validation.tables import read_table
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.step_time import step_time
from tenfold.plan.workload.workload import DAY_S
from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import Shape, shape_for_params

NEAR_BEST = 1.03
HOURS_BAR_PCT = 20.0
SHOWN = 3  # groups that the plan ranked wrong, in words
HOURS_BATCH_TOKENS = 4e6  # of every model in the table of GPU-hours, where its own is not used
HOURS_VOCABULARY = 32_000
HOURS_GPUS = 1024  # where the number is not given
PARTS = (("h800", "h800"), ("h100", "h100"), ("a100", "a100"), ("v100", "v100"), ("tpuv4", "tpu-v4"))


@dataclass(frozen=True)
class Error:
    """Errors of one kind on one source, in percent of the measured value."""

    kind: str
    source: str
    rows: int
    mean_abs_pct: float
    median_abs_pct: float
    bias_pct: float
    worst: str
    worst_pct: float


def _summary(kind: str, source: str, errors: Iterable[tuple[str, float]]) -> Error:
    pairs = list(errors)
    worst = max(pairs, key=lambda pair: abs(pair[1]))
    sizes = [abs(e) for _, e in pairs]
    return Error(kind, source, len(pairs), mean(sizes), median(sizes), mean(e for _, e in pairs), *worst)


def short(source: str) -> str:
    """The publication alone: no release, no table within it."""
    return source.split("[")[0].split("(")[0].split(" = ")[0].split(";")[0].strip()[:48]


def step_errors(rows: Iterable[Row]) -> dict[tuple[str, str], list[tuple[Row, float]]]:
    """(source, precision) -> rows with the error of their step time in percent."""
    found = defaultdict(list)
    for row in rows:
        predicted = step_time(row.spec, row.layout, row.machine).total_s
        found[short(row.source), row.layout.dtype].append((row, 100 * (predicted / row.step_s - 1)))
    return dict(found)


def ranking(rows: Iterable[Row], same_batch: bool = False) -> tuple[int, int, list[str]]:
    """(groups whose favourite is within 3 % of the measured best, groups, the misses in words), by tokens per second."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.group(same_batch)].append(row)
    several = [g for g in groups.values() if len({r.layout for r in g}) > 1]
    misses = []
    for group in several:
        favourite = min(group, key=lambda r: step_time(r.spec, r.layout, r.machine).total_s / r.layout.tokens_per_step)
        best = min(group, key=lambda r: r.step_s / r.layout.tokens_per_step)
        behind = favourite.step_s / favourite.layout.tokens_per_step / (best.step_s / best.layout.tokens_per_step)
        if behind > NEAR_BEST:
            words = f"{favourite.layout.words()} is {100 * (behind - 1):.0f} % behind {best.layout.words()}"
            misses.append(f"{favourite.name} on {favourite.layout.world}, {favourite.source}: {words}")
    return len(several) - len(misses), len(several), misses


def memory_errors(rows: Iterable[Row]) -> list[tuple[Row, float]]:
    """Rows that report memory, with the error in percent."""
    return [
        (row, 100 * (memory(row.spec, row.layout, row.machine).total_gib / row.memory_gib - 1)) for row in rows if row.memory_gib
    ]


def hours_errors(path: Path | None = None) -> list[tuple[str, float, float]]:
    """(model, reported GPU-hours, planned GPU-hours) from parameters, tokens and the number of GPUs alone.

    The plan takes the Llama shape nearest to the (active) parameters, as many tokens as make the same FLOPs, a batch of 4M
    tokens, the best layout, and the time that failures cost.
    """
    found = []
    for row in read_table("training_runs.csv", path):
        part = next((key for pattern, key in PARTS if pattern in row["gpu_model"].lower().replace(" ", "")), None)
        if not (part and row["gpu_hours"] and row["tokens"]) or "3.2" in row["family"]:
            continue  # Llama 3.2's models are pruned and distilled: their hours are not those of 6ND
        try:
            found.append((row["model"], float(row["gpu_hours"]), _planned_hours(row, part)))
        except TenfoldError:
            continue
    return found


def _planned_hours(row: dict[str, str], part: str) -> float:
    """GPU-hours of one row of the table. Raises TenfoldError where its model does not fit."""
    params, tokens = float(row["params_active"] or row["params_total"]), float(row["tokens"])
    digits = row["n_gpus"].split("-")[-1]
    gpus = int(digits) if digits.isdigit() else HOURS_GPUS
    seq_len = int(row["sequence_length"] or 4096)
    spec = shape_for_params(params, HOURS_VOCABULARY)
    shape = Shape(spec, round(tokens * params / spec.parameters().total), 6 * params * tokens)
    batch = max(gpus if params > 1e11 else 1, round(HOURS_BATCH_TOKENS / seq_len))
    while gpus > 8 and batch / gpus < 0.1:
        gpus //= 2
    plan = make_plan(shape, gpus, machine(part, "megatron-lm-2024"), StepRequest(seq_len, batch))
    share = effective_time(gpus, plan.workload.days * DAY_S, 14 * params).effective_share.mid
    return plan.workload.gpu_hours / share


def card_errors(path: Path | None = None) -> list[tuple[str, float]]:
    """(model, error in percent) of t CO2e by the rule of the model cards, from GPU-hours and board power."""
    known, found = facts("cards")["rules"], []
    for row in read_table("training_runs.csv", path):
        hours, watts, told = row["gpu_hours"], row["tdp_w_assumed"], row["tco2e_location"]
        rule = known.get(row["family"].lower().replace(" ", "-"))
        if rule and hours and watts and told:
            tonnes = card_tco2e(row["family"], float(hours), rule.get("board_w", float(watts)))
            found.append((row["model"], 100 * (tonnes / float(told) - 1)))
    return found


def with_overhead(
    hours: list[tuple[str, float, float]], known: list[tuple[str, float, float]] | None = None
) -> list[tuple[str, float, float]]:
    """The same with what reported hours hold beside steps and failures (evaluation, ablations, annealing, slow starts).

    One factor, the median over all other models (`known`, where another table is judged): no model's hours stand behind
    its own figure.
    """
    ratios = [(name, told / planned) for name, told, planned in known or hours]
    return [(name, told, planned * median(r for other, r in ratios if other != name)) for name, told, planned in hours]


def hours_misses(hours: list[tuple[str, float, float]], known: list[tuple[str, float, float]] | None = None) -> list[str]:
    """A sentence for every model that misses by more than 20 % with the common factor: how far, and why."""
    ratios = {name: told / planned for name, told, planned in hours}
    middle, reasons = median(told / planned for _, told, planned in known or hours), facts("published_runs")["hours"]
    found = []
    for name, error in _hours_pct(with_overhead(hours, known)):
        if abs(error) > HOURS_BAR_PCT:
            more = "more" if ratios[name] > middle else "less"
            reason = reasons.get(name, f"reported hours hold {more} beside the steps than those of most models")
            words = f"{ratios[name]:.2f} times its steps and failures, {more} than the usual {middle:.2f}: {reason}"
            found.append(f"GPU-hours of {name} ({error:+.0f} %): {words}.")
    return found


def _hours_pct(hours: list[tuple[str, float, float]]) -> list[tuple[str, float]]:
    return [(name, 100 * (planned / told - 1)) for name, told, planned in hours]


def validate(layouts: Path | None = None, runs: Path | None = None) -> tuple[list[Error], list[str]]:
    """(the error table, remarks) on published runs; on `layouts` and `runs`, of the same columns, where one is given."""
    rows, unread = read_layouts(layouts) if layouts or not runs else ([], 0)
    measured = rows if layouts or runs else [*rows, *read_vtrain()]
    found = _step_table(measured)
    remarks: list[str] = []
    remembered = [(row.name, e) for row, e in memory_errors(rows)]
    if remembered:
        found.append(_summary("memory", "all that report it", remembered))
    if runs or not layouts:
        errors, remarks = _runs_table(runs)
        found += errors
    remarks += _ranking_words(measured)
    if unread:
        remarks.append(f"{unread} rows were not read: no shape, no figure, or a precision that is not modelled (FP4).")
    return found, remarks


def _step_table(rows: Iterable[Row]) -> list[Error]:
    """Errors of the step time by source, and of all of layouts.csv."""
    by_source = step_errors(rows)
    found = []
    for (source, precision), errors in by_source.items():
        named = [(f"{row.name}, {row.layout.words()}", e) for row, e in errors]
        found.append(_summary(f"step time, {precision}", source, named))
    sixteen = [(r.name, e) for (_, p), errors in by_source.items() if p == "bf16" for r, e in errors if "vTrain" not in r.source]
    return [*found, *([_summary("step time, bf16", "all of layouts.csv", sixteen)] if sixteen else [])]


def _runs_table(runs: Path | None) -> tuple[list[Error], list[str]]:
    """Errors of GPU-hours and carbon of whole runs, and a sentence for each that is far off."""
    found: list[Error] = []
    remarks: list[str] = []
    hours, known = hours_errors(runs), hours_errors() if runs else None
    if hours:
        found.append(_summary("GPU-hours, steps and failures", "training runs", _hours_pct(hours)))
        found.append(_summary("GPU-hours, all that is reported", "training runs", _hours_pct(with_overhead(hours, known))))
        remarks = hours_misses(hours, known)
    tonnes = card_errors(runs)
    if tonnes:
        found.append(_summary("t CO2e of model cards", "training runs", tonnes))
    return found, remarks


def _ranking_words(rows: list[Row]) -> list[str]:
    """How often the favourite is nearly the best, and the first groups where it is not."""
    remarks: list[str] = []
    for same_batch, of_what in ((False, "model and GPUs"), (True, "model, GPUs and global batch")):
        held, groups, misses = ranking(rows, same_batch)
        if groups:
            share = f"{held} of {groups} groups of the same {of_what} ({held / groups:.0%})"
            remarks.append(f"Ranking: the favourite is within 3 % of the measured best in {share}.")
            remarks += misses[:SHOWN] + [f"... and {len(misses) - SHOWN} more groups."] * (len(misses) > SHOWN)
    return remarks
