"""Fit the constants of `plan/data/constants.toml` that no data sheet gives; `--write` writes them into the file.

    python -m bench.plan.fit --half
    python -m bench.plan.fit --by-source --every 15 --evaluations 6

Least squares of log step times over published rows, with a weak prior on every constant: a constant that the rows do not determine
stays at the value of other measurements. A source is weighted by the square root of its number of rows. `--half` fits on half of
the rows and also writes the errors on the other half.
"""

import hashlib
import math
import tomllib
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.optimize import least_squares

import tenfold.plan
from bench.harness import options, write_results
from tenfold.plan.validation.published import Row, read_layouts, read_vtrain
from tenfold.plan.validation.validate import short
from tenfold.plan.workload.machine import Machine, stack
from tenfold.plan.workload.step_time import step_time

# (tables of the file, constant, prior: what microbenchmarks or documents suggest, its relative standard deviation, largest value)
OLD = ("megatron-lm-2021", "megatron-lm-2021-node")
FSDP = ("llm-foundry-2023", "torchtitan-2024.12")
TPUS = ("tpu-v5p", "tpu-v6e", "tpu-v7x")
FITTED: tuple[tuple[tuple[str, ...], str, float, float, float], ...] = (
    (("any",), "matmul_efficiency", 0.7, 0.1, 0.95),
    (("a100",), "matmul_efficiency", 0.8, 0.1, 0.95),
    (("gb200",), "matmul_efficiency", 0.65, 0.1, 0.95),
    (("gb300",), "matmul_efficiency", 0.75, 0.1, 0.95),
    (("b200",), "matmul_efficiency", 0.69, 0.1, 0.95),
    (("b300",), "matmul_efficiency", 0.7, 0.1, 0.95),
    *(((tpu,), "matmul_efficiency", 0.75, 0.1, 0.95) for tpu in TPUS),
    (("any",), "attention_efficiency", 0.5, 0.15, 0.8),
    (("a100",), "attention_efficiency", 0.6, 0.15, 0.8),
    (("any",), "fill_k", 32.0, 0.3, 300.0),
    (("any",), "memory_efficiency", 0.8, 0.1, 0.95),
    (("any",), "kernel_s", 5e-06, 0.3, 1e-4),
    (("any",), "scaleup_efficiency", 0.8, 0.15, 0.95),
    (("any",), "scaleup_latency_s", 5e-06, 0.5, 1e-4),
    (("any",), "scaleout_efficiency", 0.85, 0.15, 0.95),
    (("any",), "scaleout_latency_s", 2e-05, 0.5, 1e-4),
    (("megatron-lm-2024",), "pointwise", 1.0, 0.3, 4.0),
    (("megatron-bridge-25",), "pointwise", 1.0, 0.3, 4.0),
    (("megatron-bridge-25",), "fp4", 0.8, 0.3, 1.0),
    (("megatron-bridge-25",), "grouped", 0.7, 0.3, 1.0),
    (("megatron-bridge-25",), "hidden_ep", 0.7, 0.3, 1.0),
    (("megatron-bridge-25",), "imbalance", 0.15, 0.5, 1.0),
    (("maxtext-2025",), "pointwise", 0.7, 0.3, 4.0),
    (("maxtext-2025",), "grouped", 0.7, 0.3, 1.0),
    (OLD, "pointwise", 1.0, 0.3, 4.0),
    (("llm-foundry-2023",), "pointwise", 1.0, 0.3, 4.0),
    (("torchtitan-2024.12",), "pointwise", 1.0, 0.3, 4.0),
    (FSDP, "attention", 0.5, 0.3, 1.0),
    (FSDP, "hidden_dp", 0.5, 0.5, 1.0),
    (("megatron-lm-2021",), "dispatch_s", 6e-05, 0.5, 1e-3),
    (("megatron-lm-2021-node",), "dispatch_s", 6e-05, 0.5, 1e-3),
    (("llm-foundry-2023",), "dispatch_s", 6e-05, 0.5, 1e-3),
    (("megatron-lm-2024", "megatron-bridge-25", "torchtitan-2024.12"), "dispatch_s", 6e-06, 0.5, 1e-3),
    (("megatron-lm-2021",), "gap_s", 1e-05, 1.0, 1e-3),
    (("megatron-lm-2021-node",), "gap_s", 1e-05, 1.0, 1e-3),
    (("llm-foundry-2023",), "gap_s", 1e-05, 1.0, 1e-3),
    (OLD, "skew_s", 0.0001, 1.0, 1e-2),
    (("megatron-lm-2021", "megatron-lm-2024", "megatron-bridge-25", *FSDP), "step_s", 0.01, 0.5, 1.0),
)
FILE = Path(tenfold.plan.__file__).parent / "data/constants.toml"
CONSTANTS = tomllib.loads(FILE.read_text())
SCALE = 0.06  # larger log errors count less than their square (soft_l1)


