"""The README's table of results, made from the headlines in `bench/results`.

python -m bench.readme
"""

import json
import re

from bench.harness import RESULTS, ROOT

ORDER = (
    "climbs", "published_laws", "plan", "train", "transfer", "experts", "expert_climbs", "expert_runs", "images", "layouts",
    "faults", "recovery", "resume", "dry_run", "save_stall", "loader", "data", "serve", "greedy", "load", "durable", "openapi",
    "conformance", "interruptions",
)  # fmt: skip


def main() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    named = [name for name in ORDER if name in found]
    rows = [row for name in dict.fromkeys([*named, *found]) for row in found[name]["headline"]]
    table = ["| what | figure |", "|---|---|", *(f"| {row['what']} | {row['figure']} |" for row in rows)]
    machines = "; ".join(sorted({result["machine"] for result in found.values()}))
    table.append(f"\nOn {machines}. Commands, dates, versions and every row: `bench/results`.")
    readme = ROOT / "README.md"
    block = re.compile(r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", re.DOTALL)
    readme.write_text(block.sub(lambda m: m[1] + "\n".join(table) + "\n" + m[2], readme.read_text()))


if __name__ == "__main__":
    main()
