"""Calibration of a machine's constants by a run that was trained on it: the planned step is scaled to the measured one."""

import json
import math
import os
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import msgspec

from tenfold.plan.workload.machine import Constants, Machine, Stack, machine
from tenfold.plan.workload.step_time import step_time
from tenfold.spec.accelerator import Accelerator, accelerators
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable, write_json
from tenfold.spec.layout import Layout, for_world
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.versions import require_version
from tenfold.train.metrics import read_metrics

FILE = "calibration.json"
VERSION = 2  # of each accelerator's calibrations in it


@dataclass(frozen=True)
class Calibration:
    """A calibration: the `factor` on the rates of matrix products, attention and memory, and the run that it came from.

    `base` and `constants` are those before and after. `calibrated_step_s` differs from the measured step where a rate would exceed
    the accelerator's peak.
    """

    accelerator: Accelerator
    base: Constants
    constants: Constants
    factor: float
    planned_step_s: float
    measured_step_s: float
    calibrated_step_s: float
    tokens_per_s: float
    mfu: float
    run: str


def calibrate(run: Path) -> Calibration:
    """The constants that make the planned step as long as the run's.

    Raises TenfoldError where `run` is no finished run of a Llama-shaped model.
    """
    start, end = _events(run)
    scaling = start["model"].get("rope_scaling")
    try:
        spec = ModelSpec(**{**start["model"], "rope_scaling": RopeScaling(**scaling) if scaling else None})
    except TypeError:
        raise TenfoldError(f"The run in {run} trained no Llama-shaped model: calibrate with one of `tenfold train`.") from None
    layout = _layout_of(run, start)
    measured = layout.tokens_per_step / end["tokens_per_s"]
    base = _machine_of(start, end)
    factor = _factor(spec, layout, base, measured)
    scaled = _scaled(base, factor)
    return Calibration(
        accelerator=base.accelerator,
        base=base.constants,
        constants=scaled.constants,
        factor=factor,
        planned_step_s=step_time(spec, layout, base).total_s,
        measured_step_s=measured,
        calibrated_step_s=step_time(spec, layout, scaled).total_s,
        tokens_per_s=end["tokens_per_s"],
        mfu=end["mfu"],
        run=str(run),
    )


def _layout_of(run: Path, start: dict[str, Any]) -> Layout:
    """The run's layout over all its processes, from its run.toml and run.jsonl."""
    config = tomllib.loads((run / "run.toml").read_text()) if (run / "run.toml").exists() else {}
    parallel = config.get("parallel")
    layout = msgspec.convert(parallel if isinstance(parallel, dict) else {}, Layout)
    return for_world(layout, _processes(start)).replace(
        global_batch=int(start["hyperparameters"]["batch_size"]),
        seq_len=int(config.get("data", config).get("seq_len", 256)),
        zero=3 if _processes(start) > 1 else 0,
    )


def _processes(start: dict[str, Any]) -> int:
    return int(start.get("processes", 1))


def _factor(spec: ModelSpec, layout: Layout, base: Machine, measured_s: float) -> float:
    """The factor on the machine's rates that gives the measured step, by bisection."""
    c = base.constants
    low, high = 1e-3, 1 / max(c.matmul_efficiency, c.memory_efficiency, c.attention_efficiency)
    for _ in range(60):
        factor = (low * high) ** 0.5
        if step_time(spec, layout, _scaled(base, factor)).total_s > measured_s:
            low = factor
        else:
            high = factor
    return factor


def _scaled(base: Machine, factor: float) -> Machine:
    """The machine with its rates multiplied by `factor`, at most the data sheet's, and its fixed times divided by it."""
    c = base.constants
    scaled = replace(
        c,
        matmul_efficiency=min(1.0, c.matmul_efficiency * factor),
        attention_efficiency=min(1.0, c.attention_efficiency * factor),
        memory_efficiency=min(1.0, c.memory_efficiency * factor),
        kernel_s=c.kernel_s / factor,
    )
    return replace(base, constants=scaled, stack=_host(base.stack, factor))


def _host(software: Stack, factor: float) -> Stack:
    """The software with its host times divided by `factor`."""
    return replace(software, dispatch_s=software.dispatch_s / factor, step_s=software.step_s / factor)


