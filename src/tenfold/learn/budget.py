"""The forecast of a tuning run's time, energy, money and peak memory, made before the run and scored after it.

A throw-away copy of the model does the first steps of the run, on the run's own rows: with rewards it also draws the answers, and
with distillation the teacher runs, too. The measured steps are scaled to the whole run.
"""

import copy
import secrets
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import convert, to_builtins

from tenfold.learn.lineage import VERSION
from tenfold.plan.sites.site import site
from tenfold.spec.files import make_folder, write_json
from tenfold.spec.forecasts import LEVELS, Forecast, Learnt, around, calibrated, forecast, outcome
from tenfold.spec.terminal import console
from tenfold.spec.units import duration
from tenfold.spec.versions import read_document
from tenfold.train.config import RunConfig
from tenfold.train.memory import peak_memory_bytes, reset_peak_memory
from tenfold.train.probe import probe
from tenfold.train.resolve import resolve
from tenfold.train.result import RunResult
from tenfold.train.task import Task

FILE = "budget.json"
FIRST, LEAST = 1, 2  # of the probe: steps that are left out (warm-up), and the fewest that are measured
UNITS = {"tuning_seconds": "s", "tuning_kwh": "kWh", "tuning_usd": "USD", "tuning_gib": "GiB"}
# Standard deviations of the logarithm, by judgement: the speed of a busy machine varies, and evaluations are not measured.
SPREAD = {"tuning_seconds": 0.2, "tuning_kwh": 0.2, "tuning_usd": 0.2, "tuning_gib": 0.15}


def budget(task: Task, config: RunConfig, generation: Path, rent_usd_per_h: float, *, quiet: bool = False) -> None:
    """Forecast what a run takes, once, and again where `config.tokens` has changed since.

    Writes `budget.json` in the generation and `forecasts.jsonl` in the home; prints one line unless `quiet`. Money is the rent of
    the machine, or the price of the electricity where `rent_usd_per_h` is 0.
    """
    home, file = generation.parent, generation / FILE
    if not file.exists() or _read(file)["tokens"] != config.tokens:
        make_folder(generation)
        write_json(file, {"version": VERSION, **_measured(task, config, home, generation.name, rent_usd_per_h)})
    said = _read(file)
    for kind, quantiles in said["quantiles"].items():  # also where a run was stopped between writing the two files
        forecast(home, _forecast(said, kind, quantiles, convert(said.get("learnt", {}).get(kind, {}), Learnt)))
    if not quiet:
        console().print(f"{generation.name}: {in_words(said)}", highlight=False)


def settle(generation: Path, result: RunResult) -> None:
    """Record the measured outcomes of a finished run beside its forecasts. Does nothing for a run without `budget.json`."""
    file = generation / FILE
    if not file.exists():
        return
    said = _read(file)
    came = {"tuning_seconds": result.seconds, "tuning_kwh": result.energy_kwh, "tuning_gib": result.peak_memory_gib}
    came["tuning_usd"] = _usd(said, result.seconds, result.energy_kwh)
    for kind, measured in came.items():
        if kind in said["quantiles"]:
            outcome(generation.parent, _key(said, kind), measured)


def in_words(said: dict[str, Any]) -> str:
    """The forecast in one line, each quantity with its 80 % interval; `said` is the content of `budget.json`."""
    what = "rent" if said["rent_usd_per_h"] else "electricity"
    units, parts = {**UNITS, "tuning_usd": f"USD of {what}"}, []
    for kind, quantiles in said["quantiles"].items():
        low, mid, high = (quantiles[LEVELS.index(level)] for level in (0.1, 0.5, 0.9))
        if kind == "tuning_seconds":
            parts.append(f"{duration(mid)} ({duration(low)} to {duration(high)})")
        else:
            parts.append(f"{mid:.3g} {units[kind]} ({low:.3g} to {high:.3g})")
    return f"{said['steps']} steps, about {', '.join(parts)}; 80 % intervals in brackets."


def _measured(task: Task, config: RunConfig, home: Path, name: str, rent_usd_per_h: float) -> dict[str, Any]:
    resolved = resolve(config, task.vocab_size)
    known = reset_peak_memory(resolved.device)
    # On a copy, so that the attributes that the probe sets are not the task's.
    taken, per_step, watts, source, busy = probe(copy.copy(task), config, 0.0, first=FIRST, least=LEAST)
    task.progress(0)  # clears the counters that the copy shares with the task
    memory = peak_memory_bytes(resolved.device) / 2**30
    reset_peak_memory(resolved.device)
    seconds = fmean(taken) * resolved.steps
    said: dict[str, Any] = {
        "key": f"learn/{name}/{secrets.token_hex(4)}", "tokens": config.tokens, "steps": resolved.steps,
        "tokens_per_step": per_step, "probe_seconds": taken, "watts": watts, "energy_source": source,
        "busy_share": busy, "rent_usd_per_h": rent_usd_per_h, "usd_per_kwh": site().usd_per_kwh.mid,
    }  # fmt: skip
    kwh = watts * seconds / 3.6e6
    medians = {"tuning_seconds": seconds, "tuning_kwh": kwh, "tuning_usd": _usd(said, seconds, kwh)}
    if known:
        medians["tuning_gib"] = memory
    made = {kind: calibrated(home, _forecast(said, kind, around(median, SPREAD[kind]))) for kind, median in medians.items()}
    said["quantiles"] = {kind: one.quantiles for kind, one in made.items()}
    return said | {"learnt": {kind: to_builtins(one.learnt) for kind, one in made.items()}}


def _usd(said: dict[str, Any], seconds: float, kwh: float) -> float:
    return said["rent_usd_per_h"] * seconds / 3600 or said["usd_per_kwh"] * kwh


def _forecast(said: dict[str, Any], kind: str, quantiles: Sequence[float], learnt: Learnt | None = None) -> Forecast:
    return Forecast(key=_key(said, kind), who="learn", kind=kind, unit=UNITS[kind], quantiles=tuple(quantiles), learnt=learnt)


def _key(said: dict[str, Any], kind: str) -> str:
    return f"{said['key']}/{kind.removeprefix('tuning_')}"


def _read(file: Path) -> dict[str, Any]:
    return read_document(file, VERSION, f"delete {file}")