def own_table(key: str, field: str) -> str:
    """The table with this constant for an accelerator: its own, or `any`."""
    return key if field in CONSTANTS["accelerators"].get(key, {}) else "any"


def software_table(name: str, field: str) -> str:
    """The table with this constant for a software stack: its own, or that of the stack named by its key `as`."""
    row = CONSTANTS["stacks"][name]
    return name if field in row or "as" not in row else software_table(row["as"], field)


@cache
def concerns(key: str, software: str, where: tuple[str, ...], field: str) -> bool:
    return software_table(software, field) in where or own_table(key, field) in where


def changed(row: Row, software: str, values: np.ndarray) -> Machine:
    """The row's machine with the fitted constants; a constant that the row scales (a capped board) stays scaled."""
    constants, own, new = row.machine.constants, stack(software), {}
    for (where, field, *_), value, before in zip(FITTED, values, start(), strict=True):
        if software_table(software, field) in where and hasattr(own, field):
            own = replace(own, **{field: value})
        elif concerns(row.machine.accelerator.key, software, where, field):
            new[field] = getattr(constants, field) * value / before
    return replace(row.machine, constants=replace(constants, **new), stack=own)


@cache
def start() -> np.ndarray:
    """The constants in the file."""
    tables = {**CONSTANTS["accelerators"], **CONSTANTS["stacks"]}
    return np.array([tables[where[0]][field] for where, field, *_ in FITTED])


def write(values: np.ndarray) -> None:
    """Write the fitted constants into the file, with three digits each; comments are kept."""
    lines, table = FILE.read_text().splitlines(), ""
    rounded = {(name, field): float(f"{v:.3g}") for (where, field, *_), v in zip(FITTED, values, strict=True) for name in where}
    for i, line in enumerate(lines):
        if line.startswith("["):
            table = line.strip("[]").partition(".")[2].strip('"')
        name, _, rest = line.partition(" = ")
        if (table, name) in rounded:
            lines[i] = f"{name} = {rounded[table, name]!r}" + (" #" + rest.split("#", 1)[1] if "#" in rest else "")
    FILE.write_text("\n".join(lines) + "\n")


def in_first_half(row: Row) -> bool:
    """Split by source, width, TP and micro-batch, so that a layer that was timed once for many rows is in one half only."""
    key = (row.source, row.spec.dim, row.layout.tp, row.layout.micro_batch)
    return hashlib.sha256(repr(key).encode()).digest()[0] < 128


def log_errors(rows: list[Row], names: list[str], values: np.ndarray) -> np.ndarray:
    machines: dict[tuple[str, Machine], Machine] = {}
    found = []
    for row, name in zip(rows, names, strict=True):
        key = (name, row.machine)
        if key not in machines:
            machines[key] = changed(row, name, values)
        found.append(math.log(step_time(row.spec, row.layout, machines[key]).total_s / row.step_s))
    return np.array(found)


