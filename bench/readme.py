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


def scaled_out() -> list[tuple[str, str]]:
    found = []
    layouts = rows_of("layouts")
    losses = [r for r in layouts if "loss_difference" in r]
    if losses:
        worst = max(r["loss_difference"] for r in losses)
        what = f"{len(losses)} layouts of 4 or 8 processes beside one, float64: largest difference of the loss"
        pairs = [r["same_to_the_bit"] for r in layouts if "same_to_the_bit" in r]
        found += [
            (what, f"{worst:.0e}"),
            ("checkpoints resharded between two layouts, equal to the bit", f"{sum(pairs)} of {len(pairs)} pairs"),
        ]
    for r in rows_of("faults"):
        equal = "equal to the bit" if r["losses_equal"] and r["weights_equal"] else "not equal"
        shares = f"goodput {r['disturbed']['goodput']:.0%}, undisturbed {r['undisturbed']['goodput']:.0%}"
        found.append((f"{r['case']}: losses and weights beside an undisturbed run", f"{equal}; {shares}"))
    for r in rows_of("recovery"):
        low, high = min(r["recovery_s"]), max(r["recovery_s"])
        found.append((f"{r['case']}: from each kill to the next step", f"{low:.1f} to {high:.1f} s"))
    for r in rows_of("dry_run"):
        middle = r["ranks"][len(r["ranks"]) // 2 if r["layout"]["pipeline"] > 1 else 0]
        memory, sent = max(rank["memory_gib"] for rank in r["ranks"]), sum(middle["sent_gib"].values())
        planned = f"{r['plan_memory_gib']:.0f} and {sum(r['plan_sent_gib'].values()):.0f}"
        figure = f"{r['wall_s']:.0f} s; {memory:.0f} GiB held, {sent:.0f} GiB sent a step (planner {planned})"
        found.append((f"dry run, {r['case']}", figure))
    for r in rows_of("save_stall"):
        found.append((f"{r['case']}: time that saving takes from the steps", f"{r['stall_pct']:.1f} %"))
    for r in rows_of("loader"):
        if r["step_ms"] and r["store"] == "s3":
            what = f"loader behind {r['latency_ms']} ms, S3, {r['kept']}, steps of {r['step_ms']} ms: of the local throughput"
            found.append((what, f"{r['share_of_local']:.0%}"))
    return found


def served() -> list[tuple[str, str]]:
    found = []
    speed = {(r["system"], r["case"]): r["tokens_per_s"] for r in rows_of("serve") if "tokens_per_s" in r}
    for case in sorted({case for _, case in speed}):
        others = {"transformers": max((v for (s, c), v in speed.items() if c == case and "transformers" in s), default=0)}
        others["llama.cpp"] = speed.get(("llama.cpp", case), 0)
        others["vLLM"] = speed.get(("vllm bfloat16", case), 0)
        for system in ("tenfold", "tenfold int8"):
            if (ours := speed.get((system, case))) is not None:
                beside = ", ".join(f"{ours / theirs:.1f}x {name}" for name, theirs in others.items() if theirs)
                found.append((f"{system}, SmolLM2-135M, {case}, tokens/s", f"{ours:.0f}; {beside}"))
    found += [("from the command to the first token", f"{r['seconds']} s") for r in rows_of("serve") if "seconds" in r]
    for r in rows_of("greedy"):
        if "of" in r:
            found.append(("greedy answers equal to those of `transformers`, token for token", f"{r['equal']} of {r['of']}"))
    for r in rows_of("load"):
        what = f"{r['clients']} clients, {r['seconds']:.0f} s, a quarter cancelling: failed; p99 between tokens; growth of memory"
        found.append((what, f"{r['failed']} of {r['finished']}; {r['between_tokens_p99_ms']} ms; {r['memory_growth_pct']} %"))
    for r in rows_of("durable"):
        what = f"{r['kills']} kills while feedback is written: acknowledged and lost"
        found.append((what, f"{r['lost']} of {r['acknowledged']}"))
    for r in rows_of("openapi"):
        if "operations" in r:
            found.append((f"schemathesis, {r['examples']} examples of each operation and mode: failures", f"{r['failures']}"))
    tests = [r for r in rows_of("conformance") if "passed" in r]
    if tests:
        passed, run = sum(r["passed"] for r in tests), sum(r["passed"] + r["failed"] for r in tests)
        what = "tests of OpenAI's own client that pass (the others need stored objects: docs/serve.md)"
        found.append((what, f"{passed} of {run}"))
    return found


def others() -> list[tuple[str, str]]:
    found = []
    for r in rows_of("data"):
        what = f"{r['text_mb']:.0f} MB of text: tokenize and pack; peak memory of the whole build"
        found.append((what, f"{r['tokenize_and_pack_mb_per_s']:.1f} MB/s; {r['peak_memory_mib']:.0f} MiB"))
    for r in rows_of("resume"):
        found.append(("kill -9 at random moments, then resume", f"{r['kills']} kills, weights equal to the bit: {r['equal']}"))
    return found


def main() -> None:
    rows = climbs() + laws() + plans() + transfer() + speeds() + experts() + scaled_out() + served() + others()
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
