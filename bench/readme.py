"""Make the tables of results from the headlines in `bench/results`: a selection in the README, and all in docs/results.md.

python -m bench.readme
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from bench.harness import RESULTS, ROOT

# The rows in the README: the name of the result's file, and the beginning of the row's text.
SHOWN = (
    ("climbs", "12 climbs"), ("climbs", "the same: loss inside"), ("ladders", "26 public ladders"),
    ("plan", "plan, step time, mean"), ("plan", "plan, median error"), ("train", "training beside"), ("layouts", "61 layouts"),
    ("faults", "30 faults"), ("resume", "kill -9"), ("serve", "SmolLM2-135M, decode 1,"), ("serve", "SmolLM2-135M, prompt 512"),
    ("load", "64 clients"), ("durable", "50 kills"), ("tuning", "sft beside"), ("next", "600 judgements"),
    ("exports", "SmolLM2-135M as GGUF f16"),
    ("rank_serving", "1,000 candidates, history of 200, 1,000,000"),
    ("fleet_policies", "lend beside"), ("circle", "the whole circle"),
)  # fmt: skip


def table(headline: Iterable[dict[str, Any]]) -> str:
    rows = [f"| {row['what']} | {row['figure']} |" for row in headline]
    return "\n".join(["| what | figure |", "|---|---|", *rows])


def main() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    machines = "; ".join(sorted({result["machine"] for result in found.values()}))
    said = f"On {machines}. Commands, dates, versions and every row: `bench/results`."
    shown = [row for name, begins in SHOWN for row in found[name]["headline"] if row["what"].startswith(begins)]
    readme = ROOT / "README.md"
    block = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)
    short = f"{table(shown)}\n\n{said} All results in one table: [docs/results.md](docs/results.md).\n"
    readme.write_text(block.sub(lambda m: m[1] + short + m[2], readme.read_text()))
    parts = [f"## {name}\n\n`{one['command']}`\n\n{table(one['headline'])}\n" for name, one in found.items() if one["headline"]]
    (ROOT / "docs" / "results.md").write_text(f"# Results\n\n{said}\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
