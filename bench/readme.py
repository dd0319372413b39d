"""The README's table of results, made from `bench/results`.

    python bench/readme.py
"""

import json
import re
from pathlib import Path
from statistics import mean

from results_file import RESULTS

README = Path(__file__).parent.parent / "README.md"


def rows_of(name: str) -> list[dict]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def climbs() -> list[tuple[str, str]]:
    rows = rows_of("climbs")
    if not rows:
        return []
    corpora = sorted({r["corpus"] for r in rows})
    errors = [abs(r["error_pct"]) for r in rows]
    held = sum(r["inside_80"] for r in rows)
    speed = mean(abs(r["tokens_per_s_error_pct"]) for r in rows)
    by_corpus = ", ".join(f"{c} {mean(abs(r['error_pct']) for r in rows if r['corpus'] == c):.1f} %" for c in corpora)
    return [
        (
            f"{len(rows)} climbs ({len(corpora)} corpora, {rows[0]['top_flops']:.0e} FLOPs): error of the forecast loss, mean",
            f"{mean(errors):.2f} % ({by_corpus})",
        ),
        ("the same: inside the 80 % interval", f"{held} of {len(rows)}"),
        ("the same: error of the forecast speed, mean", f"{speed:.1f} %"),
    ]


def laws() -> list[tuple[str, str]]:
    return [
        (
            f"{r['data']}, forecast from 1/{r['holdout']:g} of the compute ({r['held_out_points']} runs): mean error",
            f"{r['mean_abs_error_pct']:.2f} %, 80 % interval held in {r['inside_80']:.0%}",
        )
        for r in rows_of("published_laws")
        if r["case"] == "backtest" and r["holdout"] == 10 and "porian" not in r["data"]
    ]


def speeds() -> list[tuple[str, str]]:
    ours = [r for r in rows_of("train") if r["system"] == "tenfold"]
    return [
        (
            f"training beside `transformers`, {r['case']}{', compiled' if r['compiled'] else ''}",
            f"{r['vs_transformers']:.2f}x tokens/s, {r['memory_vs_transformers']:.2f}x peak memory",
        )
        for r in ours
    ]


def transfer() -> list[tuple[str, str]]:
    from transfer import best_share

    rows = [r for r in rows_of("transfer") if r["case"] == "optimum"]
    found = []
    for case in sorted({(r["optimiser"], r["width"], r["tokens"]) for r in rows}):
        best = best_share([r for r in rows if (r["optimiser"], r["width"], r["tokens"]) == case])
        found.append((f"best learning rate beside the rule's, width {case[1]}, {case[2] / 1e6:g}M tokens", f"{best:.2f}x"))
    return found


def others() -> list[tuple[str, str]]:
    found = []
    for r in rows_of("data"):
        found.append((f"{r['case']}: clean, find copies, tokenise", f"{r['mb_per_s']:.1f} MB/s, peak {r['peak_mib']:.0f} MiB"))
    for r in rows_of("resume"):
        found.append(("kill -9 at random moments, then resume", f"{r['kills']} kills, weights equal to the bit: {r['equal']}"))
    return found


def main() -> None:
    rows = climbs() + laws() + transfer() + speeds() + others()
    results = sorted(p.name for p in RESULTS.glob("*.json"))
    machines = sorted({json.loads((RESULTS / name).read_text())["machine"] for name in results})
    table = ["| what | figure |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]
    table.append(f"\nOn {'; '.join(machines)}. Commands, dates, versions and every row: `bench/results`.")
    text = README.read_text()
    new = re.sub(
        r"(<!-- results:.*?-->\n).*?(<!-- /results -->)", lambda m: m[1] + "\n".join(table) + "\n" + m[2], text, flags=re.DOTALL
    )
    README.write_text(new)


if __name__ == "__main__":
    main()
