"""A Scout-shaped stack on one GPU, cut in depth to fit: training speed beside the machine's own matrix rate, bf16 and fp8.

    python bench/gpu_experts.py --layers 2 --batch 2 --seq-len 8192

`mfu_of_measured` is the stack's training FLOPs (every matrix product, causal attention at half) per second, beside the best
8192-cubed bf16 product of the same GPU in the same process. A step is forward, backward and a fused AdamW step on bf16 weights.
In fp8 the linear and expert layers are converted; both losses after the same steps are kept, as the control. Prints the
grouped product alone at Scout's shape, balanced and skewed. The results of a GPU that was never lent are not there.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from results_file import write_results

from tenfold.model.llama4 import Llama4
from tenfold.spec.model import published_model
from tenfold.train.optim.fp8 import use_fp8

DEVICE = torch.device("cuda")


def seconds(work, rounds: int = 10) -> float:
    """Median seconds of `work` on the GPU, after two rounds that do not count."""
    taken = []
    for i in range(rounds + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if i >= 2:
            taken.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def matrix_rate(size: int = 8192) -> float:
    """FLOP/s of a square bf16 product."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), 20)


def grouped_rate(skewed: bool, tokens: int = 16_384, dim: int = 5120, hidden: int = 8192, experts: int = 16) -> float:
    """FLOP/s of one grouped product at Scout's shape; skewed: shares as 1, 1/2, 1/3, ..."""
    share = torch.tensor([1 / (i + 1) if skewed else 1.0 for i in range(experts)])
    ends = (share.cumsum(0) / share.sum() * tokens).round().int().to(DEVICE)
    x = torch.randn(tokens, dim, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(experts, hidden, dim, device=DEVICE, dtype=torch.bfloat16).transpose(-2, -1)
    return 2 * tokens * dim * hidden / seconds(lambda: torch._grouped_mm(x, weight, offs=ends), 20)


def stack_row(layers: int, batch: int, seq_len: int, vocab: int, fp8: bool, compiled: bool, steps: int, limit: float) -> dict:
    torch.manual_seed(0)
    scout = published_model("llama-4-scout")
    spec = replace(scout, n_layers=layers, vocab_size=vocab, vision=None)
    torch.set_default_dtype(torch.bfloat16)
    with DEVICE:
        model = Llama4(spec)
    torch.set_default_dtype(torch.float32)
    said = use_fp8(model, DEVICE, torch.bfloat16) if fp8 else "bf16"
    if compiled:
        for block in model.layers:
            block.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    tokens = torch.randint(0, vocab, (batch, seq_len), device=DEVICE)
    targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), 1)
    losses = []

    def step() -> None:
        nats, extra = model.loss(tokens, targets)
        ((nats + extra) / (targets >= 0).sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(nats.detach() / (targets >= 0).sum())

    step_s = seconds(step, steps)
    flops = spec.train_flops_per_token(seq_len) * tokens.numel()
    load = torch.stack([block.ffn.load for block in model.layers]).float()
    return {
        "case": "Scout-shaped stack",
        "precision": said,
        "layers": layers,
        "batch": batch,
        "seq_len": seq_len,
        "vocab": vocab,
        "compiled": compiled,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_s": step_s,
        "tokens_per_s": tokens.numel() / step_s,
        "tflops": flops / step_s / 1e12,
        "mfu_of_measured": flops / step_s / limit,
        "bar": 0.55,
        "busiest_expert_over_mean": (load.amax(-1) / load.mean(-1)).mean().item(),
        "losses": [loss.item() for loss in losses],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA GPU.")
    limit = matrix_rate()
    name = torch.cuda.get_device_name()
    rows = [{"case": "8192-cubed bf16 product", "gpu": name, "tflops": limit / 1e12}]
    for skewed in (False, True):
        what = "skewed" if skewed else "balanced"
        rows.append({"case": f"grouped product alone, {what}", "tflops": grouped_rate(skewed) / 1e12})
    for compiled in (False, True):
        for fp8 in (False, True):
            rows.append(stack_row(given.layers, given.batch, given.seq_len, given.vocab, fp8, compiled, given.steps, limit))
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            print(rows[-1], flush=True)
            write_results("gpu_experts", rows)
        bf16, fp8_row = rows[-2:]
        fp8_row["speed_beside_bf16"] = bf16["step_s"] / fp8_row["step_s"]
        fp8_row["loss_beside_bf16_pct"] = 100 * (fp8_row["losses"][-1] / bf16["losses"][-1] - 1)
    write_results("gpu_experts", rows)


if __name__ == "__main__":
    main()
