"""The planner's errors on published runs: step time, ranking of layouts, memory, GPU-hours, carbon."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from tenfold.plan.costs.environment import card_tco2e
from tenfold.plan.facts import facts
from tenfold.plan.validation.hours import Coverage, Hours, coverage, factor, held_out, one_factor, published_hours
from tenfold.plan.validation.published import Row, read_layouts, read_vtrain
from tenfold.plan.validation.tables import Refused, Unread, number, read_table
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.step_time import step_time
from tenfold.spec.errors import TenfoldError

NEAR_BEST = 1.03  # time over the best measured one, up to which the planner's favourite counts as right
HOURS_BAR_PCT = 20.0  # errors of GPU-hours above this are explained in a remark
SHOWN = 3  # examples in the remarks
SEVERAL = 2.0  # planned memory over capacity above which a row is taken to leave out a part of its layout


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
    """The name of the publication, without the release or the table within it."""
    return source.split("[")[0].split("(")[0].split(" = ")[0].split(";")[0].strip()[:48]


def step_errors(rows: Iterable[Row]) -> dict[tuple[str, str], list[tuple[Row, float]]]:
    """(source, precision) -> rows with the errors of their planned step times in percent."""
    found = defaultdict(list)
    for row in rows:
        predicted = step_time(row.spec, row.layout, row.machine).total_s
        found[short(row.source), row.layout.dtype].append((row, 100 * (predicted / row.step_s - 1)))
    return dict(found)


def ranking(rows: Iterable[Row], same_batch: bool = False) -> tuple[int, int, list[str]]:
    """(groups whose favourite is within 3 % of the measured best, all groups, the misses in words), by tokens per second.

    A group has several layouts of the same model and GPUs (`Row.group`); its favourite is the fastest as planned.
    """
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
    """The rows that report memory, with the error of the planned memory in percent."""
    return [
        (row, 100 * (memory(row.spec, row.layout, row.machine).total_gib / row.memory_gib - 1)) for row in rows if row.memory_gib
    ]


def card_errors(path: Path | None = None) -> list[tuple[str, float]]:
    """(model, error in percent) of t CO2e by the rule of the model cards, from GPU-hours and board power; rows without these
    figures are left out."""
    known, found = facts("cards")["rules"], []
    for row in read_table("training_runs.csv", path):
        try:
            hours, watts, told = (number(row, column) for column in ("gpu_hours", "tdp_w_assumed", "tco2e_location"))
        except Refused:
            continue
        rule = known.get(row["family"].lower().replace(" ", "-"))
        if rule and hours and watts and told:
            tonnes = card_tco2e(row["family"], hours, rule.get("board_w", watts))
            found.append((row["model"], 100 * (tonnes / told - 1)))
    return found


def hours_misses(runs: list[Hours], errors: list[tuple[str, float]], known: list[Hours]) -> list[str]:
    """A sentence for each run whose hours are wrong by more than 20 % with the factor of the other sources: its factor beside the
    median of the `known` runs, and the reason."""
    factors = {run.model: run.told / run.planned for run in runs}
    middle, reasons = median(run.told / run.planned for run in known), facts("published_runs")["hours"]
    found = []
    for name, error in errors:
        if abs(error) > HOURS_BAR_PCT:
            more = "more" if factors[name] > middle else "less"
            reason = reasons.get(name, f"the reported hours include {more} beside the steps than those of most models")
            words = f"{factors[name]:.2f} times the hours of steps and failures, {more} than the median {middle:.2f}: {reason}"
            found.append(f"GPU-hours of {name} ({error:+.0f} %): {words}.")
    return found


@dataclass(frozen=True)
class Measured:
    """One row beside the plan: measured and planned seconds of a step, and planned memory over the accelerator's capacity."""

    source: str
    model: str
    accelerator: str
    stack: str
    stack_said: bool
    layout: str
    measured_s: float
    planned_s: float
    error_pct: float
    memory_of_capacity: float


@dataclass(frozen=True)
class Validation:
    """The table of errors, all rows of layouts, the rows that could not be read, the coverage of ranges, and remarks."""

    errors: list[Error]
    rows: list[Measured]
    unread: list[Unread]
    ranges: dict[str, Coverage]
    remarks: list[str]


def validate(layouts: Path | None = None, runs: Path | None = None, stack: str | None = None) -> Validation:
    """The planner's errors on published runs; where `layouts` or `runs` (tables with the same columns) is given, on those alone.

    `stack` is the software of the rows of `layouts` that name none. Raises TenfoldError where no row of `layouts` can be read.
    """
    rows, unread = read_layouts(layouts, stack) if layouts or not runs else ([], [])
    if layouts and not rows:
        raise TenfoldError(f"No row of {layouts} could be read: {'; '.join(u.words() for u in unread[:SHOWN])}.")
    measured = rows if layouts or runs else [*rows, *read_vtrain()]
    found, table = _step_table(measured), [_measured(row) for row in rows]
    remembered = [(row.name, e) for row, e in memory_errors(rows)]
    if remembered:
        found.append(_summary("memory", "all that report it", remembered))
    remarks = _assumed(table) + _too_large(table)
    ranges: dict[str, Coverage] = {}
    if runs or not layouts:
        errors, said, ranges, not_read = _runs_table(runs)
        found, unread = [*found, *errors], [*unread, *not_read]
        remarks += said
    remarks += _ranking_words(measured) + _unread_words(unread)
    return Validation(found, table, unread, ranges, remarks)


