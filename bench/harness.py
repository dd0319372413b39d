"""Shared by all benchmarks: sides that are measured in alternating rounds, and results in `bench/results/NAME.json`.

Run a benchmark from the root of the repository: `python -m bench.train.speed`. Set TENFOLD_BENCH_RESULTS to write results into
another folder.
"""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from tenfold.spec.files import write_json

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("TENFOLD_BENCH_RESULTS", ROOT / "bench" / "results"))
TENFOLD = (sys.executable, "-m", "tenfold")
PACKAGES = ("tenfold", "torch", "numpy", "scipy", "transformers", "tokenizers", "trl", "xllamacpp")

Row = dict[str, Any]
Headline = Iterable[tuple[str, str]]
T = TypeVar("T")


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the benchmark's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def tenfold(*arguments: Any) -> dict[str, Any]:
    """Run a `tenfold` command with `--json`; its output. Raises SystemExit with its error if it fails."""
    command = [*TENFOLD, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def alternate(sides: Mapping[str, Callable[[], T]], rounds: int, warm_up: int = 1) -> dict[str, list[T]]:
    """Call each side once per round, in turn, so that other load on the machine affects all sides alike.

    Returns each side's values of the `rounds` after the warm-up.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, side in sides.items():
            value = side()
            if number >= warm_up:
                found[name].append(value)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The ratio of the medians of two sides."""
    return median(ours) / median(theirs)


def ratio_interval(ours: Sequence[float], theirs: Sequence[float], draws: int = 10_000) -> list[float]:
    """The 95 % interval of `ratio`, by bootstrap over rounds: both sides of a round are drawn together."""
    rounds = np.random.default_rng(0).integers(0, len(ours), (draws, len(ours)))
    medians = [np.median(np.asarray(side)[rounds], 1) for side in (ours, theirs)]
    return [float(x) for x in np.quantile(medians[0] / medians[1], (0.025, 0.975))]


def change_pct(ratios: Sequence[float]) -> tuple[float, list[float] | None]:
    """The mean of ratios as a change in percent, and its 95 % interval (Student's t on logarithms) if there are several."""
    logs = np.log(ratios)
    if len(logs) < 2:
        return 100 * math.expm1(logs.mean()), None
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return 100 * math.expm1(logs.mean()), [100 * math.expm1(logs.mean() + sign * half) for sign in (-1, 1)]


def percent(value: float, interval: Sequence[float]) -> str:
    """A change in percent with its 95 % interval, in words."""
    return f"{value:+.2f} % (95 %: {interval[0]:+.2f} to {interval[1]:+.2f} %)"


def machine() -> str:
    """The processor's name, its number of usable cores and its memory, as text."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts = cpuinfo.read_text()
        lines = [line for line in facts.splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
        units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if unit in facts]
        name += f" ({units[0]})" if units else ""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB"


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def rows_of(name: str) -> list[Row]:
    """The rows of `bench/results/NAME.json`; empty if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _without_folder(argument: str) -> str:
    """An argument for the results; of an absolute path only the last part, so that no machine's folders are published."""
    return Path(argument).name if argument.startswith("/") else argument


def write_results(
    name: str, rows: list[Row], headline: Headline = (), command: str = "", beside: dict[str, str] | None = None
) -> Path:
    """Write `bench/results/NAME.json` and return its path.

    `headline` has the rows (what, figure) of the tables in the README and docs/results.md. `command` replaces the command line of
    this process in the file. `beside` has versions of software in other environments.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions() | (beside or {}),
        "command": command or shlex.join(["python", *map(_without_folder, sys.orig_argv[1:])]),
        "headline": [{"what": what, "figure": figure} for what, figure in headline],
        "rows": rows,
    }
    write_json(path, record)  # whole, and without numbers that are not finite
    return path
