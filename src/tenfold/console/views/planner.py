"""Makes a stored plan again with other machines, days, prices or places; the model and its tokens stay the same."""

from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from tenfold.console.document import read_json, stamp
from tenfold.plan.assumptions import assumptions
from tenfold.plan.commands import MachineOptions
from tenfold.plan.costs.consequences import consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.document import document
from tenfold.plan.facts import facts
from tenfold.plan.plan import gpus_for_days, make_plan
from tenfold.plan.request import GpuRequest, Gpus, Limits, StepRequest
from tenfold.plan.workload.machine import Machine, machine
from tenfold.spec.accelerator import accelerators
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.ranges import Positive
from tenfold.spec.shapes import Shape

T = TypeVar("T")
REACH = 8.0  # the largest factor between an asked number and the plan's, which bounds the planner's work
PROFILES = ("carbon_csv", "price_csv", "weather_epw")
Name = Annotated[str, Meta(min_length=1, max_length=100)]


class Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """What shall differ from the plan. Where `days` is given, the planner solves for the number of GPUs."""

    gpus: Gpus | None = None
    days: Positive | None = None
    rent_usd_per_h: Positive | None = None
    region: Name | None = None
    accelerator: Name | None = None


def offered(plan: dict[str, Any]) -> dict[str, Any]:
    """What may be asked for: ranges as [low, the plan's value, high], and names of regions and accelerators, the plan's own
    first."""
    states = facts("grid")["states"]
    own = {"gpus": plan["machine"]["gpus"], "days": plan["time"]["wall_days"]["mid"]}
    own["rent_usd_per_h"] = plan["cost"]["rent_usd_per_gpu_hour"]["mid"]
    ranges = {name: [value / REACH, value, value * REACH] for name, value in own.items()}
    ranges["gpus"] = [max(1, int(own["gpus"] / REACH)), own["gpus"], int(own["gpus"] * REACH)]
    mine = plan["machine"]["accelerator"]
    return {
        "ranges": ranges,
        "regions": sorted(({"key": key, "name": row["name"]} for key, row in states.items()), key=lambda one: one["name"]),
        "region": plan["machine"]["region"],
        "accelerators": [mine, *(name for name in known_machines() if name != mine)],
    }


@lru_cache(1)
def known_machines() -> tuple[str, ...]:
    """The accelerators that a plan can be made for."""

    def known(name: str) -> bool:
        try:
            return bool(machine(name))
        except TenfoldError:
            return False

    return tuple(name for name in accelerators() if known(name))


def answer(home: Path, file: str, plan: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """The document of the plan with what is asked for. Raises TenfoldError for numbers out of range, and where the planner finds no
    such plan."""
    for name, (low, _, high) in offered(plan)["ranges"].items():
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:
            raise TenfoldError(f"{name} must be from {low:.4g} to {high:.4g} for this plan, not {value:.4g}.")
    return _made(home, file, stamp(home / file), asked)


@lru_cache(256)
def _made(home: Path, file: str, _: tuple[int, int], asked: Asked) -> dict[str, Any]:
    plan = read_json(home / file)
    request, notes = _without_profiles(home, plan["request"], asked.region)
    step = _options(StepRequest, request)
    around = _options(SiteOptions, request | _said(region=asked.region, rent_usd_per_h=asked.rent_usd_per_h))
    hardware = _options(MachineOptions, request | _said(accelerator=asked.accelerator))
    part, calibrated = hardware.machine(home)
    shape = _shape(plan["model"])
    fixed = _options(GpuRequest, request)
    if asked.gpus or asked.days:
        fixed = replace(fixed, gpus=asked.gpus, days=asked.days)
    gpus = _gpus(shape, fixed, part, step, around) or plan["machine"]["gpus"]
    found = make_plan(shape, gpus, part, step, around)
    after = consequences(found.workload, around)
    return document(
        found.workload,
        after,
        alternatives=found.alternatives,
        notes=[*notes, *([calibrated] if calibrated else []), *found.notes],
        limits=Limits(fixed.days, fixed.budget_usd),
        assumed=assumptions(part, after, around),
    )


def _gpus(shape: Shape, fixed: GpuRequest, part: Machine, step: StepRequest, around: SiteOptions) -> int | None:
    return fixed.gpus or (gpus_for_days(shape, fixed, part, step, around) if fixed.days else None)


def _said(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _without_profiles(home: Path, request: dict[str, Any], elsewhere: str | None) -> tuple[dict[str, Any], list[str]]:
    """The plan's request without hourly profiles that are outside the home or, where another region is asked for (`elsewhere`), of
    the plan's own; and a sentence for each profile that is left out."""
    inside = [name for name in PROFILES if name in request and Path(str(request[name])).resolve().is_relative_to(home.resolve())]
    left = {name: "lies outside the home" for name in PROFILES if name in request and name not in inside}
    left |= {name: "is of the plan's own place" for name in inside if elsewhere}
    notes = [f"{name} {request[name]} {why}, and is left out." for name, why in left.items()]
    return {name: value for name, value in request.items() if name not in left}, notes


def _shape(model: dict[str, Any]) -> Shape:
    spec = _options(ModelSpec, {name: value for name, value in model.items() if value is not None})
    return Shape(spec, round(model["tokens"]), float(model["flops"]))


def _options(kind: type[T], values: dict[str, Any]) -> T:
    """A struct of options from `values`; others are ignored. Raises TenfoldError for values that do not fit."""
    known = kind.__struct_fields__ if issubclass(kind, Struct) else [one.name for one in fields(kind)]  # type: ignore[arg-type]
    try:
        return msgspec.convert({name: values[name] for name in known if name in values}, kind, strict=False)
    except msgspec.ValidationError as error:
        raise TenfoldError(
            f"The plan has options that this version of Tenfold does not accept ({error}): make it again by `tenfold plan`."
        ) from None
