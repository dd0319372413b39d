"""The sites' part of the circle: what to begin this quarter, for the demand of the newest plan in the home."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tenfold.plan.document import SCHEMA
from tenfold.plan.report import usd
from tenfold.plan.sites.example import STAGE_YEARS, demand_tree, example_sites, unmet_usd
from tenfold.plan.sites.staging import Staging, staging
from tenfold.plan.sites.tree import Tree
from tenfold.spec.files import file_sha256, write_json
from tenfold.spec.forecasts import LEVELS, Forecast, forecast
from tenfold.spec.versions import read_document, require_version

VERSION = 1
FILE = "sites.json"
LEAST_MW = 1.0  # nobody builds a site for less


def walk(home: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Solve the sites, write `sites.json`, and forecast the demand of the next stage. The same again changes nothing."""
    tree, plan = home_tree(home)
    data = {str(plan.relative_to(home)): file_sha256(plan)} if plan else {}
    key = f"sites/demand/{next(iter(data.values()))[:12] if data else 'example'}"
    forecast(home, Forecast(key=key, who="sites", kind="demand", unit="MW", quantiles=next_quantiles(tree), data=data))
    document = solved(tree)
    write_json(home / FILE, {**document, "plan": next(iter(data), None), "forecast": key})
    say(f"sites: {document['sentence']}")
    numbers = ("expected_usd", "value_of_staging_usd", "value_of_stochastic_solution_usd", "begin_now")
    return {**{name: document[name] for name in numbers}, "files": [FILE]}


def read_sites(path: Path) -> dict[str, Any]:
    """A written `sites.json`. Raises TenfoldError where it is missing, damaged, or of another version."""
    return read_document(path, VERSION, "write it again by `tenfold circle`")


def home_tree(home: Path) -> tuple[Tree, Path | None]:
    """The demand around the peak IT power of the newest plan in `home`, and its file; the built-in one where none needs a site."""
    for path in sorted([*home.glob("plan.json"), *home.glob("*/plan.json")], key=lambda p: p.stat().st_mtime, reverse=True):
        plan = json.loads(path.read_text())
        require_version(plan.get("schema"), (SCHEMA,), path, "make it again by `tenfold plan`")
        it_mw = plan["power"]["peak_mw"]["mid"] / plan["power"]["pue"]["mid"]
        if it_mw >= LEAST_MW:
            return demand_tree(it_mw), path
    return demand_tree(), None


def next_quantiles(tree: Tree) -> tuple[float, ...]:
    """Quantiles of the demand one stage on: at each level, the least demand that is not passed with that probability."""
    ahead = sorted((node.demand_mw, node.probability) for node in tree.nodes if node.parent == 0)
    reached = [sum(p for _, p in ahead[: i + 1]) for i in range(len(ahead))]
    return tuple(next(mw for (mw, _), r in zip(ahead, reached, strict=True) if r >= level - 1e-9) for level in LEVELS)


def solved(tree: Tree) -> dict[str, Any]:
    """The answer of the two sites on a tree, as plain JSON values. Money is in USD, power in MW of IT."""
    sites = example_sites()
    found = staging(tree, sites, unmet_usd())
    return {
        "version": VERSION,
        "stage_years": STAGE_YEARS,
        "sentence": _sentence(found, tree),
        "begin_now": [asdict(block) for block in found.staged.now(tree)],
        "begin_later": [asdict(block) for block in found.staged.begun if block not in found.staged.now(tree)],
        "expected_usd": found.staged.expected_usd,
        "one_stage_usd": found.one_stage.expected_usd,
        "value_of_staging_usd": found.value_usd,
        "value_of_stochastic_solution_usd": found.stochastic_usd,
        "unmet_usd_per_mw": unmet_usd(),
        "sites": [{**asdict(site), "limit_mw": site.limit_mw} for site in sites],
        "nodes": [
            {**asdict(node), "stage": tree.stage(i), "running_mw": found.staged.running_mw[i], "unmet_mw": found.staged.unmet_mw[i]}
            for i, node in enumerate(tree.nodes)
        ],
    }


def _sentence(found: Staging, tree: Tree) -> str:
    begun = " and ".join(f"{block.mw:,.0f} MW in {block.site}" for block in found.staged.now(tree)) or "nothing"
    return f"begin {begun} this quarter; expected cost {usd(found.staged.expected_usd)}, staging is worth {usd(found.value_usd)}."
