"""The assumptions of a plan: the values of the options that were left out, each with the option that replaces it."""

from tenfold.plan.costs.consequences import Consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.ranges import Range
from tenfold.plan.workload.machine import Machine
from tenfold.spec.units import duration


def assumptions(machine: Machine, after: Consequences, around: SiteOptions) -> list[str]:
    """A phrase for each assumed value with the option that replaces it; guessed values are marked."""
    c, f, part = machine.constants, after.failures, machine.accelerator
    every = [
        (
            "network", f"{8 * c.scaleout_gb_per_s:.0f} Gb/s per GPU, scale-up domains of {c.domain_gpus} GPUs",
            "--network-gb-per-s", None,
        ),
        ("software", machine.stack.name, "--stack", None),
        ("board power", f"{part.tdp_w:.0f} W" if part.tdp_w else "unknown", "--board-w", None),
        ("rent", _said(after.cost.rent_usd_per_gpu_hour, "USD per GPU-hour"), "--rent-usd-per-h", around.rent_usd_per_h),
        ("PUE", _said(after.power.pue), "--pue", around.pue),
        ("failures", _said(f.per_1000_node_days, "per 1,000 node-days"), "--per-1000-node-days", around.per_1000_node_days),
        ("recovery", duration(f.detection_s + f.restart_s), "--recovery-s", around.recovery_s),
        ("checkpoint", f"safe after {duration(f.checkpoint_write_s)}", "--storage-gb-per-s", around.storage_gb_per_s),
        ("checkpoint interval", duration(f.checkpoint_interval_s), "--checkpoint-interval-s", around.checkpoint_interval_s),
        ("beside the steps", f"{_said(after.beside_steps)} times the steps", "--beside-steps", around.beside_steps),
        ("start", "any day of the year", "--start", around.start),
    ]  # fmt: skip
    guess = {"tdp_w": "board power"}
    guessed = {guess.get(name, name) for name in part.guessed} | ({"rent"} if after.cost.assumed else set())
    return [
        f"{name} {figure}{' (a guess)' if name in guessed else ''} ({option})"
        for name, figure, option, said in every
        if said is None
    ]


def _said(r: Range, unit: str = "") -> str:
    words = f"{r.mid:.3g}" + (f" ({r.low:.3g} to {r.high:.3g})" if r.low < r.high else "")
    return f"{words} {unit}".strip()
