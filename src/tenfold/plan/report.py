"""Rendering of a plan: one screen in the terminal, and `plan.html` with plots.

Both use nothing but the JSON document, so that a plan.json can be shown again.
"""

from importlib import resources

from rich.console import Group, RenderableType
from rich.text import Text

from tenfold.plan.document import SCHEMA, Document
from tenfold.spec.terminal import Figures
from tenfold.spec.units import duration, si
from tenfold.spec.versions import require_version

AGAIN = "make it again by `tenfold plan`"


def usd(value: float) -> str:
    """Dollars with three digits: `"$ 61.2 M"`, `"$ 1.84 bn"`, `"$ 930"`."""
    for size, name in ((1e9, " bn"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"$ {value / size:.3g}{name}"
    return f"$ {value:.3g}"


def count(value: float) -> str:
    """A number with three digits: `"26,400"`, `"0.169"`."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def headline(plan: Document) -> list[str]:
    """Four lines: the model, the machines, the layout, the step."""
    model, machine, layout, step = plan["model"], plan["machine"], plan["layout"], plan["step"]
    experts = f", {model['n_experts']} experts, {si(model['parameters_active'])} active" if model["n_experts"] else ""
    return [
        f"{si(model['parameters_total'])} parameters{experts}, {si(model['tokens'], 'tokens')}, {model['flops']:.3g} FLOPs: "
        f"{model['n_layers']} layers of {model['dim']}",
        f"{machine['gpus']:,} x {machine['name']} in {machine['region_name']}, {machine['spare_nodes']} spare nodes",
        layout["words"],
        f"step {step['step_s']:.3g} s, {step['tflops_per_gpu']:.0f} TFLOP/s a GPU, {100 * step['mfu']:.1f} % of peak, "
        f"{si(step['tokens_per_s'], 'tokens/s')}",
    ]


def rows(plan: Document) -> list[tuple[str, str, str, str]]:
    """The table of results, each row (name, low, mid, high); the same in the terminal and on the page."""
    time, failures, power, cost, foot = (plan[k] for k in ("time", "failures", "power", "cost", "footprint"))
    million_hours = {k: v / 1e6 for k, v in time["gpu_hours"].items()}
    table = [
        ("days by the clock", time["wall_days"], count),
        ("million GPU-hours", million_hours, count),
        ("interruptions", failures["interruptions"], count),
        ("hours between interruptions", failures["mean_time_to_interruption_h"], count),
        ("effective training time", failures["effective_share"], lambda v: f"{100 * v:.1f} %"),
        (f"cost, rented{' (price guessed)' if cost['assumed'] else ''}", cost["rent_usd"], usd),
        ("cost, owned", cost["own_usd"], usd),
        ("bought for it, in all", plan["outlay"]["total_usd"], usd),
        (f"peak power, MW{' (guessed)' if 'tdp_w' in plan['machine']['guessed'] else ''}", power["peak_mw"], count),
        ("energy, MWh", power["energy_mwh"], count),
        ("share of a year's data centres *", power["share_of_year_pct"], lambda v: f"{v:.2g} %"),
        ("t CO2e, by location", foot["location_tco2e"], count),
        ("t CO2e, by contract", foot["market_tco2e"], count),
        ("t CO2e, making the machines", foot["embodied_tco2e"], count),
        ("water on site, m3", foot["water_on_site_m3"], count),
        ("water at power stations, m3", foot["water_off_site_m3"], count),
    ]
    return [(name, *(say(r[end]) for end in ("low", "mid", "high"))) for name, r, say in table]  # type: ignore[misc]


def bottom_lines(plan: Document) -> list[str]:
    """Sentences under the table: memory, checkpoints, lost time, purchases, and the footnote of the energy comparison."""
    memory, failures, step = plan["memory"], plan["failures"], plan["step"]
    lost = ", ".join(f"{k} {100 * v:.1f} %" for k, v in failures["shares"].items() if k != "training")
    longest = sorted(step["parts_s"].items(), key=lambda part: -part[1])[:4]
    return [
        f"Memory {memory['total_gib']:.1f} of {memory['capacity_gib']:.1f} GiB. Step: "
        + ", ".join(f"{name.replace('_', ' ')} {100 * s / step['step_s']:.0f} %" for name, s in longest)
        + ".",
        f"Checkpoint of {si(failures['checkpoint_bytes'], 'B')} every {duration(failures['checkpoint_interval_s'])}, "
        f"stall {duration(failures['checkpoint_stall_s'])}. Lost: {lost}. "
        f"Effective in simulated runs: {100 * failures['simulated_share']['mid']:.1f} %.",
        f"Bought for it: this run uses up {100 * plan['outlay']['run_share']['mid']:.0f} %; "
        + ", ".join(f"{usd(r['mid'])} {when}" for when, r in plan["outlay"]["paid_usd"].items())
        + ".",
        f"* {plan['power']['year']}.",
    ]


def chance_words(plan: Document) -> list[str]:
    """A sentence such as `Done within 90 days: 83 %.` for each limit that was given."""
    said = {
        "done_by_the_deadline": lambda limit: f"Done within {limit:g} days",
        "rented_under_the_budget": lambda limit: f"Rented for at most {usd(limit)}",
        "owned_under_the_budget": lambda limit: f"Owned for at most {usd(limit)}",
    }
    return [f"{said[name](chance['limit'])}: {100 * chance['probability']:.0f} %." for name, chance in plan["chances"].items()]


def terminal(plan: Document) -> RenderableType:
    """The plan on one screen of 80 columns: headline, table, chances, notes, and the second-best layout.

    Raises TenfoldError for a document of another schema.
    """
    require_version(plan["schema"], (SCHEMA,), "The plan", AGAIN)
    table = Figures(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("", min_width=32)
    for name in ("10 %", "mid", "90 %"):
        table.add_column(name, justify="right", style="bold" if name == "mid" else "dim", min_width=12, no_wrap=True)
    for row in rows(plan):
        table.add_row(*row)
    first, *others = headline(plan)
    parts: list[RenderableType] = [Text(first, style="bold"), *(Text(line) for line in others), Text(), table]
    parts += [Text(" ".join(chance_words(plan)), style="bold")] if plan["chances"] else []
    parts.append(Text())
    parts += [Text(line, style="dim") for line in bottom_lines(plan)]
    if plan["alternatives"]:
        second = plan["alternatives"][0]
        parts.append(Text(f"Next: {second['layout']}: {second['reason']}"))
    parts += [Text(note, style="yellow") for note in plan["notes"][:3]]
    return Group(*parts)


def html(plan: Document) -> str:
    """The plan as one self-contained page, with its plots as inline SVG. Raises TenfoldError for another schema."""
    import jinja2

    from tenfold.plan import plots

    require_version(plan["schema"], (SCHEMA,), "The plan", AGAIN)

    template = resources.files("tenfold.plan").joinpath("plan.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(
        plan=plan,
        headline=headline(plan),
        rows=rows(plan),
        bottom=bottom_lines(plan),
        chances=chance_words(plan),
        duration=duration,
        plots={name: draw(plan) for name, draw in plots.ALL.items()},
    )
