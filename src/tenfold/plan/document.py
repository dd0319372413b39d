"""The plan as a document of plain JSON values, which `plan.json` holds and everything is drawn from. docs/plan.md describes it."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from tenfold.plan.costs.consequences import Consequences
from tenfold.plan.workload.workload import Workload
from tenfold.spec.forecasts import Forecast, around, forecast
from tenfold.spec.layout import Layout

SCHEMA = 2
SPREAD = 0.3  # relative standard deviation of a plan's time, as wide as its GPU-hours miss what is reported (docs/plan.md)
Document = dict[str, Any]


def document(
    workload: Workload,
    after: Consequences,
    *,
    alternatives: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
    request: dict[str, Any] | None = None,
) -> Document:
    """The plan as plain JSON values, quantities with units in their names, ranges as `{low, mid, high}`.

    `alternatives` are rows of `layout` (words), `step_s`, `reason` (why it loses); `notes` are sentences: assumptions,
    data limits, calibration. `request` is what was asked for, kept as it was.
    """
    spec, parameters, layout = workload.spec, workload.spec.parameters(), workload.layout
    tokens_per_s = layout.tokens_per_step / workload.step_s
    model_flops_per_s = tokens_per_s * spec.train_flops_per_token(layout.seq_len)
    return {
        "schema": SCHEMA,
        "tenfold": metadata.version("tenfold"),
        "request": request or {},
        "model": {
            **{f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "rope_scaling"},
            "parameters_total": parameters.total,
            "parameters_active": parameters.active,
            "tokens": workload.tokens,
            "flops": workload.flops,
        },
        "machine": {
            "accelerator": workload.accelerator.key,
            "name": workload.accelerator.name,
            "gpus": workload.gpus,
            "gpus_per_node": after.failures.gpus_per_node,
            "nodes": after.failures.n_nodes,
            "spare_nodes": after.failures.spare_nodes,
            "region": after.site.key,
            "region_name": after.site.name,
        },
        "layout": _layout(layout),
        "memory": {**asdict(workload.memory), "total_gib": workload.memory.total_gib},
        "step": {
            "step_s": workload.step_s,
            "parts_s": workload.step_time.parts(),
            "mfu": workload.mfu,
            "tokens_per_s": tokens_per_s,
            "tflops_per_gpu": model_flops_per_s / workload.gpus / 1e12,
        },
        "time": {
            "training_days": workload.days,
            "wall_days": asdict(after.wall_days),
            "gpu_hours": asdict(after.gpu_hours),
        },
        "failures": {**asdict(after.failures), "simulated_share": asdict(after.simulated_share)},
        "power": asdict(after.power),
        "cost": asdict(after.cost),
        "footprint": asdict(after.footprint),
        "alternatives": [dict(row) for row in alternatives],
        "notes": list(notes),
    }


def record(home: Path, plan: Document, data: dict[str, str]) -> str:
    """Freeze a plan's wall-clock time in the record of forecasts of `home`, and return the forecast's key.

    The key has the hash of what was asked and planned, so the same plan again is the same forecast. `data` has the hash of each
    file that the plan was made from, such as a calibration.
    """
    planned = msgspec.json.encode([plan[part] for part in ("request", "model", "machine", "layout")], order="sorted")
    key = f"plan/{hashlib.sha256(planned).hexdigest()[:12]}/seconds"
    seconds = plan["time"]["wall_days"]["mid"] * 86400
    forecast(home, Forecast(key=key, who="plan", kind="seconds", unit="s", quantiles=around(seconds, SPREAD), data=data))
    return key


def _layout(layout: Layout) -> dict[str, Any]:
    derived = ("dp", "shards", "stages_per_rank", "micro_batches")
    return {**msgspec.structs.asdict(layout), **{name: getattr(layout, name) for name in derived}, "words": layout.words()}
