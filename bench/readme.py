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
    from transfer import best_share, case_of

    rows = [r for r in rows_of("transfer") if r["case"] == "optimum"]
    found = []
    for case in sorted({case_of(r) for r in rows}):
        best = best_share([r for r in rows if case_of(r) == case])
        kind = ", experts" if case[0] == "llama4" else ""
        found.append((f"best learning rate beside the rule's, width {case[2]}, {case[3] / 1e6:g}M tokens{kind}", f"{best:.2f}x"))
    return found


def experts() -> list[tuple[str, str]]:
    found = []
    for r in rows_of("experts"):
        if r["case"] == "layer":
            low, high = r["expert_over_dense_quartiles"]
            what = f"expert layer, width {r['dim']}, tokens/s beside the same active compute dense"
            found.append((what, f"{r['expert_over_dense']:.2f}x ({low:.2f} to {high:.2f})"))
        elif r["case"] == "training step":
            low, high = r["ours_over_transformers_quartiles"]
            what = f"training step beside `transformers`' Llama 4, width {r['width']}"
            found.append((what, f"{r['ours_over_transformers']:.1f}x ({low:.1f} to {high:.1f})"))
        else:
            found.append(("memory of routing beside expert weights and activations", f"{r['routing_share']:.1%}"))
    for r in rows_of("expert_climbs"):
        if r["case"] == "over seeds" and r["interval_95"]:
            low, high = r["interval_95"]
            what = f"experts beside dense at {r['top_flops']:.0e} FLOPs, bits per byte, {len(r['seeds'])} climbs of each"
            found.append((what, f"{r['experts_beside_dense_pct']:+.2f} % (95 %: {low:+.2f} to {high:+.2f} %)"))
            found.append(("the same: error of the experts' forecast, mean", f"{r['mean_abs_forecast_error_pct_experts']:.2f} %"))
    for r in rows_of("expert_runs"):
        if r.get("interval_95"):
            low, high = r["interval_95"]
            what = f"{r['case']}, {r['asked_flops']:.0e} FLOPs, bits per byte, {len(r['seeds'])} seeds"
            found.append((what, f"{r['difference_pct']:+.2f} % (95 %: {low:+.2f} to {high:+.2f} %)"))
    for r in rows_of("pictures"):
        low, high = r["margin_over_shuffled_interval_95"]
        what = f"naming {r['drawings_asked']} held-out drawings among 20 names (chance 5 %), seed {r['seed']}"
        figure = f"{r['choice_of_20']:.0%}; trained on shuffled pictures {r['trained_shuffled']:.0%}"
        found.append((what, f"{figure}; margin 95 %: {100 * low:.0f} to {100 * high:.0f} points, p {r['p_against_shuffled']:.1g}"))
    return found


def plans() -> list[tuple[str, str]]:
    found = []
    shown = ("all of layouts.csv", "vTrain, one node", "vTrain, 64 to 512 GPUs", "all that report it")
    for r in rows_of("plan"):
        if r["what"] == "error" and r["source"] in shown:
            found.append((f"plan, {r['kind']}, {r['source']} ({r['rows']} rows): mean error", f"{r['mean_abs_pct']:.1f} %"))
        elif r["what"] == "error" and r["kind"].startswith(("GPU-hours, all", "t CO2e")):
            found.append((f"plan, {r['kind']} ({r['rows']} {r['source']}): median error", f"{r['median_abs_pct']:.1f} %"))
        elif r["what"] == "remark" and r["text"].startswith("Ranking") and (hit := re.search(r"best in (.*) \((.*)\)", r["text"])):
            found.append(("plan: its favourite is within 3 % of the measured best", f"{hit[1]} ({hit[2]})"))
        elif r["what"] == "search":
            found.append((f"plan: full search, {r['model']} on {r['gpus']:,} GPUs", f"{r['wall_s']:.1f} s"))
    return found


def others() -> list[tuple[str, str]]:
    found = []
    for r in rows_of("data"):
        what = f"{r['text_mb']:.0f} MB of text: tokenise and pack; peak memory of the whole build"
        found.append((what, f"{r['tokenise_and_pack_mb_per_s']:.1f} MB/s; {r['peak_memory_mib']:.0f} MiB"))
    for r in rows_of("resume"):
        found.append(("kill -9 at random moments, then resume", f"{r['kills']} kills, weights equal to the bit: {r['equal']}"))
    return found


def main() -> None:
    rows = climbs() + laws() + plans() + transfer() + speeds() + experts() + others()
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
