"""Training speed and peak memory beside a `transformers` Llama of the same shape, batch and precision.

    python bench/train.py --threads 2

Each case runs both sides in processes of their own that take turns, a few steps each time; the ratio is that of the
medians. AdamW (fused) on both sides, attention by PyTorch's scaled dot product on both, each in the precision that is
the faster for it on this machine. `compiled` cases compile both.
"""

import argparse
import json
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection

from results_file import RESULTS, write_results

TURNS, STEPS = 5, 4


def cases() -> list[dict]:
    """The ladder's sizes, and SmolLM2-135M's shape."""
    ladder = [{"case": f"width {w}", "width": w, "batch": 8, "seq_len": 256} for w in (32, 64, 128, 256)]
    return [*ladder, {"case": "SmolLM2-135M", "published": "smollm2-135m", "batch": 2, "seq_len": 512}]


def _spec(case: dict):
    from tenfold.spec.model import published_model
    from tenfold.spec.shapes import llama_shape

    return published_model(case["published"]) if "published" in case else llama_shape(case["width"], 2048)


def side(link: Connection, case: dict, system: str, dtype_name: str, compiled: bool, threads: int) -> None:
    """One side, in its own process: told to go, takes some steps and answers with their seconds."""
    import torch

    from tenfold.train.memory import peak_memory_bytes, reset_peak_memory

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec, dtype = _spec(case), getattr(torch, dtype_name)
    tokens = torch.randint(0, spec.vocab_size, (case["batch"], case["seq_len"] + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    if system == "tenfold":
        from tenfold.model.llama import Llama

        model = Llama(spec)
        if compiled:
            model.hidden = torch.compile(model.hidden)

        def loss():
            return model.loss(inputs, targets)[0] / targets.numel()
    else:
        import transformers

        config = transformers.LlamaConfig(
            hidden_size=spec.dim,
            num_hidden_layers=spec.n_layers,
            num_attention_heads=spec.n_heads,
            num_key_value_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            intermediate_size=spec.ffn_dim,
            vocab_size=spec.vocab_size,
            tie_word_embeddings=spec.tied,
            max_position_embeddings=2048,
            use_cache=False,
        )
        model = transformers.LlamaForCausalLM(config)
        model.train()
        forward = torch.compile(model) if compiled else model

        def loss():
            return forward(input_ids=inputs, labels=inputs).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> float:
        began = time.perf_counter()
        with autocast:
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    before = peak_memory_bytes(torch.device("cpu"))
    step(), step()
    reset_peak_memory(torch.device("cpu"))
    link.send("ready")
    while link.recv():
        link.send([step() for _ in range(STEPS)])
    link.send({"peak_bytes": peak_memory_bytes(torch.device("cpu")), "before_bytes": before})


def measure(case: dict, compiled: bool, dtypes: dict[str, str], threads: int) -> list[dict]:
    context = get_context("spawn")
    sides = {}
    for system in ("tenfold", "transformers"):
        here, there = context.Pipe()
        process = context.Process(target=side, args=(there, case, system, dtypes[system], compiled, threads), daemon=True)
        process.start()
        sides[system] = (process, here)
    for _, link in sides.values():
        link.recv()
    seconds: dict[str, list[float]] = {system: [] for system in sides}
    for _ in range(TURNS):
        for system, (_, link) in sides.items():
            link.send(True)
            seconds[system] += link.recv()
    rows = []
    per_step = case["batch"] * case["seq_len"]
    for system, (process, link) in sides.items():
        link.send(False)
        memory = link.recv()
        process.join(10)
        rows.append(
            {
                "case": case["case"],
                "system": system,
                "compiled": compiled,
                "dtype": dtypes[system],
                "threads": threads,
                "parameters": _spec(case).parameters().total,
                "tokens_per_step": per_step,
                "tokens_per_s": per_step / statistics.median(seconds[system]),
                "step_s_min": min(seconds[system]),
                "step_s_max": max(seconds[system]),
                "peak_mib": memory["peak_bytes"] / 2**20,
            }
        )
    ours, theirs = rows
    ours["vs_transformers"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
    ours["memory_vs_transformers"] = ours["peak_mib"] / theirs["peak_mib"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile on both sides")
    parser.add_argument("--cases", nargs="+", help="these alone; the rows of the others stay")
    given = parser.parse_args()
    asked = [case for case in cases() if given.cases is None or case["case"] in given.cases]
    earlier = json.loads((RESULTS / "train.json").read_text())["rows"] if given.cases else []
    rows = [row for row in earlier if row["case"] not in given.cases]
    for case in asked:
        for compiled in (False, True) if given.compiled else (False,):
            found = []
            for dtype in given.dtypes:
                found.append(measure(case, compiled, {"tenfold": dtype, "transformers": dtype}, given.threads))
            # each side in its better precision, taking turns once more where those differ
            best = {
                system: max((pair[i] for pair in found), key=lambda r: r["tokens_per_s"])["dtype"]
                for i, system in enumerate(("tenfold", "transformers"))
            }
            chosen = next((p for p in found if all(r["dtype"] == best[r["system"]] for r in p)), None)
            rows += chosen or measure(case, compiled, best, given.threads)
            ours = rows[-2]
            print(
                f"{case['case']}{' compiled' if compiled else ''}: {ours['tokens_per_s']:.0f} tokens/s, "
                f"{ours['vs_transformers']:.2f}x transformers, memory {ours['memory_vs_transformers']:.2f}x",
                flush=True,
            )
            write_results("train", rows)


if __name__ == "__main__":
    main()
