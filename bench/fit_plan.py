"""Fits the constants of `plan/data/constants.toml` that no data sheet gives, and writes them there with `--write`.

Least squares of log step times over published rows, with a weak prior on every constant (its start, and how far it may
plausibly be off), so that what the rows do not show stays where measurements elsewhere put it. A source weighs as the
square root of its rows. `--half` fits on half of the groups (model, GPUs, batch), chosen by hash, and reports the other half too.
"""

import argparse
import hashlib
import json
import math
import tomllib
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.optimize import least_squares

import tenfold.plan
from tenfold.plan.machine import Machine, stack, stacks
from tenfold.plan.published import Row, read_layouts, read_vtrain
from tenfold.plan.step_time import step_time
from tenfold.plan.validate import ranking

# (tables of the file, constant, relative standard deviation of the prior, largest value)
OLD = ("megatron-2021", "megatron-2021-node")
FSDP = ("fsdp", "fsdp-compiled")
FITTED: tuple[tuple[tuple[str, ...], str, float, float], ...] = (
    (("any",), "matmul_efficiency", 0.1, 0.95),
    (("a100",), "matmul_efficiency", 0.1, 0.95),
    (("gb200",), "matmul_efficiency", 0.1, 0.95),
    (("gb300",), "matmul_efficiency", 0.1, 0.95),
    (("b200",), "matmul_efficiency", 0.1, 0.95),
    (("b300",), "matmul_efficiency", 0.1, 0.95),
    (("any",), "attention_efficiency", 0.15, 0.8),
    (("a100",), "attention_efficiency", 0.15, 0.8),
    (("any",), "fill_k", 0.3, 300.0),
    (("any",), "memory_efficiency", 0.1, 0.95),
    (("any",), "kernel_s", 0.3, 1e-4),
    (("any",), "scaleup_efficiency", 0.15, 0.95),
    (("any",), "scaleup_latency_s", 0.5, 1e-4),
    (("any",), "scaleout_efficiency", 0.15, 0.95),
    (("any",), "scaleout_latency_s", 0.5, 1e-4),
    (("megatron",), "pointwise", 0.3, 4.0),
    (("megatron-2025",), "pointwise", 0.3, 4.0),
    (("megatron-2025",), "grouped", 0.3, 1.0),
    (("megatron-2025",), "hidden_ep", 0.3, 1.0),
    (("megatron-2025",), "imbalance", 0.5, 1.0),
    (OLD, "pointwise", 0.3, 4.0),
    (("fsdp",), "pointwise", 0.3, 4.0),
    (("fsdp-compiled",), "pointwise", 0.3, 4.0),
    (FSDP, "attention", 0.3, 1.0),
    (FSDP, "hidden_dp", 0.5, 1.0),
    (("megatron-2021",), "dispatch_s", 0.5, 1e-3),
    (("megatron-2021-node",), "dispatch_s", 0.5, 1e-3),
    (("fsdp",), "dispatch_s", 0.5, 1e-3),
    (("megatron", "megatron-2025", "fsdp-compiled"), "dispatch_s", 0.5, 1e-3),
    (("megatron-2021",), "gap_s", 1.0, 1e-3),
    (("megatron-2021-node",), "gap_s", 1.0, 1e-3),
    (("fsdp",), "gap_s", 1.0, 1e-3),
    (OLD, "skew_s", 1.0, 1e-2),
    (("megatron-2021", "megatron", "megatron-2025", *FSDP), "step_s", 0.5, 1.0),
)
FILE = Path(tenfold.plan.__file__).parent / "data/constants.toml"
CONSTANTS = tomllib.loads(FILE.read_text())
SCALE = 0.06  # log errors beyond this count less than their square


def name_of(machine: Machine) -> str:
    """The name of the machine's software."""
    return next(name for name, known in stacks().items() if known == machine.stack)


def own_table(key: str, field: str) -> str:
    """The table that gives an accelerator this constant: its own, or `any`."""
    return key if field in CONSTANTS["accelerators"].get(key, {}) else "any"


def concerns(row: Row, software: str, where: tuple[str, ...], field: str) -> bool:
    return software in where or own_table(row.machine.accelerator.key, field) in where


def changed(row: Row, software: str, values: np.ndarray) -> Machine:
    """The row's machine with the fitted constants put in; where a share is scaled (a capped board), it stays so."""
    constants, own, new = row.machine.constants, stack(software), {}
    for (where, field, *_), value, before in zip(FITTED, values, start(), strict=True):
        if software in where:
            own = replace(own, **{field: value})
        elif concerns(row, software, where, field):
            new[field] = min(1.0, getattr(constants, field) * value / before)
    return replace(row.machine, constants=replace(constants, **new), stack=own)