def _events(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = run / "run.jsonl"
    if not path.exists():
        raise TenfoldError(f"{run} has no run.jsonl: name the directory of a run of `tenfold train`.")
    events: dict[str, dict[str, Any]] = {}
    for event in read_metrics(path):
        if event.get("event") == "end":
            events["end"] = event
        events.setdefault(event.get("event", ""), event)
    if "start" not in events or not events.get("end", {}).get("tokens_per_s"):
        raise TenfoldError(f"The run in {run} has not finished: let `tenfold train` resume it, then calibrate.")
    return events["start"], events["end"]


def _machine_of(start: dict[str, Any], end: dict[str, Any]) -> Machine:
    """The known accelerator whose peak the run's MFU refers to; otherwise an accelerator described by the run's own figures.

    MFU and energy in the record are those of all processes, each of which has one accelerator.
    """
    processes = _processes(start)
    peak = end["tokens_per_s"] * start["flops_per_token"] / end["mfu"] / processes
    for part in accelerators().values():
        if start["mfu_of"].startswith(part.name):
            return machine(part.key)
    own = Accelerator(
        key=str(start["device"]).split(":")[0], name=f"this {start['device']}",
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 / processes,
        memory_gb_per_s=max(20.0, peak / 1e11), source=f"{start['mfu_of']}, measured by the run", bf16_tflops=peak / 1e12,
        tdp_w=3.6e6 * end["energy_kwh"] / end["seconds"] / processes if end.get("energy_kwh") and end.get("seconds") else None,
        device=str(start["device"]).split(":")[0],
    )  # fmt: skip
    known = machine("h100")
    # With one unit, the tiles of a product are not computed in waves.
    constants = replace(known.constants, units=1, domain_gpus=processes)
    return replace(known, accelerator=own, constants=constants, source=own.source)


def write(calibration: Calibration, home: Path) -> Path:
    """Add the calibration to those of other runs in `home`, where plans find them. Returns the file."""
    path = home / FILE
    known = _kept(path)
    runs = known.get(calibration.accelerator.key, {}).get("runs", [])
    others = [run for run in runs if run["run"] != calibration.run]  # a run that is calibrated again is replaced
    known[calibration.accelerator.key] = {"version": VERSION, "runs": [*others, asdict(calibration)]}
    write_json(path, known)
    return path


def _kept(path: Path) -> dict[str, Any]:
    """The calibrations of a file by accelerator; empty without a file. Raises TenfoldError for a damaged or outdated file."""
    if not path.exists():
        return {}
    with readable(path):
        try:
            known = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise TenfoldError(
                f"{path} is no JSON file of calibrations ({error}): remove it and run `tenfold plan calibrate` again."
            ) from None
    for key, kept in known.items():
        require_version(kept.get("version", 1), (VERSION,), f"The calibration of {key} in {path}", "remove it and calibrate again")
    return dict(known)


def calibrated(part: Machine | None, key: str, home: Path) -> tuple[Machine | None, str]:
    """The machine `part` with its rates multiplied by the pooled factor of the runs in `home`, and a sentence on that.

    The factor is the geometric mean over the runs. Without a calibration of the accelerator `key`, `part` as it is and ''; where
    `part` is None, the accelerator is that described by the newest run.
    """
    kept = _kept(home / FILE).get(key.lower())
    if kept is None:
        return part, ""
    runs = kept["runs"]
    newest = runs[-1]
    logs = [math.log(run["factor"]) for run in runs]
    factor = math.exp(mean(logs))
    constants = Constants(**{f.name: newest["base"][f.name] for f in fields(Constants)})
    sheet: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in newest["accelerator"].items()
    }
    base = part or replace(machine("h100"), accelerator=Accelerator(**sheet))
    if len(runs) == 1:
        words = f"measured {newest['measured_step_s']:.3g} s per step, planned {newest['planned_step_s']:.3g} s"
        source = f"calibrated by {newest['run']}"
    else:
        sd = stdev(logs)
        words = f"single runs {math.exp(min(logs)):.3g} to {math.exp(max(logs)):.3g}, a standard deviation of {100 * sd:.0f} %"
        source = f"calibrated by {len(runs)} runs, the newest {newest['run']}"
    scaled = _scaled(replace(base, constants=constants), factor)
    return replace(scaled, source=source), f"{source[0].upper()}{source[1:]}: rates x {factor:.3g} ({words})."
