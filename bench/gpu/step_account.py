"""Where the time of one training step goes, and a lower bound (floor) for each part, as a table and an image.

    PYTHONPATH=src python -m bench.gpu.step_account --case 1b
    PYTHONPATH=src python -m bench.gpu.step_account --device cpu --case tiny --batch 2 --seq-len 256     # tests the script

Kernels are sorted by name into matrix products, attention, optimizer and the rest, which is bound by memory. Idle is the time
between kernels. Floors: products and attention by the spec's FLOPs at the machine's own matrix rate; the optimizer by the bytes
of weights, gradients and moments that it must read and write at the machine's own copy rate; the rest by a count of bytes for
each layer (`least_bytes`) at the same rate. Writes `bench/results/step_account.json` and `docs/step.png`.
"""

import statistics
from pathlib import Path
from typing import Any

import torch

from bench.gpu.limits import clocked, copy_rate, matrix_rates
from bench.harness import ROOT, options, write_results
from bench.train.sides import Job, Side

IMAGE = ROOT / "docs" / "step.png"
# A kernel belongs to the first part with a word that its name contains. The words are from names of CUDA kernels (cuBLAS, CUTLASS,
# cuDNN, Triton, ATen) and of CPU operators.
KINDS = {
    "attention": ("flash", "fmha", "cudnn_generated_fort", "sdpa", "flex_attention", "scaled_dot_product"),
    "optimizer": ("adam", "multi_tensor", "foreach", "lpnorm", "linalg_vector_norm"),
    "matrix products": (
        "gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "triton_tem_fused_mm", "aten::mm", "aten::addmm", "aten::bmm",
    ),
}  # fmt: skip
REST = "bound by memory"
# Profiler events that span kernels and are no kernels themselves.
MARKS = ("ProfilerStep", "Optimizer.", "cuda", "##", "Torch-Compiled", "CompiledF", "AOTDispatcher")


def kind_of(name: str) -> str:
    """The part of the account that a kernel belongs to."""
    return next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), REST)


def least_bytes(side: Side) -> dict[str, float]:
    """The least bytes of memory traffic beside the products' own: inputs are read once and outputs written once.

    A layer in bf16, forward and backward: two norms (3 passes over the residual stream, read and write), the rotation of queries
    and keys, SwiGLU (2 in, 1 out; then 3 in, 2 out), the additions. The loss reads its logits twice and writes their gradient
    once. The optimizer reads weights, gradients and two moments and writes weights and moments; the norm and the clipping read
    the gradients twice and write them once. Under autocast weights are cast to bf16 and gradients back.
    """
    spec, tokens = side.spec, side.rows.tokens
    value = 4.0 if side.device.type == "cpu" or side.job.weights != "bfloat16" else 2.0
    half = 2.0 if side.device.type == "cuda" else 4.0
    heads = (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
    layer = 2 * 3 * 2 * spec.dim + 2 * heads + 8 * spec.ffn_dim + 2 * 3 * spec.dim
    parameters = spec.parameters().total
    casts = 2 * parameters * (value + half) if value != half else 0.0
    return {
        REST: half * tokens * (spec.n_layers * layer + 3 * spec.vocab_size) + casts,
        "optimizer": value * parameters * (7 + 3),
    }


def kernels(side: Side, steps: int) -> list[tuple[str, float]]:
    """(name, seconds per step) of every kernel; on a CPU of every operator, without the operators that it calls."""
    gpu = side.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            side.step()
        if gpu:
            torch.cuda.synchronize()
    found = []
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        marked = getattr(event, "is_user_annotation", False) or event.key.startswith(MARKS)
        if microseconds > 0 and not marked:
            found.append((event.key, microseconds / 1e6 / steps))
    return found


def account(side: Side, steps: int, flops_per_s: float, bytes_per_s: float) -> list[dict[str, Any]]:
    """One row for each part of a step: seconds, share and floor, and the five longest kernels."""
    side.first_step()
    step_s = statistics.median(clocked(side.step, steps, side.device))
    taken: dict[str, list[tuple[str, float]]] = {kind: [] for kind in ("matrix products", "attention", REST, "optimizer")}
    for name, seconds in kernels(side, steps):
        taken[kind_of(name)].append((name, seconds))
    tokens, spec = side.rows.tokens, side.spec
    attention = 3 * sum(length * spec.attention_flops_per_token(length) for row in side.rows.lengths for length in row)
    products = 6.0 * spec.parameters().matrix_active * tokens
    least = least_bytes(side)
    floors = {
        "matrix products": products / flops_per_s,
        "attention": attention / flops_per_s,
        **{kind: least[kind] / bytes_per_s for kind in (REST, "optimizer")},
    }
    rows: list[dict[str, Any]] = [
        {
            "part": kind,
            "seconds": sum(s for _, s in found),
            "floor_s": floors[kind],
            "longest": [{"kernel": n[:120], "seconds": s} for n, s in sorted(found, key=lambda k: -k[1])[:5]],
        }
        for kind, found in taken.items()
    ]
    rows.append({"part": "idle", "seconds": max(0.0, step_s - sum(r["seconds"] for r in rows)), "floor_s": 0.0, "longest": []})
    whole = {"part": "step", "seconds": step_s, "floor_s": sum(floors.values()), "longest": []}
    return [r | {"share": r["seconds"] / step_s} for r in [*rows, whole]]


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw two bars: the measured step and its floors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 2.8))
    at = {"measured": 0.0, "floor": 0.0}
    for i, r in enumerate(r for r in rows if r["part"] != "step"):
        for bar, key in (("measured", "seconds"), ("floor", "floor_s")):
            label = f"{r['part']}: {1e3 * r['seconds']:.3g} ms ({1e3 * r['floor_s']:.3g})" if bar == "measured" else None
            axes.barh(bar, 1e3 * r[key], left=at[bar], color=f"C{i}", label=label)
            at[bar] += 1e3 * r[key]
    axes.set_xlabel("milliseconds of one step (in brackets: floor)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.invert_yaxis()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--case", default="1b", choices=("1b", "8b", "tiny"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--weights", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--name", default="step_account")
    parser.add_argument("--image", type=Path, default=IMAGE)
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high" if given.device == "cuda" else "highest")
    job = Job(
        device=given.device, case=given.case, weights=given.weights, batch=given.batch, seq_len=given.seq_len,
        documents=given.documents, compiled=not given.eager and given.device == "cuda",
    )  # fmt: skip
    side = Side(job)
    limit = matrix_rates(side.device, job.products, 8192 if given.device == "cuda" else 512)["median"]
    rate = copy_rate(side.device, 2**30 if given.device == "cuda" else 2**24)
    rows = account(side, given.steps, limit, rate)
    where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    case = f"{given.case}, {given.batch} x {given.seq_len}, {'documents, ' if given.documents else ''}{given.weights} weights"
    title = f"{case}, on {where}: products at {limit / 1e12:.3g} TFLOP/s, copies at {rate / 1e12:.2g} TB/s"
    for r in rows:
        print(f"{r['part']:18} {1e3 * r['seconds']:10.3f} ms {r['share']:7.1%}   floor {1e3 * r['floor_s']:10.3f} ms")
    note = {"case": case, "gpu": where, "limit_tflops": limit / 1e12, "copy_tb_per_s": rate / 1e12, "micro_batch": side.micro}
    write_results(given.name, [note | r for r in rows])
    draw(rows, title, given.image)


if __name__ == "__main__":
    main()
