"""The tables of results, made from the headlines in `bench/results`: the README's, and all of them in docs/results.md.

python -m bench.readme
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from bench.harness import RESULTS, ROOT

SHOWN = (
    "climbs", "published_laws", "ladders", "known_laws", "plan", "plan_ranges", "train", "experts", "layouts", "faults", "resume",
    "dry_run", "save_stall", "serve", "greedy", "load", "hostile", "durable", "tuning", "next", "exports", "rank_serving",
    "fleet_policies", "fleet_year", "fleet_ledger", "fleet_demo", "circle",
)  # fmt: skip


def table(results: Iterable[dict[str, Any]]) -> str:
    rows = [f"| {row['what']} | {row['figure']} |" for result in results for row in result["headline"]]
    return "\n".join(["| what | figure |", "|---|---|", *rows])


def main() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    machines = "; ".join(sorted({result["machine"] for result in found.values()}))
    said = f"On {machines}. Commands, dates, versions and every row: `bench/results`."
    shown = [name for name in SHOWN if name in found]
    readme = ROOT / "README.md"
    block = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)
    short = f"{table(found[name] for name in shown)}\n\n{said} All results in one table: [docs/results.md](docs/results.md).\n"
    readme.write_text(block.sub(lambda m: m[1] + short + m[2], readme.read_text()))
    parts = [f"## {name}\n\n`{found[name]['command']}`\n\n{table([found[name]])}\n" for name in dict.fromkeys([*shown, *found])
             if found[name]["headline"]]  # fmt: skip
    (ROOT / "docs" / "results.md").write_text(f"# Results\n\n{said}\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
