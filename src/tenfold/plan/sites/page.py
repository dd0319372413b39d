"""The answer as an HTML page and as a spreadsheet, made from the JSON document alone."""

from importlib import resources
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from tenfold.plan.facts import facts
from tenfold.plan.report import count, usd
from tenfold.plan.sites.answer import named
from tenfold.plan.sites.inputs import read_toml
from tenfold.plan.sites.screen import binding_lines, built_lines, history_cells, pay_cells, pay_lines, worths
from tenfold.spec.files import atomic_file, write_json, write_text


def html(document: dict[str, Any]) -> str:
    """The answer as one self-contained page."""
    import jinja2

    template = resources.files("tenfold.plan").joinpath("sites/sites.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(
        document=document, named=named, usd=usd, count=count, worths=worths(document), binds=binding_lines(document),
        stages=stages(document), published=published(document), plot=_plot(document), pay_cells=pay_cells, pay_lines=pay_lines,
        history_cells=history_cells, built_lines=built_lines,
    )  # fmt: skip


def stages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Expected values by stage: demand, rented and unserved hours (millions per year), MW, payments, electricity, water, carbon."""
    found: dict[float, dict[str, Any]] = {}
    names = ("rented_hours", "short_hours", "mwh_per_year", "m3_per_year", "tco2_per_year")
    for node in document["nodes"]:
        row = found.setdefault(
            node["quarter"], {"quarter": node["quarter"], **dict.fromkeys(("hours", "mw", "paid_usd", *names), 0.0)}
        )
        weight = node["path_probability"]
        row["hours"] += weight * sum(node["hours"])
        row["mw"] += weight * sum(node["running_mw"].values())
        row["paid_usd"] += weight * sum(one["usd"] for one in node["begun"])
        for name in names:
            row[name] += weight * node[name]
    return list(found.values())


def published(document: dict[str, Any]) -> list[str]:
    """Sentences that compare the plan's last stage and its yearly payments with the published figures of an owner."""
    known, rows = read_toml(None, "published.toml"), stages(document)
    who, last, year = known["who"], rows[-1], facts("power")["year"]
    paid = sum(row["paid_usd"] for row in rows) / document["end_quarter"] * 4
    return [
        f"Electricity in the last stage: {count(last['mwh_per_year'])} MWh a year; {year['what']}: {year['mwh']:,}.",
        f"Water on site in the last stage: {count(last['m3_per_year'])} m3 a year; "
        f"{who}'s data centres in 2023: {known['water_m3_2023']:,}.",
        f"Payments for sites, halls and machines: {usd(paid)} a year; "
        f"all capital outlays of {who} in 2024: {usd(known['capex_usd_2024'])}.",
    ]


def _plot(document: dict[str, Any]) -> str:
    import matplotlib.pyplot as plt

    from tenfold.plan.plots import COLOURS, QUIET, as_svg

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True)
    nodes, end = document["nodes"], document["end_quarter"]
    quarters = [*sorted({node["quarter"] for node in nodes}), end]
    for node in nodes:
        parent = node if node["parent"] is None else nodes[node["parent"]]
        until = quarters[quarters.index(node["quarter"]) + 1]
        at, hours = [parent["quarter"], node["quarter"], until], [sum(parent["hours"]), sum(node["hours"]), sum(node["hours"])]
        above.plot(at, hours, color=QUIET, lw=0.4 + 3 * node["path_probability"])
    above.set_ylabel("demand, million hours/year")
    above.set_yscale("log")
    bottom = [0.0] * (len(quarters) - 1)
    for colour, site in zip(COLOURS, [site["name"] for site in document["sites"]], strict=False):
        mw = [sum(n["path_probability"] * n["running_mw"][site] for n in nodes if n["quarter"] == q) for q in quarters[:-1]]
        widths = [after - q for q, after in pairwise(quarters)]
        below.bar(quarters[:-1], mw, widths, bottom, align="edge", color=colour, label=site, ec="white", lw=0.6)
        bottom = [a + b for a, b in zip(bottom, mw, strict=True)]
    below.set_ylabel("expected IT power, MW")
    below.set_xlabel("quarter")
    below.legend(frameon=False)
    return as_svg(figure)


def write(document: dict[str, Any], path: Path) -> None:
    """Write the page, the answer as .json next to it, and as .xlsx where openpyxl is installed."""
    write_text(path, html(document))
    write_json(path.with_suffix(".json"), document)
    if find_spec("openpyxl"):
        write_sheet(document, path.with_suffix(".xlsx"))


def write_sheet(document: dict[str, Any], path: Path) -> None:
    """The tables of the answer as an Excel workbook."""
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "answer"
    for row in (("answer", document["sentence"]), *worths(document), *(("binds", line) for line in binding_lines(document))):
        sheet.append(row)
    begun = [{"node": node["name"], "quarter": node["quarter"], **one} for node in document["nodes"] for one in node["begun"]]
    nodes = [
        {
            **_flat([node])[0],
            **{f"{kind} hours": hours for kind, hours in zip(document["kinds"], node["hours"], strict=True)},
            **{f"{site} MW": mw for site, mw in node["running_mw"].items()},
        }
        for node in document["nodes"]
    ]
    tables = {
        "stages": stages(document),
        "nodes": nodes,
        "begun": begun,
        "later": document["later"],
        "paths": _flat(document["paths"]),
    }
    if document["pay"]:
        tables["pay"] = document["pay"]["scenarios"]
    if document["history"]:
        tables |= {"history": _flat(document["history"]["decided"]), "built": document["history"]["built"]}
    for name, rows in tables.items():
        sheet = book.create_sheet(name)
        sheet.append(list(rows[0]) if rows else ["nothing"])
        for row in rows:
            sheet.append(list(row.values()))
    with atomic_file(path) as file:
        book.save(file)


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the values that do not fit in a single cell."""
    return [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
