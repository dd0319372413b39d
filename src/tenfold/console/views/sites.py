"""Sites: what to begin this quarter, what waits for which news, the value of deciding in stages, and the years ahead."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tenfold.console.document import Computed, Figure, View, figure, read_json, undamaged
from tenfold.plan.sites.answer import VERSION
from tenfold.plan.sites.page import stages
from tenfold.spec.versions import require_version

AGAIN = "make it again by `tenfold plan sites --out`"
WORTH = (
    ("expected cost", "expected_usd"), ("cost in the worst twentieth", "cvar95_usd"), ("decided all at once", "one_stage_usd"),
    ("deciding in stages is worth", "value_of_staging_usd"), ("knowing demand would be worth", "value_of_perfect_information_usd"),
    ("one more rung is worth", "value_of_one_more_rung_usd"), ("renting all costs", "rent_all_usd"),
)  # fmt: skip
YEARS = (
    ("hours", "demand", "million h/year"), ("rented_hours", "rented", "million h/year"),
    ("short_hours", "short", "million h/year"), ("mw", "IT power", "MW"), ("paid_usd", "paid", "USD"),
    ("mwh_per_year", "electricity", "MWh/year"), ("m3_per_year", "water on site", "m3/year"),
    ("tco2_per_year", "carbon", "t CO2/year"),
)  # fmt: skip
BACKTEST = (
    ("mean_usd", "USD"), ("cvar95_usd", "USD"), ("over_staged_usd", "USD"), ("standard_error_usd", "USD"), ("short_share", ""),
)  # fmt: skip
PAY = (
    ("value_usd", "USD"), ("pays_probability", ""), ("payback_quarter", ""), ("cash_needed_usd", "USD"),
    ("runway_months", "months"),
)  # fmt: skip


def names(home: Path) -> list[str]:
    """The newest answer "", and every answer by its name."""
    return ["", *_files(home)]


def document(home: Path, name: str) -> dict[str, Any]:
    """An answer of `tenfold plan sites`."""
    files = _files(home)
    if not files:
        return {"empty": f"tenfold plan sites --home {home.name} --out {home.name}/sites.html"}
    file = files[name or next(iter(files))]
    found = read_json(home / file)
    with undamaged(home / file, AGAIN):
        require_version(found.get("version", 1), (VERSION,), home / file, AGAIN)
        return {"empty": "", "all": list(files), **_answer(home, file, found)}


def _files(home: Path) -> dict[str, str]:
    """The answers of a home by their names, the newest first."""
    found = sorted([*home.glob("sites*.json"), *home.glob("*/sites.json")], key=lambda path: -path.stat().st_mtime)
    return {_name(path.relative_to(home)): str(path.relative_to(home)) for path in found}


def _name(file: Path) -> str:
    """An answer's name: the stem of a file in the home itself, else its folder, or `sites-2/sites` in a folder that begins so.

    It depends on the file's own path only, so that a link stays valid when other files come.
    """
    folder = file.parent.name
    return f"{folder}/{file.stem}" if folder.startswith(file.stem) else folder or file.stem


def _answer(home: Path, file: str, found: dict[str, Any]) -> dict[str, Any]:
    def shown(key: str, unit: str = "") -> Figure:
        return figure(home, file, key, unit)

    def rows(key: str, columns: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        """The rows of a list in the file: texts as they are, and the given columns as figures."""
        table, _, part = key.partition(".")
        listed: Any = found.get(table) or {}
        made = []
        for i, row in enumerate(listed[part] if listed and part else listed):
            texts = {name: value for name, value in row.items() if isinstance(value, str)}
            made.append(texts | {name: shown(f"{key}.{i}.{name}", unit) for name, unit in columns})
        return made

    pay = found.get("pay")
    return {
        "sentence": found["sentence"],
        "ladder": found.get("ladder"),
        "begin_now": rows("begin_now", (("mw", "MW"), ("usd", "USD"), ("waiting_usd", "USD"))),
        "later": rows("later", (("first_quarter", ""), ("probability", ""))),
        "worth": [{"name": name, "figure": shown(key, "USD")} for name, key in WORTH],
        "gap": shown("gap"),
        "binds": rows("binds", (("first_quarter", ""), ("probability", ""))),
        "what_if": [one["sentence"] for one in found.get("what_if") or []],
        "backtest": rows("backtest.policies", BACKTEST),
        "pay": rows("pay.scenarios", PAY),
        "hour": {"own": shown("pay.own.usd_per_hour", "USD"), "rented": shown("pay.rent_usd_per_hour", "USD")} if pay else None,
        "history": rows("history.decided", (("decided", ""), ("usd", "USD"), ("short_share", ""))),
        "years": _years(found),
        "tree": _tree(found),
        "power": _power(found),
        "files": [file, *(page for page in [str(Path(file).with_suffix(".html"))] if (home / page).is_file())],
    }


def _years(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Expected values by stage: means over the nodes of the tree."""
    how = "the mean over the tree's nodes of that quarter"
    return [
        {"quarter": row["quarter"], "figures": [Computed(row[key], how, unit) for key, _, unit in YEARS]} for row in stages(found)
    ]


def _tree(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The branches of the demand tree, each from its parent's quarter to the next stage: quarters, million hours a year,
    probability."""
    nodes = found["nodes"]
    quarters = [*sorted({node["quarter"] for node in nodes}), found["end_quarter"]]
    after = dict(pairwise(quarters))
    branches = []
    for node in nodes:
        parent = node if node["parent"] is None else nodes[node["parent"]]
        hours = sum(node["hours"])
        branches.append(
            {
                "name": node["name"],
                "probability": node["path_probability"],
                "quarters": [parent["quarter"], node["quarter"], after[node["quarter"]]],
                "hours": [sum(parent["hours"]), hours, hours],
            }
        )
    return branches


def _power(found: dict[str, Any]) -> dict[str, Any]:
    """The expected MW of each site by quarter."""
    nodes = found["nodes"]
    quarters = sorted({node["quarter"] for node in nodes})

    def expected(site: str, quarter: float) -> float:
        return sum(n["path_probability"] * n["running_mw"][site] for n in nodes if n["quarter"] == quarter)

    sites = [site["name"] for site in found["sites"]]
    return {
        "quarters": [*quarters, found["end_quarter"]],
        "sites": [{"name": site, "mw": [expected(site, quarter) for quarter in quarters]} for site in sites],
    }


VIEW = View("sites", "Sites", names, document)
