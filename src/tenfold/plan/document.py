"""The plan as a document of plain JSON values: the content of `plan.json`, described in docs/plan.md."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from tenfold.plan.costs.consequences import Consequences
from tenfold.plan.ranges import Range
from tenfold.plan.request import Limits
from tenfold.plan.workload.data import Data
from tenfold.plan.workload.workload import Workload
from tenfold.spec.forecasts import Forecast, Learnt, forecast, of_samples
from tenfold.spec.layout import Layout

SCHEMA = 3
Document = dict[str, Any]


def document(
    workload: Workload,
    after: Consequences,
    *,
    alternatives: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
    request: dict[str, Any] | None = None,
    limits: Limits = Limits(),
    assumed: Sequence[str] = (),
    data: Sequence[Data] = (),
) -> Document:
    """The plan as plain JSON values, with units in the names, and ranges as `{low, mid, high}`: 10 % quantile, best guess, 90 %
    quantile.

    `alternatives` are rows of `layout` (words), `step_s`, `reason` (why it is slower). `notes` are sentences on data limits,
    search and calibration, `assumed` those on options that were left out. `request` has the options that were given, `limits` the
    deadline and the budget, and `data` the epochs of this generation and the next over the corpus.
    """
    return {
        "schema": SCHEMA,
        "tenfold": metadata.version("tenfold"),
        "request": request or {},
        "model": _model(workload),
        "machine": _machine(workload, after),
        "layout": _layout(workload.layout),
        "memory": {**plain(workload.memory), "total_gib": workload.memory.total_gib},
        "step": _step(workload),
        "time": _time(workload, after),
        "chances": chances(after, limits),
        "data": plain(list(data)),
        "failures": {**plain(after.failures), "simulated_share": plain(after.simulated_share)},
        "power": plain(after.power),
        "cost": plain(after.cost),
        "outlay": plain(after.outlay),
        "footprint": plain(after.footprint),
        "alternatives": [dict(row) for row in alternatives],
        "notes": list(notes),
        "assumed": list(assumed),
    }


def _model(workload: Workload) -> dict[str, Any]:
    spec, parameters = workload.spec, workload.spec.parameters()
    return {
        **{f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "rope_scaling"},
        "parameters_total": parameters.total,
        "parameters_active": parameters.active,
        "tokens": workload.tokens,
        "flops": workload.flops,
    }


def _machine(workload: Workload, after: Consequences) -> dict[str, Any]:
    part, failures = workload.accelerator, after.failures
    return {
        "accelerator": part.key,
        "name": part.name,
        "guessed": list(part.guessed),
        "gpus": workload.gpus,
        "gpus_per_node": failures.gpus_per_node,
        "nodes": failures.n_nodes,
        "spare_nodes": failures.spare_nodes,
        "region": after.site.key,
        "region_name": after.site.name,
    }


def _step(workload: Workload) -> dict[str, Any]:
    tokens_per_s = workload.layout.tokens_per_step / workload.step_s
    model_flops_per_s = tokens_per_s * workload.spec.train_flops_per_token(workload.layout.seq_len)
    return {
        "step_s": workload.step_s,
        "parts_s": workload.step_time.parts(),
        "mfu": workload.mfu,
        "tokens_per_s": tokens_per_s,
        "tflops_per_gpu": model_flops_per_s / workload.gpus / 1e12,
    }


def _time(workload: Workload, after: Consequences) -> dict[str, Any]:
    return {
        "training_days": workload.days,
        "step_error": plain(after.step_error),
        "beside_steps": plain(after.beside_steps),
        "wall_days": plain(after.wall_days),
        "wall_days_quantiles": of_samples(after.wall_days.draws.tolist()),
        "gpu_hours": plain(after.gpu_hours),
    }


def chances(after: Consequences, limits: Limits) -> dict[str, dict[str, float]]:
    """For each limit that is given, the probability that the run keeps it: the deadline, and the budget for rent or for owning."""
    figures = {
        "done_by_the_deadline": (limits.days, after.wall_days),
        "rented_under_the_budget": (limits.budget_usd, after.cost.rent_usd),
        "owned_under_the_budget": (limits.budget_usd, after.cost.own_usd),
    }
    return {name: {"limit": limit, "probability": f.chance_within(limit)} for name, (limit, f) in figures.items() if limit}


def plain(value: Any) -> Any:
    """A value as plain JSON: dataclasses as their fields, ranges as their ends, recursively."""
    if isinstance(value, Range):
        return value.ends()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    return value


def record(home: Path, plan: Document, data: dict[str, str]) -> str:
    """Write a plan's wall-clock time to the record of forecasts in `home`, and return the forecast's key.

    The key has the hash of the request, of the plan and of `data`, so that the same plan is recorded once, and anew after another
    calibration. `data` has the hash of each file that the plan was made from, such as a calibration.
    """
    planned = msgspec.json.encode([data, *(plan[part] for part in ("request", "model", "machine", "layout"))], order="sorted")
    quantiles = tuple(days * 86400 for days in plan["time"]["wall_days_quantiles"])
    key = f"plan/{hashlib.sha256(planned).hexdigest()[:12]}/seconds"
    # The record keeps the plan's own quantiles: outcomes change plans by `calibrate`, and not their intervals here.
    forecast(home, Forecast(key=key, who="plan", kind="seconds", unit="s", quantiles=quantiles, data=data, learnt=Learnt()))
    return key


def _layout(layout: Layout) -> dict[str, Any]:
    derived = ("dp", "shards", "stages_per_rank", "micro_batches")
    return {**msgspec.structs.asdict(layout), **{name: getattr(layout, name) for name in derived}, "words": layout.words()}
