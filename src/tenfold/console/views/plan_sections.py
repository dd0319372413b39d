"""The sections of a plan's page, for plans in files and for answers of the planner: titles, figures by key, and bars."""

from collections.abc import Callable
from typing import Any

from tenfold.spec.layout import stage_layers

Make = Callable[[str, str], Any]  # makes the figure for a key and its unit

FACTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "The run": (
        ("model", "model.name", ""), ("parameters", "model.parameters_total", ""), ("active", "model.parameters_active", ""),
        ("tokens", "model.tokens", ""), ("compute", "model.flops", "FLOPs"), ("GPUs", "machine.gpus", ""),
        ("accelerator", "machine.name", ""), ("place", "machine.region_name", ""), ("days by the clock", "time.wall_days", "days"),
        ("GPU-hours", "time.gpu_hours", "h"), ("tokens/s", "step.tokens_per_s", "tokens/s"), ("share of peak", "step.mfu", ""),
    ),
    "Memory": (("in all", "memory.total_gib", "GiB"), ("a GPU has", "memory.capacity_gib", "GiB")),
    "Step": (("step", "step.step_s", "s"), ("a GPU computes", "step.tflops_per_gpu", "TFLOP/s")),
    "Failures": (
        ("interruptions", "failures.interruptions", ""), ("hours between them", "failures.mean_time_to_interruption_h", "h"),
        ("effective time", "failures.effective_share", ""), ("in simulated runs", "failures.simulated_share", ""),
        ("checkpoint", "failures.checkpoint_bytes", "B"), ("every", "failures.checkpoint_interval_s", "s"),
        ("stall", "failures.checkpoint_stall_s", "s"), ("spare nodes", "failures.spare_nodes", ""),
    ),
    "Cost": (
        ("rented", "cost.rent_usd", "USD"), ("a GPU-hour rented", "cost.rent_usd_per_gpu_hour", "USD"),
        ("owned", "cost.own_usd", "USD"), ("a GPU-hour owned", "cost.own_usd_per_gpu_hour", "USD"),
        ("bought for it, in all", "outlay.total_usd", "USD"), ("this run's share of that", "outlay.run_share", ""),
    ),
    "Energy": (
        ("energy", "power.energy_mwh", "MWh"), ("mean power", "power.mean_mw", "MW"), ("peak power", "power.peak_mw", "MW"),
        ("PUE", "power.pue", ""), ("a kWh costs", "cost.usd_per_kwh", "USD"),
    ),
    "Carbon and water": (
        ("by location", "footprint.location_tco2e", "t CO2e"), ("by contract", "footprint.market_tco2e", "t CO2e"),
        ("making the machines", "footprint.embodied_tco2e", "t CO2e"), ("water on site", "footprint.water_on_site_m3", "m3"),
        ("water at power stations", "footprint.water_off_site_m3", "m3"),
    ),
}  # fmt: skip
BARS: dict[str, tuple[tuple[str, str, str], ...]] = {  # by section: (title, key of a table of parts, unit)
    "Step": (("seconds of a step", "step.parts_s", "s"),),
    "Failures": (("where the time goes", "failures.shares", ""), ("failures a day", "failures.by_component_per_day", "1/day")),
    "Cost": (("of owning", "cost.own_parts_usd", "USD"), ("paid", "outlay.paid_usd", "USD")),
    "Energy": (("energy", "power.parts_mwh", "MWh"),),
}
DEADLINE = "done_by_the_deadline"  # the chance whose limit is in days, not in USD
MEMORY = ("parameters", "gradients", "optimizer", "activations", "buffers")
LAYOUT = (
    "words", "tp", "cp", "pp", "dp", "ep", "stages_per_rank", "micro_batch", "micro_batches", "global_batch", "seq_len", "shards",
    "zero", "activation_checkpointing", "schedule", "dtype",
)  # fmt: skip


def sections(plan: dict[str, Any], make: Make) -> dict[str, Any]:
    """The plan's facts and bars by section, its layout, the next best layouts, its chances, notes and assumptions."""
    memory = [{"name": name, "figure": make(f"memory.{name}_gib", "GiB")} for name in MEMORY]
    bars = {name: [_bars(plan, *one, make) for one in found] for name, found in BARS.items()}
    return {
        "sections": [
            {
                "title": title,
                "facts": [{"name": name, "figure": make(key, unit)} for name, key, unit in rows],
                "bars": [{"title": "memory of the fullest GPU", "parts": memory}] if title == "Memory" else bars.get(title, []),
            }
            for title, rows in FACTS.items()
        ],
        "layout": {name: make(f"layout.{name}", "") for name in LAYOUT}
        | {name: make(f"model.{name}", "") for name in ("n_layers", "n_experts")},
        "stages": _stages(plan),
        "others": [
            {"layout": row["layout"], "slower_pct": make(f"alternatives.{i}.slower_pct", "%"), "reason": row["reason"]}
            for i, row in enumerate(plan["alternatives"])
        ],
        "chances": [
            {
                "name": name.replace("_", " "),
                "limit": make(f"chances.{name}.limit", "days" if name == DEADLINE else "USD"),
                "probability": make(f"chances.{name}.probability", ""),
            }
            for name in plan["chances"]
        ],
        "notes": plan["notes"],
        "assumed": plan["assumed"],
    }


def _bars(plan: dict[str, Any], title: str, key: str, unit: str, make: Make) -> dict[str, Any]:
    """The parts of a table, without those that are zero."""
    table, _, name = key.partition(".")
    parts = {part: value for part, value in plan[table][name].items() if value}
    return {"title": title, "parts": [{"name": part.replace("_", " "), "figure": make(f"{key}.{part}", unit)} for part in parts]}


def _stages(plan: dict[str, Any]) -> list[list[list[int]]]:
    """For each pipeline rank, the first and the last layer of each of its stages."""
    pp, virtual = plan["layout"]["pp"], plan["layout"]["stages_per_rank"]
    stages = stage_layers(plan["model"]["n_layers"], pp * virtual)
    return [[[stage.start, stage.stop - 1] for stage in stages[rank::pp]] for rank in range(pp)]