def fit(rows: list[Row], evaluations: int) -> np.ndarray:
    """Fitted constants, in the order of `FITTED`."""
    names = [row.machine.stack.name for row in rows]
    sizes = Counter((short(row.source), row.layout.dtype) for row in rows)
    weights = np.array([sizes[short(row.source), row.layout.dtype] ** -0.25 for row in rows])
    centre, prior = (np.array([row[i] for row in FITTED]) for i in (2, 3))

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([weights * log_errors(rows, names, np.exp(logs)) / SCALE, (logs - np.log(centre)) / prior])

    def jacobian(logs: np.ndarray) -> np.ndarray:
        now, columns = log_errors(rows, names, np.exp(logs)), []
        for i, (where, field, *_) in enumerate(FITTED):
            touched = [k for k, r in enumerate(rows) if concerns(r.machine.accelerator.key, names[k], where, field)]
            moved = logs.copy()
            moved[i] += 0.01
            column = np.zeros(len(rows) + len(logs))
            new = log_errors([rows[k] for k in touched], [names[k] for k in touched], np.exp(moved))
            column[touched] = weights[touched] * (new - now[touched]) / 0.01 / SCALE
            column[len(rows) + i] = 1 / prior[i]
            columns.append(column)
        return np.array(columns).T

    upper = np.log([top for *_, top in FITTED])
    lower = np.log(centre) - 3
    begin = np.clip(np.log(start()), lower + 1e-6, upper - 1e-6)
    found = least_squares(residuals, begin, jac=jacobian, bounds=(lower, upper), loss="soft_l1", max_nfev=evaluations)
    return np.exp(found.x)


def report(title: str, rows: list[Row], values: np.ndarray) -> list[dict[str, Any]]:
    """Print and return the errors by source, in percent."""
    rows = [replace(row, machine=changed(row, row.machine.stack.name, values)) for row in rows]
    by_source: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        error = 100 * (step_time(row.spec, row.layout, row.machine).total_s / row.step_s - 1)
        by_source[short(row.source), row.layout.dtype].append(error)
    found = []
    for (source, dtype), errors in by_source.items():
        mean_abs, bias = mean(map(abs, errors)), mean(errors)
        print(f"{title:9} {source:48} {dtype} {len(errors):5} rows  mean {mean_abs:5.1f} %  bias {bias:+5.1f} %", flush=True)
        found.append(
            {"rows": title, "source": source, "dtype": dtype, "n": len(errors), "mean_abs_pct": mean_abs, "bias_pct": bias}
        )
    return found


def by_source(rows: list[Row], evaluations: int) -> list[dict[str, Any]]:
    """The errors on each publication with constants that were fitted to the others."""
    found = []
    for source in dict.fromkeys(publication(row) for row in rows):
        left = [row for row in rows if publication(row) == source]
        found += report("left out", left, fit([row for row in rows if publication(row) != source], evaluations))
    return found


def publication(row: Row) -> str:
    """The publication of a row. The tables of vTrain count as one, as do those of a README and of all Megatron-Bridge releases."""
    return row.source.split("/")[0].split(",")[0] if "vTrain" in row.source else short(row.source)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--by-source", action="store_true", help="fit without each source in turn, and write the errors on it")
    parser.add_argument("--half", action="store_true", help="fit on half of the rows, and write the errors on both halves")
    parser.add_argument("--write", action="store_true", help="write the constants into constants.toml")
    parser.add_argument("--every", type=int, default=1, help="use only every Nth of vTrain's rows")
    parser.add_argument("--evaluations", type=int, default=25, help="most evaluations of the fit")
    asked = parser.parse_args()
    rows = [*read_layouts()[0], *(row for i, row in enumerate(read_vtrain()) if i % asked.every == 0)]
    if asked.by_source:
        print(write_results("plan_by_source", [*report("fitted", rows, start()), *by_source(rows, asked.evaluations)]))
        return
    seen = [row for row in rows if not asked.half or in_first_half(row)]
    values = fit(seen, asked.evaluations)
    for (where, field, *_), before, after in zip(FITTED, start(), values, strict=True):
        print(f"{', '.join(where):45} {field:22} {before:10.4g} -> {after:10.4g}")
    if asked.write:
        write(values)
    found = report("fitted", seen, values)
    if asked.half:
        found += report("held out", [row for row in rows if not in_first_half(row)], values)
        print(write_results("plan_fit", found))


if __name__ == "__main__":
    main()