def _measured(row: Row) -> Measured:
    planned, needed = step_time(row.spec, row.layout, row.machine).total_s, memory(row.spec, row.layout, row.machine)
    return Measured(
        row.source, row.name, row.machine.accelerator.key, row.machine.stack.name, row.stack_said, row.layout.words(), row.step_s,
        planned, 100 * (planned / row.step_s - 1), needed.total_gib / needed.capacity_gib,
    )  # fmt: skip


def _assumed(rows: list[Measured]) -> list[str]:
    """A sentence on the rows whose software is assumed."""
    unsaid = [row for row in rows if not row.stack_said]
    if not unsaid:
        return []
    return [f"{len(unsaid)} rows name no software, so {unsaid[0].stack} is assumed: add a column `stack`, or give --stack."]


def _too_large(rows: list[Measured]) -> list[str]:
    """Sentences on rows that ran but do not fit by the plan: its memory is wrong, or the row leaves out a part of its layout."""
    far = [row for row in rows if row.memory_of_capacity > SEVERAL]
    short = sum(row.memory_of_capacity > 1 for row in rows)
    found = [f"Memory: by the plan, {short} of {len(rows)} measured rows need more memory than their accelerator has."] * bool(
        short
    )
    found += [
        f"{r.model} on {r.accelerator}, {r.layout}: needs {r.memory_of_capacity:.1f} times the accelerator's memory, so the row "
        f"leaves out a part of its layout (step {r.error_pct:+.0f} %)."
        for r in far[:SHOWN]
    ]
    return found + [f"... and {len(far) - SHOWN} more rows that need several times the memory."] * (len(far) > SHOWN)


def _unread_words(unread: list[Unread]) -> list[str]:
    """Sentences on the rows that could not be read, one for each reason."""
    reasons = defaultdict(list)
    for one in unread:
        reasons[one.column, one.value, one.why].append(one.line)
    return [
        f"Not read: {Unread(lines[0], *reason).words()}"
        + (f" (as rows {', '.join(map(str, lines[1:]))})" if lines[1:] else "")
        + "."
        for reason, lines in reasons.items()
    ]


def _step_table(rows: Iterable[Row]) -> list[Error]:
    """Errors of the step time by source, and over all sources but vTrain by precision and kind of model."""
    by_source = step_errors(rows)
    found = []
    for (source, precision), errors in by_source.items():
        named = [(f"{row.name}, {row.layout.words()}", e) for row, e in errors]
        found.append(_summary(f"step time, {precision}", source, named))
    every = [
        (p, bool(r.spec.n_experts), r, e) for (_, p), errors in by_source.items() for r, e in errors if "vTrain" not in r.source
    ]
    for precision, of, kinds in (
        ("bf16", "all", (True, False)),
        ("fp8", "all dense", (False,)),
        ("fp8", "all with experts", (True,)),
        ("fp4", "all", (True, False)),
    ):
        those = [(r.name, e) for p, experts, r, e in every if p == precision and experts in kinds]
        found += [_summary(f"step time, {precision}", of, those)] if those else []
    return found


def _runs_table(path: Path | None) -> tuple[list[Error], list[str], dict[str, Coverage], list[Unread]]:
    """Errors of GPU-hours and carbon of whole runs, remarks on those that are far off, coverage of ranges, and unread rows."""
    found: list[Error] = []
    remarks: list[str] = []
    ranges: dict[str, Coverage] = {}
    runs, unread = published_hours(path)
    if runs:
        known = published_hours()[0] if path else runs
        errors = held_out(runs, known)
        found.append(
            _summary("GPU-hours, steps and failures", "training runs", [(r.model, 100 * (r.planned / r.told - 1)) for r in runs])
        )
        found.append(_summary("GPU-hours, all that is reported", "training runs", errors))
        remarks = hours_misses(runs, errors, known)
        ranges = {"plan": coverage(runs, factor, known), "one factor for all": coverage(runs, one_factor, known)}
        remarks.insert(0, _coverage_words(ranges["plan"], ranges["one factor for all"]))
    tonnes = card_errors(path)
    if tonnes:
        found.append(_summary("t CO2e of model cards", "training runs", tonnes))
    return found, remarks, ranges, unread


def _coverage_words(ours: Coverage, one: Coverage) -> str:
    return (
        f"Ranges: {ours.inside} of {ours.runs} runs ({ours.inside / ours.runs:.0%}) lie in the 80 % range that the other sources "
        f"give, whose high end is {ours.median_ratio:.2f} times the low end (median); interval score {ours.score:.2f}, with one "
        f"factor for all {one.score:.2f}."
    )


def _ranking_words(rows: list[Row]) -> list[str]:
    """Sentences on how often the planner's favourite is nearly the best, and on the first groups where it is not."""
    remarks: list[str] = []
    for same_batch, of_what in ((False, "model and GPUs"), (True, "model, GPUs and global batch")):
        held, groups, misses = ranking(rows, same_batch)
        if groups:
            share = f"{held} of {groups} groups of the same {of_what} ({held / groups:.0%})"
            remarks.append(f"Ranking: the planner's favourite layout is within 3 % of the measured best in {share}.")
            remarks += misses[:SHOWN] + [f"... and {len(misses) - SHOWN} more groups."] * (len(misses) > SHOWN)
    return remarks