@cache
def start() -> np.ndarray:
    """The constants as they stand in the file."""
    tables = {**CONSTANTS["accelerators"], **CONSTANTS["stacks"]}
    return np.array([tables[where[0]][field] for where, field, *_ in FITTED])


def write(values: np.ndarray) -> None:
    """The fitted constants into the file, three digits each, comments kept."""
    lines, table = FILE.read_text().splitlines(), ""
    rounded = {(name, field): float(f"{v:.3g}") for (where, field, *_), v in zip(FITTED, values, strict=True) for name in where}
    for i, line in enumerate(lines):
        if line.startswith("["):
            table = line.strip("[]").split(".")[1]
        name, _, rest = line.partition(" = ")
        if (table, name) in rounded:
            lines[i] = f"{name} = {rounded[table, name]!r}" + (" #" + rest.split("#", 1)[1] if "#" in rest else "")
    FILE.write_text("\n".join(lines) + "\n")


def in_first_half(row: Row) -> bool:
    return hashlib.sha256(repr(row.group).encode()).digest()[0] < 128


def log_errors(rows: list[Row], names: list[str], values: np.ndarray) -> np.ndarray:
    machines: dict[tuple[str, Machine], Machine] = {}
    found = []
    for row, name in zip(rows, names, strict=True):
        key = (name, row.machine)
        if key not in machines:
            machines[key] = changed(row, name, values)
        found.append(math.log(step_time(row.spec, row.layout, machines[key]).total_s / row.step_s))
    return np.array(found)


def fit(rows: list[Row], evaluations: int, loss: str = "soft_l1") -> np.ndarray:
    """Fitted constants, in the order of `FITTED`."""
    names = [name_of(row.machine) for row in rows]
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        sizes[row.source.split("[")[0] + row.layout.dtype] += 1
    weights = np.array([sizes[row.source.split("[")[0] + row.layout.dtype] ** -0.25 for row in rows])
    prior, first = np.array([sigma for _, _, sigma, _ in FITTED]), start()

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([weights * log_errors(rows, names, np.exp(logs)) / SCALE, (logs - np.log(first)) / prior])

    def jacobian(logs: np.ndarray) -> np.ndarray:
        now, columns = log_errors(rows, names, np.exp(logs)), []
        for i, (where, field, *_) in enumerate(FITTED):
            touched = [k for k, r in enumerate(rows) if concerns(r, names[k], where, field)]
            moved = logs.copy()
            moved[i] += 0.01
            column = np.zeros(len(rows) + len(logs))
            new = log_errors([rows[k] for k in touched], [names[k] for k in touched], np.exp(moved))
            column[touched] = weights[touched] * (new - now[touched]) / 0.01 / SCALE
            column[len(rows) + i] = 1 / prior[i]
            columns.append(column)
        return np.array(columns).T

    upper = np.log([top for *_, top in FITTED])
    lower = np.log(first) - 3
    begin = np.clip(np.log(first), lower + 1e-6, upper - 1e-6)
    found = least_squares(residuals, begin, jac=jacobian, bounds=(lower, upper), loss=loss, max_nfev=evaluations)
    return np.exp(found.x)


def report(title: str, rows: list[Row], values: np.ndarray) -> None:
    rows = [replace(row, machine=changed(row, name_of(row.machine), values)) for row in rows]
    by_source: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_source[row.source.split("(")[0][:52] + f" {row.layout.dtype}"].append(100 * (step_time(row.spec, row.layout, row.machine).total_s / row.step_s - 1))
    print(title)
    for source, errors in by_source.items():
        print(f"  {source:60} {len(errors):5} rows  mean {mean(map(abs, errors)):5.1f} %  bias {mean(errors):+5.1f} %")
    held, groups, _ = ranking(rows)
    print(f"  favourites within 3 % of the best: {held} of {groups}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", action="store_true", help="fit on half of the groups, report the other")
    parser.add_argument("--evaluations", type=int, default=12)
    parser.add_argument("--loss", default="soft_l1")
    parser.add_argument("--write", action="store_true", help="put the constants into the file")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = [row for row in [*read_layouts()[0], *read_vtrain()]]
    seen = [row for row in rows if not asked.half or in_first_half(row)]
    values = fit(seen, asked.evaluations, asked.loss)
    for (where, field, *_), before, after in zip(FITTED, start(), values, strict=True):
        print(f"{', '.join(where):45} {field:22} {before:10.4g} -> {after:10.4g}")
    report("rows fitted", seen, values)
    if asked.write:
        write(values)
    if asked.out:
        asked.out.write_text(json.dumps(list(values)))
    if asked.half:
        report("rows held out", [row for row in rows if not in_first_half(row)], values)


if __name__ == "__main__":
    main()
